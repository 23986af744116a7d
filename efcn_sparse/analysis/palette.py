"""One color, marker and name for each arm, the same in every figure and table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efcn_sparse.embedding import Dilated, Grown, LowRank, Support
from efcn_sparse.training.plan import support_of

# Chosen to stay apart under the common color-vision deficiencies (tests/analysis/test_palette.py); FCN and CNN are
# greys. A family of supports has one hue, of which larger supports have the darker shades.
_FIXED = {
    "cnn": ("CNN", "#1b1b1b", "o"),
    "cnn-relaxed": ("CNN, relaxed lr", "#ccaa00", "P"),
    "elcn": ("eLCN", "#009e73", "s"),
    "efcn-full": ("eFCN full", "#d55e00", "^"),
    "fcn": ("FCN", "#6e6e6e", "X"),
}
_FAMILIES: dict[type[Support], tuple[tuple[str, str], ...]] = {
    Dilated: (("#74b9e8", "<"), ("#1f78c8", "D"), ("#0a3f8f", ">")),
    Grown: (("#ee9ab8", "p"), ("#d04a9f", "v"), ("#8e1a6e", "h")),
    LowRank: (("#aeb86b", "*"), ("#576732", "d"), ("#273409", "8")),
}
_SHADES = {1: (1,), 2: (1, 2), 3: (0, 1, 2)}  # by the size of the family


@dataclass(frozen=True)
class Look:
    """How an arm is drawn and named."""

    name: str
    color: str
    marker: str


def look_of(arm: str, arms: Sequence[str] = ()) -> Look:
    """The :class:`Look` of ``arm`` among ``arms``, whose order numbers the shades of each family.

    Example:
        >>> look_of("efcn-grown1.5", ["cnn", "efcn-grown1.5", "efcn-grown2", "efcn-full"])
        Look(name='eFCN grown 1.5', color='#d04a9f', marker='v')
    """
    if arm in _FIXED:
        return Look(*_FIXED[arm])
    support = support_of(arm)
    looks = _FAMILIES.get(type(support), _FAMILIES[Dilated]) if support else _FAMILIES[Dilated]
    family = [other for other in arms if other not in _FIXED and type(support_of(other)) is type(support)]
    rank = family.index(arm) if arm in family else 0
    shade = _SHADES[min(max(len(family), 1), len(looks))][rank % len(looks)]
    return Look(_name(arm, support), *looks[shade])


def _name(arm: str, support: Support | None) -> str:
    if isinstance(support, Dilated):
        return f"eFCN dilated {support.radius}"
    if isinstance(support, (Grown, LowRank)):
        start = f" from dilated {support.start.radius}" if isinstance(support.start, Dilated) else ""
        what = f"grown {support.budget:g}" if isinstance(support, Grown) else f"low rank {support.rank}"
        return f"eFCN {what}{start}"
    return arm
