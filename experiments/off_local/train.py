"""Nets trained with an off-local part of a given size: entries in a mask, or of low rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.linear import SparseLinear
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.images import Images, derived_seed
from efcn_sparse.training.nets import embed_as
from efcn_sparse.training.plan import ELCN, FULL
from experiments.off_local.cut import mask_of, rank_of
from experiments.off_local.layers import Layer, embedded
from experiments.off_local.measure import performance
from experiments.off_local.trajectory import last_of, trained

LOW_RANK = {
    "low rank": "V from the gradient at the embedding, restricted to off-local entries",
    "low rank, random": "V random and orthonormal, restricted to off-local entries",
    "low rank, everywhere": "V from the gradient at the embedding, not restricted",
}
TRAINED = ("blocks", "small blocks", *LOW_RANK, "dilated")
TRAINED_BUDGETS = (0.5, 1.0, 2.0)  # in multiples of the local weights


class WithLowRank(nn.Module):
    """``linear(x) + x (mask ∘ U Vᵀ)ᵀ``; U starts at zero.

    Args:
        linear: holds the local weights.
        right: ``[in_features, rank]``: where V starts.
        mask: ``[out_features, in_features]``; None: ones, which is cheap to multiply by and reaches the same functions,
            since the local weights can take back what U Vᵀ adds to them. Its steps differ: local weights move twice.
    """

    def __init__(self, linear: SparseLinear, right: Tensor, mask: Tensor | None = None) -> None:
        super().__init__()
        self.linear, self.mask = linear, mask
        self.left = nn.Parameter(right.new_zeros((linear.out_features, right.shape[1])))
        self.right = nn.Parameter(right.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return self.linear(x) + (x @ self.right) @ self.left.T
        return self.linear(x) + x @ (self.mask * (self.left @ self.right.T)).T


def restrict(
    net: nn.Module, layers: dict[str, Layer], gradients: dict[str, Tensor], method: str, budget: float
) -> nn.Module:
    """``net``, changed so that training it moves only so many off-local numbers, as many in each layer as ``budget``.

    What they are is decided by the gradient at the embedding: the blocks where it is largest; or as V the right
    singular vectors that hold most of it.

    Args:
        net: an eFCN at the embedding, with ``Full()``; for ``LOW_RANK`` with ``Local()``.
        gradients: the off-local gradients, ``[out_features, in_features]``.
        method: one of ``TRAINED``.
        budget: in multiples of the layer's local weights.
    """
    for name, module in embedded(net).items():
        layer, gradient = layers[name], gradients[name]
        numbers, values = budget * layer.local_weights, module.linear.values
        if method in LOW_RANK:
            right = _first_right(gradient, rank_of(layer, numbers), method).to(values.dtype)
            mask = None if method == "low rank, everywhere" else (~layer.local).to(values.dtype)
            module.linear = WithLowRank(module.linear, right, mask)  # type: ignore[assignment]
        else:
            trained = layer.local | mask_of(gradient.square(), layer, method, numbers)
            values.register_hook(module.linear.pattern.gather(trained.to(values.dtype)).mul)
    return net


def _first_right(gradient: Tensor, rank: int, method: str) -> Tensor:
    """``[in_features, rank]``, orthonormal."""
    if method != "low rank, random":
        return torch.linalg.svd(gradient, full_matrices=False).Vh[:rank].T
    generator = torch.Generator().manual_seed(derived_seed(method, rank))
    return torch.linalg.qr(torch.randn((gradient.shape[1], rank), generator=generator, dtype=gradient.dtype))[0]


def train_each(
    cnn: nn.Module,
    layers: dict[str, Layer],
    gradients: dict[str, Tensor],
    config: RelaxConfig,
    images: Images,
    *,
    seed: int,
    time: int,
) -> dict[str, Any]:
    """How nets with each of TRAINED do at the end for each of TRAINED_BUDGETS; ``nothing``: the eLCN."""

    def end(method: str, budget: float) -> dict[str, float]:
        net = embed_as(ELCN if method in (*LOW_RANK, "nothing") else FULL, cnn, config.preset)
        if method != "nothing":
            restrict(net, layers, gradients, method, budget)
        return performance(last_of(trained(net, config, seed, time, time + config.relax_epochs, images)), images)

    found: dict[str, Any] = {"nothing": end("nothing", 0)}
    for method in TRAINED:
        found[method] = [end(method, budget) for budget in TRAINED_BUDGETS]
    return found
