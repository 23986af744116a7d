"""What supports hold of the first gradient and of the weights in the end, for one seed and relax time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.subspace import deviation
from efcn_sparse.training.epoch import evaluate
from efcn_sparse.training.images import Images, order_of_epoch
from experiments.off_local.curves import Curve, by_blocks, curves_of
from experiments.off_local.cut import kept, with_off_local
from experiments.off_local.layers import Layer, layers_of, off_local_gradients, off_local_weights

BUDGETS = (0.25, 0.5, 1.0, 2.0)  # numbers stored for the off-local part, as multiples of the local weights
OBJECTS = {
    "gradient": "gradient of all training images at the embedding",
    "batch gradient": "gradient of one batch at the embedding",
    "weights": "off-local weights at the end",
}
CHOOSERS = {
    "weights": "final weights (the best choice)",
    "gradient": "gradient of all images at the embedding",
    "batch gradient": "gradient of one batch at the embedding",
    "epochs": "an equal part by the gradient at each net that was read",
    "chance": "chance",
}
CUTS = ("entries", "blocks", "small blocks", "low rank, fitted", "dilated")
_BATCHES = 1
_POINTS = 40


def measure(
    nets: Iterable[tuple[int, nn.Module]], images: Images, *, seed: int, time: int, batch_size: int
) -> tuple[dict[str, Any], dict[str, Layer], dict[str, Tensor]]:
    """A record that JSON can hold, the layers, and the off-local gradients at the embedding.

    Args:
        nets: ``(epoch, net)`` of an eFCN with ``Full()``, from the embedding to the end.
    """
    layers: dict[str, Layer] = {}
    gradients: dict[str, Tensor] = {}
    batches: list[dict[str, Tensor]] = []
    scores: list[dict[str, Tensor]] = []
    for epoch, net in nets:
        layers = layers or layers_of(net)
        now = off_local_gradients(net, layers, images.train_x, images.train_y)
        scores.append({name: layer.block_sums(now[name].square()) for name, layer in layers.items()})
        if epoch == time:
            gradients = now
            order = order_of_epoch(seed, time + 1, len(images.train_x)).split(batch_size)[:_BATCHES]
            batches = [off_local_gradients(net, layers, images.train_x[i], images.train_y[i]) for i in order]
            embedding = performance(net, images)
    weights = off_local_weights(net, layers)
    record: dict[str, Any] = dict(seed=seed, time=time, epochs=epoch - time, batch_size=batch_size)
    record |= dict(delta=deviation(net).delta, embedding=embedding, end=performance(net, images), layers={})
    for name, layer in layers.items():
        budgets = [budget * layer.local_weights for budget in BUDGETS]
        held = {"gradient": [gradients[name]], "batch gradient": [b[name] for b in batches], "weights": [weights[name]]}
        record["layers"][name] = dict(
            shape=list(layer.local.shape), block_shape=list(layer.block_shape),
            local=layer.local_weights, off_local=layer.off_local_weights,
            curves={key: _curves(matrices, layer, budgets) for key, matrices in held.items()},
            chosen=_chosen(weights[name], layer, [s[name] for s in scores[:-1]], batches[0][name]),
        )  # fmt: skip
    record["cut"] = _cut(net, weights, layers, images)
    return record, layers, gradients


def performance(net: nn.Module, images: Images) -> dict[str, float]:
    train, test = evaluate(net, images.train_x, images.train_y), evaluate(net, images.test_x, images.test_y)
    return dict(train_loss=train[0], test_loss=test[0], test_accuracy=test[1])


def _curves(matrices: list[Tensor], layer: Layer, budgets: Sequence[float]) -> dict[str, Any]:
    """``at``: the share at each of BUDGETS; ``points``: the curve, thinned. Means over ``matrices``."""
    found = [curves_of(matrix, layer, budgets) for matrix in matrices]
    record = {}
    for method in found[0]:
        curves = [each[method] for each in found]
        at = [sum(curve.at(budget) for curve in curves) / len(curves) for budget in budgets]
        record[method] = dict(at=at, points=asdict(_thinned(curves)))
    return record


def _thinned(curves: list[Curve]) -> Curve:
    """The mean of curves with the same points, at about 40 of these, evenly spread."""
    stored = curves[0].stored
    step = max(1, len(stored) // _POINTS)
    places = sorted({*range(0, len(stored), step), len(stored) - 1} if stored else set())
    share = [sum(curve.share[i] for curve in curves) / len(curves) for i in places]
    return Curve(tuple(stored[i] for i in places), tuple(round(value, 4) for value in share))


def _chosen(weights: Tensor, layer: Layer, scores: list[Tensor], batch: Tensor) -> dict[str, Any]:
    """The share of the final weights in the blocks that each of CHOOSERS would have stored, at each of BUDGETS."""
    ways = {
        "weights": layer.block_sums(weights.square()),
        "gradient": scores[0],
        "batch gradient": layer.block_sums(batch.square()),
    }
    budgets = [budget * layer.local_weights for budget in BUDGETS]
    at = {key: [by_blocks(weights, layer, score).at(b) for b in budgets] for key, score in ways.items()}
    at["epochs"] = [by_blocks(weights, layer, _in_turns(scores, layer, b)).at(b) for b in budgets]
    at["chance"] = [min(1.0, budget / layer.off_local_weights) for budget in budgets]
    return at


def _in_turns(scores: list[Tensor], layer: Layer, numbers: float) -> Tensor:
    """Scores whose order is that of storing an equal part of the numbers after each epoch, the best by its gradient."""
    total = int(numbers // (layer.block_shape[0] * layer.block_shape[1]))
    rank = torch.zeros(scores[0].numel(), dtype=torch.float64)
    taken = layer.block_sums(layer.local).flatten() > 0
    left = total
    for turn, score in enumerate(scores):
        quota = left // (len(scores) - turn)
        best = torch.argsort(score.flatten().masked_fill(taken, -1.0), descending=True, stable=True)[:quota]
        rank[best] = float(total - left + 1) ** -1
        taken[best] = True
        left -= quota
    return rank.view(scores[0].shape)


def _cut(net: nn.Module, weights: dict[str, Tensor], layers: dict[str, Layer], images: Images) -> dict[str, Any]:
    """How the trained net does with all layers cut down to each of BUDGETS, and without off-local part."""
    nothing = {name: torch.zeros_like(matrix) for name, matrix in weights.items()}
    found: dict[str, Any] = {"nothing": performance(with_off_local(net, nothing, layers), images)}
    for method in CUTS:
        found[method] = []
        for budget in BUDGETS:
            parts = {
                name: kept(matrix, layers[name], method, budget * layers[name].local_weights)
                for name, matrix in weights.items()
            }
            found[method].append(performance(with_off_local(net, parts, layers), images))
    return found
