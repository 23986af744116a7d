"""Which modules cannot be swapped for block-sparse ones without losing something: for ``sparsify`` and ``embed``."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from efcn_sparse.pattern.checks import checked_density, checked_pair

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_COMPUTED = {"parametrizations", "weight_orig", "weight_g", "weight_v"}  # what torch computes a weight from


def reason_to_keep(module: nn.Module, base: type, *known: str) -> str | None:
    """Why swapping ``module`` would lose something; None if it would not.

    Args:
        base: the class of torch that ``module`` is of or derives from.
        known: those of its methods that must be as in ``base``, besides ``__call__``.
    """
    kind = type(module)
    if isinstance(module, LazyModuleMixin):
        return "a lazy module has no weight yet; run the model once first"
    if "weight" not in module._parameters and not (set(module._modules) | set(module._parameters)) & _COMPUTED:
        return "it has no parameter named weight"
    if "weight" not in module._parameters or "parametrizations" in module._modules:
        return "its weight is computed by a parametrization (weight_norm, spectral_norm, pruning), not stored"
    if "forward" in vars(module) or any(
        getattr(kind, name) is not getattr(base, name) for name in (*known, "__call__")
    ):
        return "its class has a forward of its own"
    weight = module._parameters["weight"]
    assert weight is not None
    if not weight.is_floating_point():
        return "its weight must be of a floating-point dtype"
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "its hooks would be lost"
    return None


def reason_not_to_copy(module: nn.Module) -> str | None:
    """Why another module in the place of a layer of ours would lose something; None if it would not."""
    kind = type(module)
    ours = next(one for one in kind.__mro__ if one.__module__.partition(".")[0] == __name__.partition(".")[0])
    own = any(getattr(kind, name) is not getattr(ours, name) for name in ("forward", "__call__"))
    if own or "forward" in vars(module):
        return "its class has a forward of its own"
    if any(getattr(part, hooks) for part in module.modules() for hooks in _HOOKS):
        return "its hooks would be lost"
    return None


def reason_elsewhere(model: nn.Module, module: nn.Module) -> str | None:
    """Why ``module`` cannot be swapped because of another module of ``model``; None if it can.

    Another one holds a parameter of it too, or is built on it and says so (``keeps_its_linear``).
    """
    own = {id(parameter): name for name, parameter in module._parameters.items() if parameter is not None}
    for prefix, other in model.named_modules():
        if getattr(type(other), "keeps_its_linear", False) and other._modules.get("linear") is module:
            return f"it is the frozen layer of a {type(other).__name__}; put what its merge() gives in its place first"
        if other is not module:
            for name, parameter in other._parameters.items():
                if id(parameter) in own:
                    return f"its {own[id(parameter)]} is shared with {f'{prefix}.{name}' if prefix else name!r}"
    return None


def linear_base(module: nn.Module) -> type | None:
    """:class:`torch.nn.Linear` or the ``Conv1D`` of transformers' GPT-2, if ``module`` is one or derives from it."""
    for kind in type(module).__mro__:
        if kind is nn.Linear or (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D"):
            return kind
    return None


def as_linear(module: nn.Module) -> nn.Linear:
    """``module`` as an :class:`torch.nn.Linear`; a ``Conv1D`` has Wᵀ for its weight."""
    if isinstance(module, nn.Linear):
        return module
    weight, bias = weight_of(module), module.bias
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    linear.register_parameter("bias", bias)  # type: ignore[arg-type]
    return linear.train(module.training)


def out_by_in(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is shaped as ``module.weight``, as ``[out_features, in_features]``: a view.

    Raises:
        TypeError: ``module`` is neither a Linear nor a ``Conv1D``.
    """
    base = linear_base(module)
    if base is None:
        raise TypeError(f"linear must be an nn.Linear or the Conv1D of transformers, got {type(module).__name__}")
    return tensor if base is nn.Linear else tensor.T


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight ``[out_features, in_features]`` of a Linear or ``Conv1D``: a view. Others are refused."""
    weight: Any = getattr(module, "weight", None)
    return out_by_in(module, weight)


def check_rules(rules: Any, *optional: str) -> None:
    """Refuse rules that are no dict of name patterns to ``dict(density=..., block_shape=...)`` or None.

    Args:
        optional: keys that a rule may have besides.
    """
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a dict of name patterns to dicts, got {type(rules).__name__}")
    for pattern, rule in rules.items():
        if rule is None:
            continue
        needed = {"density", "block_shape"}
        if not isinstance(rule, Mapping) or not needed <= set(rule) <= needed | set(optional):
            besides = "".join(f" (and {name})" for name in optional)
            raise ValueError(
                f"rules[{pattern!r}] must be a dict of density and block_shape{besides} or None, got {rule!r}"
            )
        checked_density(rule["density"])
        checked_pair("block_shape", rule["block_shape"], least=1)


def chosen_linears(
    model: nn.Module, rules: Mapping[str, Mapping[str, Any] | None], purpose: str, *known: str
) -> dict[str, tuple[nn.Module, Mapping[str, Any]]]:
    """The layers whose names match a rule, each with its ``dict(density=..., block_shape=...)``; the first rule counts.

    Args:
        purpose: what a layer cannot, in a refusal.
        known: as for :func:`reason_to_keep`.

    Raises:
        ValueError: a rule matches no Linear or is no such dict, or a layer cannot be replaced without losing something.
    """
    check_rules(rules)
    linears = {name: module for name, module in model.named_modules() if linear_base(module) is not None}
    chosen, unused = {}, set(rules)
    for name, module in linears.items():
        pattern = next((pattern for pattern in rules if fnmatchcase(name, pattern)), None)
        if pattern is None:
            continue
        unused.discard(pattern)
        rule = rules[pattern]
        if rule is None:
            continue
        if not rule["density"]:
            raise ValueError(f"rules must be dict(density in (0, 1], block_shape=...) or None, got {rule!r}")
        base = linear_base(module)
        assert base is not None
        reason = "it is the model itself" if not name else reason_to_keep(module, base, *known)
        reason = reason or reason_elsewhere(model, module)
        if reason is not None:
            raise ValueError(
                f"{name!r} cannot {purpose}: {reason}; the rule {{{name!r}: None}} before the others leaves it out"
            )
        chosen[name] = (module, rule)
    if unused:
        raise ValueError(f"rules must each match an nn.Linear, got {sorted(unused)} against {list(linears)}")
    return chosen
