"""What cannot be embedded exactly, and why."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from efcn_sparse.linear.refusals import reason_to_keep


def is_convolution(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution of any kind, embeddable or not."""
    kind = type(module)
    return isinstance(module, _ConvNd) or ("quantized" in kind.__module__ and kind.__name__.startswith("Conv"))


def refusal(module: nn.Module) -> str | None:
    """The reason why this convolution cannot be embedded exactly; None if it can."""
    if not isinstance(module, _ConvNd):
        return "a quantized convolution has no floating-point weight"
    if isinstance(module, _ConvTransposeNd):
        return "transposed convolutions are not supported"
    base = _base(module)
    return "it is not a Conv1d, Conv2d or Conv3d" if base is None else reason_to_keep(module, base)


def has_own_forward(conv: nn.Module) -> bool:
    """Whether the class of an embeddable convolution computes its output in a way of its own."""
    kind, base = type(conv), _base(conv)
    return any(getattr(kind, name) is not getattr(base, name) for name in ("forward", "_conv_forward"))


def _base(module: nn.Module) -> type | None:
    return next((kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, kind)), None)


def refuse(name: str, module: nn.Module, reason: str, more: str = "") -> ValueError:
    """The error that names the layer, the reason and the way out."""
    kind = type(module).__name__
    return ValueError(f"cannot embed {name!r} ({kind}): {reason}; layers={{{name!r}: None}} leaves it as it is{more}")
