"""Patterns of several processes: unlike ones are refused, and blocks move alike."""

import pytest
import torch
import torch.distributed as dist

if not dist.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from tests.distributed import patterns


def test_unlike_patterns_of_equal_size_are_named(ranks):
    one, two = (patterns._unlike(rank)[1].pattern for rank in (0, 1))
    assert one.nnz_blocks == two.nnz_blocks
    for rank in ranks:
        expected = f"got 1: {one.fingerprint} on rank 0, {two.fingerprint} on rank 1"
        assert rank["unlike"].endswith(expected)
        assert rank["missing"].endswith(f"got 1: no such layer on rank 0, {one.fingerprint} on rank 1")
        assert rank["alike"] == "no error"


def test_unlike_patterns_are_noticed_in_the_first_forward_pass(ranks):
    """DistributedDataParallel gives every rank the buffers of rank 0, the index arrays among them."""
    one, two = (patterns._unlike(rank)[1].pattern.fingerprint for rank in (0, 1))
    assert ranks[0]["unlike in training"] == "no error"
    assert f"must be those of the layer's pattern {two}, got {one} written over them" in ranks[1]["unlike in training"]


def test_blocks_move_as_in_one_process_with_the_joined_batch(ranks):
    model = patterns.net()
    start = [layer.pattern for layer in (model[0], model[2])]
    regrown = []
    optimizer = patterns.train(model, model, patterns.SHARES, regrown)
    assert [layer.pattern for layer in (model[0], model[2])] != start
    assert len(regrown) == 2 * patterns.ROUNDS
    for rank in ranks:
        for (grown, norms), (alone, alone_norms) in zip(rank["regrown"], regrown, strict=True):
            assert torch.equal(grown, alone)
            torch.testing.assert_close(norms, alone_norms, rtol=1e-10, atol=0)
        state = rank["regrown model"]
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-11)
        for moment, parameter in zip(rank["regrown moments"], model.parameters(), strict=True):
            torch.testing.assert_close(moment, optimizer.state[parameter]["exp_avg"], rtol=1e-9, atol=1e-12)


def test_factors_that_do_not_fit_are_refused(ranks):
    for rank in ranks:
        assert rank["unlike factors"].endswith("got [2, 3] and [3, 3]")
