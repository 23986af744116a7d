"""The optimiser of a stage."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Optimizer

from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.linear import SparseLinear


def make_optimiser(
    model: nn.Module, *, lr: float, momentum: float, weight_decay: float, fused: bool = False
) -> Optimizer:
    """SGD over all parameters of ``model``; with ``fused``, inside the backward pass where there are sparse layers.

    Law: the fused steps give the numbers of the others, bit by bit.
    """

    def sgd(parameters: list[nn.Parameter]) -> SGD:
        return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)

    if fused and any(isinstance(module, SparseLinear) for module in model.modules()):
        return FusedOptimizer(model, sgd)
    return sgd(list(model.parameters()))
