"""Files that are either the old ones or the new ones, whatever moment the process is killed at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

SUFFIX = ".tmp"


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a neighbor of ``path``, force it to the disk and move it into place.

    Raises:
        OSError: it could not be written (the disk is full, say); the neighbor is gone, and ``path`` is as it was.
    """
    temporary = path.with_name(path.name + SUFFIX)
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = f"{error.strerror or error}, so nothing was changed"
        raise OSError(error.errno, reason, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # the new name is safe only once its folder is


def write_text_atomically(path: Path, text: str) -> None:
    """:func:`replace_atomically` with a text."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    replace_atomically(path, write)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
