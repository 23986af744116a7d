"""Which entries of W may be non-zero."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy

from efcn_sparse.embedding.geometry import ConvGeometry


@dataclass(frozen=True)
class Support:
    """A window of kernel coordinates per spatial dimension: the base of the supports.

    An entry of W at output pixel p and input pixel q is in the support where its kernel coordinate
    ``t = q + padding_low - stride * p`` lies in the window, in every dimension.
    """

    within_groups: ClassVar[bool] = True

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

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        """The kernel coordinates in the support along one spatial dimension."""
        raise NotImplementedError

    def weights(self, geometry: ConvGeometry) -> int:
        """How many entries of W are in the support."""
        windows = [self.window(geometry, dim) for dim in range(len(geometry.input_size))]
        return geometry.weights_in(windows, self.within_groups)


@dataclass(frozen=True)
class Local(Support):
    """The receptive fields of the convolution: the locally connected network (eLCN).

    Example:
        >>> Local() == Local(), str(Local())
        (True, 'local')
    """

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        return range(0, geometry.dilation[dim] * geometry.kernel_size[dim], geometry.dilation[dim])

    def __str__(self) -> str:
        return "local"


@dataclass(frozen=True)
class Dilated(Support):
    """The receptive fields grown by ``radius`` pixels on every side, the holes of a dilated kernel filled.

    Channels stay within the convolution's groups.

    Raises:
        ValueError: ``radius`` is no integer of at least 0.

    Example:
        >>> str(Dilated(2))
        'dilated2'
    """

    radius: int

    def __post_init__(self) -> None:
        if not isinstance(self.radius, int) or isinstance(self.radius, bool) or self.radius < 0:
            raise ValueError(f"radius must be an integer of at least 0, got {self.radius!r}")

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        last = geometry.dilation[dim] * (geometry.kernel_size[dim] - 1)
        everything = _everything(geometry, dim)
        return range(max(-self.radius, everything.start), min(last + self.radius + 1, everything.stop))

    def __str__(self) -> str:
        return f"dilated{self.radius}"


@dataclass(frozen=True)
class Full(Support):
    """Every entry of W: the fully-connected network of the paper (eFCN).

    Example:
        >>> str(Full())
        'full'
    """

    within_groups: ClassVar[bool] = False

    def window(self, geometry: ConvGeometry, dim: int) -> range:
        return _everything(geometry, dim)

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True)
class Grown(Support):
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

    budget: float
    start: Support = Local()

    within_groups: ClassVar[bool] = False

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

    def weights(self, geometry: ConvGeometry) -> int:
        """About how many: whole blocks are counted as if they touched nothing but the support ``start``."""
        return min(int(self.start.weights(geometry) * self.budget), geometry.full_weights)

    def __str__(self) -> str:
        return f"grown{numpy.format_float_positional(self.budget, trim='-')}{_started(self.start)}"


@dataclass(frozen=True)
class LowRank(Support):
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

    def weights(self, geometry: ConvGeometry) -> int:
        """How many numbers there are: entries of ``start``, and those of ``U`` and ``V``."""
        return self.start.weights(geometry) + self.rank * (geometry.in_features + geometry.out_features)

    def __str__(self) -> str:
        return f"lowrank{self.rank}{_started(self.start)}"


def _check_start(start: Support) -> None:
    if not isinstance(start, (Local, Dilated)):
        raise ValueError(f"start must be Local() or Dilated(radius), got {start!r}")


def _started(start: Support) -> str:
    return "" if start == Local() else f"-{start}"


def _everything(geometry: ConvGeometry, dim: int) -> range:
    """All kernel coordinates that occur inside the image."""
    low = geometry.padding[dim][0]
    return range(low - geometry.stride[dim] * (geometry.output_size[dim] - 1), low + geometry.input_size[dim])


def parse_support(text: str) -> Support:
    """The support that prints as ``text``.

    Raises:
        ValueError: ``text`` is not ``local``, ``full``, ``dilated<radius>``, ``grown<budget>`` or ``lowrank<rank>``.

    Law: ``parse_support(str(support)) == support``.

    Example:
        >>> parse_support("dilated2"), parse_support("grown1.5")
        (Dilated(radius=2), Grown(budget=1.5, start=Local()))
        >>> parse_support("lowrank8")
        LowRank(rank=8, start=Local())
    """
    plain = {"local": Local(), "full": Full()}
    if text in plain:
        return plain[text]
    if found := re.fullmatch(r"dilated(\d+)", text, re.ASCII):
        return Dilated(int(found[1]))
    if found := re.fullmatch(r"grown(\d+(?:\.\d+)?)(?:-dilated(\d+))?", text, re.ASCII):
        return Grown(float(found[1]), _start(found[2]))
    if found := re.fullmatch(r"lowrank(\d+)(?:-dilated(\d+))?", text, re.ASCII):
        return LowRank(int(found[1]), _start(found[2]))
    known = "local, full, dilated<radius> such as dilated2, grown<budget> such as grown1.5, or lowrank<rank>"
    raise ValueError(f"support must be {known}, got {text!r}")


def _start(radius: str | None) -> Support:
    return Local() if radius is None else Dilated(int(radius))
