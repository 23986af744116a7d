"""Which entries of W may be non-zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efcn_sparse.embedding.geometry import ConvGeometry


@dataclass(frozen=True)
class Support:
    """A window of kernel coordinates per spatial dimension: the base of the three supports.

    An entry of W at output pixel p and input pixel q is in the support where its kernel coordinate
    ``t = q + padding_low - stride * p`` lies in the window, in every dimension.
    """

    within_groups: ClassVar[bool] = True

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


def _everything(geometry: ConvGeometry, dim: int) -> range:
    """All kernel coordinates that occur inside the image."""
    low = geometry.padding[dim][0]
    return range(low - geometry.stride[dim] * (geometry.output_size[dim] - 1), low + geometry.input_size[dim])


def parse_support(text: str) -> Support:
    """The support that prints as ``text``.

    Raises:
        ValueError: ``text`` is not ``local``, ``full`` or ``dilated<radius>``.

    Law: ``parse_support(str(support)) == support``.

    Example:
        >>> parse_support("dilated2")
        Dilated(radius=2)
    """
    plain = {"local": Local(), "full": Full()}
    if text in plain:
        return plain[text]
    radius = text.removeprefix("dilated")
    if radius != text and radius.isascii() and radius.isdigit():
        return Dilated(int(radius))
    raise ValueError(f"support must be local, full or dilated<radius> such as dilated2, got {text!r}")
