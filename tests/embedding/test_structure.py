"""Patterns, masks and ties against a dense matrix that ``F.conv`` and plain loops give."""

import pytest
import torch
from hypothesis import given, settings

from efcn_sparse import BlockPattern, Full, Local
from efcn_sparse.embedding import OUTSIDE, ConvGeometry, EmbeddedConv
from efcn_sparse.embedding.blocks import count_stored
from tests.embedding.convolutions import CASES, ConvCase, cases, dense_matrix, element_map


def _check(case: ConvCase) -> None:
    conv = case.conv()
    layer = EmbeddedConv.from_conv(conv, case.size, case.support, case.block_shape)
    pattern, ties, truth = layer.linear.pattern, layer.ties, element_map(case)
    assert pattern == BlockPattern.from_mask(truth != OUTSIDE, pattern.block_shape)
    assert pattern.nnz == case.support.entries(layer.geometry) == int((truth != OUTSIDE).sum())
    assert layer.geometry.local_weights == int((truth >= 0).sum())
    assert layer.geometry.full_weights == truth.numel()
    assert count_stored(layer.geometry, case.support, pattern.block_shape) == pattern.nnz_blocks

    shift = 2  # gather writes zeros outside the matrix and the support: make that mean OUTSIDE
    entries = pattern.gather(truth + shift) - shift
    assert torch.equal(ties.maps[ties.class_of_block.long()].long(), entries)
    assert len(torch.unique(ties.maps.flatten(1), dim=0)) == len(ties.maps)
    assert ties.maps.dtype == torch.int32
    copies = torch.bincount(truth[truth >= 0], minlength=conv.weight.numel())
    assert torch.equal(ties.counts, copies)
    for label in range(len(ties.maps)):
        members = ties.blocks_by_class[ties.class_starts[label] : ties.class_starts[label + 1]]
        assert torch.equal(members.long(), (ties.class_of_block == label).nonzero().squeeze(1))

    assert torch.equal(pattern.to_dense(layer.linear.values.detach()), dense_matrix(conv, case.size))


@pytest.mark.parametrize("name", CASES)
def test_named(name: str) -> None:
    _check(CASES[name])


@settings(max_examples=80)
@given(cases())
def test_any(case: ConvCase) -> None:
    _check(case)


def test_aligned_maps_are_as_small_as_the_kernel() -> None:
    geometry = ConvGeometry(64, 128, 1, (14, 14), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    for support, extra in ((Local(), 0), (Full(), 1)):
        layer = EmbeddedConv(geometry, support, (64, 64), device="meta")
        assert layer.ties.maps.numel() == 64 * 128 * 9 + extra * 64 * 64


def test_a_default_device_does_not_matter() -> None:
    geometry = ConvGeometry.of(CASES["rgb"].conv(), (8, 8))
    with torch.device("meta"):
        layer = EmbeddedConv(geometry)
    assert layer.linear.values.is_meta
    assert layer.linear.pattern == EmbeddedConv(geometry).linear.pattern
