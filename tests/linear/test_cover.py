"""No unit is dead: each block row and block column keeps a block, and what became of each layer can be read."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse import BlockPattern


def _alive(pattern: BlockPattern) -> bool:
    mask = pattern.to_mask()
    return bool(mask.any(0).all()) and bool(mask.any(1).all())


@pytest.mark.parametrize("seed", range(40))
def test_as_many_blocks_as_asked_for_or_as_the_longer_side(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (int(side) for side in torch.randint(1, 10, (2,), generator=generator))
    density = float(torch.rand((), generator=generator)) ** 2
    shape, wanted = (rows * 2 - seed % 2, cols * 3 - seed % 3), max(round(density * rows * cols), rows, cols)
    linear = nn.Linear(shape[1], shape[0])
    kept = es.SparseLinear.from_linear(linear, density=density, block_shape=(2, 3)).pattern
    for pattern in (BlockPattern.random(shape, (2, 3), density, generator), kept):
        assert pattern.nnz_blocks == wanted
        assert _alive(pattern)


def test_what_covers_already_is_left_as_it_was_drawn() -> None:
    for seed in range(30):
        one, other = (
            BlockPattern.random((40, 40), (4, 4), 0.3, torch.Generator().manual_seed(seed), cover=cover)
            for cover in (True, False)
        )
        assert (one == other) == _alive(other)
        assert one.nnz_blocks == other.nnz_blocks == 30


def test_the_strongest_blocks_cover() -> None:
    """The block row 2 has only weak blocks: its strongest one comes, and the weakest of the others goes."""
    norms = torch.tensor([[9.0, 8.0, 7.0], [6.0, 5.0, 4.0], [0.1, 0.3, 0.2]])
    linear = nn.Linear(3, 3)
    linear.weight.data.copy_(norms)
    layer = es.SparseLinear.from_linear(linear, density=5 / 9, block_shape=(1, 1))
    expected = torch.tensor([[9.0, 8.0, 7.0], [6.0, 0.0, 0.0], [0.0, 0.3, 0.0]])
    assert torch.equal(layer.to_linear().weight.detach(), expected)


def test_density_zero_stores_nothing_and_says_so() -> None:
    assert BlockPattern.random((8, 8), (2, 2), 0.0).nnz_blocks == 0
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match="sparsify: '1' stores no block, so its output is constant"):
        es.sparsify(net, {"1": dict(density=0.0, block_shape=(2, 2))})


def test_a_head_smaller_than_its_blocks_keeps_weights() -> None:
    net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    with pytest.warns(UserWarning, match="sparsify: ") as caught:
        es.sparsify(net, {"*": dict(density=0.1, block_shape=(64, 64))})
    more = (
        "of its blocks of [64, 64] where 0.1 was asked for, so that each block row and column has one; smaller blocks"
    )
    assert str(caught[0].message) == (
        f"sparsify: '0' stores a share of 0.25 {more} come nearer; '2' stores a share of 1 {more} come nearer; "
        "the rule '*' took the first layer '0' and the last layer '2', which often stay dense: "
        "{'0': None, '2': None, '*': …}"
    )
    assert len(caught) == 1
    assert all(_alive(net[i].pattern) for i in (0, 2))
    x = torch.randn(4, 784)
    net(x).square().sum().backward()
    assert all(bool((net[i].values.grad != 0).any()) for i in (0, 2))


def test_named_layers_and_enough_blocks_warn_of_nothing() -> None:
    net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Linear(64, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        es.sparsify(net, {"0": dict(density=0.25, block_shape=(16, 16)), "2": dict(density=0.25, block_shape=(16, 16))})


def test_less_can_be_asked_for() -> None:
    rule = dict(density=0.1, block_shape=(64, 64), cover=False)
    net = es.sparsify(nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)), {"0": rule})
    assert net[0].pattern.nnz_blocks == 26


def test_a_layer_by_its_density() -> None:
    torch.manual_seed(0)
    layer = es.SparseLinear(512, 256, density=0.1, block_shape=(64, 64), bias=False)
    assert layer.pattern.nnz_blocks == 8
    assert _alive(layer.pattern)
    torch.manual_seed(0)
    assert es.SparseLinear(512, 256, density=0.1, block_shape=(64, 64)).pattern == layer.pattern


def test_sparsity_reports_each_layer() -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:3, :5] = True
    net = nn.Sequential(es.SparseLinear(12, 8, BlockPattern.from_mask(mask, (4, 4))), nn.ReLU(), nn.Linear(8, 2))
    report = es.sparsity(net)
    assert list(report.layers) == ["0", "2"]
    first, last = report.layers.values()
    assert (first.stored_blocks, first.blocks, first.weights, first.density) == (2, 6, 15, 15 / 96)
    assert (first.constant_outputs, first.unread_inputs) == (5, 7)
    assert (last.block_shape, last.density, report.density) == (None, 1.0, 31 / 112)
    assert str(report).splitlines()[1].split() == ["0", "8x12", "4x4", "2/6", "0.156", "5", "7"]


def test_a_copy_can_be_asked_for() -> None:
    shared = nn.Linear(16, 16)
    net = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(16, 16)})
    before = copy.deepcopy(net.state_dict())
    rule = dict(density=0.5, block_shape=(4, 4))
    twin = es.sparsify(net, {"[ab]": rule}, inplace=False)
    assert [type(module).__name__ for module in net.children()] == ["Linear"] * 2  # one of them has two names
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert twin["a"] is twin["b"]
    assert isinstance(twin["a"], es.SparseLinear)
    assert twin["c"].weight is not net["c"].weight
    assert isinstance(es.sparsify(shared, {"*": rule}, inplace=False), es.SparseLinear)
