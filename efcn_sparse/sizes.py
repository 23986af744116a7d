"""Sizes of memory, and numbers of weights, as people write them."""

from __future__ import annotations

import re

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_FACTORS = {unit.lower(): 1024**power for power, unit in enumerate(_UNITS)} | {
    unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb", "pb"))
}


def size_text(size: float) -> str:
    """Bytes in the unit that suits them.

    Example:
        >>> size_text(5), size_text(3 << 29)
        ('5 B', '1.5 GiB')
    """
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.1f} {unit}" if unit != "B" else f"{size:.0f} B"


def count_text(number: float) -> str:
    """Three digits and a prefix.

    Example:
        >>> count_text(847), count_text(999_700), count_text(1.68e9)
        ('847', '1 M', '1.68 G')
    """
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g}"


def parse_size(name: str, text: str) -> int:
    """The bytes that ``text`` means; ``name`` is what errors call it.

    Raises:
        ValueError: it is no positive number with a unit.

    Example:
        >>> parse_size("budget", "1.5GiB") == 3 << 29, parse_size("budget", "10 kB")
        (True, 10000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text, re.ASCII | re.IGNORECASE)
    size = int(float(match[1]) * _FACTORS.get(match[2].lower(), 0)) if match else 0
    if size < 1:
        raise ValueError(f"{name} must be a size such as 100GiB or 512MB, got {text!r}")
    return size
