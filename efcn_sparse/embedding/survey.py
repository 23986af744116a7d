"""Which convolutions of a model to embed, how, and at what size: what embed and plan start from."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from efcn_sparse.embedding.conv import plain_convolution
from efcn_sparse.embedding.example_run import Call, Example, Run, Traced, run
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.refusals import has_own_forward, is_convolution, refusal, refuse, without_weight_norm
from efcn_sparse.embedding.support import Support
from efcn_sparse.linear.refusals import reason_elsewhere
from efcn_sparse.pattern.checks import checked_pair


@dataclass(frozen=True)
class Rule:
    """How to embed a layer; ``block_shape`` None: chosen by cost."""

    support: Support
    block_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Site:
    """A convolution, how to embed it, and its sizes; ``plain``: the same with a weight that is not computed."""

    name: str
    conv: nn.Module
    plain: nn.Module
    rule: Rule
    geometry: ConvGeometry


@dataclass(frozen=True)
class Survey:
    """What an example run shows about a model.

    Attributes:
        sites: the convolutions to embed.
        runs: of the model on the example, on one of another batch size, and in training mode; the last two only where
            the model can run so.
        left: how many kernel numbers each convolution has that is computed by a function and left so, by its name.
    """

    sites: list[Site]
    runs: list[Run]
    left: dict[str, int]


def survey(
    model: nn.Module, example: Example, support: Support, layers: Mapping[str, Any] | None, leave_uncalled: bool = False
) -> Survey:
    """Run a model on an example; everything that cannot be embedded is refused by name.

    Args:
        support: of every convolution that no pattern names.
        layers: shell-style name patterns to a :class:`Support`, None (leave the layer as it is), or a mapping with
            the keys ``support`` and ``block_shape``. The first pattern that matches a layer counts.
        leave_uncalled: whether convolutions that the example run does not call stay convolutions.

    Raises:
        ValueError: a convolution cannot be embedded exactly, there is none to embed, a pattern matches none, or its
            value is none of these.
        TypeError: an argument is of the wrong kind.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(support, Support):
        raise TypeError(f"support must be a Support such as Local() or LowRank(rank), got {support!r}")
    rules = {pattern: _rule(pattern, value, support) for pattern, value in (layers or {}).items()}
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_convolution(module):
            names.setdefault(module, []).append(name)
    choices = {}
    for conv, own_names in names.items():
        pattern = _first(rules, own_names)
        rule = Rule(support) if pattern is None else rules[pattern]
        if rule is not None:
            choices[own_names[0]] = conv, rule
    if not choices:
        raise ValueError(_nothing_to_embed(model, [own_names[0] for own_names in names.values()]))
    plain = {name: without_weight_norm(conv) for name, (conv, _) in choices.items()}
    for name, (conv, _) in choices.items():
        reason = refusal(plain[name]) or reason_elsewhere(model, conv)
        if reason is not None:
            raise refuse(name, conv, reason)
    for name, module in model.named_modules():
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise ValueError(f"model must have run once, got a {type(module).__name__} without numbers at {name!r}")

    runs = _runs(model, example, {name: conv for name, (conv, _) in choices.items()})
    functions = _functions(model, runs, rules, {own_names[0] for own_names in names.values()})
    everything = [*names.values(), *functions, *((name,) for done in runs for name in done.unfolded)]
    unused = [pattern for pattern in rules if not any(_matches(pattern, own_names) for own_names in everything)]
    if unused:
        known = [own_names[0] for own_names in everything]
        raise ValueError(f"layers must name convolutions of the model, {known}, got {unused}")
    sites = []
    for name, (conv, rule) in choices.items():
        site = _site(name, conv, plain[name], rule, runs)
        if site is not None:
            sites.append(site)
        elif not leave_uncalled:
            raise refuse(name, conv, "the example run does not call it", ", and leave_uncalled=True every such one")
    if not sites:
        raise ValueError(f"model must call a convolution to embed on the example, got a run without {list(choices)}")
    return Survey(sites, runs, {own_names[-1] or "model": kernel for own_names, kernel in functions.items()})


def _nothing_to_embed(model: nn.Module, kept: list[str]) -> str:
    what, kind = "model must hold a convolution to embed", type(model).__name__
    if kept:
        return f"{what}, got {kind} with {kept} left as is"
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        where = f" with {scripted[0]!r} scripted" if scripted[0] else ""
        return f"model must be embedded before torch.jit scripts or traces it, got {kind}{where}"
    more = (
        "; sparsify makes linear layers block-sparse" if any(isinstance(m, nn.Linear) for m in model.modules()) else ""
    )
    return f"{what} such as an nn.Conv2d, got {kind} without one{more}"


def _runs(model: nn.Module, example: Example, convolutions: Mapping[str, nn.Module]) -> list[Run]:
    """On the example, on one of another batch size, and in training mode.

    What merges batch and channels may run on a batch of one alone, and other code may run in training than in
    evaluation. Where the model itself cannot do so, nobody has to.
    """
    own = [name for name, conv in convolutions.items() if has_own_forward(conv)]
    runs = [run(model, example, False, convolutions, own)]
    larger, other = example, example.batch
    if other:
        resized = example.of_batch(2 if other == 1 else 1)
        try:
            second = run(model, resized, False, convolutions)
        except Exception:
            second = None  # the first side is no batch, or the model takes just one batch size
        if second is not None and _sizes(second, convolutions) == _sizes(runs[0], convolutions):
            runs.append(second)
            larger = resized if other == 1 else example
    with contextlib.suppress(Exception):
        runs.append(run(model, larger, True, convolutions, own))
    return runs


def _sizes(
    done: Run, convolutions: Mapping[str, nn.Module]
) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The distinct spatial sizes of what each convolution got and, if it is a transposed one, returned."""
    found = {}
    for name in convolutions.keys() & done.shapes.keys():
        dims = len(convolutions[name].kernel_size)  # type: ignore[arg-type]
        found[name] = list(dict.fromkeys((got[-dims:], returned[-dims:]) for got, returned in done.shapes[name]))
    return found


def _site(name: str, conv: nn.Module, plain: nn.Module, rule: Rule, runs: list[Run]) -> Site | None:
    """At the one size at which the runs call it; None where they do not."""
    calls = [call for done in runs for call in _sizes(done, {name: conv}).get(name, [])]
    if not calls:
        return None
    for side, sizes in zip(("input", "output"), map(dict.fromkeys, zip(*calls, strict=True)), strict=True):
        if len(sizes) > 1:
            both = " and ".join(str(list(size)) for size in sizes)
            raise refuse(name, conv, f"the example run calls it at the {side} sizes {both}")
    input_size, output_size = calls[0]
    if not has_own_forward(conv):
        try:
            return Site(name, conv, plain, rule, ConvGeometry.of(conv, input_size, output_size or None))
        except ValueError as error:
            raise refuse(name, conv, str(error)) from None
    first, *others = (call for done in runs for call in done.traced.get(name, []))
    if first is None or not all(map(first.same_as, others)):
        reason = "its class has a forward of its own, which is not just zero padding and a convolution by fixed numbers"
        raise refuse(name, conv, reason)
    return Site(name, conv, _with_own_numbers(name, conv, first), rule, first.geometry)


def _with_own_numbers(name: str, conv: nn.Module, call: Traced) -> nn.Module:
    """``conv``, or a plain convolution with the numbers that ``conv`` computes, as weight standardization does."""
    if call.numbers is None:
        return conv
    weight, bias = call.numbers
    try:
        plain = plain_convolution(call.geometry, bias is not None, weight.dtype)
    except ValueError:
        reason = "it computes its weight and pads one side by more than the other, which no plain convolution does"
        raise refuse(name, conv, reason) from None
    learns = any(parameter.requires_grad for parameter in conv.parameters())
    for kind, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            own = isinstance(tensor, nn.Parameter)
            setattr(plain, kind, nn.Parameter(tensor.detach().clone(), tensor.requires_grad if own else learns))
    return plain.train(conv.training)


def _functions(
    model: nn.Module, runs: list[Run], rules: Mapping[str, Rule | None], modules: set[str]
) -> dict[tuple[str, ...], int]:
    """The names of each convolution that no convolution module computes, and how many numbers its kernel has.

    Raises:
        ValueError: no rule leaves one as it is.
    """
    found: dict[tuple[str, ...], int] = {}
    refused: dict[str, Call] = {}
    for done in runs:
        in_run: dict[tuple[str, ...], int] = {}
        for call in (call for call in done.computed if call.name not in modules):
            names = tuple(name for name in (call.name, call.weight) if name) or ("",)
            pattern = _first(rules, names)
            if pattern is None or rules[pattern] is not None:
                refused.setdefault(names[0], call)
            # a computed kernel has no name to know it by, so each call counts
            in_run[names] = call.kernel + (in_run.get(names, 0) if call.weight is None else 0)
        found |= {names: max(kernel, found.get(names, 0)) for names, kernel in in_run.items()}
    if refused:
        (name, call), *others = refused.items()
        reason = f"its forward computes a convolution by itself{f', with {call.weight!r}' if call.weight else ''}"
        more = f", and so do {', '.join(repr(other) for other, _ in others)}" if others else ""
        raise refuse(name, model.get_submodule(call.name), reason + more)
    unfolded = sorted({name for done in runs for name in done.unfolded} - modules)
    left = dict.fromkeys(pattern for pattern, rule in rules.items() if rule is None)
    told = [name or "the model itself" for name in unfolded if _first(left, (name,)) is None]
    if told:
        warnings.warn(
            f"{', '.join(told)}: unfolds its input; a product with that is a convolution, which is left as it is, not "
            "counted by deviation. layers={name: None} says so and is silent"
        )
    return found


def _first(rules: Mapping[str, Rule | None], names: Iterable[str]) -> str | None:
    """The first pattern that matches one of the names."""
    return next((pattern for pattern in rules if _matches(pattern, names)), None)


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


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
