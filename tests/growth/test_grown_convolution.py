"""Convolutions embedded with ``Grown``: what is stored, what may move, and what follows."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.embedding import OFF_LOCAL, OUTSIDE, EmbeddedConv
from efcn_sparse.embedding.blocks import count_stored, covered_blocks
from tests.embedding.convolutions import CASES, ConvCase, element_map
from tests.growth.cases import block_norms, stored_blocks

SUPPORTS = {"1": es.Grown(1), "1.5": es.Grown(1.5), "3-dilated1": es.Grown(3, es.Dilated(1)), "all": es.Grown(1000)}
FILLED = ("same-even-kernel", "groups-in-wide-blocks")  # half as much again is the whole matrix
NAMES = ("rgb", "groups-in-wide-blocks", "same-even-kernel", "holes", "1d", "3d", "blocks-of-pixels", "depthwise")


def grown(name: str, support: es.Grown, dtype: torch.dtype = torch.float64) -> tuple[ConvCase, EmbeddedConv]:
    torch.manual_seed(0)
    case = CASES[name]
    return case, EmbeddedConv.from_conv(case.conv(dtype), case.size, support, case.block_shape)


def check_ties(case: ConvCase, layer: EmbeddedConv) -> None:
    """Every stored entry against plain loops: whatever is inside the matrix and not local is off-local."""
    truth = element_map(case._replace(support=es.Full()))
    pattern, ties = layer.linear.pattern, layer.ties
    entries = pattern.gather(truth + 2) - 2
    assert torch.equal(ties.maps[ties.class_of_block.long()].long(), entries)
    copies = torch.bincount(truth[truth >= 0], minlength=ties.counts.numel())
    assert torch.equal(ties.counts, copies)
    for label in range(len(ties.maps)):
        members = ties.blocks_by_class[ties.class_starts[label] : ties.class_starts[label + 1]]
        assert torch.equal(members.long(), (ties.class_of_block == label).nonzero().squeeze(1))


def local_blocks(layer: EmbeddedConv) -> set[tuple[int, int]]:
    rows, cols = covered_blocks(layer.geometry, es.Local(), layer.linear.pattern.block_shape)
    return set(zip(rows.tolist(), cols.tolist(), strict=True))


def factors(layer: EmbeddedConv, batch: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = layer.linear.values.dtype
    sides = (layer.geometry.out_features, layer.geometry.in_features)
    return tuple(torch.randn((batch, side), generator=generator, dtype=dtype) for side in sides)  # type: ignore[return-value]


@pytest.mark.parametrize("support", SUPPORTS.values(), ids=SUPPORTS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored(name: str, support: es.Grown) -> None:
    case, layer = grown(name, support)
    pattern = layer.linear.pattern
    rows, cols = covered_blocks(layer.geometry, support.start, pattern.block_shape)
    touched, stored = set(zip(rows.tolist(), cols.tolist(), strict=True)), stored_blocks(pattern)
    assert touched <= stored
    assert len(stored) == min(int(support.budget * len(touched)), pattern.grid[0] * pattern.grid[1])
    assert count_stored(layer.geometry, support, pattern.block_shape) == len(stored)
    assert not pattern.masks.numel()
    check_ties(case, layer)
    movable = {at for at, may in zip(sorted(stored), layer.movable_blocks().tolist(), strict=True) if may}
    assert movable == stored - local_blocks(layer)
    assert grown(name, support)[1].linear.pattern == pattern


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_the_convolution(name: str) -> None:
    torch.manual_seed(1)
    case = CASES[name]
    conv, x = case.conv(), case.example()
    layer = EmbeddedConv.from_conv(conv, case.size, es.Grown(2), case.block_shape)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.to_conv().weight, conv.weight)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FILLED])
def test_blocks_move_and_ties_follow(name: str) -> None:
    case, layer = grown(name, es.Grown(1.5))
    pattern, before = layer.linear.pattern, local_blocks(layer)
    with torch.no_grad():
        layer.linear.values += torch.randn_like(layer.linear.values)
    movable, room = int(layer.movable_blocks().sum()), pattern.grid[0] * pattern.grid[1] - pattern.nnz_blocks
    count = min(movable, room)
    dy, x = factors(layer)
    dense = pattern.to_dense(layer.linear.values.detach())
    done = es.regrow(layer, dy, x, blocks=count)
    assert before <= stored_blocks(layer.linear.pattern)
    assert done.blocks == count
    norms = block_norms(dy.T @ x, pattern.block_shape)
    outside = sorted(
        set(itertools.product(*map(range, pattern.grid))) - stored_blocks(pattern), key=lambda at: -norms[at]
    )
    assert [tuple(at) for at in done.grown.tolist()] == outside[:count]
    check_ties(case, layer)
    # what stays, stays; what is new is zero
    now, kept = layer.linear.pattern.to_dense(layer.linear.values.detach()), layer.linear.pattern.to_mask()
    assert torch.equal(now[kept & pattern.to_mask()], dense[kept & pattern.to_mask()])
    assert not now[~pattern.to_mask()].any()


@pytest.mark.parametrize("name", ["rgb", "holes", "blocks-of-pixels"])
def test_the_parts_are_read_at_the_new_places(name: str) -> None:
    case, layer = grown(name, es.Grown(2))
    dy, x = factors(layer)
    assert es.regrow(layer, dy, x, blocks=2).blocks == 2
    with torch.no_grad():
        layer.linear.values.copy_(torch.randn_like(layer.linear.values))
    dense, truth = layer.linear.to_linear().weight.detach(), element_map(case._replace(support=es.Full()))
    stored = layer.linear.pattern.to_mask()
    off = dense[(truth == OFF_LOCAL) & stored].square().sum()
    tied = torch.zeros((), dtype=torch.float64)
    for entry in truth[truth >= 0].unique():
        copies = dense[truth == entry]
        tied += len(copies) * copies.mean().square()
    reading = es.deviation(layer)
    torch.testing.assert_close(reading.off_local**2, float(off), rtol=1e-12, atol=0)
    torch.testing.assert_close(reading.tied**2, float(tied), rtol=1e-10, atol=0)
    es.project(layer, onto="cnn")
    assert es.deviation(layer).delta == 0.0
    assert not layer.linear.to_linear().weight[truth < 0].any()


def test_an_edge_that_cuts_blocks() -> None:
    """Blocks at the bottom and at the right have entries outside the matrix, which belong to no class."""
    case = CASES["holes"]._replace(block_shape=(5, 8))
    layer = EmbeddedConv.from_conv(case.conv(), case.size, es.Grown(1.2), case.block_shape)
    rows, cols = layer.linear.pattern.grid
    assert layer.linear.pattern.shape[0] % 5
    assert layer.linear.pattern.shape[1] % 8
    for seed in range(6):
        count = min(8, int(layer.movable_blocks().sum()))
        es.regrow(layer, *factors(layer, seed=seed), blocks=count)
        check_ties(case, layer)
        assert (layer.ties.maps[layer.ties.class_of_block.long()] == OUTSIDE).any()
    assert {r for r, _ in stored_blocks(layer.linear.pattern)} == set(range(rows))
    assert {c for _, c in stored_blocks(layer.linear.pattern)} == set(range(cols))


def moved(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    cnn = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    return es.embed(cnn, torch.zeros(1, 3, 6, 6), support=es.Grown(1.5))


def test_a_state_dict_brings_its_places() -> None:
    one, other = moved(), moved(seed=1)
    for name in ("0", "2"):
        es.regrow(one.get_submodule(name), *factors(one.get_submodule(name)), blocks=5)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter += torch.randn_like(parameter)
    values = other.get_submodule("0").linear.values
    assert other.get_submodule("0").linear.pattern != one.get_submodule("0").linear.pattern
    other.load_state_dict(one.state_dict())
    assert other.get_submodule("0").linear.values is values
    x = torch.randn(4, 3, 6, 6)
    assert torch.equal(one(x), other(x))
    mine, theirs = es.deviation(one), es.deviation(other)
    assert mine.layers == theirs.layers


def test_a_copy_moves_alone() -> None:
    one = moved()
    other = copy.deepcopy(one)
    before = one.get_submodule("0").linear.pattern
    es.regrow(other.get_submodule("0"), *factors(one.get_submodule("0")), blocks=5)
    assert one.get_submodule("0").linear.pattern is before
    assert one.get_submodule("0").ties is not other.get_submodule("0").ties
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(one(x), other(x))  # what moved was zero


def test_a_compiled_net_is_not_compiled_again() -> None:
    model, graphs = moved(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled, x = torch.compile(model, backend=backend, fullgraph=True), torch.randn(4, 3, 6, 6)
    compiled(x)
    for seed in range(2):
        for name in ("0", "2"):
            es.regrow(model.get_submodule(name), *factors(model.get_submodule(name), seed=seed), blocks=5)
        with torch.no_grad():
            model.get_submodule("0").linear.values += 1
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
    torch.compiler.reset()
