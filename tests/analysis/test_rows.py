"""A row taken from the blocks is the row of the dense matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efcn_sparse import BlockPattern
from efcn_sparse.analysis.layer_weights import incoming_weights
from efcn_sparse.analysis.weights import incoming
from efcn_sparse.embedding import EmbeddedConv, LowRank


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    block_shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    density=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_every_row_is_that_of_the_dense_matrix(shape, block_shape, density, seed):
    generator = torch.Generator().manual_seed(seed)
    pattern = BlockPattern.from_mask(torch.rand(shape, generator=generator) < density, block_shape)
    values = torch.randn(pattern.values_shape, generator=generator)  # numbers outside the support too
    rows = torch.stack([incoming_weights(values, pattern, unit) for unit in range(shape[0])])
    torch.testing.assert_close(rows, pattern.to_dense(values), rtol=0, atol=0)


@pytest.mark.parametrize("unit", [-1, 4])
def test_a_unit_out_of_range_is_refused(unit):
    pattern = BlockPattern.dense((4, 6), (2, 3))
    with pytest.raises(ValueError, match=rf"^unit must lie in \[0, 4\), got {unit}$"):
        incoming_weights(torch.zeros(pattern.values_shape), pattern, unit)


def test_values_of_another_pattern_are_refused():
    pattern = BlockPattern.dense((4, 6), (2, 3))
    with pytest.raises(ValueError, match=r"^values must be \[4, 2, 3\], got \[3, 2, 3\]$"):
        incoming_weights(torch.zeros(3, 2, 3), pattern, 0)


def test_a_unit_sees_what_its_low_rank_part_holds():
    layer = EmbeddedConv.from_conv(torch.nn.Conv2d(3, 5, 3, padding=1), (4, 4), LowRank(2), (7, 10))
    torch.nn.init.normal_(layer.low_rank.left)
    rows = torch.stack([incoming(layer, unit) for unit in range(80)])
    torch.testing.assert_close(rows, layer.linear.weight + layer.low_rank(torch.eye(48), layer.linear).T)
