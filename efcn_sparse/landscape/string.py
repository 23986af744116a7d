"""A string of nets between two nets, that gradient descent lays along a valley."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.copying import copy_of
from efcn_sparse.landscape.common_support import on_common_support
from efcn_sparse.landscape.modes import batch_norms, recompute_statistics
from efcn_sparse.landscape.parts import refuse_low_rank_in

Loss = Callable[[nn.Module, Any], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def string(
    a: nn.Module,
    b: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    points: int | Sequence[float] = 7,
    stiffness: float = 1.0,
    epochs: int = 10,
    optimizer: MakeOptimizer | None = None,
) -> list[nn.Module]:
    """Nets from ``a`` to ``b`` that start on the straight line and move by gradient descent, tied by springs.

    The inner nets minimize ``Σ_i L(θ_i) + stiffness / 2 · Σ_i ‖θ_{i+1} - θ_i‖²``; the ends stay as they are.

    Args:
        a, b: two nets as :func:`efcn_sparse.landscape.path` takes them; not changed. With different supports, all nets
            have the union of both.
        loss: ``loss(net, batch)``, a scalar: the mean over the batch.
        batches: of the training data, used once an epoch.
        points: how many nets, or the positions at which they start, both ends included.
        stiffness: of the springs between neighbors; 0 lets each net go down on its own.
        epochs: how often each net sees all batches.
        optimizer: makes an optimizer of one net's parameters; None is SGD with a learning rate of 0.01.

    Returns:
        The nets, both ends included, in evaluation mode.

    Memory: the weights of all nets, and a gradient of one.

    Raises:
        ValueError: the nets do not match, train different parameters, or hold a layer with the support ``LowRank``.

    Source: the elastic band of Draxler, Veschgini, Salmhofer, Hamprecht: Essentially No Barriers in Neural Network
    Energy Landscape, ICML 2018, without its projection of the forces; d'Ascoli et al. (NeurIPS 2019) use such strings.

    Example:
        >>> import torch, efcn_sparse as es
        >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> x = torch.randn(8, 2)
        >>> nets = es.landscape.string(a, b, lambda net, x: net(x).square().mean(), [x], points=3, epochs=1)
        >>> len(nets), torch.equal(nets[0].weight, a.weight)
        (3, True)
    """
    positions = checked_positions(points)
    if stiffness < 0 or epochs < 0:
        raise ValueError(f"stiffness and epochs must not be negative, got {stiffness} and {epochs}")
    for end in (a, b):
        refuse_low_rank_in(end)
    first, last = on_common_support(a, b)
    nets = [first, *(_between(first, last, position) for position in positions[1:-1]), last]
    make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    free = [[one for one in net.parameters() if one.requires_grad] for net in nets]
    trained = [{name for name, one in net.named_parameters() if one.requires_grad} for net in (first, last)]
    if trained[0] != trained[1] or not trained[0]:
        raise ValueError(f"a and b must train the same parameters, got {sorted(trained[0] ^ trained[1]) or 'none'}")
    steppers = [make(parameters) for parameters in free[1:-1]]
    given = list(batches)
    for net in nets[1:-1]:
        net.train()
    for _ in range(epochs):
        for batch in given:
            for number, stepper in enumerate(steppers, 1):
                stepper.zero_grad()
                scalar_of(loss(nets[number], batch)).backward()
                for parameter, before, after in zip(free[number], free[number - 1], free[number + 1], strict=True):
                    pull = (2 * parameter.detach() - before.detach() - after.detach()).mul_(stiffness)
                    parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
                stepper.step()
                weights_were_written()
                stepper.zero_grad()
    for net in nets[1:-1]:
        recompute_statistics(net, given if batch_norms(net) else [], loss)
    return [net.eval() for net in nets]


def scalar_of(given: Any) -> Tensor:
    """What a loss gave, checked."""
    if not isinstance(given, Tensor) or given.numel() != 1:
        got = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"loss must give a scalar tensor, got {got}")
    if not given.requires_grad:
        raise ValueError("loss must depend on the parameters of the net, got a tensor without a gradient")
    return given


@torch.no_grad()
def _between(a: nn.Module, b: nn.Module, position: float) -> nn.Module:
    net = copy_of(b)
    ours = {**dict(a.named_parameters()), **dict(a.named_buffers())}
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point():
            tensor.lerp_(ours[name].to(tensor.dtype), 1 - position)
    return net


def checked_positions(points: int | Sequence[float]) -> tuple[float, ...]:
    """The positions of ``points``, from 0.0 to 1.0."""
    if isinstance(points, int):
        if points < 2:
            raise ValueError(f"points must be at least 2, got {points}")
        return tuple(point / (points - 1) for point in range(points))
    positions = tuple(float(point) for point in points)
    if len(positions) < 2 or positions[0] != 0 or positions[-1] != 1 or list(positions) != sorted(set(positions)):
        raise ValueError(f"points must ascend from 0 to 1, got {list(positions)}")
    return positions
