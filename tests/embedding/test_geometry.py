"""Geometries and supports: sizes that agree with torch, values that are refused otherwise."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given

from efcn_sparse import Dilated, Full, Grown, Local, LowRank
from efcn_sparse.embedding import ConvGeometry, parse_support
from tests.embedding.convolutions import ConvCase, cases

GOOD: dict[str, Any] = dict(
    in_channels=4, out_channels=6, groups=2, input_size=(5, 5), kernel_size=(3, 3), stride=(1, 1),
    padding=((1, 1), (0, 0)), dilation=(1, 1),
)  # fmt: skip

WRONG = {
    "no dimensions": (dict(input_size=()), "input_size must have 1 to 3 dimensions, got []"),
    "four dimensions": (dict(input_size=(2, 2, 2, 2)), "input_size must have 1 to 3 dimensions, got [2, 2, 2, 2]"),
    "empty input": (dict(input_size=(0, 5)), "input_size must be 2 integers of at least 1, got [0, 5]"),
    "kernel": (dict(kernel_size=(3,)), "kernel_size must be 2 integers of at least 1, got [3]"),
    "stride": (dict(stride=(0, 1)), "stride must be 2 integers of at least 1, got [0, 1]"),
    "dilation": (dict(dilation=(1, 0)), "dilation must be 2 integers of at least 1, got [1, 0]"),
    "padding": (dict(padding=((1, 1),)), "padding must be 2 pairs (low, high) of at least 0, got [(1, 1)]"),
    "negative padding": (
        dict(padding=((1, -1), (0, 0))), "padding must be 2 pairs (low, high) of at least 0, got [(1, -1), (0, 0)]"),
    "channels": (dict(in_channels=0), "in_channels must be at least 1, got 0"),
    "groups": (dict(groups=4), "groups must divide the channels 4 and 6, got 4"),
    "too small": (dict(input_size=(5, 2)),
                  "kernel_size [3, 3] must fit into the padded input_size [5, 2], got output size [5, 0]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str) -> None:
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ConvGeometry(**(GOOD | change))


@given(cases())
def test_sizes(case: ConvCase) -> None:
    conv = case.conv()
    geometry = ConvGeometry.of(conv, case.size)
    y = conv(case.example(1))
    assert geometry.output_size == y.shape[2:]
    assert geometry.out_features == y.numel()
    assert geometry.in_features == case.example(1).numel()
    assert geometry.kernel_shape == conv.weight.shape
    assert Local().entries(geometry) == geometry.local_weights
    assert Local().entries(geometry) <= Dilated(0).entries(geometry) <= Dilated(1).entries(geometry)
    assert Full().entries(geometry) == geometry.full_weights


def test_supports_compare_by_value() -> None:
    supports = [Local(), Dilated(0), Dilated(1), Full(), Grown(1), Grown(1.25), Grown(2, Dilated(3))]
    assert len({Local(), Local(), Dilated(1), Dilated(1), Full()}) == 3
    assert all((a == b) == (a is b) for a in supports for b in supports)
    assert [str(support) for support in supports] == [
        "local", "dilated0", "dilated1", "full", "grown1", "grown1.25", "grown2-dilated3"
    ]  # fmt: skip
    assert [parse_support(str(support)) for support in supports] == supports
    in_order = sorted([*supports, LowRank(2), LowRank(10), Grown(10)], key=lambda support: support.order)
    assert [support.label for support in in_order] == [
        "local", "dilated 0", "dilated 1", "grown 1", "grown 1.25", "grown 2 from dilated 3", "grown 10",
        "low rank 2", "low rank 10", "full",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "Local", "dilated", "dilated-1", "dilated1.0", "dilated²", "eLCN", "grown", "grown.5"]
)
def test_no_support(text: str) -> None:
    known = "local, full, dilated<radius> such as dilated2, grown<budget> such as grown1.5, or lowrank<rank>"
    message = f"support must be {known}, got {text!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_support(text)


def test_same_padding_is_asymmetric() -> None:
    conv = torch.nn.Conv2d(1, 1, (4, 3), padding="same", dilation=(1, 2))
    assert ConvGeometry.of(conv, (5, 5)).padding == ((1, 2), (2, 2))
