"""How the blocks of a relaxed arm move, if they do."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from efcn_sparse.embedding import Grown
from efcn_sparse.growth import Growth
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.plan import Stage, support_of

_ENDS = 0.75  # of the training, as in RigL (Evci et al. 2020)


def make_growth(
    config: RelaxConfig, stage: Stage, model: nn.Module, optimizer: Optimizer, images: int, epoch: int
) -> Growth | None:
    """The growth of an ``efcn-grown`` arm, as it is after ``epoch``; None for other arms.

    Args:
        images: how many there are in an epoch.
    """
    if not isinstance(support_of(stage.arm), Grown):
        return None
    per_epoch = -(-images // config.batch_size)
    until = max(1, int(_ENDS * per_epoch * (stage.last - stage.first)))
    growth = Growth(model, optimizer, every=config.growth_every, exchange=config.growth_exchange, until=until)
    steps = per_epoch * (epoch - stage.first)
    growth.load_state_dict({"steps": steps, "placed": min(steps, until - 1) >= config.growth_every})
    return growth
