"""The optimizer of a stage."""

from __future__ import annotations

import glob

from torch import nn
from torch.optim import SGD, Optimizer

from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.linear import SparseLinear
from efcn_sparse.training.arms import Arm
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.presets import PRESETS
from efcn_sparse.training.relaxing import parts_of_layers
from efcn_sparse.training.selective import SelectiveSGD


def optimizer_of(config: RelaxConfig, arm: Arm, lr: float, model: nn.Module) -> Optimizer:
    """The optimizer that ``config`` gives an arm: selective for embedded nets where it asks for that."""
    momentum, decay = config.momentum, config.weight_decay
    if not (config.selective and arm.embedded):
        return make_optimizer(model, lr=lr, momentum=momentum, weight_decay=decay, fused=config.fused)
    parts = parts_of_layers(PRESETS[config.preset].convolutions, config.relaxing, config.parts, decay)
    layers = {glob.escape(name): vars(one) for name, one in parts.items()}
    return SelectiveSGD(model, lr, momentum=momentum, weight_decay=decay, copies=config.copies, layers=layers)


def make_optimizer(
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
