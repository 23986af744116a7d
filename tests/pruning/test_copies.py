"""A Pruner that is resumed or copied goes on exactly as the first does."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

import efcn_sparse as es
from tests.pruning.nets import OPTIMIZERS, RULES, SCHEDULE, net, train, zeros


@pytest.mark.parametrize("stop", [4, 10])
def test_resume_is_exact(stop: int) -> None:
    """Interrupted with masks, and after storage has shrunk."""

    def made() -> tuple:
        model = net()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        return model, optimizer, es.Pruner(model, RULES, SCHEDULE, optimizer, score="gradient", finish_at_end=True)

    whole = made()
    train(*whole, range(stop))
    saved = copy.deepcopy([part.state_dict() for part in whole])
    train(*whole, range(stop, 14))
    model, optimizer, pruner = again = made()
    pruner.load_state_dict(saved[2])
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert pruner.finished == (stop == 10)
    train(*again, range(stop, 14))
    assert pruner.finished
    for key, tensor in whole[0].state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert pruner.steps == 14


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@pytest.mark.parametrize("stop", [6, 12])
def test_a_copy_goes_on_as_the_original_does(copied: Callable, stop: int) -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    made = (model, optimizer, es.Pruner(model, RULES, SCHEDULE, optimizer))
    train(*made, range(stop))
    twin, twins, other = copied(made)
    train(*made, range(stop, 15))
    train(twin, twins, other, range(stop, 15))
    assert 0.7 < zeros(twin.first.weight).double().mean() < 0.8
    assert made[2].finish() is model
    assert other.finish() is twin
    for key, tensor in model.state_dict().items():
        assert torch.equal(twin.state_dict()[key], tensor), key


def test_a_copy_of_the_model_alone_is_not_pruned() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = es.Pruner(model, RULES, es.CubicSchedule(begin=1, end=1), optimizer)
    train(model, optimizer, pruner, range(2))
    average = copy.deepcopy(model)
    assert torch.equal(zeros(average.first.weight), zeros(model.first.weight))
    kept = model.first.weight.detach().clone()
    train(average, torch.optim.SGD(average.parameters(), lr=0.05), None, range(1))
    assert not zeros(average.first.weight).any()
    assert torch.equal(model.first.weight, kept)
