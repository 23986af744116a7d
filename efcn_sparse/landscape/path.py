"""The loss along a path between two nets."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efcn_sparse.landscape.between import Between

Evaluate = Callable[[nn.Module], "float | Mapping[str, float]"]
KINDS = ("linear", "curvilinear", "output", "string")


@dataclass(frozen=True)
class Path:
    """Evaluations along a path.

    Attributes:
        kind: of the path, as :func:`path` names it.
        positions: where they were made, from 0.0 (``a``) to 1.0 (``b``).
        metrics: what ``evaluate`` gave at each position, by name; a single number is called ``loss``.
    """

    kind: str
    positions: tuple[float, ...]
    metrics: tuple[Mapping[str, float], ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss at each position; what was not finite is here as it came."""
        return tuple(one["loss"] for one in self.metrics)

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between the losses of the ends; 0.0 where it never does.

        NaN or infinity where a loss on the way is not finite.

        Source: Frankle, Dziugaite, Roy, Carbin: Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020
        (error barrier), with the straight line in place of the mean, as ends may differ.
        """
        first, last = self.losses[0], self.losses[-1]
        rises = [
            loss - ((1 - position) * first + position * last)
            for position, loss in zip(self.positions, self.losses, strict=True)
        ]
        return math.nan if any(math.isnan(rise) for rise in rises) else max(0.0, *rises)


def path(
    a: nn.Module,
    b: nn.Module,
    evaluate: Evaluate,
    *,
    points: int | Sequence[float] = 11,
    kind: str = "linear",
    batches: Iterable[Any] | None = None,
) -> Path:
    """Evaluate nets along a path from ``a`` to ``b``.

    Args:
        a, b: two nets of one architecture, a CNN and its eFCN, or two eFCNs whose supports may differ. They are not
            changed. Modes do not count: nets are evaluated in evaluation mode.
        evaluate: takes a net, gives its loss, or a mapping with ``"loss"`` and other metrics.
        points: how many positions, both ends included, or the positions themselves, ascending from 0 to 1.
        kind: ``"linear"``: the weights ``(1 - t) · a + t · b``. ``"curvilinear"``: the same, with each parameter scaled
            to the linear interpolation of its norms, so that it does not shrink on the way between two directions.
            ``"output"``: the average ``(1 - t) · a(x) + t · b(x)`` of predictions, whatever the architectures.
        batches: inputs on which statistics of BatchNorm layers are computed anew at each inner point, where those of
            the ends, or a mean of them, do not fit the weights. Needed where the nets have such statistics and
            ``kind`` is not ``"output"``. Each is one tensor, or a tuple of positional inputs.

    Memory: a layer with block-sparse weights is linear in them, so a point is computed from the layers of both ends,
    and no third set of weights is made, nor anything dense. The price is two products per layer.

    Raises:
        ValueError: the nets do not match (the message names the layer), ``batches`` is missing, or an argument is out
            of range.

    Source: curvilinear and output interpolation follow the code of d'Ascoli et al., NeurIPS 2019.

    Example:
        >>> import torch, efcn_sparse as es
        >>> x = torch.randn(8, 1, 6, 6)
        >>> cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        >>> efcn = es.embed(cnn, x, support=es.Dilated(1))
        >>> there = es.landscape.path(cnn, efcn, lambda net: float(net(x).square().mean()), points=3)
        >>> max(there.losses) - min(there.losses) < 1e-6 and there.barrier < 1e-6   # they are the same function
        True
    """
    positions = _checked_positions(points)
    if kind not in KINDS[:3]:
        raise ValueError(f"kind must be one of {', '.join(KINDS[:3])}, got {kind!r}")
    net = _Average(a, b) if kind == "output" else Between(a, b)
    normalized = [] if kind == "output" else batch_norms(net)
    given = None if batches is None else list(batches)
    if normalized and not given:
        raise ValueError(
            "batches must be given where nets have BatchNorm layers: their statistics do not fit the weights of inner "
            "points, and are computed anew there"
        )
    found = []
    with evaluation_mode(a, b):
        for position in positions:
            net.move(position, keep_norms=kind == "curvilinear")
            if normalized and 0 < position < 1:
                recompute_statistics(net, given or [])
            found.append(evaluated(evaluate, net.eval()))
    return Path(kind, positions, tuple(found))


class _Average(nn.Module):
    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self._ends = (a, b)
        self._position = 0.0

    def move(self, position: float, *, keep_norms: bool) -> None:
        self._position = position

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        a, b = (end(*args, **kwargs) for end in self._ends)
        return torch.lerp(a, b, self._position)


def evaluated(evaluate: Evaluate, net: nn.Module) -> dict[str, float]:
    """The metrics of one net, checked."""
    with torch.no_grad():
        given = evaluate(net)
    metrics = dict(given) if isinstance(given, Mapping) else {"loss": given}
    if "loss" not in metrics:
        raise ValueError(f"evaluate must give a number, or a mapping with 'loss', got the names {sorted(metrics)}")
    return {name: float(value) for name, value in metrics.items()}


def batch_norms(net: nn.Module) -> list[nn.Module]:
    """The layers of ``net`` with running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [one for one in net.modules() if isinstance(one, kind) and one.track_running_stats]


@torch.no_grad()
def recompute_statistics(net: nn.Module, batches: Iterable[Any]) -> None:
    """Set the running statistics of BatchNorm layers to the mean over ``batches``, all else in evaluation mode."""
    layers: list[Any] = batch_norms(net)
    net.eval()
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over batches
            layer.train()
        for batch in batches:
            net(*batch) if isinstance(batch, tuple) else net(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()


@contextlib.contextmanager
def evaluation_mode(*nets: nn.Module) -> Iterator[None]:
    """Evaluation mode within; each module's own mode after it."""
    before = {module: module.training for net in nets for module in net.modules()}
    try:
        for net in nets:
            net.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _checked_positions(points: int | Sequence[float]) -> tuple[float, ...]:
    if isinstance(points, int):
        if points < 2:
            raise ValueError(f"points must be at least 2, got {points}")
        return tuple(point / (points - 1) for point in range(points))
    positions = tuple(float(point) for point in points)
    if len(positions) < 2 or positions[0] != 0 or positions[-1] != 1 or list(positions) != sorted(set(positions)):
        raise ValueError(f"points must ascend from 0 to 1, got {list(positions)}")
    return positions
