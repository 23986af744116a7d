"""What relaxing frees, layer by layer and part by part, as a configuration and the command line write it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from efcn_sparse.training.optim.shares import Part, Parts

RELAXING: dict[str, tuple[str, ...]] = {  # what stays as it is
    "both": (),
    "sharing": ("off_local",),
    "locality": ("untied",),
    "none": ("untied", "off_local"),
}
_PARTS = tuple(field.name for field in dataclasses.fields(Parts))
_SETTINGS = tuple(field.name for field in dataclasses.fields(Part))


class PartEntry(NamedTuple):
    """Settings of one part in all layers whose name matches a shell-style pattern.

    Its text is ``[LAYER/]PART:SETTING=NUMBER[,SETTING=NUMBER...]``; PART is ``tied``, ``untied`` or ``off-local``,
    SETTING is ``rate``, ``weight-decay``, ``l1`` or ``beta`` (see :class:`Part`).

    Law: ``PartEntry.parse(str(entry)) == entry``.

    Raises:
        ValueError: (in ``parse``) the text has another form; the message tells what is wrong.

    Example:
        >>> PartEntry.parse("features.*/off_local:l1=1e-5,rate=0.50")
        PartEntry(layers='features.*', part='off_local', settings=(('l1', 1e-05), ('rate', 0.5)))
        >>> str(_), str(PartEntry.parse("tied:rate=0"))
        ('features.*/off-local:l1=1e-05,rate=0.5', 'tied:rate=0')
    """

    layers: str
    part: str
    settings: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> PartEntry:
        if not isinstance(text, str):
            raise ValueError(f"each of parts must be a string such as 'off-local:rate=0.5', got {text!r}")
        where, _, settings = text.partition(":")
        layers, slash, part = where.rpartition("/")
        part = part.replace("-", "_")
        if part not in _PARTS or (slash and not layers):
            raise _wrong(text, f"what to set must be one of {_spelt(*_PARTS)}, with LAYER/ before it or nothing")
        found: dict[str, float] = {}
        for item in settings.split(","):
            name, _, number = item.partition("=")
            name = name.strip().replace("-", "_")
            if name not in _SETTINGS:
                raise _wrong(text, f"each setting must be one of {_spelt(*_SETTINGS)}, got {_spelt(name)!r}")
            if name in found:
                raise _wrong(text, f"each setting must be given once, got {_spelt(name)!r} again")
            found[name] = _number(text, _spelt(name), number)
        return cls(layers or "*", part, tuple(found.items()))

    def __str__(self) -> str:
        where = "" if self.layers == "*" else f"{self.layers}/"
        settings = ",".join(f"{_spelt(name)}={repr(value).removesuffix('.0')}" for name, value in self.settings)
        return f"{where}{_spelt(self.part)}:{settings}"


def parts_of_layers(
    names: Sequence[str], relaxing: str, entries: Sequence[str], weight_decay: float
) -> dict[str, Parts]:
    """The parts of each convolution by name: what ``relaxing`` freezes, then entry by entry what each of them sets.

    Args:
        names: of the convolutions.
        relaxing: a key of ``RELAXING``.
        entries: texts of :class:`PartEntry`; where several set the same, the last one counts.
        weight_decay: of all parts, unless an entry sets it.

    Raises:
        ValueError: an entry is wrong, matches no name, or leaves a part with settings that do not go together.
    """
    settings: dict[str, dict[str, dict[str, float]]] = {
        name: {
            part: {"weight_decay": weight_decay, **({"rate": 0.0} if part in RELAXING[relaxing] else {})}
            for part in _PARTS
        }
        for name in names
    }
    for text in entries:
        entry = PartEntry.parse(text)
        matching = [name for name in names if fnmatchcase(name, entry.layers)]
        if not matching:
            raise ValueError(f"parts must name convolutions of the net, {', '.join(names)}, got {text!r}")
        for name in matching:
            settings[name][entry.part].update(entry.settings)
    made: dict[str, Parts] = {}
    for name, parts in settings.items():
        try:
            made[name] = Parts(**{part: Part(**fields) for part, fields in parts.items()})
        except ValueError as error:
            raise ValueError(f"parts must go together in each layer, got for {name}: {error}") from None
    return made


def _spelt(*names: str) -> str:
    return ", ".join(names).replace("_", "-")


def _number(text: str, name: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        raise _wrong(text, f"{name} must be a number, got {number!r}") from None
    if not (math.isfinite(value) and value >= 0):
        raise _wrong(text, f"{name} must be a finite number of at least 0, got {number!r}")
    return value + 0.0  # no negative zero


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(
        f"each of parts must be [LAYER/]PART:SETTING=NUMBER,... such as 'off-local:rate=0.5', got {text!r}: {why}"
    )
