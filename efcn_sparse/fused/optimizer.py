"""Any elementwise torch optimizer, run inside the backward pass over the values of sparse layers."""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.copying import made_again
from efcn_sparse.fused.changed_gradients import ChangedGradients
from efcn_sparse.fused.elementwise import check_elementwise
from efcn_sparse.fused.inside import InsideUpdate
from efcn_sparse.fused.layer_update import LayerUpdate, MakeOptimizer
from efcn_sparse.fused.precision import STORAGE
from efcn_sparse.fused.product import Gradient, Update, UpdatingProduct, layers_of
from efcn_sparse.fused.workspace import Workspace


class FusedOptimizer(Optimizer):
    """Update the values of every :class:`SparseLinear` of a model while ``loss.backward()`` runs.

    Inside :meth:`updating`, the gradient of the values is formed slice by slice in a small workspace, handed to a torch
    optimizer for that slice, and overwritten by the next. So a step holds no gradient, and a slice is still in the
    cache when it is used. All other parameters are stepped by :meth:`step`, as usual. It works with every optimizer
    whose update of a number depends on that number's own gradient and state alone (SGD, momentum, Adam, AdamW, ...).

    Outside of :meth:`updating` it is an optimizer like any other: a backward pass moves nothing and adds to
    ``values.grad``, and :meth:`step` uses that. So ``torch.autograd.grad``, gradients accumulated over several backward
    passes, a ``GradScaler`` and clipping by :func:`torch.nn.utils.clip_grad_norm_` work there as they do unfused, for
    the memory of the gradients. What was accumulated outside counts in the next update inside. There ``max_norm``
    clips, and a ``GradScaler`` is given to :meth:`updating`.

    Args:
        model: any module; it must be on its device, and in its dtype, already.
        make: makes the optimizer of a list of parameters, ``lambda p: torch.optim.SGD(p, lr=0.1)``. It is called once
            for each layer and once for all other parameters; for an optimizer that is not torch's own, twice more, to
            see whether it is elementwise.
        max_norm: clip the gradients of the whole model to this L2 norm, exactly as
            :func:`torch.nn.utils.clip_grad_norm_` does (which, after an update inside, finds no gradient of the
            values). The norm must be known before the first update, so the updates then happen in :meth:`step`:
            gradients are computed twice, and the layers' inputs are held until then.
        skip_nonfinite: leave everything as it is in a step whose gradient holds infinity or NaN, and count it in
            ``skipped``. Updates then happen in :meth:`step`, as with ``max_norm``, and the host waits for the device.
        precision: ``"native"``; ``"master"``: the optimizer steps fp32 copies of the values; ``"stochastic"``: bf16
            values are rounded stochastically from an fp32 result, without copies.
        inside: step the values inside the product that would form their gradient, with neither gradient nor workspace.
            For plain ``torch.optim.SGD`` only: no momentum, neither ``max_norm`` nor ``skip_nonfinite``, native
            precision; rate and weight decay are read at each step (a captured CUDA graph keeps those of its capture).
            Under autocast fp32 values take the step in fp32, and their 16-bit copy is held from forward to backward.

    Attributes:
        skipped: how many steps were skipped.

    Slices and state follow the blocks when :func:`regrow` moves them. ``state`` and ``state_dict()`` are those of an
    unfused optimizer with a parameter group for each layer. A copy or a file of the model is unfused; a copy of the
    optimizer is one of the model's copy, so copy both at once.

    Law: the values after a step are those of the same optimizer unfused, bit by bit on one backend where a layer is
    used once. With ``inside`` they are ``(1 - lr · weight_decay) · values - lr · dyᵀ x`` rounded once, sums in fp32
    (fp64 for fp64).

    Raises:
        ValueError: the model has no sparse layer, a sharded one, or two that share values; an argument is out of range;
            the optimizer is not elementwise (Adafactor, L-BFGS, LAMB, ...); or ``inside`` cannot be (in backward too,
            where settings changed).
        TypeError: ``inside`` with another optimizer than ``torch.optim.SGD``.
        RuntimeError: (in forward) values moved since this was made, or the model runs inside
            ``DistributedDataParallel``, which could not average the gradients; (in backward) a layer got two gradients
            inside :meth:`updating` without a step between them; (in ``step``) a ``GradScaler`` has scaled what was
            updated inside, and was not given to :meth:`updating`.

    Example:
        >>> import torch, efcn_sparse as es
        >>> layer = es.SparseLinear(64, 64, es.BlockPattern.random((64, 64), (8, 8), 0.5))
        >>> optimizer = es.FusedOptimizer(layer, lambda p: torch.optim.SGD(p, lr=0.1))
        >>> before = layer.values.detach().clone()
        >>> loss = layer(torch.randn(4, 64)).square().sum()
        >>> optimizer.zero_grad()  # of biases, and whatever else is not fused
        >>> with optimizer.updating():
        ...     loss.backward()
        >>> optimizer.step()
        >>> layer.values.grad is None, torch.equal(layer.values, before)
        (True, False)
    """

    grad_scale: Tensor | None  # there while GradScaler.step calls step; None if unscale_ was called before

    def __init__(
        self,
        model: nn.Module,
        make: MakeOptimizer,
        *,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        precision: str = "native",
        inside: bool = False,
    ) -> None:
        if precision not in STORAGE:
            raise ValueError(f"precision must be one of {sorted(STORAGE)}, got {precision!r}")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}")
        if inside and max_norm is not None:
            raise ValueError(f"max_norm must be None for steps inside, which know no gradient, got {max_norm}")
        if inside and skip_nonfinite:
            raise ValueError("skip_nonfinite must be False for steps inside, which know no gradient, got True")
        if inside and precision != "native":
            raise ValueError(f"precision must be 'native' for steps inside, got {precision!r}")
        self._arguments = (
            model, make, dict(max_norm=max_norm, skip_nonfinite=skip_nonfinite, precision=precision, inside=inside),
        )  # fmt: skip
        self._max_norm, self._skip_nonfinite = max_norm, skip_nonfinite
        self._workspace, self.skipped = Workspace(), 0
        self._armed = self._told = False
        self._scaler: torch.amp.GradScaler | None = None
        self._waiting: list[tuple[Update, Gradient]] = []
        self._changed = ChangedGradients(self._parameters_of_the_rest)
        layers = layers_of(model)
        self._updates: dict[str, LayerUpdate | InsideUpdate] = {
            name: InsideUpdate(name, layer, make)
            if inside
            else LayerUpdate(name, layer, make, STORAGE[precision](), self._workspace)
            for name, layer in layers.items()
        }
        first = next(iter(self._updates.values())).optimizer
        check_elementwise(make, first)
        fused = {id(layer.values) for layer in layers.values()}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in fused]
        self._make, self._rest = make, make(rest) if rest else None
        self._products: dict[str, UpdatingProduct] = {}
        super().__init__([update.group for update in self._updates.values()], first.defaults)
        if self._rest is not None:
            self.param_groups[:0] = self._rest.param_groups  # the same dictionaries, so that a scheduler reaches them
        self._link()
        self._products = {
            name: UpdatingProduct(name, layer, self._updates[name], lambda: self._armed, self._take)
            for name, layer in layers.items()
        }
        for layer, product in zip(layers.values(), self._products.values(), strict=True):
            layer.product = product

    def _link(self) -> None:
        """Let the state be one: the rest's own, and that of each layer's values."""
        if self._rest is not None:
            for parameter, state in self._rest.state.items():
                self.state[parameter] = state
            self._rest.state = self.state
        for update in self._updates.values():
            self._name(update)

    def _name(self, update: Update) -> None:
        if update.state:
            self.state[update.group["params"][0]] = update.state

    # -- a step ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def updating(self, *, grad_scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """Backward passes inside update the values; :meth:`step` comes after, and once for each such pass.

        Args:
            grad_scaler: the scaler of the loss whose backward pass runs inside; ``grad_scaler.step(optimizer)`` is then
                the step. The updates happen there, as with ``max_norm``, since the scaler skips the whole step if any
                gradient is infinite or NaN. Without it a scaled loss moves the values by the scaled gradient, which
                nobody can see before ``grad_scaler.step`` raises.

        Raises:
            ValueError: ``grad_scaler`` with steps inside the product, or with float16 values that have no masters.
            TypeError: it is none.
            RuntimeError: this is entered inside itself, or with another scaler than what waits for :meth:`step`.

        Example:
            >>> import torch, efcn_sparse as es
            >>> layer = es.SparseLinear(64, 64, density=0.5, block_shape=(8, 8))
            >>> optimizer = es.FusedOptimizer(layer, lambda p: torch.optim.SGD(p, lr=0.1))
            >>> scaler = torch.amp.GradScaler("cpu")
            >>> loss = layer(torch.randn(4, 64)).square().mean()
            >>> with optimizer.updating(grad_scaler=scaler):
            ...     scaler.scale(loss).backward()
            >>> scaler.step(optimizer)
            >>> scaler.update()
        """
        if self._armed:
            raise RuntimeError("updating() must not be entered inside itself")
        scaler = self._checked(grad_scaler)
        if self._waiting and scaler is not self._scaler:
            raise RuntimeError("updating() must have the same grad_scaler until step(), got another one")
        self._scaler, self._armed = scaler, True
        try:
            yield
        finally:
            self._armed = False
            for product in self._products.values():
                product.forget()

    def _checked(self, scaler: torch.amp.GradScaler | None) -> torch.amp.GradScaler | None:
        if scaler is None:
            return None
        if not isinstance(scaler, torch.amp.GradScaler):
            raise TypeError(f"grad_scaler must be a torch.amp.GradScaler or None, got {type(scaler).__name__}")
        if not scaler.is_enabled():
            return None
        settings = self._arguments[2]
        if settings["inside"]:
            raise ValueError("grad_scaler must be None for steps inside, which know no gradient, got a GradScaler")
        for product in self._products.values():
            if product.layer.values.dtype == torch.float16 and settings["precision"] == "native":
                raise ValueError(
                    f"{product.name}: values must not be float16 with a grad_scaler, which cannot unscale their "
                    "gradient; keep them in float32 under autocast, or use precision='master'"
                )
        return scaler

    def _take(self, product: UpdatingProduct, gradient: Gradient) -> None:
        self._changed.note_after_backward()
        update = product.update
        if self._max_norm is None and not self._skip_nonfinite and self._scaler is None:
            update.step(gradient)
            self._name(update)
        else:
            self._waiting.append((update, gradient))

    def _parameters_of_the_rest(self) -> list[nn.Parameter]:
        return [p for group in (self._rest.param_groups if self._rest else ()) for p in group["params"]]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # asked by GradScaler.step: only if so it leaves the whole step to us, and a mark, grad_scale
        return any(product.done for product in self._products.values())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters that have not been updated in the backward pass.

        Args:
            closure: computes the loss and runs its backward pass, which is taken inside :meth:`updating`.

        Returns:
            What ``closure`` gave; None without it.
        """
        scaler = self._scaler if self._step_supports_amp_scaling else None
        if scaler is None and hasattr(self, "grad_scale"):
            raise RuntimeError(
                "updates inside updating() must not be scaled by a GradScaler, and have been: they moved the weights "
                "by the scaled gradient. Begin again from a checkpoint, with updating(grad_scaler=scaler)"
            )
        if scaler is not None and not hasattr(self, "grad_scale"):
            raise RuntimeError("step must be called by grad_scaler.step(optimizer) after updating(grad_scaler=...)")
        loss = None
        if closure is not None:
            with torch.enable_grad(), self.updating():
                loss = closure()
        self._changed.warn()  # a scaler has written too, which moves no version counter
        unscaled = None if scaler is None else self._unscale(scaler)
        gradients = [*((*waiting, unscaled) for waiting in self._waiting), *((*held, None) for held in self._held())]
        rest = self._parameters_of_the_rest()
        clip = None
        if self._max_norm is not None or self._skip_nonfinite or scaler is not None:
            norm = self._norm(gradients, rest)
            finite = bool(norm.isfinite()) if self._skip_nonfinite or scaler is not None else True
            if scaler is not None:  # for scaler.update()
                found: dict[Any, Tensor] = scaler._found_inf_per_device(self)
                found[norm.device] = (~norm.isfinite()).float()
            if not finite:
                self.skipped += 1
                self._end_step()
                return loss
            if self._max_norm is not None:
                clip = (self._max_norm / (norm + 1e-6)).clamp(max=1.0)
                for parameter in rest:
                    if parameter.grad is not None:
                        parameter.grad.mul_(clip.to(parameter.grad.dtype))
        for update, gradient, scale in gradients:
            update.step(gradient, scale if clip is None else clip if scale is None else clip * scale)
            self._name(update)
        if self._rest is not None:
            self._rest.step()
            weights_were_written()
        self._end_step()
        return loss

    def _held(self) -> list[tuple[Update, Gradient]]:
        """The gradients that backward passes outside of updating() have left in ``values.grad``."""
        found: list[tuple[Update, Gradient]] = []
        nbytes = 0
        for name, product in self._products.items():
            product.check_place()
            gradient = product.layer.values.grad
            if gradient is None:
                continue
            if product.done:
                raise RuntimeError(
                    f"{product.name}: got a gradient after its update inside updating(); call step() between them"
                )
            found.append((self._updates[name], Gradient((), (gradient,))))
            nbytes += gradient.nbytes
        if nbytes and not self._told:
            self._told = True
            warnings.warn(
                f"FusedOptimizer: {nbytes / 2**20:.1f} MiB of gradients of values were held, as by an optimizer that "
                "is not fused; run backward inside `with optimizer.updating():` to update without holding them"
            )
        return found

    def _unscale(self, scaler: torch.amp.GradScaler) -> Tensor:
        """The factor that takes the scale back; what is in ``grad`` has had it already after this."""
        if self.grad_scale is not None:  # nobody has called scaler.unscale_
            scaler.unscale_(self)
        return torch.tensor(1.0 / scaler.get_scale(), dtype=torch.float32)

    def _norm(self, gradients: list[tuple[Update, Gradient, Tensor | None]], rest: list[nn.Parameter]) -> Tensor:
        squares = []
        for update, gradient, scale in gradients:
            square = update.squared_norm(gradient)
            squares.append(square if scale is None else square * float(scale) ** 2)
        squares += [p.grad.double().square().sum() for p in rest if p.grad is not None]
        if not squares:
            return torch.zeros((), dtype=torch.float64)
        return torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()

    def _end_step(self) -> None:
        self._waiting.clear()
        self._changed.forget()
        for product in self._products.values():
            product.done = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters, and forget what waits for :meth:`step`."""
        super().zero_grad(set_to_none)
        self._end_step()

    def detach(self) -> None:
        """Give the layers back to ordinary training."""
        for product in self._products.values():
            product.remove()

    # -- parameters and state ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters outside the sparse layers, with settings of their own.

        Raises:
            ValueError: the values of a sparse layer are among them.
        """
        if not self._products:  # called by __init__
            super().add_param_group(param_group)
            return
        parameters = param_group["params"]
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        own = {id(product.layer.values) for product in self._products.values()}
        if any(id(parameter) in own for parameter in parameters):
            raise ValueError("params must be outside the layers of the FusedOptimizer, which steps values already")
        if self._rest is None:
            self._rest = self._make(parameters)
            self._rest.param_groups.clear()
        count = len(self._rest.param_groups)
        self._rest.add_param_group({**param_group, "params": parameters})
        self.param_groups[count:count] = self._rest.param_groups[count:]
        self._link()

    @property
    def inner(self) -> list[Optimizer]:
        """The optimizers that ``make`` made: that of the parameters outside, if any, and one for each layer."""
        rest = [] if self._rest is None else [self._rest]
        return [*rest, *(update.optimizer for update in self._updates.values())]

    @property
    def workspace_bytes(self) -> int:
        """The memory that gradients of values take: the largest slice of any layer."""
        return self._workspace.nbytes

    def take_state(self, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
        """Make ``state`` what is kept for a parameter; tensors are taken over as they are."""
        for update in self._updates.values():
            if update.group["params"][0] is parameter:
                update.take_state(state)
                self._name(update)
                return
        self.state[parameter] = dict(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, for a model with the same layers."""
        if "param_groups" not in state_dict:
            raise ValueError(f"state_dict must hold 'state' and 'param_groups', got {sorted(state_dict)}")
        super().load_state_dict(state_dict)  # hooks, checks, and __setstate__
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        loaded = {id(p): state_dict["state"].get(place, {}) for p, place in zip(parameters, places, strict=True)}
        for update in self._updates.values():
            values = update.group["params"][0]
            state = loaded[id(values)].items()  # as it was saved: torch has made copies in the dtype of the values
            update.take_state({k: v.to(values.device, copy=True) if isinstance(v, Tensor) else v for k, v in state})
            self._name(update)

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups, count = state["param_groups"], len(state["param_groups"]) - len(self._updates)
        self.param_groups, self.state = groups, defaultdict(dict)
        if self._rest is not None:
            own = [parameter for group in groups[:count] for parameter in group["params"]]
            found = {parameter: state["state"][parameter] for parameter in own if parameter in state["state"]}
            self._rest.__setstate__({"state": defaultdict(dict, found), "param_groups": groups[:count]})
        for update, group in zip(self._updates.values(), groups[count:], strict=True):
            update.group = group
        self._link()

    def __reduce__(self) -> tuple[Any, ...]:
        return made_again, (type(self), *self._arguments, self.state_dict())


def updating(optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
    """:meth:`FusedOptimizer.updating` of a fused optimizer; nothing for others."""
    return optimizer.updating() if isinstance(optimizer, FusedOptimizer) else contextlib.nullcontext()
