"""Which modules ``sparsify`` takes, and which of them it would not replace by something equal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is an :class:`torch.nn.Linear`, or the ``Conv1D`` of transformers' GPT-2."""
    return _base(module) is not None


def as_linear(module: nn.Module) -> nn.Linear:
    """``module`` as an :class:`torch.nn.Linear`; a ``Conv1D`` has Wᵀ for its weight."""
    if isinstance(module, nn.Linear):
        return module
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    linear = nn.Linear(weight.shape[0], weight.shape[1], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().T, requires_grad=weight.requires_grad)
    linear.register_parameter("bias", bias)  # type: ignore[arg-type]
    return linear.train(module.training)


def refusal(module: nn.Module) -> str | None:
    """The reason why a linear module cannot be replaced without losing something; None if it can."""
    return next((reason for applies, reason in _REASONS if applies(module)), None)


def refuse(name: str, module: nn.Module, reason: str) -> ValueError:
    """The error that names the layer, the reason and the way out."""
    return ValueError(f"cannot sparsify {name!r} ({type(module).__name__}): {reason}; the rule {{{name!r}: None}} "
                      "before the others leaves it as it is")  # fmt: skip


def shared_parameter(model: nn.Module, module: nn.Module) -> tuple[str, str] | None:
    """The name of a parameter of ``module`` that another module of ``model`` holds too, and its name there."""
    own = {id(parameter): name for name, parameter in module._parameters.items() if parameter is not None}
    for prefix, other in model.named_modules():
        if other is not module:
            for name, parameter in other._parameters.items():
                if id(parameter) in own:
                    return own[id(parameter)], f"{prefix}.{name}" if prefix else name
    return None


def _base(module: nn.Module) -> type | None:
    """The class whose forward is known: that of ``module``, or one that it derives from."""
    for kind in type(module).__mro__:
        if kind is nn.Linear or (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D"):
            return kind
    return None


def _has_own_forward(module: nn.Module) -> bool:
    base, kind = _base(module), type(module)
    return "forward" in vars(module) or any(
        getattr(kind, name) is not getattr(base, name) for name in ("forward", "__call__")
    )


# Looked at in order: a later reason may take for granted that no earlier one applies.
_REASONS: list[tuple[Callable[[nn.Module], bool], str]] = [
    (lambda m: isinstance(m, LazyModuleMixin), "a lazy module has no weight yet; run the model once first"),
    (
        lambda m: "weight" not in m._parameters or "parametrizations" in m._modules,
        "its weight is computed by a parametrization (weight_norm, spectral_norm, pruning), not stored",
    ),
    (_has_own_forward, "its class has a forward of its own"),
    (lambda m: not m._parameters["weight"].is_floating_point(), "its weight must be of a floating-point dtype"),  # type: ignore[union-attr]
    (lambda m: any(getattr(m, hooks) for hooks in _HOOKS), "its hooks would be lost"),
]  # fmt: skip
