"""A masked dense layer becomes a sparse one, with its gradient and the optimizer's state: wholly or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.refusals import linear_base, out_by_in, reason_to_keep
from efcn_sparse.pattern import BlockPattern


def state_like_weight(optimizer: torch.optim.Optimizer, name: str, weight: Tensor) -> dict[str, Tensor]:
    """The tensors of an optimizer's state that have a number for each entry of ``weight``.

    Raises:
        ValueError: the optimizer does not hold ``weight``, or has state of another shape for it.
    """
    if not any(weight is parameter for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(f"optimizer must hold {name}.weight, got {type(optimizer).__name__} without it")
    found = {}
    for key, entry in optimizer.state.get(weight, {}).items():
        if not isinstance(entry, Tensor) or entry.dim() == 0:
            continue
        if entry.shape != weight.shape:
            raise ValueError(
                f"optimizer must keep scalars or tensors shaped like {name}.weight {list(weight.shape)}, "
                f"got state {key!r} of shape {list(entry.shape)}"
            )
        found[key] = entry
    return found


@torch.no_grad()
def shrink(model: nn.Module, patterns: Mapping[str, BlockPattern], optimizer: torch.optim.Optimizer) -> None:
    """Replace each named :class:`torch.nn.Linear` by a :class:`SparseLinear` of the stored blocks, in place.

    Values, gradient and optimizer state are gathered from the dense ones; biases stay the same parameters. The
    optimizer holds the values where it held the weight. All that is new is made before anything changes.
    """
    layers: dict[int, SparseLinear] = {}
    changes: list[tuple[Tensor, nn.Parameter, dict]] = []
    for name, pattern in patterns.items():
        linear = model.get_submodule(name)
        base = linear_base(linear)
        assert base is not None
        reason = reason_to_keep(linear, base, "forward")
        if reason is not None:
            raise ValueError(f"{name!r} cannot become sparse: {reason}")
        weight = linear.get_parameter("weight")
        rows, cols = pattern.shape

        def stored(tensor: Tensor, linear: nn.Module = linear, pattern: BlockPattern = pattern) -> Tensor:
            return pattern.gather(out_by_in(linear, tensor))

        moving = state_like_weight(optimizer, name, weight)
        with torch.random.fork_rng(devices=[]):  # the initial values are not used
            layer = SparseLinear(cols, rows, pattern, bias=False, device=weight.device, dtype=weight.dtype)
        layer.values.copy_(stored(weight)).requires_grad_(weight.requires_grad)
        layer.values.grad = None if weight.grad is None else stored(weight.grad)
        layer.register_parameter("bias", linear._parameters["bias"])
        state = {
            key: stored(moving[key]) if key in moving else entry
            for key, entry in optimizer.state.get(weight, {}).items()
        }
        layers[id(linear)] = layer.train(linear.training)
        changes.append((weight, layer.values, state))
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for name, module in model.named_modules(remove_duplicate=False):  # a layer that is shared stays shared
        if id(module) in layers:
            parent, _, child = name.rpartition(".")
            places.append((model.get_submodule(parent), child, layers[id(module)]))
    new = {id(weight): values for weight, values, _ in changes}
    groups = [[new.get(id(p), p) for p in group["params"]] for group in optimizer.param_groups]

    def commit() -> None:
        for parent, child, layer in places:
            parent._modules[child] = layer
        for group, parameters in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = parameters
        for weight, values, state in changes:
            optimizer.state.pop(weight, None)
            if state:
                optimizer.state[values] = state

    _finish_what_begins(commit)


def _finish_what_begins(commit: Callable[[], None]) -> None:
    try:
        commit()
    except BaseException:  # nothing in it can fail, so this is an interruption: finish, then let it through
        commit()
        raise
