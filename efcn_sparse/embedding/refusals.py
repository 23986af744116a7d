"""What cannot be embedded exactly, and why."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_convolution(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution of any kind, embeddable or not."""
    kind = type(module)
    return isinstance(module, _ConvNd) or ("quantized" in kind.__module__ and kind.__name__.startswith("Conv"))


def refusal(module: nn.Module) -> str | None:
    """The reason why this convolution cannot be embedded exactly; None if it can."""
    return next((reason for applies, reason in _REASONS if applies(module)), None)


def refuse(name: str, module: nn.Module, reason: str) -> ValueError:
    """The error that names the layer, the reason and the way out."""
    kind = type(module).__name__
    return ValueError(f"cannot embed {name!r} ({kind}): {reason}; layers={{{name!r}: None}} leaves it as it is")


def _base(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, kind))


def _is_parametrized(module: nn.Module) -> bool:
    return "weight" not in module._parameters or "parametrizations" in module._modules


def _has_own_forward(module: nn.Module) -> bool:
    base, kind = _base(module), type(module)
    own = any(getattr(kind, name) is not getattr(base, name) for name in ("forward", "_conv_forward", "__call__"))
    return own or "forward" in vars(module)


def _has_integer_or_complex_weight(module: nn.Module) -> bool:
    assert isinstance(module, _ConvNd)
    return not module.weight.is_floating_point()


# Looked at in order: a later reason may take for granted that no earlier one applies.
_REASONS: list[tuple[Callable[[nn.Module], bool], str]] = [
    (lambda m: not isinstance(m, _ConvNd), "a quantized convolution has no floating-point weight"),
    (lambda m: isinstance(m, _ConvTransposeNd), "transposed convolutions are not supported"),
    (lambda m: isinstance(m, LazyModuleMixin), "a lazy convolution has no weight yet; run the model once first"),
    (lambda m: not isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)), "it is not a Conv1d, Conv2d or Conv3d"),
    (_is_parametrized, "its weight is computed by a parametrization (weight_norm, spectral_norm, pruning), not stored"),
    (_has_own_forward, "its class has a forward of its own"),
    (lambda m: m.padding_mode == "reflect", "padding_mode 'reflect' is not supported, only 'zeros'"),
    (lambda m: m.padding_mode == "replicate", "padding_mode 'replicate' is not supported, only 'zeros'"),
    (lambda m: m.padding_mode == "circular", "padding_mode 'circular' is not supported, only 'zeros'"),
    (_has_integer_or_complex_weight, "its weight must be of a floating-point dtype"),
    (lambda m: any(getattr(m, hooks) for hooks in _HOOKS), "its hooks would be lost"),
]  # fmt: skip
