"""Which convolutions of a model to embed, how, and at what size: what embed and plan start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from efcn_sparse.embedding.example_run import sizes_in_run
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.refusals import is_convolution, refusal, refuse
from efcn_sparse.embedding.support import Support
from efcn_sparse.linear.refusals import shared_parameter
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


@dataclass(frozen=True)
class Site:
    """A convolution, how to embed it, and its sizes."""

    name: str
    conv: nn.Module
    rule: Rule
    geometry: ConvGeometry


def survey(
    model: nn.Module, example: tuple[Tensor, ...], support: Support, layers: Mapping[str, Any] | None
) -> tuple[list[Site], Any]:
    """The sites of a model, and its output on the example; everything that cannot be embedded is refused by name.

    Raises:
        ValueError: a convolution cannot be embedded exactly, or there is none to embed.
        TypeError: an argument is of the wrong kind.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    chosen = choose(model, support, layers)
    if not chosen:
        kept = [name for name, module in model.named_modules() if is_convolution(module)]
        raise ValueError(f"model must hold a convolution to embed, got {type(model).__name__} with {kept} left as is")
    for choice in chosen:
        reason = refusal(choice.conv) or shared_parameter(model, choice.conv)
        if reason is not None:
            raise refuse(choice.name, choice.conv, reason)
    output, sizes = sizes_in_run(model, example, [choice.conv for choice in chosen])
    sites = []
    for choice in chosen:
        seen = sizes.get(id(choice.conv), [])
        if not seen:
            raise refuse(choice.name, choice.conv, "the example run does not call it")
        if len(seen) > 1:
            both = " and ".join(str(list(size)) for size in seen)
            raise refuse(choice.name, choice.conv, f"the example run calls it at the input sizes {both}")
        sites.append(Site(choice.name, choice.conv, choice.rule, ConvGeometry.of(choice.conv, seen[0])))
    return sites, output
