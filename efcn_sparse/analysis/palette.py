"""One colour, marker and name for each arm, the same in every figure and table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito (2008), which stay apart under the common colour-vision deficiencies; the references are greys.
_FIXED = {
    "cnn": ("CNN", "#1b1b1b", "o"),
    "cnn-relaxed": ("CNN, relaxed lr", "#56b4e9", "P"),
    "elcn": ("eLCN", "#009e73", "s"),
    "efcn-full": ("eFCN full", "#d55e00", "^"),
    "fcn": ("FCN", "#6e6e6e", "X"),
}
_DILATED = (("#0072b2", "D"), ("#cc79a7", "v"), ("#b08900", "<"), ("#6a51a3", ">"))


@dataclass(frozen=True)
class Look:
    """How an arm is drawn and named."""

    name: str
    colour: str
    marker: str


def look_of(arm: str, arms: Sequence[str] = ()) -> Look:
    """The :class:`Look` of ``arm`` among ``arms``, which number the dilated eFCNs.

    Example:
        >>> look_of("efcn-dilated2", ["cnn", "efcn-dilated2", "efcn-full"])
        Look(name='eFCN dilated 2', colour='#0072b2', marker='D')
    """
    if arm in _FIXED:
        return Look(*_FIXED[arm])
    others = [other for other in arms if other not in _FIXED]
    colour, marker = _DILATED[(others.index(arm) if arm in others else 0) % len(_DILATED)]
    radius = arm.removeprefix("efcn-dilated")
    return Look(f"eFCN dilated {radius}" if radius != arm else arm, colour, marker)
