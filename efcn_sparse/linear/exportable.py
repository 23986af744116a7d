"""Sparse layers in torch's own operations, for exporters and runtimes that know no others."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor, nn

from efcn_sparse.linear.dense_weight import lazy_weight
from efcn_sparse.linear.sparse_linear import SparseLinear
from efcn_sparse.linear.sparsify import as_dense, copy_with
from efcn_sparse.pattern import BlockPattern


def exportable(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose sparse layers are written in torch's own operations, which exporters know.

    The blocks alone are stored and multiplied: a gather, a batched product and a sum by block rows. So a file is as
    small as the model, and ONNX Runtime takes a fraction of the dense time; :func:`efcn_sparse.densify` gives what is
    quicker where most blocks are stored, or blocks are below 16×16. The copy is for inference: weights of the sparse
    layers do not ask for gradients, and masks are zeros that nothing holds at zero. It needs no ``efcn_sparse`` once it
    is exported. A call takes memory for N · nnz_blocks · (block_rows + block_cols) numbers.

    What was one layer under several names stays one. An embedded convolution keeps its shape, and can no longer be
    measured. A :class:`SparseDelta` becomes its linear layer with Δ in the weight. ``torch.onnx.export`` must be called
    with ``dynamo=True``.

    Law: ``exportable(model)(x) == model(x)``, up to the order of sums.

    Raises:
        ValueError: a sparse layer has hooks, or a forward of its own, which would be lost.

    Example:
        >>> import efcn_sparse as es
        >>> net = es.sparsify(nn.Sequential(nn.Linear(64, 32)), {"0": dict(density=0.25, block_shape=(8, 8))})
        >>> x = torch.randn(4, 64)
        >>> torch.allclose(es.exportable(net)(x), net(x), atol=1e-5)
        True
        >>> program = torch.export.export(es.exportable(net), (x,))
        >>> any("efcn_sparse" in str(node.target) for node in program.graph.nodes)
        False
    """
    return copy_with(model, as_exportable)


@singledispatch
def as_exportable(module: nn.Module) -> dict[int, nn.Module]:
    """What takes the place of a module, or of parts of it, by ``id``."""
    dense = as_dense(module)
    return {} if dense is None else {id(module): dense}


@as_exportable.register
def _(module: SparseLinear) -> dict[int, nn.Module]:
    return {id(module): GatheredLinear(module.pattern, module.values, module.bias).train(module.training)}


class GatheredLinear(nn.Module):
    """``y = x Wᵀ + b`` with the stored blocks of W, in torch's own operations.

    Args:
        pattern: which blocks are stored.
        values: ``[nnz_blocks, block_rows, block_cols]``.
        bias: ``[out_features]`` or None.

    Shapes: ``x`` is ``[..., in_features]``, ``y`` is ``[..., out_features]``.
    """

    rows: Tensor
    cols: Tensor

    @torch.no_grad()
    def __init__(self, pattern: BlockPattern, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        (self.out_features, self.in_features), (_, self._width) = pattern.shape, pattern.block_shape
        self._block_rows, self._block_cols = pattern.grid
        kept = pattern.to(values.device).masked(values)
        self.blocks = nn.Parameter(kept.mT.clone(memory_format=torch.contiguous_format), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
        self.register_buffer("rows", pattern.rows_of_blocks().to(values.device, torch.int64))
        self.register_buffer("cols", pattern.col_indices.to(values.device, torch.int64))

    @property
    def weight(self) -> Tensor:
        """W, made when its numbers are read, for models that ask for its dtype or read it."""
        return lazy_weight((self.out_features, self.in_features), self._to_dense, lambda _: (None,), self.blocks)

    def _to_dense(self, blocks: Tensor) -> Tensor:
        width, height = blocks.shape[1:]
        tiles = blocks.new_zeros((self._block_rows, self._block_cols, height, width))
        tiles = tiles.index_put((self.rows, self.cols), blocks.mT).transpose(1, 2)
        return tiles.reshape(self._block_rows * height, -1)[: self.out_features, : self.in_features].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            if torch.onnx.is_in_onnx_export():  # which would write a sum that takes the last number only
                raise NotImplementedError("torch.onnx.export must be called with dynamo=True, got dynamo=False")
        elif x.shape[-1] != self.in_features:
            raise ValueError(f"x must be [..., {self.in_features}], got {list(x.shape)}")
        lead = x.shape[:-1]
        count = math.prod(lead)
        if self.in_features % self._width:
            x = nn.functional.pad(x, (0, -self.in_features % self._width))
        tiles = x.reshape(count, x.shape[-1] // self._width, self._width).transpose(0, 1)
        products = torch.bmm(tiles.index_select(0, self.cols), self.blocks)
        sums = torch.promote_types(products.dtype, torch.float32)
        y = torch.zeros((self._block_rows, count, self.blocks.shape[2]), dtype=sums, device=x.device)
        y = y.index_put((self.rows,), products.to(sums), accumulate=True)
        y = y.transpose(0, 1).reshape(count, self._block_rows * self.blocks.shape[2])[:, : self.out_features]
        if self.bias is not None:
            y = y + self.bias
        return y.to(products.dtype).reshape(*lead, self.out_features)

    def extra_repr(self) -> str:
        width, height = self.blocks.shape[1:]
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, block_shape=({height}, {width}), "
            f"nnz_blocks={len(self.blocks)}, bias={self.bias is not None}"
        )
