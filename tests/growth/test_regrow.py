"""Regrowing exchanges the weakest blocks for those with the largest gradient, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests import oracle
from tests.growth.cases import (
    block_norms,
    dense_gradient,
    factors,
    growable,
    layer_of,
    masked_and_whole,
    pattern,
    stored_blocks,
)
from tests.table import BFLOAT16, FLOAT32, FLOAT64

GROWABLE = ("ragged", "ragged-rows", "ragged-columns", "masked-and-whole", "banded", "unbalanced")


def room(p: es.BlockPattern) -> tuple[int, int]:
    """How many blocks are off the support, and how many may be dropped."""
    masked = int((p.mask_index >= 0).sum())
    return p.grid[0] * p.grid[1] - p.nnz_blocks, p.nnz_blocks - masked


def by_block(values: torch.Tensor, p: es.BlockPattern) -> dict[tuple[int, int], torch.Tensor]:
    return dict(zip(sorted(stored_blocks(p)), values.detach().clone(), strict=True))


def expected_exchange(p, weights, gradient, count) -> tuple[list, list]:
    norms, stored = block_norms(gradient, p.block_shape), sorted(stored_blocks(p))
    outside = [(r, c) for r in range(p.grid[0]) for c in range(p.grid[1]) if (r, c) not in set(stored)]
    grown = sorted(outside, key=lambda at: -float(norms[at]))[:count]
    masked = p.mask_index >= 0 if p.mask_index.numel() else torch.zeros(len(stored), dtype=torch.bool)
    whole = [at for at, is_masked in zip(stored, masked.tolist(), strict=True) if not is_masked]
    dropped = sorted(whole, key=lambda at: float(weights[at].double().norm()))[:count]
    return grown, dropped


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", GROWABLE)
def test_against_dense(name: str, share: float, dtype: torch.dtype) -> None:
    p = growable(name)
    count = max(1, int(share * min(room(p))))
    layer, (dy, x) = layer_of(p, dtype=dtype), factors(p, 9, dtype)
    values, before = layer.values, by_block(layer.values, p)
    grown, dropped = expected_exchange(p, before, dense_gradient(dy, x), count)
    done = es.regrow(layer, dy, x, blocks=count)
    assert done.blocks == count
    assert [tuple(at) for at in done.grown.tolist()] == grown
    assert [tuple(at) for at in done.dropped.tolist()] == dropped
    gradients = block_norms(dense_gradient(dy, x), p.block_shape)
    torch.testing.assert_close(done.gradient_norms, torch.stack([gradients[at] for at in grown]), rtol=1e-5, atol=0)
    weights = torch.stack([before[at].double().norm() for at in dropped])
    torch.testing.assert_close(done.weight_norms, weights, rtol=1e-12, atol=0)
    # budget, place, survivors, new blocks
    assert layer.pattern.nnz_blocks == p.nnz_blocks
    assert layer.values is values
    after = by_block(layer.values, layer.pattern)
    assert set(after) == (set(before) - set(dropped)) | set(grown)
    for at, block in after.items():
        assert torch.equal(block, before[at] if at in before and at not in dropped else torch.zeros_like(block))
    for old, at in zip(done.source.tolist(), sorted(after), strict=True):
        assert at in grown if old < 0 else sorted(before)[old] == at
    assert layer.pattern == es.BlockPattern.from_mask(layer.pattern.to_mask(), p.block_shape)
    torch.testing.assert_close(layer(x), layer.to_linear()(x), rtol=2e-2, atol=2e-2)


def test_masks_stay_with_their_blocks() -> None:
    p = masked_and_whole()
    layer, (dy, x) = layer_of(p), factors(p, 9)
    old = dict(zip(sorted(stored_blocks(p)), oracle.support_of(p), strict=True))
    masked = {at for at, index in zip(sorted(stored_blocks(p)), p.mask_index.tolist(), strict=True) if index >= 0}
    assert masked
    done = es.regrow(layer, dy, x, blocks=min(room(p)))
    new = dict(zip(sorted(stored_blocks(layer.pattern)), oracle.support_of(layer.pattern), strict=True))
    assert masked <= set(new)
    assert all(torch.equal(new[at], old[at]) for at in new if at in old)
    everything = es.BlockPattern.dense(p.shape, p.block_shape)
    whole = dict(zip(sorted(stored_blocks(everything)), oracle.support_of(everything), strict=True))
    assert all(torch.equal(new[tuple(at)], whole[tuple(at)]) for at in done.grown.tolist())


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def step(layer: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    layer(torch.randn((9, 37), generator=generator)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_follows(name: str) -> None:
    layer = layer_of(pattern("ragged"))
    optimizer = OPTIMIZERS[name](layer.parameters())
    step(layer, optimizer, 0)
    before = copy.deepcopy(optimizer.state[layer.values])
    places = {key: entry.data_ptr() for key, entry in optimizer.state[layer.values].items()}
    bias = copy.deepcopy(optimizer.state[layer.bias])
    layer.values.grad = torch.randn_like(layer.values)
    grad = layer.values.grad.clone()
    done = es.regrow(layer, *factors(layer.pattern, 9), blocks=4, optimizer=optimizer)
    after, new = optimizer.state[layer.values], done.source < 0
    assert list(after) == list(before)
    assert {key: entry.data_ptr() for key, entry in after.items()} == places
    assert any(entry.shape == layer.values.shape for entry in after.values())
    for key, entry in (*after.items(), ("grad", layer.values.grad)):
        was = grad if key == "grad" else before[key]
        if entry.dim() == 0:
            assert torch.equal(entry, was)
        else:
            assert torch.equal(entry[~new], was[done.source[~new]])
            assert int(entry[new].count_nonzero()) == 0
            assert int(entry[~new].count_nonzero()) > 0
    assert all(torch.equal(entry, bias[key]) for key, entry in optimizer.state[layer.bias].items())
    for seed in range(3):
        step(layer, optimizer, seed)
    assert int(layer.values[~oracle.support_of(layer.pattern)].count_nonzero()) == 0
    assert int(layer.values[new].count_nonzero()) > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_blocks_that_stay_train_on_as_before(name: str) -> None:
    """Off the new blocks, a dense layer with the same masks and the same state takes the same step."""
    layer = layer_of(pattern("unbalanced"), dtype=FLOAT64)
    optimizer = OPTIMIZERS[name](layer.parameters())
    features = layer.in_features
    x = torch.randn(9, features, dtype=FLOAT64)
    layer(x).square().mean().backward()
    optimizer.step()
    values, state = layer.values.detach().clone(), copy.deepcopy(optimizer.state[layer.values])
    done = es.regrow(layer, *factors(layer.pattern, 9, FLOAT64), blocks=5, optimizer=optimizer)
    gradient = torch.randn_like(layer.values)
    layer.values.grad = gradient.clone()
    optimizer.step()
    # the same step on a parameter that holds the surviving blocks alone
    kept, source = done.source >= 0, done.source[done.source >= 0]
    alone = nn.Parameter(values[source])
    other = OPTIMIZERS[name]([alone])
    other.state[alone].update(
        {key: entry[source] if entry.shape == values.shape else entry for key, entry in state.items()}
    )
    alone.grad = gradient[kept]
    other.step()
    torch.testing.assert_close(layer.values.detach()[kept], alone.detach(), rtol=1e-12, atol=1e-12)


def test_an_optimizer_without_state_yet() -> None:
    layer = layer_of(pattern("ragged"))
    optimizer = torch.optim.Adam(layer.parameters())
    assert es.regrow(layer, *factors(layer.pattern, 9), blocks=2, optimizer=optimizer).blocks == 2
    assert layer.values not in optimizer.state


def test_only_candidates_are_grown() -> None:
    p = pattern("banded")
    candidates = es.BlockPattern.random(p.shape, p.block_shape, 0.3, torch.Generator().manual_seed(1))
    dy, x = factors(p, 9)
    norms, allowed = block_norms(dense_gradient(dy, x), p.block_shape), stored_blocks(candidates) - stored_blocks(p)
    assert 7 < len(allowed) < stored_blocks(candidates).__len__()
    layer = layer_of(p)
    done = es.regrow(layer, dy, x, blocks=7, candidates=candidates)
    expected = sorted(allowed, key=lambda at: -float(norms[at]))[:7]
    assert [tuple(at) for at in done.grown.tolist()] == expected
    same = es.regrow(layer_of(p), dy, x, blocks=7, candidates=es.BlockPattern.dense(p.shape, p.block_shape))
    assert torch.equal(same.grown, es.regrow(layer_of(p), dy, x, blocks=7).grown)


def test_blocks_without_gradient_are_not_grown() -> None:
    p = pattern("banded")
    dy, x = factors(p, 9)
    dy[:, 8:] = 0  # a gradient in the first block row only
    layer = layer_of(p)
    outside = p.grid[1] - int(p.crow_indices[1])
    assert es.regrow(layer, dy, x, blocks=outside + 5).blocks == outside
    values, same = layer.values.detach().clone(), layer.pattern
    done = es.regrow(layer, torch.zeros_like(dy), x, blocks=3)
    assert done.blocks == 0
    assert torch.equal(done.source, torch.arange(p.nnz_blocks))
    assert layer.pattern is same
    assert torch.equal(layer.values, values)


def test_ties_are_broken_by_position() -> None:
    p = es.BlockPattern.from_mask(torch.tensor([[False, True, False], [True, False, False]]), (2, 2), shape=(4, 6))
    layer = layer_of(p)
    layer.values.data.fill_(1.0)
    done = es.regrow(layer, torch.ones(1, 4), torch.ones(1, 6), blocks=1)
    assert done.grown.tolist() == [[0, 0]]
    assert done.dropped.tolist() == [[0, 1]]


def test_the_same_every_time() -> None:
    p = pattern("unbalanced")
    results = []
    for _ in range(3):
        layer = layer_of(p)
        results.append((es.regrow(layer, *factors(p, 40), blocks=9), layer))
    for done, layer in results[1:]:
        assert torch.equal(done.grown, results[0][0].grown)
        assert torch.equal(done.source, results[0][0].source)
        assert layer.pattern == results[0][1].pattern
        assert torch.equal(layer.values, results[0][1].values)


def test_a_stale_graph_is_refused() -> None:
    layer = layer_of(pattern("ragged"))
    x = torch.randn(3, 37, requires_grad=True)
    y = layer(x)
    es.regrow(layer, *factors(layer.pattern, 9), blocks=2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_compiled_layer_is_not_compiled_again() -> None:
    p = pattern("banded")
    layer = layer_of(p)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled, x = torch.compile(layer, backend=backend, fullgraph=True), factors(p, 9)[1]
    compiled(x)
    for seed in range(3):
        es.regrow(layer, *factors(p, 9, seed=seed), blocks=5)
        layer.values.data.normal_()
        torch.testing.assert_close(compiled(x), layer.to_linear()(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
    torch.compiler.reset()
