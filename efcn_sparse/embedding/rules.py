"""Which convolutions of a model to embed, and how: choices by name pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from efcn_sparse.embedding.refusals import is_convolution
from efcn_sparse.embedding.support import Support
from efcn_sparse.pattern.checks import checked_pair


@dataclass(frozen=True)
class Rule:
    """How to embed a layer; ``block_shape`` None: chosen by cost."""

    support: Support
    block_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Chosen:
    """A convolution to embed, under all its names in the model."""

    names: tuple[str, ...]
    conv: nn.Module
    rule: Rule

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


def choose(model: nn.Module, support: Support, layers: Mapping[str, Any] | None) -> list[Chosen]:
    """The convolutions to embed, each with its rule, in the order of the model.

    Args:
        support: of every convolution that no pattern names.
        layers: shell-style name patterns to a :class:`Support`, None (leave the layer as it is), or a mapping with
            the keys ``support`` and ``block_shape``. The first pattern that matches a layer counts.

    Raises:
        ValueError: a pattern matches no convolution, or its value is none of these.
        TypeError: ``support`` is no :class:`Support`.
    """
    if not isinstance(support, Support):
        raise TypeError(f"support must be a Support such as Local() or LowRank(rank), got {support!r}")
    rules = {pattern: _rule(pattern, value, support) for pattern, value in (layers or {}).items()}
    names: dict[int, list[str]] = {}
    convolutions: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_convolution(module):
            convolutions[id(module)] = module
            names.setdefault(id(module), []).append(name)
    matched = {pattern for pattern in rules for all_names in names.values() if _matches(pattern, all_names)}
    if len(matched) < len(rules):
        unused = [pattern for pattern in rules if pattern not in matched]
        known = [all_names[0] for all_names in names.values()]
        raise ValueError(f"layers must name convolutions of the model, {known}, got {unused}")
    chosen = []
    for key, all_names in names.items():
        pattern = next((pattern for pattern in rules if _matches(pattern, all_names)), None)
        rule = Rule(support) if pattern is None else rules[pattern]
        if rule is not None:
            chosen.append(Chosen(tuple(all_names), convolutions[key], rule))
    return chosen


def _matches(pattern: str, names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _rule(pattern: str, value: Any, default: Support) -> Rule | None:
    if value is None:
        return None
    if isinstance(value, Support):
        return Rule(value)
    if isinstance(value, Mapping) and set(value) <= {"support", "block_shape"}:
        support, block_shape = value.get("support", default), value.get("block_shape")
        if isinstance(support, Support):
            return Rule(support, None if block_shape is None else checked_pair("block_shape", block_shape, least=1))
    raise ValueError(
        f"layers[{pattern!r}] must be a Support, None, or a dict of support and block_shape, got {value!r}"
    )
