"""What cannot be embedded exactly, and why."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from efcn_sparse.linear.refusals import reason_to_keep

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_convolution(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution of any kind, embeddable or not."""
    kind = type(module)
    return isinstance(module, _ConvNd) or ("quantized" in kind.__module__ and kind.__name__.startswith("Conv"))


def refusal(module: nn.Module) -> str | None:
    """The reason why this convolution cannot be embedded exactly; None if it can."""
    if not isinstance(module, _ConvNd):
        return "a quantized convolution has no floating-point weight"
    base = _base(module)
    return "it is not one of torch's convolutions" if base is None else reason_to_keep(module, base)


def without_weight_norm(conv: nn.Module) -> nn.Module:
    """A copy whose weight is that which ``weight_norm`` computes now, as a parameter; any other module as it is."""
    chains = dict(getattr(conv, "parametrizations", {}))
    new = list(chains) == ["weight"] and [type(step) for step in chains["weight"]] == [_WeightNorm]
    hooks = conv._forward_pre_hooks.items()
    old = {key: hook for key, hook in hooks if isinstance(hook, WeightNorm) and hook.name == "weight"}
    if not new and not old:
        return conv
    # not by remove_parametrizations: a copy has the class of the original, from which that takes the weight
    kind: Any = type(conv).__bases__[0] if new else type(conv)
    plain: Any = kind.__new__(kind)
    plain.__dict__.update(conv.__dict__)
    computed: Any = conv.weight if new else next(iter(old.values())).compute_weight(conv)
    weight = nn.Parameter(computed.detach().clone(), any(parameter.requires_grad for parameter in conv.parameters()))
    plain.__dict__.pop("weight", None)
    plain.__dict__["_parameters"] = {"weight": weight, "bias": conv._parameters.get("bias")}
    plain.__dict__["_modules"] = {name: module for name, module in conv._modules.items() if name != "parametrizations"}
    plain.__dict__["_forward_pre_hooks"] = OrderedDict((key, hook) for key, hook in hooks if key not in old)
    return plain


def has_own_forward(conv: nn.Module) -> bool:
    """Whether the class of an embeddable convolution computes its output in a way of its own."""
    kind, base = type(conv), _base(conv)
    return any(
        getattr(kind, name) is not getattr(base, name) for name in ("forward", "_conv_forward") if hasattr(base, name)
    )


def _base(module: nn.Module) -> type | None:
    return next((kind for kind in (*CONVOLUTIONS, *TRANSPOSED) if isinstance(module, kind)), None)


def refuse(name: str, module: nn.Module, reason: str, more: str = "") -> ValueError:
    """The error that names the layer, the reason and the way out."""
    kind = type(module).__name__
    return ValueError(f"cannot embed {name!r} ({kind}): {reason}; layers={{{name!r}: None}} leaves it as it is{more}")
