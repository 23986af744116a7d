"""The color and the marker of each arm in figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from efcn_sparse.embedding import Dilated, Grown, LowRank
from efcn_sparse.training.arms import CNN, CONTROL, ELCN, FCN, FULL, Arm


@dataclass(frozen=True)
class Look:
    """How an arm is drawn and named."""

    label: str
    color: str
    marker: str


# Chosen to stay apart under the common color-vision deficiencies (tests/analysis/test_arms.py); FCN and CNN are
# grays. A family of supports has one hue, of which larger supports have the darker shades.
_FIXED = {CNN: ("#1b1b1b", "o"), CONTROL: ("#ccaa00", "P"), ELCN: ("#009e73", "s"), FULL: ("#d55e00", "^"),
          FCN: ("#6e6e6e", "X")}  # fmt: skip
FAMILIES: dict[type[object], tuple[tuple[str, str], ...]] = {
    Dilated: (("#74b9e8", "<"), ("#1f78c8", "D"), ("#0a3f8f", ">")),
    Grown: (("#ee9ab8", "p"), ("#d04a9f", "v"), ("#8e1a6e", "h")),
    LowRank: (("#aeb86b", "*"), ("#576732", "d"), ("#273409", "8")),
}
_SHADES = {1: (1,), 2: (1, 2), 3: (0, 1, 2)}  # by the size of the family


def looks_of(arms: Iterable[Arm]) -> dict[Arm, Look]:
    """The :class:`Look` of each arm beside the others, in their order.

    Example:
        >>> looks_of([Arm.parse("efcn-grown1.5"), CNN])[CNN]
        Look(label='CNN', color='#1b1b1b', marker='o')
    """
    ordered = sorted(set(arms), key=lambda arm: arm.order)
    found = {}
    for arm in ordered:
        if arm in _FIXED:
            color, marker = _FIXED[arm]
        else:
            looks = FAMILIES[type(arm.support)]
            family = [other for other in ordered if other not in _FIXED and type(other.support) is type(arm.support)]
            shades = _SHADES[min(len(family), len(looks))]
            color, marker = looks[shades[family.index(arm) % len(looks)]]
        found[arm] = Look(arm.label, color, marker)
    return found
