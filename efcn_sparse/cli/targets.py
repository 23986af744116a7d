"""Models that commands are asked about: by name, as ``package.module:function``, or as ``my_file.py:function``;
and where pictures of them go.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from efcn_sparse.importing import imported

INPUTS = {"vanilla": "3,32,32", "alexnet": "3,32,32", "resnet18": "3,224,224", "resnet50": "3,224,224"}


def input_size(text: str | None) -> list[int]:
    """The sides in ``C,H,W``.

    Raises:
        ValueError: there are none, or they are no sizes.
    """
    if text is None:
        raise ValueError("--input must be given for a model of your own, such as --input 3,224,224")
    size = [int(side) if side.isascii() and side.isdigit() else 0 for side in text.split(",")]
    if min(size) < 1:
        raise ValueError(f"--input must be integers of at least 1 with commas between, got {text!r}")
    return size


def factory_of(name: str, argument: str = "MODEL") -> Callable[[], Any]:
    """What makes the model of that name, or of ``package.module:function``.

    Raises:
        ValueError: there is no such function; the message calls it ``argument``.
    """
    from efcn_sparse.models import MODELS

    if name in MODELS:
        return MODELS[name]
    module, colon, function = name.rpartition(":")
    if not (module and colon and function):
        raise ValueError(f"{argument} must be one of {', '.join(MODELS)} or package.module:function, got {name!r}")
    found = imported(name, argument)
    if not callable(found):
        raise ValueError(f"{argument} must name a callable, got {name!r}, a {type(found).__name__}")

    def make() -> Any:
        try:
            return found()
        except TypeError as error:
            raise ValueError(f"{argument} must be callable without arguments, got {name!r}: {error}") from error
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(
                f"{argument} {name} must make a model, and raised {kind}: {error} (--traceback)"
            ) from error

    return make


def picture_path(option: str, text: str | None) -> Path | None:
    """Where the picture is to be written that ``option`` asks for, None if there is to be none.

    Raises:
        ValueError: no ``.png`` or ``.svg`` file can be written there.
    """
    if text is None:
        return None
    path = Path(text)
    if path.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"{option} must be a file that ends in .png or .svg, got {text!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{option} must be in a folder that exists, got {text!r}")
    return path
