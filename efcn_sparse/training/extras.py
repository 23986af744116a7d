"""Packages that only some presets need."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType


def require(module: str, *, package: str, extra: str, needed_for: str) -> ModuleType:
    """``module``, imported; where it is missing the message says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.partition(".")[0] != error.name.partition(".")[0]:
            raise
        raise _missing(error.name, package, extra, needed_for) from None


def find_package(module: str, *, package: str, extra: str, needed_for: str) -> Path:
    """The folder of a top-level ``module`` that is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise _missing(module, package, extra, needed_for)
    return Path(found.origin).parent


def _missing(module: str, package: str, extra: str, needed_for: str) -> ModuleNotFoundError:
    message = f"{needed_for} needs {package}, which is not installed: pip install 'efcn-sparse[{extra}]'"
    return ModuleNotFoundError(message, name=module)
