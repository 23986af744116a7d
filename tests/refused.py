"""Calls with bad input: each names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

BadCall = tuple[Callable[[], Any], type[Exception], str]


def assert_refused(
    call: Callable[..., Any], kind: type[Exception], message: str, *arguments: Any, **options: Any
) -> None:
    """The call raises this kind of exception itself, with this message to the letter."""
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    assert type(caught.value) is kind, type(caught.value)
    assert str(caught.value) == message, str(caught.value)
