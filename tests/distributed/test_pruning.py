"""Two processes prune as one does, and choose the same blocks even where their weights have drifted apart."""

import torch

from tests.distributed import pruning


def test_two_processes_prune_as_one(ranks):
    assert ranks[0]["densities"] == {"0": 0.25}
    expected = pruning.alone()
    for key, tensor in expected.items():
        torch.testing.assert_close(ranks[0]["pruned"][key], tensor, rtol=1e-9, atol=1e-12, msg=key)
        assert torch.equal(ranks[0]["pruned"][key], ranks[1]["pruned"][key])


def test_rank_0_chooses(ranks):
    assert int(ranks[0]["drifted"].sum()) == 8
    assert torch.equal(ranks[0]["drifted"], ranks[1]["drifted"])
