"""The update of one layer's values, slice by slice, each through a workspace that stays in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from efcn_sparse.fused.elementwise import restore_settings, settings_of
from efcn_sparse.fused.precision import MASTER, Master, Storage
from efcn_sparse.fused.product import Gradient
from efcn_sparse.fused.state import fresh_state, moved_blocks
from efcn_sparse.fused.workspace import WORKSPACE_BYTES, Workspace, workspace_bytes
from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.slices import RowSlice, row_slices

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
MOST_SLICES = 64  # torch's optimizers look at every parameter in each step


class Cut(NamedTuple):
    """The slices of a layer's values, and views of them."""

    slices: list[RowSlice]
    values: list[Tensor]


class LayerUpdate:
    """Steps of a torch optimizer over the slices of one layer's values, from the parts of their gradient.

    Attributes:
        optimizer: has the slices for parameters.
        group: the settings, to which those of ``optimizer`` are set before each step; ``params`` are the values.
        state: what the optimizer keeps for the values as a whole, as it would unfused: tensors of their shape, of which
            the slices' are views, and scalars.
    """

    keeps_cast = False
    has_slices = True

    def __init__(
        self, name: str, layer: SparseLinear, make: MakeOptimizer, storage: Storage, workspace: Workspace
    ) -> None:
        self.name, self._layer, self._storage, self._workspace = name or "model", layer, storage, workspace
        self._cut, self._parameters = self._cut_of(layer.pattern, layer.values.detach())
        self.optimizer = make(self._parameters)
        if len(self.optimizer.param_groups) != 1:
            got = len(self.optimizer.param_groups)
            raise ValueError(f"{self.name}: make must give one parameter group for the values of a layer, got {got}")
        self.group: dict[str, Any] = {**self.optimizer.param_groups[0], "params": [layer.values]}
        self.state: dict[str, Any] = {}
        self._seen = -1  # the version of the values after the last step

    def _cut_of(self, pattern: BlockPattern, values: Tensor) -> tuple[Cut, list[nn.Parameter]]:
        block_bytes = max(1, math.prod(pattern.block_shape) * values.element_size())
        target = workspace_bytes(values.device, WORKSPACE_BYTES)
        most = max(target // block_bytes, -(-pattern.nnz_blocks // MOST_SLICES), 1)
        slices = row_slices(pattern, most)
        parts = [values[part.blocks] for part in slices]
        self._workspace.reserve(values, max((part.numel() for part in parts), default=0))
        # an optimizer must have a parameter, where there are no blocks too
        return Cut(slices, parts), [nn.Parameter(self._storage.held(part)) for part in parts or [values]]

    # -- a step ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def squared_norm(self, gradient: Gradient) -> Tensor:
        """fp64 scalar: the squared norm of the gradient at the stored blocks."""
        total = torch.zeros((), dtype=torch.float64, device=self._layer.values.device)
        for _, part in self._parts(gradient):
            total += part.double().square().sum()
        return total

    @torch.no_grad()
    def step(self, gradient: Gradient, scale: Tensor | None = None) -> None:
        """One step of the optimizer with ``scale`` (None: 1) times the gradient."""
        group, settings = self.optimizer.param_groups[0], settings_of(self.group)
        written = self._layer.values._version != self._seen
        if isinstance(self._storage, Master) and (written or MASTER not in self.state):
            self._storage.refresh(self._layer.values.detach(), self.state)
        for i, part in self._parts(gradient):
            parameter, values, cut = self._parameters[i], self._cut.values[i], self._cut.slices[i]
            self._storage.take(parameter, values, cut, self.state)
            part = part.to(parameter.dtype)
            restore_settings(group, settings)  # what it counts there too: each slice begins as the first
            parameter.grad = part if scale is None else part * scale.to(part.dtype)
            self.optimizer.step()
            parameter.grad = None
            self._storage.put(parameter, values)
            self._gather(parameter, cut)
        if self._cut.slices:
            self.group.update(settings_of(group))
        torch.autograd.graph.increment_version(self._layer.values)
        self._seen = self._layer.values._version

    def _parts(self, gradient: Gradient) -> Iterator[tuple[int, Tensor]]:
        """The gradient of each slice; it is overwritten by the next."""
        values, backend = self._layer.values, self._layer.backend
        for i, cut in enumerate(self._cut.slices):
            total = None
            for use, (a, b) in enumerate(gradient.factors):
                if total is None:
                    # under autocast the factors have fewer bits than the values, and so has their product, as unfused
                    like = a if len(gradient.factors) == 1 else values
                    total = self._workspace.take(like, cut.pattern.values_shape)
                sddmm(a[:, cut.rows], b, cut.pattern, backend=backend, out=total, beta=float(use > 0))
            for held in gradient.held:
                part = held[cut.blocks]
                total = part if total is None else total.to(part.dtype) + part
            assert total is not None
            yield i, total

    def _gather(self, parameter: nn.Parameter, cut: RowSlice) -> None:
        """Keep what the optimizer has made for a slice in the state of the whole values."""
        mine = self.optimizer.state.get(parameter, {})
        for key, entry in mine.items():
            if not isinstance(entry, Tensor) or entry.dim() == 0:
                self.state[key] = entry
                continue
            if entry.shape != cut.pattern.values_shape:
                raise ValueError(
                    f"optimizer must keep scalars or tensors like values, got {key!r} {list(entry.shape)} "
                    f"for values {list(cut.pattern.values_shape)}"
                )
            if key not in self.state:
                self.state[key] = entry.new_zeros(self._layer.values.shape)
            place = self.state[key][cut.blocks]
            if entry.data_ptr() != place.data_ptr():
                place.copy_(entry)
                mine[key] = place

    # -- state -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def take_state(self, state: Mapping[str, Any]) -> None:
        """Make ``state`` that of the values: tensors of their shape, which become this update's own, and scalars."""
        self.state.clear()
        self.state.update(state)
        self._share(self._parameters, _sliced(state, self._cut, self._parameters))

    def _share(self, parameters: list[nn.Parameter], states: Mapping[Tensor, dict[str, Any]]) -> None:
        self.optimizer.param_groups[0]["params"][:] = parameters
        self.optimizer.state.clear()
        self.optimizer.state.update(states)

    @torch.no_grad()
    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """Prepare slices and optimizer state for blocks at new places; see :class:`efcn_sparse.linear.Product`."""
        cut, parameters = self._cut_of(pattern, values)
        state = {
            key: moved_blocks(entry, source, fresh_state(self.optimizer, self.group, key))
            if isinstance(entry, Tensor) and entry.dim() > 0
            else entry
            for key, entry in self.state.items()
        }

        states = _sliced(state, cut, parameters)

        def commit() -> None:
            self._cut, self._parameters = cut, parameters
            self.state.update(state)
            self._share(parameters, states)

        return commit


def _sliced(state: Mapping[str, Any], cut: Cut, parameters: list[nn.Parameter]) -> dict[Tensor, dict[str, Any]]:
    """What the optimizer keeps for each slice: views of tensors, copies of scalars."""

    def part_of(entry: Any, part: RowSlice) -> Any:
        if not isinstance(entry, Tensor):
            return entry
        return entry[part.blocks] if entry.dim() else entry.clone()

    own = {key: entry for key, entry in state.items() if key != MASTER}
    if not own:
        return {}
    return {
        parameter: {key: part_of(entry, part) for key, entry in own.items()}
        for parameter, part in zip(parameters, cut.slices, strict=False)
    }
