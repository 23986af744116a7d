"""The state of a CNN's optimizer, carried over to the optimizer of its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, Adam, AdamW, Optimizer

from efcn_sparse.embedding import EmbeddedConv, LowRankPart
from efcn_sparse.embedding.ties import Ties
from efcn_sparse.fused import FusedOptimizer, set_state, state_of
from efcn_sparse.training.optim.optimizer_state import live_states
from efcn_sparse.training.optim.selective import SelectiveSGD

_SGD, _ADAM = "SGD", "Adam"
_FAMILIES: dict[type[Optimizer], str] = {SGD: _SGD, SelectiveSGD: _SGD, Adam: _ADAM, AdamW: _ADAM}
_DEGREES = {"step": 0, "momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}  # in the gradient


@torch.no_grad()
def carry_state(cnn: nn.Module, cnn_optimizer: Optimizer, efcn: nn.Module, efcn_optimizer: Optimizer) -> None:
    """Let the optimizer of an embedding go on with the momentum, or the Adam moments, of its CNN's optimizer.

    A kernel entry's gradient is the sum of its n copies' (law 4), so a copy's share of it is one n-th: what is linear
    in the gradient (momentum, Adam's first moment) goes to each copy divided by n, and Adam's second moment by n². A
    bias has one copy for each position. The buffers of ``SelectiveSGD`` hold the tied part's rate times the sum over
    copies (``copies="sum"``: not divided) or their mean. Off-local entries start at zero, and low-rank parts without
    state. Step counters, and all of what is no embedded convolution, are copied as they are.

    Args:
        cnn, cnn_optimizer: torch's ``SGD``, ``Adam`` or ``AdamW``; left as they are.
        efcn: made from ``cnn`` by :func:`efcn_sparse.embed`. Its values do not matter, only its ties.
        efcn_optimizer: of the same family (``SelectiveSGD`` is of SGD's), or a ``FusedOptimizer`` over it; it must not
            have stepped yet.

    Laws: the carried momentum is the tied part of what the embedding's own SGD would have gathered at the CNN's
    weights. ``SelectiveSGD.as_cnn`` goes on as the CNN with its momentum does, to rounding. With Adam, and gradients of
    zero, both nets take the same next step (save for ``eps``). A fresh optimizer leaves the other fresh.

    Adam's second moment of a copy's own gradients is at least what is carried, since a mean of squares is no less than
    the square of the mean. An off-local weight meets its first gradient with a step counter that has run, so that it
    may move by up to (1 - β₁) / √(1 - β₂) learning rates at once, 3.2 by default. Weight decay that SGD or Adam (not
    AdamW) put into the state is divided with it, except under ``copies="sum"``.

    Raises:
        TypeError: an optimizer is of another kind, whose state cannot be mapped; it is named.
        ValueError: the families differ, ``efcn_optimizer`` has stepped or could not use the state, or ``efcn`` is no
            embedding of ``cnn``. Nothing has changed then.

    Example:
        >>> import efcn_sparse as es
        >>> cnn = nn.Conv2d(2, 4, 3)
        >>> optimizer = SGD(cnn.parameters(), lr=0.1, momentum=0.9)
        >>> cnn(torch.ones(1, 2, 6, 6)).sum().backward()
        >>> optimizer.step()
        >>> efcn = es.embed(cnn, torch.zeros(1, 2, 6, 6))
        >>> other = SGD(efcn.parameters(), lr=0.1, momentum=0.9)
        >>> carry_state(cnn, optimizer, efcn, other)
        >>> optimizer.state[cnn.bias]["momentum_buffer"][0], other.state[efcn.linear.bias]["momentum_buffer"][0]
        (tensor(16.), tensor(1.))
    """
    check_optimizers(cnn_optimizer, efcn_optimizer)
    states, places = live_states(cnn, cnn_optimizer), {id(p): place for place, p in enumerate(cnn.parameters())}
    carried: dict[int, dict[str, Tensor]] = {}
    links = _links(cnn, efcn, efcn_optimizer)
    for place, target in enumerate(efcn.parameters()):
        if id(target) not in links:
            continue
        source, copies = links[id(target)]
        state = states.get(places[id(source)], {})
        if "momentum_buffer" in state and not all(group["momentum"] for group in efcn_optimizer.param_groups):
            raise ValueError("efcn_optimizer must have momentum, which cnn_optimizer has, got 0")
        if state:
            carried[place] = {key: _carried(tensor, _DEGREES[key], copies) for key, tensor in state.items()}
    if carried:
        _hand_over(efcn, efcn_optimizer, carried)


class _Copies(NamedTuple):
    """How one parameter of a convolution was copied: by its ties, or for a bias (None) to every position."""

    share: Tensor  # of the gradient of each entry, that one copy of it has
    ties: Ties | None
    positions: int


def _carried(tensor: Tensor, degree: int, copies: _Copies | None) -> Tensor:
    """A state that is of that degree in the gradient, as the copies have it."""
    if copies is None or not tensor.dim():
        return tensor.clone()
    scaled = (tensor.to(copies.share.device).double() * copies.share.pow(degree)).to(tensor.dtype)
    return scaled.repeat(copies.positions) if copies.ties is None else copies.ties.scatter(scaled)


def _links(cnn: nn.Module, efcn: nn.Module, optimizer: Optimizer) -> dict[int, tuple[Tensor, _Copies | None]]:
    """By id, where each parameter of ``efcn`` came from, and how it was copied if it was not taken as it is."""
    links: dict[int, tuple[Tensor, _Copies | None]] = {}
    modules, parameters = dict(cnn.named_modules()), dict(cnn.named_parameters())
    for name, layer in efcn.named_modules():
        if not isinstance(layer, EmbeddedConv):
            continue
        layer.check_holds_blocks()
        conv, bias = modules.get(name), layer.linear.bias
        kind = type(conv if layer.original is None else layer.original)
        if isinstance(conv, _ConvNd) and (type(conv) is not kind or "weight" not in conv._parameters):
            raise ValueError(
                f"cnn must hold the kernel of {name!r} as a parameter, got one that {type(conv).__name__} computes, "
                "whose state does not belong to the copies"
            )
        if (
            not isinstance(conv, _ConvNd)
            or tuple(conv.weight.shape) != tuple(layer.ties.kernel_shape)
            or (conv.bias is None) != (bias is None)
        ):
            described = f"weight {list(layer.ties.kernel_shape)} and {'no bias' if bias is None else 'a bias'}"
            raise ValueError(f"cnn must have a convolution with {described} at {name!r}, got {conv}")
        rate, summed = 1.0, False
        if isinstance(optimizer, SelectiveSGD):
            rate, summed = optimizer.parts[name].tied.rate, optimizer.copies == "sum"
        positions = layer.linear.out_features // conv.out_channels
        counts = [layer.ties.counts.clamp(min=1).view(layer.ties.kernel_shape).double()]
        counts += [] if conv.bias is None else [torch.full_like(conv.bias, positions, dtype=torch.double)]
        shares = [rate * (torch.ones_like(count) if summed else count.reciprocal()) for count in counts]
        links[id(layer.linear.values)] = conv.weight, _Copies(shares[0], layer.ties, positions)
        if conv.bias is not None:
            links[id(bias)] = conv.bias, _Copies(shares[1], None, positions)
    low_rank = {id(p) for module in efcn.modules() if isinstance(module, LowRankPart) for p in module.parameters()}
    for name, parameter in efcn.named_parameters():
        if id(parameter) not in links and id(parameter) not in low_rank:
            if name not in parameters or parameters[name].shape != parameter.shape:
                got = list(parameters[name].shape) if name in parameters else "none of that name"
                raise ValueError(f"cnn must have a parameter {name!r} of {list(parameter.shape)}, got {got}")
            links[id(parameter)] = parameters[name], None
    return links


def _hand_over(model: nn.Module, optimizer: Optimizer, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Make ``states``, by the place of each parameter, those of ``optimizer``, save for what it does not train."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for place, parameter in enumerate(model.parameters()):
        if place in states and id(parameter) in trained:
            laid_out = {key: _laid_out(tensor, parameter) for key, tensor in states[place].items()}
            set_state(optimizer, parameter, {**state_of(optimizer, parameter), **laid_out})


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    if not tensor.dim() or (tensor.stride(), tensor.device) == (like.stride(), like.device):
        return tensor
    return torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=like.device).copy_(tensor)


def check_optimizers(source: Optimizer, target: Optimizer) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless the state of one can be carried to the other."""
    inner = target.inner if isinstance(target, FusedOptimizer) else [target]
    families = set()
    for name, optimizer in (("cnn_optimizer", source), *(("efcn_optimizer", one) for one in inner)):
        if type(optimizer) not in _FAMILIES:
            known = ", ".join(kind.__name__ for kind in _FAMILIES)
            raise TypeError(
                f"{name} must be one of {known}, whose state can be mapped to copies, got {type(optimizer).__name__}"
            )
        families.add(_FAMILIES[type(optimizer)])
    if len(families) > 1:
        raise ValueError(
            f"efcn_optimizer must be of the family of {type(source).__name__}, got {type(inner[0]).__name__}"
        )
    if any(target.state.values()):
        raise ValueError("efcn_optimizer must not have stepped yet, got one that holds state")
    for setting in ("amsgrad", "maximize"):
        there, here = ({group.get(setting, False) for group in one.param_groups} for one in (source, target))
        if there != here:
            raise ValueError(f"{setting} of efcn_optimizer must be cnn_optimizer's {there}, got {here}")
