"""The update of one layer's values, slice by slice, each through a workspace that stays in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from efcn_sparse.fused.rounding import Storage
from efcn_sparse.fused.workspace import Workspace
from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm
from efcn_sparse.pattern.slices import RowSlice, row_slices

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
_WORKSPACE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
_MOST_SLICES = 64  # torch's optimisers look at every parameter in each step


class LayerUpdate:
    """Steps of a torch optimiser over the slices of one layer's values, from the two factors of their gradient."""

    def __init__(
        self, name: str, layer: SparseLinear, make: MakeOptimizer, storage: Storage, workspace: Workspace
    ) -> None:
        self.name, self._layer, self._storage = name, layer, storage
        values = layer.values.detach()
        block_bytes = max(1, math.prod(layer.pattern.block_shape) * values.element_size())
        target = _WORKSPACE_BYTES.get(values.device.type, _WORKSPACE_BYTES["cuda"])
        most = max(target // block_bytes, -(-layer.pattern.nnz_blocks // _MOST_SLICES), 1)
        self._slices: list[RowSlice] = row_slices(layer.pattern, most)
        self._values = [values[part.blocks] for part in self._slices]
        self._parameters = [nn.Parameter(storage.held(part)) for part in self._values]
        self.optimizer = make(self._parameters) if self._parameters else None
        largest = max((len(part) for part in self._values), default=0)
        self._workspace = workspace
        workspace.reserve(values, largest * math.prod(layer.pattern.block_shape))
        self._place = values.data_ptr()

    def check_place(self) -> None:
        """Raise ``RuntimeError`` if the values were moved or replaced since the update was built."""
        if self._layer.values.data_ptr() != self._place:
            raise RuntimeError(
                f"{self.name}: values must stay where they were when FusedOptimizer was made; "
                "move or convert the model first, then make the optimiser"
            )

    @torch.no_grad()
    def squared_norm(self, a: Tensor, b: Tensor) -> Tensor:
        """fp64 scalar: the squared norm of the gradient ``aᵀ b`` at the stored blocks."""
        total = torch.zeros((), dtype=torch.float64, device=a.device)
        for _, gradient in self._gradients(a, b):
            total += gradient.double().square().sum()
        return total

    @torch.no_grad()
    def step(self, a: Tensor, b: Tensor, scale: Tensor | None = None) -> None:
        """One step of the optimiser with the gradient ``scale · aᵀ b``.

        Args:
            a: ``[N, out_features]``, the gradient of the layer's output.
            b: ``[N, in_features]``, its input.
            scale: a scalar, or None for 1.
        """
        self.check_place()
        for i, gradient in self._gradients(a, b):
            if scale is not None:
                gradient.mul_(scale.to(gradient.dtype))
            parameter = self._parameters[i]
            self._storage.take(parameter, self._values[i])
            parameter.grad = gradient.to(parameter.dtype)
            assert self.optimizer is not None
            self.optimizer.step()
            parameter.grad = None
            self._storage.put(parameter, self._values[i])
        torch.autograd.graph.increment_version(self._layer.values)

    def _gradients(self, a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
        for i, part in enumerate(self._slices):
            gradient = self._workspace.take(self._layer.values, part.pattern.values_shape)
            sddmm(a[:, part.rows], b, part.pattern, backend=self._layer.backend, out=gradient)
            yield i, gradient
