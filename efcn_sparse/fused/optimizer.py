"""Any elementwise torch optimizer, run inside the backward pass over the values of sparse layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.fused.inside import InsideUpdate
from efcn_sparse.fused.layer_update import LayerUpdate, MakeOptimizer
from efcn_sparse.fused.product import UpdatingProduct
from efcn_sparse.fused.refusals import refuse_sharded
from efcn_sparse.fused.rounding import STORAGE
from efcn_sparse.fused.workspace import Workspace
from efcn_sparse.linear import SparseLinear


class FusedOptimizer(torch.optim.Optimizer):
    """Update the values of every :class:`SparseLinear` of a model while ``loss.backward()`` runs.

    The gradient of the values is formed slice by slice in a small workspace, handed to a torch optimizer for that
    slice, and overwritten by the next. So a step holds no gradient, and a slice is still in the cache when it is
    used. All other parameters are stepped by :meth:`step`, as usual. It works with every optimizer whose update of a
    number depends on that number's own gradient and state alone (SGD, momentum, Adam, AdamW, ...).

    Args:
        model: any module; it must be on its device, and in its dtype, already.
        make: makes the optimizer of a list of parameters, ``lambda p: torch.optim.SGD(p, lr=0.1)``. It is called once
            for each layer and once for all other parameters.
        max_norm: clip the gradients of the whole model to this L2 norm, exactly as
            :func:`torch.nn.utils.clip_grad_norm_` does. The norm must be known before the first update, so the updates
            then happen in :meth:`step`: gradients are computed twice, and the layers' inputs are held until then.
        precision: ``"native"``; ``"master"``: the optimizer steps fp32 copies of the values; ``"stochastic"``: bf16
            values are rounded stochastically from an fp32 result, without copies.
        inside: step the values inside the product that would form their gradient, with neither gradient nor workspace.
            For plain ``torch.optim.SGD`` only: no momentum, no ``max_norm``, native precision; rate and weight decay
            are read at each step (a captured CUDA graph keeps those of its capture). Under autocast fp32 values take
            the step in fp32, and their 16-bit copy is held from forward to backward.

    Slices and state follow the blocks when :func:`regrow` moves them.

    Law: the values after a step are those of the same optimizer unfused, bit by bit on one backend. With ``inside``
    they are ``(1 - lr · weight_decay) · values - lr · dyᵀ x`` rounded once, sums in fp32 (fp64 for fp64).

    Raises:
        ValueError: the model has no sparse layer that trains or a sharded one, or an argument is out of range; or
            ``inside`` cannot be (in backward too, where settings changed).
        TypeError: ``inside`` with another optimizer than ``torch.optim.SGD``.
        RuntimeError: (in backward) a layer was used twice, or values moved since this was made; (in forward) the model
            runs inside ``DistributedDataParallel``, which could not average the gradients.
        NotImplementedError: a gradient scaler is used, whose scale the update cannot know; bf16 needs none.

    Example:
        >>> import torch, efcn_sparse as es
        >>> layer = es.SparseLinear(64, 64, es.BlockPattern.random((64, 64), (8, 8), 0.5))
        >>> optimizer = es.FusedOptimizer(layer, lambda p: torch.optim.SGD(p, lr=0.1))
        >>> before = layer.values.detach().clone()
        >>> layer(torch.randn(4, 64)).square().sum().backward()
        >>> optimizer.step()
        >>> layer.values.grad is None, torch.equal(layer.values, before)
        (True, False)
    """

    def __init__(
        self,
        model: nn.Module,
        make: MakeOptimizer,
        *,
        max_norm: float | None = None,
        precision: str = "native",
        inside: bool = False,
    ) -> None:
        if precision not in STORAGE:
            raise ValueError(f"precision must be one of {sorted(STORAGE)}, got {precision!r}")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}")
        if inside and max_norm is not None:
            raise ValueError(f"max_norm must be None for steps inside, which know no gradient, got {max_norm}")
        if inside and precision != "native":
            raise ValueError(f"precision must be 'native' for steps inside, got {precision!r}")
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, SparseLinear) and module.values.requires_grad
        }
        if not layers:
            raise ValueError(f"model must hold a SparseLinear that trains, got {type(model).__name__} without one")
        for name, layer in layers.items():
            if layer.product is not None:
                raise ValueError(f"{name or 'model'}: must have no fused optimizer yet; detach() the other one first")
            refuse_sharded(name or "model", layer.values)
        fused = {id(layer.values) for layer in layers.values()}
        rest = [p for p in model.parameters() if id(p) not in fused and p.requires_grad]
        self._layers, self._max_norm = layers, max_norm
        self._rest = make(rest) if rest else None
        self._workspace = Workspace()
        self._updates: dict[str, LayerUpdate | InsideUpdate] = {
            name: InsideUpdate(name, layer, make)
            if inside
            else LayerUpdate(name, layer, make, STORAGE[precision](), self._workspace)
            for name, layer in layers.items()
        }
        self._factors: list[tuple[LayerUpdate, Tensor, Tensor]] = []
        inner = [self._rest, *(update.optimizer for update in self._updates.values())]
        self._inner = [optimizer for optimizer in inner if optimizer is not None]
        self.defaults = self._inner[0].defaults
        # the dictionaries of the inner optimizers themselves, so that a scheduler reaches them
        self.param_groups = [group for optimizer in self._inner for group in optimizer.param_groups]
        for name, layer in layers.items():
            layer.product = self._product(name, layer)

    def _product(self, name: str, layer: SparseLinear) -> UpdatingProduct:
        update = self._updates[name]

        def take(a: Tensor, b: Tensor) -> None:
            if isinstance(update, InsideUpdate) or self._max_norm is None:
                update.step(a, b)
            else:
                update.check_place()
                self._factors.append((update, a, b))

        return UpdatingProduct(name, layer, update, take)

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """The states of all inner optimizers, by parameter; those of the values by slice."""
        return {parameter: state for optimizer in self._inner for parameter, state in optimizer.state.items()}

    @property
    def inner(self) -> list[torch.optim.Optimizer]:
        """The optimizers that ``make`` made, in the order of ``param_groups``."""
        return list(self._inner)

    @property
    def workspace_bytes(self) -> int:
        """The memory that gradients of values take: the largest slice of any layer."""
        return self._workspace.nbytes

    @torch.no_grad()
    def step(self, closure: None = None, *, grad_scaler: Any = None) -> None:  # type: ignore[override]
        """Step all parameters that are not values; with ``max_norm``, clip and step the values too."""
        if closure is not None:
            raise ValueError("closure must be None: the values are updated by backward(), not by step()")
        if grad_scaler is not None:
            raise NotImplementedError("a fused update cannot know the scale of a GradScaler; train in bf16 without one")
        if self._max_norm is not None:
            self._clip_and_step(self._max_norm)
        if self._rest is not None:
            self._rest.step()

    def _clip_and_step(self, max_norm: float) -> None:
        factors, self._factors = self._factors, []
        taken = [update for update, _, _ in factors]
        if len(set(map(id, taken))) != len(taken):
            twice = next(update.name for update in taken if taken.count(update) > 1)
            raise RuntimeError(f"{twice or 'model'}: must be used once between two steps with max_norm, got twice")
        rest = [p for group in (self._rest.param_groups if self._rest else []) for p in group["params"]]
        gradients = [p.grad for p in rest if p.grad is not None]
        squares = [update.squared_norm(a, b) for update, a, b in factors]
        squares += [gradient.double().square().sum() for gradient in gradients]
        if not squares:
            return
        norm = torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.dtype))
        for update, a, b in factors:
            update.step(a, b, scale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters that are not values."""
        self._factors.clear()
        if self._rest is not None:
            self._rest.zero_grad(set_to_none)

    def detach(self) -> None:
        """Give the layers back to ordinary training."""
        for layer in self._layers.values():
            layer.product = None

    # -- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The states of the inner optimizers, by layer; tensors are not copied."""
        layers = {name: u.optimizer.state_dict() for name, u in self._updates.items() if u.optimizer is not None}
        return {"rest": None if self._rest is None else self._rest.state_dict(), "layers": layers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, for a model with the same layers."""
        mine = {name for name, update in self._updates.items() if update.optimizer is not None}
        if set(state_dict["layers"]) != mine:
            raise ValueError(f"state_dict must hold the layers {sorted(mine)}, got {sorted(state_dict['layers'])}")
        for name, state in state_dict["layers"].items():
            optimizer = self._updates[name].optimizer
            assert optimizer is not None
            optimizer.load_state_dict(state)
        if self._rest is not None:
            self._rest.load_state_dict(state_dict["rest"])
        self.param_groups = [group for optimizer in self._inner for group in optimizer.param_groups]
