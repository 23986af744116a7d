"""Every convolution to embed with the one input size that it has: what embed and plan start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from efcn_sparse.embedding.example_run import sizes_in_run
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.refusals import is_convolution, refusal, refuse
from efcn_sparse.embedding.rules import Chosen, Rule, choose
from efcn_sparse.embedding.support import Support


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
        reason = refusal(choice.conv)
        if reason is not None:
            raise refuse(choice.name, choice.conv, reason)
    _refuse_shared_parameters(model, chosen)
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


def _refuse_shared_parameters(model: nn.Module, chosen: list[Chosen]) -> None:
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            holders.setdefault(id(parameter), []).append((module, f"{prefix}.{name}" if prefix else name))
    for choice in chosen:
        for name, parameter in choice.conv._parameters.items():
            if parameter is None:
                continue
            other = next((where for module, where in holders[id(parameter)] if module is not choice.conv), None)
            if other is not None:
                raise refuse(choice.name, choice.conv, f"its {name} is shared with {other!r}")
