"""Small layers must take many tiles."""

from tests.growth.conftest import tiles

__all__ = ["tiles"]
