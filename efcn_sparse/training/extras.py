"""Packages that only some presets need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, package: str, extra: str, needed_for: str) -> ModuleType:
    """``module``, imported; where it is missing the message says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.partition(".")[0] != error.name.partition(".")[0]:
            raise
        message = f"{needed_for} needs {package}, which is not installed: pip install 'efcn-sparse[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from None
