"""The loss along a path between two nets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efcn_sparse.landscape.between import Between
from efcn_sparse.landscape.modes import batch_norms, evaluation_mode, recompute_statistics
from efcn_sparse.landscape.parts import refuse_low_rank_in
from efcn_sparse.landscape.string import Loss, MakeOptimizer, checked_positions, string

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
        return self._above([(1 - position) * first + position * last for position in self.positions])

    @property
    def rise(self) -> float:
        """How far the loss rises above both ends; 0.0 where it never does: then nothing separates the two.

        A loss that falls all the way, but late, has a ``barrier`` and no rise.
        """
        return self._above([max(self.losses[0], self.losses[-1])] * len(self.losses))

    def _above(self, line: Sequence[float]) -> float:
        above = [loss - level for loss, level in zip(self.losses, line, strict=True)]
        return math.nan if any(math.isnan(one) for one in above) else max(0.0, *above)


def path(
    a: nn.Module,
    b: nn.Module,
    evaluate: Evaluate,
    *,
    points: int | Sequence[float] = 11,
    kind: str = "linear",
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    stiffness: float = 1.0,
    epochs: int = 10,
    optimizer: MakeOptimizer | None = None,
) -> Path:
    """Evaluate nets along a path from ``a`` to ``b``.

    Args:
        a, b: two nets of one architecture, a CNN and its eFCN, or two eFCNs whose supports may differ. They are not
            changed. Modes do not count: nets are evaluated in evaluation mode.
        evaluate: takes a net, gives its loss, or a mapping with ``"loss"`` and other metrics. The net computes from the
            parameters of both ends, and may have none of its own.
        points: how many positions, both ends included, or the positions themselves, ascending from 0 to 1.
        kind: ``"linear"``: the weights ``(1 - t) · a + t · b``. ``"curvilinear"``: the same, with each parameter scaled
            to the linear interpolation of its norms, so that it does not shrink on the way between two directions.
            ``"output"``: the average ``(1 - t) · a(x) + t · b(x)`` of predictions, whatever the architectures.
            ``"string"``: the nets of :func:`string`.
        batches: inputs on which statistics of BatchNorm layers are computed anew at each inner point, where those of
            the ends, or a mean of them, do not fit the weights. Needed where the nets have such statistics and
            ``kind`` is not ``"output"``. Each is one tensor, or a tuple of positional inputs. For ``"string"`` they are
            the batches that ``loss`` takes.
        loss, stiffness, epochs, optimizer: of :func:`string`.

    Memory: a layer with block-sparse weights is linear in them, so a point is computed from the layers of both ends,
    and no third set of weights is made, nor anything dense. The price is two products per layer. A string holds all of
    its nets.

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
    positions = checked_positions(points)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "string":
        if loss is None or batches is None:
            raise ValueError("loss and batches must be given for a string, which is trained")
        nets = string(a, b, loss, batches, points=points, stiffness=stiffness, epochs=epochs, optimizer=optimizer)
        return Path(kind, positions, tuple(evaluated(evaluate, net) for net in nets))
    if kind == "curvilinear":
        for end in (a, b):
            refuse_low_rank_in(end)
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
                recompute_statistics(net, given or [], _run)
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
    try:
        return {name: float(value) for name, value in metrics.items()}
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"evaluate must give a number, or a mapping with 'loss' to numbers, got {given!r}") from None


def _run(net: nn.Module, batch: Any) -> None:
    net(*batch) if isinstance(batch, tuple) else net(batch)
