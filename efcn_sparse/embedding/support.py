"""Which entries of W may be non-zero. A new support is one class here, and a name in ``KINDS``."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy

from efcn_sparse.embedding.geometry import ConvGeometry


@dataclass(frozen=True)
class Support:
    """The base of the supports: a window of kernel coordinates in each spatial dimension.

    An entry of W at output pixel p and input pixel q is in the support where its kernel coordinate
    ``t = q + padding_low - stride * p`` lies in the window, in every dimension.

    Attributes:
        form: how its texts look, for error messages.
        within_groups: whether entries between different groups of channels are left out.
        stores_all: whether every block is stored, whatever the layer.
        moves_blocks: whether off-local blocks may move during training.
    """

    form: ClassVar[str]
    within_groups: ClassVar[bool] = True
    stores_all: ClassVar[bool] = False
    moves_blocks: ClassVar[bool] = False

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        """The kernel coordinates in the support along one spatial dimension."""
        raise NotImplementedError

    # -- which blocks are stored, and which of their entries count ---------------------------------------------

    @property
    def touching(self) -> Support:
        """The support whose entries decide which blocks are stored at first: this one, as a rule."""
        return self

    @property
    def within(self) -> Support:
        """The support that says which entries of a stored block may be non-zero: this one, as a rule."""
        return self

    def most_blocks(self, touched: int, grid: int) -> int:
        """How many blocks are stored, of ``grid`` in all, where ``touched`` have an entry in :attr:`touching`."""
        return touched

    @property
    def low_rank(self) -> int:
        """The rank of the product that stands at the entries which are not stored; 0: they are zero."""
        return 0

    # -- how many numbers that makes ---------------------------------------------------------------------------

    def entries(self, geometry: ConvGeometry) -> int:
        """How many entries of W the window holds."""
        windows = [self.window(geometry, dim) for dim in range(len(geometry.input_size))]
        return geometry.weights_in(windows, self.within_groups)

    def free_numbers(self, geometry: ConvGeometry, stored: int) -> int:
        """How many numbers training may change, of a layer whose blocks hold ``stored``."""
        return self.entries(geometry)

    def least_numbers(self, geometry: ConvGeometry) -> int:
        """About how many numbers a layer stores at least, known without looking for its blocks."""
        return self.entries(geometry)

    # -- what it is called -------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str) -> Support | None:
        """The support of this class that prints as ``text``; None if there is none."""
        return cls() if text == cls.form else None

    def __str__(self) -> str:
        return self.form

    @property
    def label(self) -> str:
        """Its name in figures and tables."""
        return str(self)

    @property
    def order(self) -> tuple[int, float, float]:
        """A key that sorts supports by class (in the order of ``KINDS``), and each class by size."""
        return KINDS.index(type(self)), *self._size()

    def _size(self) -> tuple[float, float]:
        return 0, 0

    def smaller_radius(self, reach: int) -> int:
        """The largest radius of a :class:`Dilated` that is smaller than this support.

        Args:
            reach: the least radius at which one covers everything.
        """
        return reach - 1


@dataclass(frozen=True)
class Local(Support):
    """The receptive fields of the convolution: the locally connected network (eLCN).

    Example:
        >>> Local() == Local(), str(Local())
        (True, 'local')
    """

    form: ClassVar[str] = "local"

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        return range(0, geometry.dilation[dim] * geometry.kernel_size[dim], geometry.dilation[dim])


class _Numbered(Support):
    """One with a number, and perhaps a start: ``dilated2``, ``grown1.5-dilated1``."""

    word: ClassVar[str]
    digits: ClassVar[str] = r"\d+"

    @classmethod
    def parse(cls, text: str) -> Support | None:
        tail = r"(?:-dilated(\d+))?" if len(dataclasses.fields(cls)) > 1 else ""
        found = re.fullmatch(cls.word.replace(" ", "") + f"({cls.digits})" + tail, text, re.ASCII)
        if found is None:
            return None
        number = float(found[1]) if "." in cls.digits else int(found[1])
        start = (Dilated(int(radius)) for radius in found.groups()[1:] if radius is not None)
        return cls(number, *start)  # type: ignore[call-arg]  # its subclasses are dataclasses

    def __str__(self) -> str:
        number, *start = (getattr(self, field.name) for field in dataclasses.fields(self))
        text = numpy.format_float_positional(number, trim="-") if isinstance(number, float) else str(number)
        return "-".join([self.word.replace(" ", "") + text, *(str(one) for one in start if one != Local())])

    @property
    def label(self) -> str:
        number, *start = (getattr(self, field.name) for field in dataclasses.fields(self))
        text = f"{number:g}" if isinstance(number, float) else str(number)
        return " from ".join([f"{self.word} {text}", *(one.label for one in start if one != Local())])

    def _size(self) -> tuple[float, float]:
        number, *start = (getattr(self, field.name) for field in dataclasses.fields(self))
        return number, sum(one._size()[0] for one in start)


@dataclass(frozen=True)
class Dilated(_Numbered):
    """The receptive fields grown by ``radius`` pixels on every side, the holes of a dilated kernel filled.

    Channels stay within the convolution's groups.

    Raises:
        ValueError: ``radius`` is no integer of at least 0.

    Example:
        >>> str(Dilated(2))
        'dilated2'
    """

    form: ClassVar[str] = "dilated<radius> such as dilated2"
    word: ClassVar[str] = "dilated"

    radius: int

    def __post_init__(self) -> None:
        if not isinstance(self.radius, int) or isinstance(self.radius, bool) or self.radius < 0:
            raise ValueError(f"radius must be an integer of at least 0, got {self.radius!r}")

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        last = geometry.dilation[dim] * (geometry.kernel_size[dim] - 1)
        everything = _everything(geometry, dim)
        return range(max(-self.radius, everything.start), min(last + self.radius + 1, everything.stop))

    def smaller_radius(self, reach: int) -> int:
        return self.radius - 1


@dataclass(frozen=True)
class Full(Support):
    """Every entry of W: the fully-connected network of the paper (eFCN).

    Example:
        >>> str(Full())
        'full'
    """

    form: ClassVar[str] = "full"
    within_groups: ClassVar[bool] = False
    stores_all: ClassVar[bool] = True

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        return _everything(geometry, dim)


@dataclass(frozen=True)
class Grown(_Numbered):
    """The blocks that another support touches, and as many off-local ones as a budget allows, which may move.

    Blocks are stored whole: every entry of them counts, those between the receptive fields included. The off-local
    blocks start at zero, evenly spread; :class:`efcn_sparse.Growth` moves them to where the gradient is large, and
    blocks with a local entry stay. The number of blocks never changes.

    Args:
        budget: how many blocks are stored, as a multiple of those that ``start`` touches; at least 1.
        start: :class:`Local` or :class:`Dilated`.

    Raises:
        ValueError: ``budget`` is no number of at least 1, or ``start`` is another support.

    Example:
        >>> str(Grown(1.5)), str(Grown(2, Dilated(1)))
        ('grown1.5', 'grown2-dilated1')
    """

    form: ClassVar[str] = "grown<budget> such as grown1.5"
    word: ClassVar[str] = "grown"
    digits: ClassVar[str] = r"\d+(?:\.\d+)?"
    within_groups: ClassVar[bool] = False
    moves_blocks: ClassVar[bool] = True

    budget: float
    start: Support = Local()

    def __post_init__(self) -> None:
        number = isinstance(self.budget, (int, float)) and not isinstance(self.budget, bool)
        if not (number and math.isfinite(self.budget) and self.budget >= 1):
            raise ValueError(f"budget must be a number of at least 1, got {self.budget!r}")
        _check_start(self.start)

    @property
    def touching(self) -> Support:
        return self.start

    @property
    def within(self) -> Support:
        return Full()

    def most_blocks(self, touched: int, grid: int) -> int:
        return min(int(touched * self.budget), grid)

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        return _everything(geometry, dim)

    def free_numbers(self, geometry: ConvGeometry, stored: int) -> int:
        return stored

    def least_numbers(self, geometry: ConvGeometry) -> int:
        return min(int(self.start.entries(geometry) * self.budget), geometry.full_weights)


@dataclass(frozen=True)
class LowRank(_Numbered):
    """Another support, and at every entry outside it the product ``U Vᵀ`` of two narrow matrices.

    Blocks are those of ``start``; ``U`` and ``V`` are ``left`` and ``right`` of :class:`LowRankPart`. Every entry of W
    may be non-zero, but the off-local ones not freely.

    Args:
        rank: the number of columns of ``U`` and ``V``; at least 1.
        start: :class:`Local` or :class:`Dilated`.

    Raises:
        ValueError: ``rank`` is no integer of at least 1, or ``start`` is another support.

    Example:
        >>> str(LowRank(8)), str(LowRank(8, Dilated(1)))
        ('lowrank8', 'lowrank8-dilated1')
    """

    form: ClassVar[str] = "lowrank<rank>"
    word: ClassVar[str] = "low rank"

    rank: int
    start: Support = Local()

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"rank must be an integer of at least 1, got {self.rank!r}")
        _check_start(self.start)

    @property
    def touching(self) -> Support:
        return self.start

    @property
    def within(self) -> Support:
        return self.start

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        return self.start.window(geometry, dim)

    @property
    def low_rank(self) -> int:
        return self.rank

    def free_numbers(self, geometry: ConvGeometry, stored: int) -> int:
        return self.entries(geometry) + self.rank * (geometry.in_features + geometry.out_features)

    def least_numbers(self, geometry: ConvGeometry) -> int:
        return self.free_numbers(geometry, 0)


# From the smallest kind to the largest.
KINDS: tuple[type[Support], ...] = (Local, Dilated, Grown, LowRank, Full)


def parse_support(text: str, *, name: str = "support") -> Support:
    """The support that prints as ``text``; ``name`` is what the caller calls it.

    Raises:
        ValueError: no support does.

    Law: ``parse_support(str(support)) == support``.

    Example:
        >>> parse_support("dilated2"), parse_support("grown1.5")
        (Dilated(radius=2), Grown(budget=1.5, start=Local()))
        >>> parse_support("lowrank8")
        LowRank(rank=8, start=Local())
    """
    for kind in KINDS:
        try:
            found = kind.parse(text)
        except ValueError as error:  # of its number
            number, least = str(error).split(", got ")[0].split(" must be ")
            raise ValueError(f"{name} must have a {number} that is {least}, got {text!r}") from None
        if found is not None:
            return found
    forms = sorted((kind.form for kind in KINDS), key=lambda form: "<" in form)
    raise ValueError(f"{name} must be {', '.join(forms[:-1])}, or {forms[-1]}, got {text!r}")


def _check_start(start: Support) -> None:
    if not isinstance(start, (Local, Dilated)):
        raise ValueError(f"start must be Local() or Dilated(radius), got {start!r}")


def _everything(geometry: ConvGeometry, dim: int) -> range:
    """All kernel coordinates that occur inside the image."""
    geometry = geometry.conv
    low = geometry.padding[dim][0]
    return range(low - geometry.stride[dim] * (geometry.output_size[dim] - 1), low + geometry.input_size[dim])
