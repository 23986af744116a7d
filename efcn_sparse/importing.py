"""What is imported by name: ``package.module:name`` or ``folder/my_file.py:name``, and packages that may be missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def imported(target: str, argument: str) -> Any:
    """The object that ``target`` names, looked for as Python does that runs in this folder, or runs this file.

    Raises:
        ValueError: there is none; the message calls it ``argument``.
    """
    module, colon, name = target.rpartition(":")
    if not (module and colon and name):
        raise ValueError(f"{argument} must be package.module:name or file.py:name, got {target!r}")
    try:
        found: Any = _file(Path(module)) if module.endswith(".py") else _module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, OSError) as error:
        raise ValueError(f"{argument} must name something that can be imported, got {target!r}: {error}") from error
    return found


def _module(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())  # so that a file of one's own is found, as with python -m
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def _file(path: Path) -> ModuleType:
    """The module that a file is; it may import its neighbors. It is run once in a process."""
    path = path.expanduser().resolve()
    name = path.stem if path.stem.isidentifier() and importlib.util.find_spec(path.stem) is None else f"_{path.stem}_"
    there = sys.modules.get(path.stem) or sys.modules.get(f"_{path.stem}_")
    if there is not None and getattr(there, "__file__", None) == str(path):
        return there
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as classes in it are found when they are pickled
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


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
