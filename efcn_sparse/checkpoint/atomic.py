"""Files that are either the old ones or the new ones, whatever moment the process is killed at, and never behind links.

A folder that is written to may have been prepared by somebody else, so nothing here follows a symbolic link in it:
new files are created exclusively and moved into place, and what is appended to or written into must be no link.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

SUFFIX = ".tmp"


def replace_atomically(path: Path, write: Callable[[FileIO], None]) -> None:
    """Let ``write`` fill a new neighbor of ``path``, force it to the disk and move it into place.

    Raises:
        OSError: it could not be written (the disk is full, say); the neighbor is gone, and ``path`` is as it was.
    """
    temporary = path.with_name(path.name + SUFFIX)
    try:
        temporary.unlink(missing_ok=True)  # what a kill left, or a link, but not what it leads to
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with FileIO(descriptor, "wb") as file:
            write(file)
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        reason = f"{error.strerror or error}, so nothing was changed"
        raise OSError(error.errno, reason, str(path)) from error
    except BaseException:
        _remove(temporary)
        raise
    _sync(path.parent)  # the new name is safe only once its folder is


def write_text_atomically(path: Path, text: str) -> None:
    """:func:`replace_atomically` with a text."""
    replace_atomically(path, lambda file: write_all(file, memoryview(text.encode())))


def write_all(file: FileIO, view: memoryview) -> None:
    """Write all of ``view``, of which an unbuffered file may take less at a time."""
    while view:
        view = view[file.write(view) :]


def open_to_append(path: Path) -> int:
    """A descriptor that appends to ``path``, which is made if it is not there.

    Raises:
        ValueError: it is a symbolic link.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError:
        if path.is_symlink():
            raise ValueError(f"{path} must be a file of its own, got a symbolic link") from None
        raise


def own_folder(path: Path) -> Path:
    """``path``, made if it is not there.

    Raises:
        ValueError: it is a symbolic link or a file.
    """
    if not path.is_symlink():
        try:
            path.mkdir(exist_ok=True)
            return path
        except FileExistsError:
            pass
    raise ValueError(f"{path} must be a folder, got a {'symbolic link' if path.is_symlink() else 'file'}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: it holds something else; the message names the file.
    """
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: bytes, told: str) -> dict[str, Any]:
    """The JSON object that ``text`` is; ``told`` is what a message calls it."""
    try:
        found = json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{told} must hold a JSON object, got one that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{told} must hold a JSON object, got text that is none: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{told} must hold a JSON object, got a {type(found).__name__}")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
