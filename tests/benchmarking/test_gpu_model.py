"""The commands of the work model: schedules move what the model says; sampled checks see a wrong result."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu import predict, search, traffic
from benchmarks.gpu.cases import OPERATIONS, Product
from benchmarks.gpu.sampled import sddmm_error, spmm_error
from efcn_sparse import BlockPattern, sddmm, spmm
from efcn_sparse.ops.backends.triton.tuning import Config
from efcn_sparse.ops.backends.triton.work import H200
from tests.table import pattern

CONFIG = Config(128, 64, 64, members=1, pieces=1 << 20, swizzle=4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_without_a_cache_memory_moves_what_the_model_says_of_the_l2(operation: str) -> None:
    case = Product(64, 1024, 512, 0.3, 512)
    config = CONFIG if operation != "dw" else Config(64, 64, 64, members=1, pieces=1)
    found = predict.predict(case, predict.make_pattern(case), operation, config=config)
    assert traffic.hbm_bytes(found.problem, config, capacity=0) == found.work.l2_bytes


@pytest.mark.parametrize("operation", OPERATIONS)
def test_with_an_endless_cache_each_operand_moves_once(operation: str) -> None:
    case = Product(64, 1024, 512, 1.0, 512)
    config = CONFIG if operation != "dw" else Config(128, 64, 64, members=1, pieces=1)
    found = predict.predict(case, predict.make_pattern(case), operation, config=config)
    assert traffic.hbm_bytes(found.problem, config, capacity=1 << 40) == found.work.memory_bytes


def test_a_small_cache_lies_between() -> None:
    case = Product(64, 1024, 1024, 0.5, 1024)
    found = predict.predict(case, predict.make_pattern(case), "forward", config=CONFIG)
    moved = [traffic.hbm_bytes(found.problem, CONFIG, capacity) for capacity in (0, 1 << 18, 1 << 40)]
    assert moved[0] > moved[1] > moved[2]


def test_the_table_has_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--batch", "256"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("H200: 790 TFLOP/s bf16, 4.3 TB/s memory")
    assert len(lines) == 2 + 2 + 4 * 4 * 3


def test_layers_of_nets_are_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--net", "vanilla"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "H200; vanilla at 32 pixels, N=256"
    assert [line.split("|")[1].strip() for line in lines[4:7]] == ["0", "3", "6"]  # VanillaCNN's convolutions
    shares = [float(line.split("|")[column]) for line in lines[4:7] for column in (9, 13, 17)]
    assert all(0 < share <= 1 for share in shares)


def test_the_search_lists_only_what_is_better() -> None:
    lines = search.better(H200, 256, (4096, 4096)).splitlines()[2:]
    for line in lines:
        before, after, gain = (float(cell) for cell in (line.split("|")[i] for i in (5, 7, 8)))
        assert gain >= search.WORTH_IT
        assert after >= before


@pytest.mark.parametrize("name", ["masked-ragged", "unbalanced", "square", "ragged"])
def test_sampled_checks_see_a_wrong_result(name: str) -> None:
    p: BlockPattern = pattern(name)
    support = p.support_of_blocks()
    values = torch.randn(p.values_shape)
    if support is not None:
        values.mul_(support)
    x, dy = torch.randn(5, p.shape[1]), torch.randn(5, p.shape[0])
    y, dx = spmm(x, values, p, backend="reference"), spmm(dy, values, p, transpose=True, backend="reference")
    dw = sddmm(dy, x, p, backend="reference")
    assert spmm_error(y, x, values, p, transpose=False) < 1e-5
    assert spmm_error(dx, dy, values, p, transpose=True) < 1e-5
    assert sddmm_error(dw, dy, x, p) < 1e-5
    assert spmm_error(y + 0.1, x, values, p, transpose=False) > 1e-3
    assert spmm_error(dx * 1.1, dy, values, p, transpose=True) > 1e-3
    assert sddmm_error(dw.roll(1, 0), dy, x, p) > 1e-3
