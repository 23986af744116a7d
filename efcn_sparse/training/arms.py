"""An arm: one kind of net of the relax protocol, with its name and its place in tables and figures."""

from __future__ import annotations

from dataclasses import dataclass, field

from efcn_sparse.embedding import Dilated, Full, Local, Support, parse_support
from efcn_sparse.embedding.support import KINDS

FORMS = ", ".join(["cnn, fcn, elcn", *(f"efcn-{kind.form.split()[0]}" for kind in KINDS if kind is not Local)])


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
        efcn-lowrank<rank>, efcn-full, with numbers of at least 1, got 'efcn-dilated0'
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
            raise ValueError(f"each of arms must be one of {FORMS}, with numbers of at least 1, got {name!r}")
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
    def moves_blocks(self) -> bool:
        """Whether its blocks move while it trains."""
        return self.support is not None and self.support.moves_blocks

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
