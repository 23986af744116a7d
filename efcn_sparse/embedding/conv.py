"""A convolution as the block-sparse linear map that it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efcn_sparse.activation import feature_maps, is_seen
from efcn_sparse.embedding.blocks import choose_block_shape
from efcn_sparse.embedding.build import build
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.low_rank import LowRankPart, NarrowProduct
from efcn_sparse.embedding.refusals import CONVOLUTIONS, TRANSPOSED
from efcn_sparse.embedding.support import Local, Support
from efcn_sparse.embedding.ties import KernelFacts, Ties, mean_bias, mean_kernel, moved_ties, off_local_blocks
from efcn_sparse.growth import adopt_patterns
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.exportable import GatheredLinear, as_exportable
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.checks import checked_pair
from efcn_sparse.tracing import as_node


class EmbeddedConv(nn.Module):
    """A convolution whose weights are untied: a :class:`SparseLinear` from all input units to all output units.

    Inputs and outputs are those of the convolution, ``[N, C, *size]`` or ``[C, *size]``. Outputs are channels last in
    memory unless ``contiguous_output`` is set, and inputs that are channels last are not copied. The bias is one number
    per output unit. Of a transposed convolution, ``output_size`` may be given as torch takes it, but only as it was.

    Args:
        geometry: the convolution's sizes at the one input size that the layer takes.
        support: the entries of W that may be non-zero.
        block_shape: ``(block_rows, block_cols)``; chosen by cost when None.
        bias: whether there is a bias.
        device, dtype: where and what the parameters are.

    Attributes:
        linear: the weights: ``linear.values``, ``linear.bias``, ``linear.pattern``.
        ties: which kernel entry each stored weight copies.
        geometry, support: as given. With the support :class:`Grown`, off-local blocks may move, and a state dict in
            which they lie elsewhere can be loaded.
        in_channels, out_channels, groups, kernel_size, stride, dilation: those of the convolution.
        contiguous_output: whether outputs are copied into the memory format of a convolution's, for models that
            ``view`` them as something else; False.
        low_rank: the off-local weights, where the support is :class:`LowRank`; else None.
        original: the convolution that this one was made from, without its numbers; None: there was none.
        unread_kernel: ``[n]``: entries of the original kernel that only ever meet padding, and so have no copy, in
            the order of ``weight.flatten()``; None where there are none.

    Law: ``EmbeddedConv.from_conv(conv, size)(x) == conv(x)``, and ``.to_conv()`` gives ``conv`` back bit by bit.

    Raises:
        ValueError: an input or ``output_size`` is another size than the embedded one; or ``block_shape`` is no pair of
            positive integers.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3, padding=1)
        >>> layer = EmbeddedConv.from_conv(conv, (5, 5))
        >>> x = torch.randn(2, 3, 5, 5)
        >>> torch.allclose(layer(x), conv(x), atol=1e-6), torch.equal(layer.to_conv().weight, conv.weight)
        (True, True)
    """

    unread_kernel: Tensor | None
    low_rank: LowRankPart | None
    contiguous_output: bool = False
    original: nn.Module | None = None
    stands_for_convolution: ClassVar[bool] = True  # which unembed makes of it again

    def __init__(
        self,
        geometry: ConvGeometry,
        support: Support | None = None,
        block_shape: Sequence[int] | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        structure: tuple[BlockPattern, Ties] | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        geometry.describe(self)
        self.support = Local() if support is None else support
        if structure is None:
            shape = choose_block_shape(geometry, self.support) if block_shape is None else block_shape
            structure = build(geometry, self.support, checked_pair("block_shape", shape, least=1))
        pattern, ties = structure
        device = torch.get_default_device() if device is None else torch.device(device)
        self.ties = ties.to(device)
        self.linear = SparseLinear(
            geometry.in_features, geometry.out_features, pattern, bias=bias, device=device, dtype=dtype
        )
        self.linear.pattern_owner = "EmbeddedConv"
        self.low_rank = self._new_low_rank(device, self.linear.values.dtype)
        unread = int((ties.counts == 0).sum())
        kernel = torch.zeros(unread, device=device, dtype=self.linear.values.dtype) if unread else None
        self.register_buffer("unread_kernel", kernel, persistent=unread > 0)

    @property
    def weight(self) -> KernelFacts:
        """Shape, dtype and device of the kernel, for models that ask ``conv.weight.dtype``.

        There are no numbers to it: those of the nearest kernel are in :meth:`to_conv`.
        """
        numbers = next(self.linear.parameters())  # in a copy of densify or exportable it is another layer
        return KernelFacts(self.geometry.kernel_shape, numbers.dtype, numbers.device)

    # -- conversion --------------------------------------------------------------------------------------------

    @classmethod
    @torch.no_grad()
    def from_conv(
        cls,
        conv: Any,
        input_size: Sequence[int],
        support: Support | None = None,
        block_shape: Sequence[int] | None = None,
        *,
        structure: tuple[BlockPattern, Ties] | None = None,
        geometry: ConvGeometry | None = None,
    ) -> EmbeddedConv:
        """The embedding of ``conv`` at one input size; off-local weights start at zero.

        Args:
            conv: one of torch's convolutions, transposed or not; left as it is.
            input_size: the spatial sizes of its input.
            structure: the pattern and ties of ``build``, if they are there already.
            geometry: where the class of ``conv`` pads in a way of its own; ``input_size`` is not looked at then.
        """
        geometry = ConvGeometry.of(conv, tuple(input_size)) if geometry is None else geometry
        weight = conv.weight
        layer = cls(
            geometry, support, block_shape, bias=conv.bias is not None, device="meta", dtype=weight.dtype,
            structure=structure,
        )  # fmt: skip
        object.__setattr__(layer, "original", _without_numbers(conv))  # no submodule
        return layer._take(conv)

    @torch.no_grad()
    def _take(self, conv: Any) -> EmbeddedConv:
        """Become the embedding of ``conv``, on its device; this layer is on the meta device."""
        weight = conv.weight
        self.ties = self.ties.to(weight.device)
        self.linear.pattern = self.linear.pattern.to(weight.device)
        self.linear.values = nn.Parameter(self.ties.scatter(weight.detach()), requires_grad=weight.requires_grad)
        if conv.bias is not None:
            untied = conv.bias.detach().repeat(math.prod(self.geometry.output_size))
            self.linear.bias = nn.Parameter(untied, requires_grad=conv.bias.requires_grad)
        self.low_rank = self._new_low_rank(weight.device, weight.dtype)
        if self.low_rank is not None:
            self.low_rank.requires_grad_(weight.requires_grad)
        if self.unread_kernel is not None:
            self.unread_kernel = weight.detach().flatten()[self.ties.counts == 0]
        return self.train(conv.training)

    @torch.no_grad()
    def to_conv(self) -> Any:
        """The nearest convolution: each kernel entry the mean over its copies, each bias over its positions.

        Off-local weights, those of a low-rank part included, are dropped.
        """
        self.check_holds_blocks()
        geometry, values, bias = self.geometry, self.linear.values, self.linear.bias
        if self.original is None:
            conv = plain_convolution(geometry, bias is not None, values.dtype)
        else:
            conv = _without_numbers(self.original)
        kernel = mean_kernel(values.detach(), self.ties, self.unread_kernel)
        conv.weight = nn.Parameter(kernel, requires_grad=values.requires_grad)
        if bias is not None:
            conv.bias = nn.Parameter(mean_bias(bias.detach(), geometry.out_channels), requires_grad=bias.requires_grad)
        return conv.train(self.training)

    def check_holds_blocks(self) -> None:
        """Refuse a layer of a copy by ``densify`` or ``exportable``; ties are those of this layer's own blocks."""
        if getattr(self.linear, "pattern_owner", None) is None:
            raise TypeError(
                f"linear of {type(self).__name__}({self.in_channels}, {self.out_channels}) must be its own "
                f"SparseLinear, got another {type(self.linear).__name__}: copies by densify and exportable only "
                "compute; give the model itself"
            )

    # -- blocks that move (efcn_sparse.growth.Growable) --------------------------------------------------------

    @property
    def grows(self) -> bool:
        """Whether off-local blocks may move: the support is :class:`Grown`."""
        return self.support.moves_blocks

    def movable_blocks(self) -> Tensor:
        """bool ``[nnz_blocks]``: the off-local blocks, if the support is :class:`Grown`."""
        self._check_grows()
        return off_local_blocks(self.ties)

    def follow_blocks(self, pattern: BlockPattern, source: Tensor) -> Callable[[], None]:
        """Prepare the ties for off-local blocks at new places; what is returned puts them in."""
        self._check_grows()
        ties = moved_ties(self.ties, pattern, source)

        def commit() -> None:
            self.ties = ties

        return commit

    def _check_grows(self) -> None:
        if not self.grows:
            raise NotImplementedError(
                f"layer must have the support Grown(budget) for its blocks to move, got {self.support}"
            )

    # -- nn.Module ---------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state_dict and f"{prefix}linear.values" not in state_dict:
            raise ValueError(
                f"state_dict must be of an embedded model, got the kernel of a convolution, {prefix}weight: "
                "load it into the CNN, and embed that"
            )
        if self.grows:  # before the layer inside looks at its own part
            inner = {key.removeprefix(prefix): state_dict[key] for key in state_dict if key.startswith(prefix)}
            adopt_patterns(self, inner)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        node = as_node(self, input, output_size)
        if node is not None:
            return node
        geometry = self.geometry
        expected = (geometry.in_channels, *geometry.image_size)
        traced = isinstance(input, torch.fx.Proxy)  # of no known size: taken for a batch
        if not traced and not isinstance(input, Tensor):
            raise TypeError(f"input must be a tensor, got {type(input).__name__}")
        batched = traced or input.dim() == len(expected) + 1
        if not traced and tuple(input.shape[1:] if batched else input.shape) != expected:
            sizes = ", ".join(map(str, expected))
            raise ValueError(f"input must be [N, {sizes}] or [{sizes}], got {list(input.shape)}")
        if output_size is not None and not traced:
            sides, only = list(output_size), list(geometry.output_size)
            if (sides[-len(only) :] if len(sides) == input.dim() else sides) != only:
                raise ValueError(f"output_size must be {only}, for which the layer was embedded, got {sides}")
        x = input if batched else input.unsqueeze(0)
        if geometry.border:
            x = nn.functional.pad(
                x, [side for pair in reversed(geometry.border) for side in pair], geometry.padding_mode
            )
        units = x.movedim(1, -1).reshape(x.shape[0], geometry.in_features)
        y = self.linear(units)
        if self.low_rank is not None:
            y = y + self.low_rank(units, self.linear)
        size = (*geometry.output_size, geometry.out_channels)
        # who keeps y must see, by its history, what a function in place does to the maps
        y = y.view(y.shape[0], *size).movedim(-1, 1) if is_seen(self.linear) else feature_maps(y, size)
        if self.contiguous_output:
            y = y.contiguous()
        return y if batched else y.squeeze(0)

    def _new_low_rank(self, device: torch.device, dtype: torch.dtype) -> LowRankPart | None:
        rank = self.support.low_rank
        return LowRankPart(self.geometry.in_features, self.geometry.out_features, rank, device, dtype) if rank else None

    def extra_repr(self) -> str:
        geometry = self.geometry
        return (
            f"{geometry.in_channels}, {geometry.out_channels}, input_size={geometry.input_size}, "
            f"kernel_size={geometry.kernel_size}, stride={geometry.stride}, support={self.support}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EmbeddedConv:
        super()._apply(fn, recurse)
        self.ties = self.ties.to(self.weight.device)
        return self


def plain_convolution(geometry: ConvGeometry, bias: bool, dtype: torch.dtype) -> Any:
    """A convolution of torch's own class, on the meta device.

    Raises:
        ValueError: none has this geometry.
    """
    dims = len(geometry.input_size)
    sides = geometry.border or geometry.padding
    padding: Any = tuple(low for low, _ in sides) if all(low == high for low, high in sides) else "same"
    more: dict[str, Any] = {"output_padding": geometry.output_padding} if geometry.transposed else {}
    kind: Any = (TRANSPOSED if geometry.transposed else CONVOLUTIONS)[dims - 1]
    if padding != "same" or (max(geometry.stride) == 1 and not geometry.transposed):
        conv = kind(
            geometry.in_channels,
            geometry.out_channels,
            geometry.kernel_size,
            stride=geometry.stride,
            padding=padding,
            dilation=geometry.dilation,
            groups=geometry.groups,
            bias=bias,
            padding_mode=geometry.padding_mode,
            device="meta",
            dtype=dtype,
            **more,
        )
        if ConvGeometry.of(conv, geometry.image_size) == geometry:
            return conv
    raise ValueError(f"geometry must be that of an nn.{kind.__name__}, got padding {list(sides)}")


def embedded_layers(model: nn.Module) -> dict[str, EmbeddedConv]:
    """Every embedded convolution by name; one that is used under several names counts once, under the first."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, EmbeddedConv)}
    if not layers:
        raise ValueError(f"model holds no embedded convolution, got {type(model).__name__}: embed it first")
    for name, layer in layers.items():
        layer.check_holds_blocks()
        if layer.linear.values.is_meta:
            raise ValueError(f"model must hold numbers, got meta tensors in the embedded convolution {name!r}")
        if layer.ties.maps.device != layer.linear.values.device:
            raise ValueError(
                f"model must have ties and weights on one device, got {layer.ties.maps.device} and "
                f"{layer.linear.values.device} in the embedded convolution {name!r}"
            )
    return layers


def _without_numbers(conv: nn.Module) -> Any:
    """A copy of a convolution, of its class and with its settings, whose parameters are None."""
    copied = copy.copy(conv)
    copied.__dict__["_parameters"] = dict.fromkeys(conv._parameters)
    return copied


@as_exportable.register
def _(module: EmbeddedConv) -> dict[int, nn.Module]:
    """Of a low-rank part, what it takes away at the stored blocks goes into them."""
    linear, part = module.linear, module.low_rank
    if part is None or isinstance(part, NarrowProduct):
        return {}
    blocks = GatheredLinear(linear.pattern, linear.values - part.stored(linear), linear.bias)
    return {id(linear): blocks, id(part): NarrowProduct(part)}
