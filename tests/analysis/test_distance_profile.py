"""Receptive fields and distances against a walk over every pair of pixels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from efcn_sparse import deviation
from efcn_sparse.analysis.figures.canvas import drawing_style
from efcn_sparse.analysis.figures.weights import draw_distance
from efcn_sparse.analysis.layer_weights import DistanceProfile, axis_distances, distance_profile, receptive_field
from efcn_sparse.analysis.run_data import read_run
from efcn_sparse.analysis.weights import LayerWeights, Moment, Weights
from efcn_sparse.embedding import ConvGeometry, Dilated, EmbeddedConv, Full, Local, LowRank
from efcn_sparse.training.arms import FULL
from tests.analysis.synthetic import write_run

LAYERS = {
    "plain": (nn.Conv2d(2, 4, 3, padding=1), (5, 6), None),
    "strided": (nn.Conv2d(3, 4, (4, 2), stride=(2, 3), padding=(2, 0)), (7, 9), None),
    "dilated": (nn.Conv2d(2, 2, 3, padding=2, dilation=2), (6, 6), None),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5), None),
    "blocks across pixels": (nn.Conv2d(3, 4, 3, padding=1), (4, 4), (8, 9)),
    "ragged blocks": (nn.Conv2d(3, 5, 3, padding=1), (4, 4), (7, 10)),
    "one dimension": (nn.Conv1d(2, 3, 4, padding="same"), (9,), None),
    "three dimensions": (nn.Conv3d(1, 2, 2, stride=2), (4, 3, 5), None),
}


def _layer(name: str, support) -> EmbeddedConv:
    conv, size, block_shape = LAYERS[name]
    layer = EmbeddedConv.from_conv(conv, size, support, block_shape)
    with torch.no_grad():
        pattern = layer.linear.pattern
        generator = torch.Generator().manual_seed(0)
        layer.linear.values.copy_(pattern.gather(torch.randn(pattern.shape, generator=generator)))
        if layer.low_rank is not None:
            layer.low_rank.left.normal_(generator=generator)
    return layer


def _brute_force(layer: EmbeddedConv):
    """Squares and counts by distance over single entries of the dense matrix, and the sums over local ones."""
    geometry, weight = layer.geometry, layer.linear.pattern.to_dense(layer.linear.values).detach().double()
    support = layer.linear.pattern.to_mask()
    if layer.low_rank is not None:
        product = layer.low_rank.left.detach().double() @ layer.low_rank.right.detach().double().T
        weight, support = torch.where(support, weight, product), torch.ones_like(support)
    squares, counts, local = np.zeros(64), np.zeros(64), [0.0, 0]
    axes_out, axes_in = [range(n) for n in geometry.output_size], [range(n) for n in geometry.input_size]
    for i, p in enumerate(itertools.product(*axes_out)):
        for j, q in enumerate(itertools.product(*axes_in)):
            offsets = [
                b + low - stride * a
                for a, b, (low, _), stride in zip(p, q, geometry.padding, geometry.stride, strict=True)
            ]
            spans = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True)]
            distance = max(max(-t, t - span, 0) for t, span in zip(offsets, spans, strict=True))
            tap = distance == 0 and all(t % d == 0 for t, d in zip(offsets, geometry.dilation, strict=True))
            for c, d in itertools.product(range(geometry.out_channels), range(geometry.in_channels)):
                row, col = i * geometry.out_channels + c, j * geometry.in_channels + d
                if not support[row, col]:
                    continue
                group_out = c * geometry.groups // geometry.out_channels
                group_in = d * geometry.groups // geometry.in_channels
                square = float(weight[row, col]) ** 2
                if tap and group_out == group_in:
                    local = [local[0] + square, local[1] + 1]
                else:
                    squares[distance] += square
                    counts[distance] += 1
    return squares, counts, local


@pytest.mark.parametrize(
    "support", [Local(), Dilated(1), Dilated(2), Full(), LowRank(2), LowRank(3, Dilated(1))], ids=str
)
@pytest.mark.parametrize("name", LAYERS)
def test_the_profile_is_that_of_single_entries(name, support, monkeypatch):
    monkeypatch.setattr("efcn_sparse.analysis.layer_weights.ELEMENTS_AT_ONCE", 100)  # several chunks
    layer = _layer(name, support)
    profile = distance_profile(layer)
    squares, counts, local = _brute_force(layer)
    n = profile.squares.size
    assert not counts[n:].any()
    np.testing.assert_allclose(profile.squares, squares[:n], rtol=1e-9)
    np.testing.assert_array_equal(profile.counts, counts[:n])
    assert profile.local_squares == pytest.approx(local[0], rel=1e-9)
    assert profile.local_count == local[1]
    norm = deviation(layer).norm
    assert math.sqrt(profile.squares.sum() + profile.local_squares) == pytest.approx(norm, rel=1e-9)


def test_norms_are_nan_where_the_support_has_no_weight():
    profile = distance_profile(_layer("plain", Dilated(1)))
    assert np.isfinite(profile.norm[1])
    assert np.isnan(profile.norm[2:]).all()
    assert profile.rms[1] == pytest.approx(math.sqrt(profile.squares[1] / profile.counts[1]))


@pytest.mark.parametrize("name", LAYERS)
def test_the_receptive_field_is_where_the_convolution_has_a_gradient(name):
    conv, size, _ = LAYERS[name]
    geometry = _layer(name, Local()).geometry
    x = torch.zeros(1, conv.in_channels, *size, requires_grad=True)
    y = conv(x)
    for pixel in itertools.product(*(range(n) for n in geometry.output_size)):
        (gradient,) = torch.autograd.grad(y[(0, slice(None), *pixel)].sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum(0).nonzero()
        if conv.dilation[0] == 1:
            assert receptive_field(geometry, pixel) == list(
                zip(seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True)
            )
        else:  # the box also spans taps that fall on padding
            for (first, last), low, high in zip(
                receptive_field(geometry, pixel), seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True
            ):
                assert first <= low <= high <= last


@pytest.mark.parametrize("conv", [torch.nn.ConvTranspose2d(1, 1, 3, 2, 1, 1), torch.nn.ConvTranspose2d(1, 1, (4, 2))])
def test_distances_of_a_transposed_convolution(conv):
    geometry = ConvGeometry.of(conv, (4, 3))
    down, right = axis_distances(geometry)
    distance = torch.maximum(down[:, None, :, None], right[None, :, None, :]).flatten(2).flatten(0, 1)
    for radius in (0, 1):
        support = EmbeddedConv(geometry, Dilated(radius), (1, 1)).linear.pattern.to_mask()
        assert torch.equal(distance <= radius, support)
    for number, pixel in enumerate(itertools.product(*(range(n) for n in geometry.output_size))):
        seen = (distance[number] == 0).view(4, 3).nonzero()
        assert receptive_field(geometry, pixel) == list(zip(seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True))


def test_all_distances_are_on_an_axis_whose_ticks_are_whole_pixels(tmp_path, config):
    run = read_run(write_run(tmp_path / "run", config, checkpoints=False))
    layers = {}
    for name, squares in {
        "only 0": [1.0], "from 0": [1.0, 1.0, 1.0], "from 1": [0.0, 1.0, 1.0], "none": [0.0]
    }.items():  # fmt: skip
        there = np.array(squares)
        layers[name] = LayerWeights(np.ones((1, 1)), ((0, 0), (0, 0)), (0, 0), DistanceProfile(there, there, 1.0, 1))
    with drawing_style():
        figures = draw_distance(run, Weights(0, (4,), (Moment(FULL, 4, "end", 10, layers),), ()))
    for drawing, firsts in zip(figures, ((0, 0, 1), (0, 0, 0, 0)), strict=True):  # inside the field rms has a diamond
        assert drawing.caption.endswith("are left out.") == (len(firsts) == 3)
        for axes, first, last in zip(drawing.figure.axes, firsts, (1, 2, 2, 1)[: len(firsts)], strict=True):
            low, high = axes.get_xlim()
            assert [tick for tick in axes.get_xticks() if low <= tick <= high] == list(range(first, last + 1))
