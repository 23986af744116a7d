"""Swap named ``nn.Linear`` modules of any model for block-sparse ones, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import singledispatch
from typing import Any

from torch import nn

from efcn_sparse.copying import copy_of
from efcn_sparse.linear.refusals import (
    as_linear,
    check_rules,
    linear_base,
    reason_elsewhere,
    reason_not_to_copy,
    reason_to_keep,
)
from efcn_sparse.linear.sparse_linear import SparseLinear


def sparsify(model: nn.Module, rules: Mapping[str, Mapping[str, Any] | None], *, inplace: bool = True) -> nn.Module:
    """Replace, in place, every :class:`torch.nn.Linear` whose name matches a rule; the first match counts.

    The ``Conv1D`` that GPT-2 of transformers has in place of Linears counts as one. :func:`efcn_sparse.sparsity` says
    what has become of each layer. A warning names layers that store no block, or at least twice what was asked for
    (each block row and column keeps a block), and the first and the last layer if the rule ``"*"`` took them.

    Args:
        model: any module.
        rules: shell-style name patterns to the arguments of :meth:`SparseLinear.from_linear`, or to None to leave a
            Linear as it is. A Linear that is shared under several names stays shared; ``requires_grad`` carries over.
        inplace: whether ``model`` itself is changed, as by default, or a copy, as :func:`efcn_sparse.embed` makes.

    Returns:
        ``model``, or its copy; if it is itself a Linear that matches, its replacement.

    Raises:
        ValueError: a rule matches no Linear; or a Linear cannot be replaced without losing something: it shares a
            parameter (tied embeddings), is lazy or parametrized, has hooks or a forward of its own. Nothing has been
            replaced then.

    Example:
        >>> import efcn_sparse as es
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> es.sparsify(net, {"2": None, "[0-1]": dict(density=0.25, block_shape=(8, 8))})[0].pattern.nnz_blocks
        16
    """
    check_rules(rules, "cover")
    chosen: dict[str, Mapping[str, Any]] = {}
    unused = set(rules)
    for name, module in model.named_modules(remove_duplicate=False):
        if linear_base(module) is not None:
            rule = _rule(name, rules)
            if rule is not None:
                unused.discard(rule)
                arguments = rules[rule]
                if arguments is not None:
                    chosen[name] = arguments
    if unused:
        linears = [name for name, module in model.named_modules() if linear_base(module) is not None]
        raise ValueError(f"rules must each match an nn.Linear, got {sorted(unused)} against {linears}")
    replaced: dict[int, SparseLinear] = {}
    for name, arguments in chosen.items():
        module = model.get_submodule(name)
        if id(module) not in replaced:
            _check_replaceable(model, name, module)
            replaced[id(module)] = SparseLinear.from_linear(as_linear(module), **arguments)
    by_name = {name: replaced[id(model.get_submodule(name))] for name in chosen}
    _warn(model, rules, chosen, by_name)
    if not inplace:
        return copy_of(model, replaced)
    for name, layer in by_name.items():
        if not name:
            return layer
        model.set_submodule(name, layer)
    return model


def densify(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose sparse layers are :class:`torch.nn.Linear` with zeros off the support.

    For tools that look for Linears: quantization, pruning. :func:`efcn_sparse.exportable` keeps the blocks alone, for
    ONNX and others. What was one layer under several names stays one. An embedded convolution keeps its shape and has a
    Linear inside, and can no longer be measured. A :class:`SparseDelta` becomes its linear layer with Δ in the weight.

    Law: ``densify(model)(x) == model(x)``, up to the order of sums.

    Raises:
        ValueError: a sparse layer has hooks, or a forward of its own, which would be lost.
        NotImplementedError: a convolution is embedded with a low-rank part, which is no Linear.

    Example:
        >>> import torch, efcn_sparse as es
        >>> net = es.sparsify(nn.Sequential(nn.Linear(64, 32)), {"0": dict(density=0.25, block_shape=(8, 8))})
        >>> es.densify(net)
        Sequential(
          (0): Linear(in_features=64, out_features=32, bias=True)
        )
    """
    for name, module in model.named_modules():
        if getattr(module, "low_rank", None) is not None:
            raise NotImplementedError(
                f"{name or type(module).__name__}: must have no low-rank part, which is a product beside the blocks "
                "and no nn.Linear; exportable(model) takes it, and unembed(model) gives the nearest CNN"
            )

    def replaced(module: nn.Module) -> dict[int, nn.Module]:
        dense = as_dense(module)
        return {} if dense is None else {id(module): dense}

    return copy_with(model, replaced)


def copy_with(model: nn.Module, replaced: Callable[[nn.Module], Mapping[int, nn.Module]]) -> nn.Module:
    """A copy of ``model`` with other modules in the place of some.

    Args:
        replaced: what takes the place of a module, or of parts of it, by ``id``; parts that have one are not asked.

    Raises:
        ValueError: something would be lost, or a copy would call the original.
    """
    memo: dict[int, nn.Module] = {}
    for module in model.modules():
        if id(module) not in memo:
            memo |= replaced(module)
    for name, module in model.named_modules():
        title = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        if hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            raise ValueError(f"cannot copy {title}: its compiled forward calls the original; compile the copy")
        reason = reason_not_to_copy(module) if id(module) in memo else None
        if reason is not None:
            raise ValueError(f"cannot replace {title} in a copy: {reason}")
    return copy_of(model, memo)


@singledispatch
def as_dense(module: nn.Module) -> nn.Module | None:
    """The dense layer that computes the same as this sparse one; None for all others."""
    return None


@as_dense.register
def _(module: SparseLinear) -> nn.Module:
    return module.to_linear()


def _warn(
    model: nn.Module,
    rules: Mapping[str, Any],
    chosen: Mapping[str, Mapping[str, Any]],
    by_name: Mapping[str, SparseLinear],
) -> None:
    """One warning for all that is likely not what was meant."""
    told = []
    for name, layer in by_name.items():
        pattern, asked = layer.pattern, chosen[name]["density"]
        if pattern.nnz_blocks == 0:
            told.append(f"{name!r} stores no block, so its output is constant")
        elif pattern.density >= 2 * asked:
            told.append(
                f"{name!r} stores a share of {pattern.density:.2g} of its blocks of {list(pattern.block_shape)} where "
                f"{asked} was asked for, so that each block row and column has one; smaller blocks come nearer"
            )
    names = [name for name, module in model.named_modules() if linear_base(module) is not None]
    ends = {"first": names[0], "last": names[-1]} if len(names) > 1 else {}
    taken = {end: name for end, name in ends.items() if name in by_name and _rule(name, rules) == "*"}
    if taken:
        layers = " and ".join(f"the {end} layer {name!r}" for end, name in taken.items())
        leave = ", ".join(f"{name!r}: None" for name in taken.values())
        told.append(f"the rule '*' took {layers}, which often stay dense: {{{leave}, '*': …}}")
    if told:
        warnings.warn("sparsify: " + "; ".join(told), UserWarning, stacklevel=3)


def _rule(name: str, rules: Mapping[str, Any]) -> str | None:
    """The first rule that matches."""
    return next((rule for rule in rules if name == rule or fnmatchcase(name, rule)), None)


def _check_replaceable(model: nn.Module, name: str, module: nn.Module) -> None:
    base = linear_base(module)
    assert base is not None
    reason = reason_to_keep(module, base, "forward") or reason_elsewhere(model, module)
    if reason is not None:
        raise ValueError(
            f"cannot sparsify {name!r} ({type(module).__name__}): {reason}; the rule {{{name!r}: None}} before the "
            "others leaves it as it is"
        )
