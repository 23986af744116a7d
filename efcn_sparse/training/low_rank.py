"""Where the low-rank parts of a relaxed arm start."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from efcn_sparse.embedding import LowRankPart, start_low_rank
from efcn_sparse.gradients import record_factors
from efcn_sparse.training.images import Images, order_of_epoch


def begin_low_rank(model: nn.Module, images: Images, *, batch_size: int, seed: int, epoch: int) -> None:
    """Turn V of each low-rank part along the gradient of the first batch of ``epoch``; other nets are left as they are.

    The gradient is taken in evaluation mode, so that statistics of batches stay as they are. No optimizer may be fused
    with the model yet.
    """
    if not any(isinstance(module, LowRankPart) for module in model.modules()):
        return
    chosen = order_of_epoch(seed, epoch, len(images.train_x))[:batch_size].to(images.train_x.device)
    was_training = model.training
    model.eval()
    with torch.enable_grad(), record_factors(model) as factors:
        functional.cross_entropy(model(images.train_x[chosen]), images.train_y[chosen]).backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    start_low_rank(model, factors)
