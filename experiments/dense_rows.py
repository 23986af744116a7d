"""Single rows and columns of a convolution's matrix, by the dense definition in fp64: the oracle at any size."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.linear import SparseLinear


def dense_row(conv: nn.Module, input_size: tuple[int, ...], unit: int) -> tuple[Tensor, Tensor]:
    """Row ``unit`` of W, and which of its entries lie in the receptive field.

    The derivative of one output of torch's own convolution by its inputs, units counted channels last.

    Args:
        conv: a convolution of :mod:`torch.nn`.
        input_size: the spatial sizes of its input.
        unit: the flat output unit.

    Returns:
        fp64 and bool ``[in_features]``.

    Example:
        >>> conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.ones_(conv.weight)
        >>> dense_row(conv, (4,), 0)[1]
        tensor([ True,  True, False, False])
    """
    row = _derivative(_in_double(conv), input_size, unit)
    ones = _in_double(conv)
    nn.init.ones_(ones.weight)
    return row, _derivative(ones, input_size, unit) != 0


@torch.no_grad()
def dense_column(conv: nn.Module, input_size: tuple[int, ...], unit: int) -> Tensor:
    """fp64 ``[out_features]``: column ``unit`` of W, which is the convolution of a single one."""
    double = _in_double(conv)
    impulse = torch.zeros(1, *input_size, double.in_channels, dtype=torch.float64)
    impulse.view(-1)[unit] = 1.0
    return double(impulse.movedim(-1, 1)).movedim(1, -1).flatten()


@torch.no_grad()
def stored_row(layer: SparseLinear, unit: int) -> Tensor:
    """fp64 ``[in_features]``: row ``unit`` of W as the layer stores it.

    Example:
        >>> from efcn_sparse import BlockPattern
        >>> layer = SparseLinear(6, 4, BlockPattern.random((4, 6), (2, 3), 0.5))
        >>> torch.equal(stored_row(layer, 3).float(), layer.weight[3])
        True
    """
    pattern, values = layer.pattern, layer.values
    height, width = pattern.block_shape
    first, last = pattern.crow_indices[unit // height : unit // height + 2].tolist()
    row = torch.zeros(pattern.grid[1], width, dtype=torch.float64)
    row[pattern.col_indices[first:last].to(torch.int64)] = values[first:last, unit % height].to(torch.float64)
    return row.flatten()[: layer.in_features]


def _in_double(conv: nn.Module) -> Any:
    double: Any = copy.deepcopy(conv).double()
    if double.bias is not None:
        nn.init.zeros_(double.bias)
    return double


def _derivative(conv: Any, input_size: tuple[int, ...], unit: int) -> Tensor:
    x = torch.zeros(1, conv.in_channels, *input_size, dtype=torch.float64)
    with torch.enable_grad():
        y = conv(x.requires_grad_()).movedim(1, -1).flatten()
        (dx,) = torch.autograd.grad(y[unit], x)
    return dx.movedim(1, -1).flatten()
