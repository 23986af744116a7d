"""The update of one layer's values, slice by slice, each through a workspace that stays in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from efcn_sparse.fused.moved_blocks import moved_parameters, moved_states
from efcn_sparse.fused.rounding import Storage
from efcn_sparse.fused.workspace import WORKSPACE_BYTES, Workspace, workspace_bytes
from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.slices import RowSlice, row_slices

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
MOST_SLICES = 64  # torch's optimizers look at every parameter in each step


class Cut(NamedTuple):
    """The slices of a layer's values, views of them, and where these begin in memory."""

    slices: list[RowSlice]
    values: list[Tensor]
    place: int


class LayerUpdate:
    """Steps of a torch optimizer over the slices of one layer's values, from the two factors of their gradient."""

    keeps_cast = False

    def __init__(
        self, name: str, layer: SparseLinear, make: MakeOptimizer, storage: Storage, workspace: Workspace
    ) -> None:
        self.name, self._layer, self._storage, self._workspace = name, layer, storage, workspace
        self._cut = self._cut_of(layer.pattern, layer.values.detach())
        self._parameters = [nn.Parameter(storage.held(part)) for part in self._cut.values]
        self.optimizer = make(self._parameters) if self._parameters else None

    def _cut_of(self, pattern: BlockPattern, values: Tensor) -> Cut:
        block_bytes = max(1, math.prod(pattern.block_shape) * values.element_size())
        target = workspace_bytes(values.device, WORKSPACE_BYTES)
        most = max(target // block_bytes, -(-pattern.nnz_blocks // MOST_SLICES), 1)
        slices = row_slices(pattern, most)
        parts = [values[part.blocks] for part in slices]
        self._workspace.reserve(values, max((part.numel() for part in parts), default=0))
        return Cut(slices, parts, values.data_ptr())

    def check_place(self) -> None:
        """Raise ``RuntimeError`` if the values were moved or replaced since the update was built."""
        if self._layer.values.data_ptr() != self._cut.place:
            raise RuntimeError(
                f"{self.name}: values must stay where they were when FusedOptimizer was made; "
                "move or convert the model first, then make the optimizer"
            )

    @torch.no_grad()
    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """Prepare slices and optimizer state for blocks at new places; see :class:`efcn_sparse.linear.Product`."""
        cut, optimizer = self._cut_of(pattern, values), self.optimizer
        if optimizer is None or not cut.slices:
            if optimizer is not None or cut.slices:
                raise NotImplementedError(
                    f"{self.name}: a fused optimizer cannot follow to or from a layer of no blocks"
                )
            return lambda: setattr(self, "_cut", cut)
        if len(optimizer.param_groups) != 1:
            raise NotImplementedError(
                f"{self.name}: a fused optimizer must have one parameter group a layer for its blocks to move, "
                f"got {len(optimizer.param_groups)}"
            )
        sizes = [len(part) for part in cut.values]
        parameters = [nn.Parameter(self._storage.held(part)) for part in cut.values]
        masters = moved_parameters(self._parameters, source, sizes) if self._storage.keeps_copies else None
        states = moved_states([optimizer.state.get(p, {}) for p in self._parameters], source, sizes)
        by_parameter = dict(zip(parameters, states, strict=True))
        for parameter, master in zip(parameters, masters or [], strict=False):
            parameter.data = master

        def commit() -> None:
            self._cut, self._parameters = cut, parameters
            optimizer.param_groups[0]["params"][:] = parameters
            optimizer.state.clear()
            optimizer.state.update({parameter: state for parameter, state in by_parameter.items() if state})

        return commit

    @torch.no_grad()
    def squared_norm(self, a: Tensor, b: Tensor) -> Tensor:
        """fp64 scalar: the squared norm of the gradient ``aᵀ b`` at the stored blocks."""
        total = torch.zeros((), dtype=torch.float64, device=a.device)
        for _, gradient in self._gradients(a, b):
            total += gradient.double().square().sum()
        return total

    @torch.no_grad()
    def step(self, a: Tensor, b: Tensor, scale: Tensor | None = None) -> None:
        """One step of the optimizer with the gradient ``scale · aᵀ b``.

        Args:
            a: ``[N, out_features]``, the gradient of the layer's output.
            b: ``[N, in_features]``, its input.
            scale: a scalar, or None for 1.
        """
        self.check_place()
        for i, gradient in self._gradients(a, b):
            parameter = self._parameters[i]
            self._storage.take(parameter, self._cut.values[i])
            gradient = gradient.to(parameter.dtype)
            parameter.grad = gradient if scale is None else gradient.mul_(scale.to(gradient.dtype))
            assert self.optimizer is not None
            self.optimizer.step()
            parameter.grad = None
            self._storage.put(parameter, self._cut.values[i])
        torch.autograd.graph.increment_version(self._layer.values)

    def _gradients(self, a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
        for i, part in enumerate(self._cut.slices):
            # under autocast the factors have fewer bits than the values, and so has their product, as unfused
            gradient = self._workspace.take(a, part.pattern.values_shape)
            sddmm(a[:, part.rows], b, part.pattern, backend=self._layer.backend, out=gradient)
            yield i, gradient
