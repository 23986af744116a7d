"""An arm: one kind of net of the relax protocol, with its place, its name and its color in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from efcn_sparse.embedding import Dilated, Full, Grown, Local, LowRank, Support, parse_support

FORMS = "cnn, fcn, elcn, efcn-dilated<radius>, efcn-grown<budget>, efcn-lowrank<rank>, efcn-full"


@dataclass(frozen=True)
class Arm:
    """One kind of net. Trained with one seed, and if it is relaxed from one epoch of the CNN, it is a *stage*.

    Attributes:
        name: as files and the command line have it.
        support: which weights of its embedded layers may be non-zero; None: it is a CNN.
        relaxed: whether it starts from the CNN at a relax time, and not from scratch.

    Law: ``Arm.parse(str(arm)) == arm``.

    Example:
        >>> arm = Arm.parse("efcn-dilated2")
        >>> arm.support, arm.label, arm.embedded
        (Dilated(radius=2), 'eFCN dilated 2', True)
        >>> Arm.parse("efcn-dilated0")
        Traceback (most recent call last):
        ValueError: each of arms must be one of cnn, fcn, elcn, efcn-dilated<radius>, efcn-grown<budget>,
        efcn-lowrank<rank>, efcn-full, got 'efcn-dilated0'
    """

    name: str
    support: Support | None = field(compare=False)
    relaxed: bool = field(compare=False)

    @classmethod
    def parse(cls, name: str) -> Arm:
        """The arm of that name; ``cnn-relaxed`` is one, although nobody asks for it.

        Raises:
            ValueError: there is none, or an arm of the same net has a plainer name.
        """
        try:
            arm = _NAMED[name] if name in _NAMED else cls.of(parse_support(name.removeprefix("efcn-")))
        except (ValueError, TypeError, AttributeError):
            arm = None
        if arm is None or arm.name != name:
            raise ValueError(f"each of arms must be one of {FORMS}, got {name!r}")
        return arm

    @classmethod
    def of(cls, support: Support) -> Arm:
        """The CNN embedded with ``support``."""
        name = ELCN.name if support in (Local(), Dilated(0)) else f"efcn-{support}"
        return cls(name, support, relaxed=True)

    def __str__(self) -> str:
        return self.name

    @property
    def embedded(self) -> bool:
        """Whether it is a CNN embedded at a relax time."""
        return self.relaxed and self.support is not None

    @property
    def label(self) -> str:
        """Its name in tables and figures."""
        return _LABELS.get(self.name) or f"eFCN {self.support.label if self.support else ''}"

    @property
    def order(self) -> tuple[float, ...]:
        """A key that sorts arms from the CNN over the supports, the smaller first, to the FCN.

        Example:
            >>> names = ["fcn", "efcn-full", "efcn-grown2", "efcn-dilated10", "efcn-dilated2", "elcn", "cnn"]
            >>> [str(arm) for arm in sorted(map(Arm.parse, names), key=lambda arm: arm.order)]
            ['cnn', 'elcn', 'efcn-dilated2', 'efcn-dilated10', 'efcn-grown2', 'efcn-full', 'fcn']
        """
        if self.support is None:
            return (1.0 if self.relaxed else 0.0,)
        return (2.0 if self.relaxed else 3.0, *self.support.order)


CNN = Arm("cnn", None, relaxed=False)
CONTROL = Arm("cnn-relaxed", None, relaxed=True)  # the CNN continued at the learning rate of the embedded nets
FCN = Arm("fcn", Full(), relaxed=False)
ELCN = Arm("elcn", Local(), relaxed=True)
FULL = Arm("efcn-full", Full(), relaxed=True)

_NAMED = {arm.name: arm for arm in (CNN, CONTROL, FCN, ELCN)}
_LABELS = {"cnn": "CNN", "cnn-relaxed": "CNN, relaxed lr", "elcn": "eLCN", "fcn": "FCN"}


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
_FAMILIES: dict[type[object], tuple[tuple[str, str], ...]] = {
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
        looks = _FAMILIES.get(type(arm.support), _FAMILIES[Dilated])
        family = [other for other in ordered if other not in _FIXED and type(other.support) is type(arm.support)]
        shades = _SHADES[min(max(len(family), 1), len(looks))]
        number = family.index(arm) if arm in family else 0
        color, marker = _FIXED.get(arm) or looks[shades[number % len(looks)]]
        found[arm] = Look(arm.label, color, marker)
    return found
