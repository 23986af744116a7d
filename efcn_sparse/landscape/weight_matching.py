"""Channels of one net in the order of another's: weight matching."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.copying import copy_of
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.example_run import Example, run
from efcn_sparse.landscape.between import Between
from efcn_sparse.landscape.channels import Channels, Layer, channels_of
from efcn_sparse.landscape.common_support import on_common_support
from efcn_sparse.pattern import BlockPattern

_SWEEPS = 100
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # sums run in another order
Orders = dict[int, Tensor]


@torch.no_grad()
def align(a: nn.Module, b: nn.Module, example: Any) -> nn.Module:
    """A copy of ``b`` that computes the same, its channels in the order in which its weights are closest to ``a``'s.

    Which channels are what is decided by nothing: two trainings find the same features in another order, and the way
    between them leads over a barrier that is none of the landscape. Channels of convolutions, embedded or not, are
    permuted, and units of linear layers; those that a sum joins go together. What the net is given and what it returns
    stays in its order, and so does what layers with weights of other kinds, grouped and transposed convolutions and
    reshapes read and write.

    Args:
        a, b: two nets as :func:`efcn_sparse.landscape.path` takes them; not changed. ``torch.fx`` must be able to
            trace ``b``.
        example: inputs of both, one tensor or a tuple of positional inputs, on which ``b`` and the copy are compared.

    Raises:
        ValueError: the nets do not match, ``b`` cannot be traced, an embedded layer's support is not the same for all
            channels (``Grown``), or the copy would compute something else.

    Source: Ainsworth, Hayase, Srinivasa: Git Re-Basin: Merging Models modulo Permutation Symmetries, ICLR 2023
    (weight matching, algorithm 1), with SciPy's ``linear_sum_assignment``.

    Example:
        >>> import copy, torch, efcn_sparse as es
        >>> x = torch.randn(4, 1, 6, 6)
        >>> a = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        >>> b = copy.deepcopy(a)
        >>> b[0].weight.data, b[0].bias.data = a[0].weight[[2, 0, 3, 1]].data, a[0].bias[[2, 0, 3, 1]].data
        >>> b[3].weight.data = a[3].weight.view(2, 4, 16)[:, [2, 0, 3, 1]].reshape(2, 64).data
        >>> torch.equal(es.landscape.align(a, b, x)[0].weight, a[0].weight)
        True
    """
    Between(a, b)  # refuses nets that do not match
    channels = channels_of(copy_of(b, {id(parameter): parameter for parameter in b.parameters()}))
    ours, theirs = on_common_support(a, b)
    orders = _matched(dict(ours.named_modules()), dict(theirs.named_modules()), channels)
    aligned = copy_of(b)
    for layer in channels.layers:
        _reorder(layer.name, aligned.get_submodule(layer.name), orders.get(layer.reads), orders.get(layer.writes))
    inputs = example if isinstance(example, tuple) else (example,)
    before, after = (run(net, Example(inputs), False, shares_parameters=True).output for net in (b, aligned))
    worst = float((after - before).abs().max() / before.abs().max().clamp(min=1e-30))
    if not worst <= _TOLERANCE.get(before.dtype, 5e-2):
        raise ValueError(
            f"b must compute the same with its channels in another order, got a difference of {worst:.3g} of the "
            "largest output: does its forward name channels one by one?"
        )
    return aligned


def _matched(ours: dict[str, nn.Module], theirs: dict[str, nn.Module], channels: Channels) -> Orders:
    """For each group of channels, which of ``theirs`` stands in each place."""
    from scipy.optimize import linear_sum_assignment

    orders = {group: torch.arange(size) for group, size in channels.sizes.items()}
    for _ in range(_SWEEPS):
        moved = False
        for group, order in orders.items():
            gain = sum(
                _similarity(ours[layer.name], theirs[layer.name], layer, orders, group)
                for layer in channels.layers
                if group in (layer.reads, layer.writes)
            )
            assert isinstance(gain, Tensor)
            found = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            places = torch.arange(len(order))
            if float(gain[places, found].sum()) > float(gain[places, order].sum()) * (1 + 1e-12) + 1e-12:
                orders[group], moved = found, True
        if not moved:
            break
    return orders


def _similarity(a: nn.Module, b: nn.Module, layer: Layer, orders: Orders, group: int) -> Tensor:
    """fp64 ``[channels, channels]``: inner products of what belongs to a channel of ``a`` and to one of ``b``."""
    found = torch.zeros(())
    for one, other in _slabs(a, b, orders.get(layer.writes), orders.get(layer.reads)):
        one, other = one.double().cpu(), other.double().cpu()
        if group == layer.writes:
            moved = other if layer.reads not in orders else other[:, :, orders[layer.reads]]
            found = found + torch.einsum("oxi,pxi->op", one, moved)
        if group == layer.reads:
            moved = other if layer.writes not in orders else other[orders[layer.writes]]
            found = found + torch.einsum("oxi,oxj->ij", one, moved)
    if group == layer.writes:
        for one, other in zip(_vectors(a), _vectors(b), strict=True):
            size = len(orders[group])
            found = found + one.double().cpu().view(-1, size).T @ other.double().cpu().view(-1, size)
    return found


def _vectors(layer: nn.Module) -> list[Tensor]:
    """The parameters with a number for each channel, as ``[..., channels]``."""
    if isinstance(layer, EmbeddedConv):
        return [] if layer.linear.bias is None else [layer.linear.bias]
    names = ("bias",) if _is_map(layer) else ("weight", "bias")
    return [value for name in names if isinstance(value := getattr(layer, name, None), Tensor)]


def _is_map(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _slabs(a: nn.Module, b: nn.Module, writes: Tensor | None, reads: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights of both layers, ``[channels out, anything, channels in]``, in pieces; none of a norm."""
    if isinstance(a, EmbeddedConv):
        assert isinstance(b, EmbeddedConv)
        pattern, geometry = a.linear.pattern, a.geometry  # that of b, too
        for pixel in range(math.prod(geometry.output_size)):
            yield tuple(  # type: ignore[misc]
                _of_pixel(layer.linear.values, pattern, pixel, geometry.out_channels, geometry.in_channels)
                for layer in (a, b)
            )
    elif isinstance(a, nn.Linear):
        channels = a.in_features if reads is None else len(reads)
        yield tuple(layer.weight.view(a.out_features, channels, -1).transpose(1, 2) for layer in (a, b))  # type: ignore[misc, operator]
    elif _is_map(a):
        yield tuple(layer.weight.flatten(2).transpose(1, 2) for layer in (a, b))  # type: ignore[misc, operator]


def _of_pixel(values: Tensor, pattern: BlockPattern, pixel: int, out: int, channels: int) -> Tensor:
    """What the units of one output pixel read, ``[out, input pixels with a stored block, channels]``."""
    height, width = pattern.block_shape
    first, last = pixel * out // height, -(-(pixel + 1) * out // height)
    start, stop = pattern.crow_indices[[first, last]].tolist()
    rows = pattern.rows_of_blocks()[start:stop].long()[:, None] * height + torch.arange(height) - pixel * out
    cols = pattern.col_indices[start:stop].long()[:, None] * width + torch.arange(width)
    inside = ((rows >= 0) & (rows < out))[:, :, None] & (cols < pattern.shape[1])[:, None]
    support = pattern.support_of_blocks()
    if support is not None:
        inside &= support[start:stop]
    pixels, place = torch.unique(cols // channels, return_inverse=True)
    slab = values.new_zeros(out, len(pixels), channels)
    rows, place, within = (one.expand_as(inside)[inside] for one in (
        rows[:, :, None], place[:, None], (cols % channels)[:, None]
    ))  # fmt: skip
    slab[rows, place, within] = values.detach()[start:stop][inside]
    return slab


# -- another order ----------------------------------------------------------------------------------------------------


def _reorder(name: str, layer: nn.Module, reads: Tensor | None, writes: Tensor | None) -> None:
    """Put the channels that a layer reads and writes in another order, in place; None leaves them."""
    if isinstance(layer, EmbeddedConv):
        _reorder_embedded(name, layer, reads, writes)
        return
    for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
        if tensor.dim() and writes is not None:
            tensor.copy_(tensor[writes.to(tensor.device)])
        if tensor.dim() > 1 and reads is not None:
            pixels = torch.arange(tensor.shape[1] // len(reads))  # of a flattened image; 1 for a convolution
            tensor.copy_(tensor[:, (reads[:, None] * len(pixels) + pixels).flatten().to(tensor.device)])


def _reorder_embedded(name: str, layer: EmbeddedConv, reads: Tensor | None, writes: Tensor | None) -> None:
    geometry, linear = layer.geometry, layer.linear
    rows, cols = (
        _units(math.prod(size), channels, order)
        for size, channels, order in (
            (geometry.output_size, geometry.out_channels, writes), (geometry.input_size, geometry.in_channels, reads),
        )
    )  # fmt: skip
    rows, cols = rows.to(linear.values.device), cols.to(linear.values.device)
    linear.values.copy_(_moved(name, linear.values, linear.pattern, rows, cols))
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[rows])
    if layer.low_rank is not None:
        layer.low_rank.left.copy_(layer.low_rank.left[rows])
        layer.low_rank.right.copy_(layer.low_rank.right[cols])
    if layer.unread_kernel is not None:
        wide = layer.unread_kernel.view(geometry.out_channels, geometry.in_channels, -1)
        for dim, order in enumerate((writes, reads)):
            if order is not None:
                wide.copy_(wide.index_select(dim, order.to(wide.device)))


def _units(pixels: int, channels: int, order: Tensor | None) -> Tensor:
    order = torch.arange(channels) if order is None else order
    return (torch.arange(pixels)[:, None] * channels + order).flatten()


def _moved(name: str, values: Tensor, pattern: BlockPattern, rows: Tensor, cols: Tensor) -> Tensor:
    """The stored entries of W[rows][:, cols], which must be stored in W."""
    (height, width), across = pattern.block_shape, pattern.grid[1]
    support = pattern.support_of_blocks()
    if support is None:
        support = torch.ones(pattern.values_shape, dtype=torch.bool, device=values.device)
    keys = pattern.rows_of_blocks().long() * across + pattern.col_indices
    moved = torch.zeros_like(values)
    step = max(1, (1 << 21) // (height * width))
    for start in range(0, pattern.nnz_blocks, step):
        chunk = slice(start, start + step)
        at = pattern.rows_of_blocks()[chunk].long()[:, None] * height + torch.arange(height, device=rows.device)
        to = pattern.col_indices[chunk].long()[:, None] * width + torch.arange(width, device=rows.device)
        row, col = (
            order[index.clamp(max=len(order) - 1)][where]
            for order, index, where in ((rows, at, (..., None)), (cols, to, (slice(None), None)))
        )
        key = row // height * across + col // width
        block = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        wanted = support[chunk]
        there = (keys[block] == key) & support[block, row % height, col % width]
        if not torch.equal(there & wanted, wanted):
            raise ValueError(f"the support of {name!r} must be the same for all channels, got one that is not")
        moved[chunk] = values.detach()[block, row % height, col % width] * wanted
    return moved
