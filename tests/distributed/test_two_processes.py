"""Two gloo processes, replicated and sharded, compute what one process computes."""

import warnings

import torch

import efcn_sparse as es
from tests.distributed import workers


def alone(optimizer):
    model = workers.net()
    optimizer = workers.OPTIMIZERS[optimizer](model.parameters())
    workers.train(model, optimizer)
    return model, optimizer


def assert_same(found, expected, **tolerance):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_data_parallel_is_one_process_and_both_ranks_agree(ranks):
    model, _ = alone("sgd")
    start = workers.net().state_dict()
    assert not torch.equal(start["0.linear.values"], model.state_dict()["0.linear.values"])
    assert_same(ranks[0]["ddp"], model.state_dict(), rtol=1e-5, atol=1e-6)
    assert_same(ranks[1]["ddp"], ranks[0]["ddp"], rtol=0, atol=0)


def test_fully_shard_is_one_process(ranks):
    model, optimizer = alone("adamw")
    full = ranks[0]["fsdp"]
    assert_same(full, model.state_dict(), rtol=1e-5, atol=1e-5)
    state = ranks[0]["optimizer"]["state"]
    for name, parameter in model.named_parameters():
        expected = optimizer.state[parameter]["exp_avg"]
        torch.testing.assert_close(state[name]["exp_avg"], expected, rtol=1e-4, atol=1e-6)


def test_values_are_sharded_by_whole_blocks_and_patterns_are_not_parameters(ranks):
    shapes = {name: tuple(parameter.shape) for name, parameter in workers.net().named_parameters()}
    shards = [rank["shards"] for rank in ranks]
    assert all(set(shard) == set(shapes) for shard in shards)
    assert ranks[0]["placements"] == {"(Shard(dim=0),)"}
    assert shapes["4.values"][0] % 2 == 1  # an odd number of blocks, too
    for name, shape in shapes.items():
        assert [shard[name][1:] for shard in shards] == [shape[1:]] * 2
        assert sum(shard[name][0] for shard in shards) == shape[0]
        assert max(shard[name][0] for shard in shards) == -(-shape[0] // 2)


def test_a_checkpoint_of_two_loads_into_one(ranks, folder):
    model = workers.net(seed=9)
    state = {"model": model.state_dict()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        torch.distributed.checkpoint.load(state, checkpoint_id=folder / "checkpoint")
    model.load_state_dict(state["model"])
    assert_same(model.state_dict(), ranks[0]["fsdp"], rtol=0, atol=0)
    again = workers.net(seed=9)
    again.load_state_dict(ranks[0]["fsdp"])  # the full state dict is an ordinary one
    assert es.deviation(again).delta == es.deviation(model).delta > 0


def test_two_load_what_one_or_two_saved(ranks):
    other = workers.net(seed=5).state_dict()
    assert_same(ranks[0]["loaded full"], other, rtol=0, atol=0)
    assert_same(ranks[0]["broadcast"], other, rtol=0, atol=0)
    assert_same(ranks[0]["loaded checkpoint"], ranks[0]["fsdp"], rtol=0, atol=0)


def test_what_would_go_wrong_is_refused_on_every_rank(ranks):
    for rank in ranks:
        assert "4: the state dict's pattern must be" in rank["wrong pattern"]
        assert "SparseLinear(4, 4): pattern must store a block under fully_shard" in rank["empty pattern"]
        assert rank["ddp fused"].startswith("RuntimeError: 0.linear: must not run inside DistributedDataParallel")
        assert "values must be a plain tensor for a fused optimizer, got DTensor" in rank["fsdp fused"]
