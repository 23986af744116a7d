"""The benchmark of a billion weights, at twenty million: the same path, the same bounds."""

import pytest
import torch
from torch import nn

from efcn_sparse.embedding import EmbeddedConv, embed
from efcn_sparse.extension import extension_status
from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.measure.machine import describe
from efcn_sparse.ops import contract
from experiments import scale
from experiments.dense_rows import dense_column, dense_row, stored_row
from experiments.sampled_check import StepRecorder
from experiments.scale_page import markdown

compiled = pytest.mark.skipif(
    not extension_status().available, reason="the reference backend gathers blocks, so it holds more"
)


@compiled
def test_a_step_is_right_and_holds_weights_activations_and_one_workspace():
    result = scale.measure_apart(pixels=32, batch=4, steps=1, threads=1)
    assert result.wrong() == []
    planned = scale.planned(32)
    assert (result.weights, result.stored) == (planned.support_weights, planned.stored_weights)
    assert result.weight_bytes == planned.bytes
    assert set(result.errors) == set(scale.LAYERS)
    page = markdown(result, describe(1))
    assert "All within bounds." in page
    assert f"{result.weights:,}" in page


@compiled
def test_the_bound_tells_a_step_that_forms_the_gradient():
    result = scale.measure_apart(pixels=32, batch=4, steps=1, threads=1, fused=False)
    [found] = result.wrong()
    assert found.startswith("the steps must hold at most")
    assert result.step_peak_bytes > result.embed_peak_bytes + result.weight_bytes // 2


def test_a_run_that_does_not_fit_is_refused_with_the_figures():
    with pytest.raises(MemoryError, match=r"pixels=192 needs about 6\.0 GiB and must leave 4096\.0 GiB, got .* GiB"):
        scale.check_fits(192, leave=4 << 40)


def _errors(lr=0.5, before_the_step=lambda: None):
    cnn = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.Flatten())
    x = torch.randn(3, 2, 7, 7)
    efcn = embed(cnn, x)
    recorder = StepRecorder(cnn, efcn, ("0", "2"), lr)
    optimizer = FusedOptimizer(efcn, lambda p: torch.optim.SGD(p, lr=lr))
    before_the_step()
    with recorder:
        efcn(x).square().sum().backward()
    optimizer.step()
    return recorder.errors()


def test_the_sampled_check_passes_what_is_right():
    for name, errors in _errors().items():
        assert max(errors.output, errors.updated_row, errors.update) < scale.TOLERANCE
        assert (errors.input_gradient is None) == (name == "0")


def _scaled(run):
    def wrong(out, *arguments):
        run(out, *arguments)
        out.mul_(1.001)

    return wrong


@pytest.mark.parametrize(("operation", "figures"), [("sddmm", ["updated_row", "update"]), ("spmm", ["output"])])
def test_the_sampled_check_sees_what_is_wrong(operation, figures, monkeypatch):
    def spoil():
        for backend in contract.BACKENDS.values():
            monkeypatch.setattr(backend, operation, _scaled(getattr(backend, operation)))

    for errors in _errors(before_the_step=spoil).values():
        assert all(getattr(errors, figure) > scale.TOLERANCE for figure in figures)


def test_dense_rows_and_columns_are_those_of_the_layer():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    layer = EmbeddedConv.from_conv(conv, (5, 4)).linear
    dense = layer.weight.double()
    for unit in range(layer.out_features):
        row, support = dense_row(conv, (5, 4), unit)
        torch.testing.assert_close(row, dense[unit], rtol=0, atol=0)
        torch.testing.assert_close(stored_row(layer, unit), dense[unit], rtol=0, atol=0)
        torch.testing.assert_close(support, layer.pattern.to_mask()[unit])
    for unit in range(layer.in_features):
        torch.testing.assert_close(dense_column(conv, (5, 4), unit), dense[:, unit], rtol=0, atol=0)
