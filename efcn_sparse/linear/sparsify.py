"""Swap named ``nn.Linear`` modules of any model for block-sparse ones."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from efcn_sparse.linear.sparse_linear import SparseLinear


def sparsify(model: nn.Module, rules: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Replace, in place, every :class:`torch.nn.Linear` whose name matches a rule; the first match counts.

    Args:
        model: any module.
        rules: shell-style name patterns to the arguments of :meth:`SparseLinear.from_linear`. A Linear that is
            shared under several names stays shared.

    Returns:
        ``model``; if it is itself a Linear that matches, its replacement.

    Raises:
        ValueError: a rule matches no Linear; nothing has been replaced then.

    Example:
        >>> import efcn_sparse as es
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> es.sparsify(net, {"0": dict(density=0.1, block_shape=(8, 8))})[0].pattern.nnz_blocks
        6
    """
    chosen: dict[str, Mapping[str, Any]] = {}
    unused = set(rules)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            rule = next((rule for rule in rules if fnmatchcase(name, rule)), None)
            if rule is not None:
                chosen[name] = rules[rule]
                unused.discard(rule)
    if unused:
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise ValueError(f"rules must each match an nn.Linear, got {sorted(unused)} against {linears}")
    replaced: dict[int, SparseLinear] = {}
    for name, arguments in chosen.items():
        linear = model.get_submodule(name)
        if id(linear) not in replaced:
            assert isinstance(linear, nn.Linear)
            replaced[id(linear)] = SparseLinear.from_linear(linear, **arguments)
    by_name = {name: replaced[id(model.get_submodule(name))] for name in chosen}
    for name, layer in by_name.items():
        if not name:
            return layer
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return model
