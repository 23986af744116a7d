"""The tuning table: every row is sound, the nearest is taken, a user's file comes first; errors name file and row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from efcn_sparse.ops.backends.triton import plan, tuning
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.machines import machine_of
from efcn_sparse.ops.backends.triton.plan import Problem, configure, stretches
from efcn_sparse.ops.backends.triton.tuning import Case, Config, Row, config_for, read, rows, write
from efcn_sparse.pattern import Structure
from tests.table import pattern

CASE = Case("spmm", "sm90", 16, 64, 64, 2048, 0.1, 4096)


@pytest.mark.parametrize("arch", ["sm80", "sm90", "sm100", "gfx942", "interpreter", "sm120", "gfx950"])
@pytest.mark.parametrize("operation", tuning.OPERATIONS)
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_there_is_a_row_for_every_case(arch: str, operation: str, bits: int) -> None:
    for side, batch in ((1, 1), (3, 100), (64, 8192), (500, 1 << 20)):
        assert isinstance(config_for(Case(operation, arch, bits, side, 2 * side, batch, 0.0)), Config)


def test_no_row_hides_another() -> None:
    cases = [row.case for row in tuning.rows()]
    assert len(set(cases)) == len(cases)


def test_the_nearest_row_is_taken() -> None:
    table = rows()
    for row in table:
        if row.case.arch != "interpreter":
            assert row.case.distance(row.case) == 0
            assert config_for(row.case) == next(r.config for r in table if r.case == row.case)
    nearby = Case("spmm", "sm90", 16, 60, 70, 2100, 0.12, 4000)
    assert config_for(nearby) == config_for(CASE)


@pytest.mark.parametrize(
    ("operation", "side", "batch", "density", "rows", "tile"),
    [
        ("spmm", 128, 8192, 0.05, 4096, (256, 128)),
        ("spmm", 128, 8192, 0.5, 4096, (256, 128)),
        ("spmm_t", 64, 8192, 0.25, 4096, (256, 128)),
        ("spmm", 64, 8192, 0.5, 4096, (128, 256)),
        ("spmm", 32, 8192, 0.1, 4096, (256, 128)),
        ("spmm_t", 32, 8192, 0.25, 4096, (128, 256)),
        ("spmm_t", 16, 8192, 0.5, 4096, (128, 256)),
        ("spmm", 128, 1024, 0.1, 16384, (256, 128)),
        ("sddmm", 128, 8192, 0.1, 4096, (256, 128)),
        ("sddmm", 128, 8192, 0.5, 4096, (128, 128)),
        ("sddmm", 16, 8192, 0.5, 4096, (128, 128)),
        ("spmm", 128, 256, 0.1, 4096, (64, 128)),  # few programs, so small ones
        ("spmm", 64, 256, 0.1, 4096, (128, 64)),
        ("spmm", 64, 256, 0.1, 1024, (64, 32)),  # fewer still
        ("sddmm", 128, 256, 0.1, 1024, (64, 32)),
        ("spmm", 64, 256, 0.003, 1 << 18, (256, 128)),  # an early layer of a net at 224 pixels: many programs
        ("spmm_t", 64, 256, 0.012, 1 << 18, (256, 128)),
        ("sddmm", 64, 256, 0.003, 1 << 18, (256, 128)),
        ("spmm", 128, 256, 0.045, 50176, (256, 128)),  # ResNet-18's third and fourth stages
        ("spmm_t", 128, 256, 0.14, 25088, (256, 128)),
        ("sddmm", 128, 256, 0.14, 25088, (256, 128)),
    ],
)  # fmt: skip
def test_batch_density_and_size_choose_the_tile(
    operation: str, side: int, batch: int, density: float, rows: int, tile: tuple[int, int]
) -> None:
    results = density * rows**2 if operation == "sddmm" else rows
    rounded = 2.0 ** round(math.log2(density)), 1 << round(math.log2(results))  # as `plan.configure` asks
    for asked in ((density, int(results)), rounded):
        found = config_for(Case(operation, "sm90", 16, side, side, batch, *asked))
        assert (found.block_m, found.block_n) == tile


def test_tiles_are_larger_where_the_batch_is() -> None:
    few, many = (configure(_problem(Device("sm90", 132, 227 << 10), batch=batch)) for batch in (256, 8192))
    assert few.block_m < many.block_m
    assert plan.shared_memory(many, 2) <= 227 << 10


@pytest.mark.parametrize("arch", ["sm86", "sm89", "sm120"])
@pytest.mark.parametrize("operation", tuning.OPERATIONS)
def test_gpus_without_rows_take_those_of_their_instructions(arch: str, operation: str) -> None:
    for batch in (1, 256, 2048, 8192):  # sm90 has rows for 2048, and sm80 has none so near
        nearest = config_for(Case(operation, arch, 16, 64, 64, batch, 0.1, 4096))
        assert nearest in {row.config for row in rows() if row.case.arch == "sm80"}
        fitted = configure(_problem(Device(arch, 128, 99 << 10), operation, batch))
        assert plan.shared_memory(fitted, 2) <= 99 << 10
    assert [tuning.family(a) for a in ("sm90", "sm100", "sm103", "sm110", "gfx950")] == [
        "sm90", "sm100", "sm100", "sm100", "gfx942"
    ]  # fmt: skip


def test_a_row_without_a_size_is_for_every_size() -> None:
    free = Case("spmm", "sm90", 16, 64, 64, 2048, 0.1)
    assert CASE.distance(free) == free.distance(CASE) == 0
    assert CASE.distance(Case("spmm", "sm90", 16, 64, 64, 2048, 0.1, 2 * 4096)) == 0.5


def test_ceilings_are_those_of_the_device() -> None:
    names = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200", "NVIDIA A100-SXM4-80GB": "A100", "": "H200"}
    assert {name: machine_of(Device("sm90", 132, 227 << 10, name)).name for name in names} == names
    assert machine_of(Device("sm89", 128, 99 << 10, "NVIDIA L4")).name == "GeForce"
    assert machine_of(Device("sm103", 148, 227 << 10)).name == "B200"


def test_one_configuration_for_everything_is_for_comparing_only() -> None:
    problem, chosen = _problem(Device("sm90", 132, 227 << 10)), Config(32, 32, 16, members=1, stages=2)
    with tuning.only(chosen):
        assert configure(problem) == chosen
    assert configure(problem) != chosen


def test_sums_of_a_program_are_few() -> None:
    for row in rows():
        m, n = plan.sum_tile(row.config)
        assert m & (m - 1) == 0 < m <= row.config.block_m
        assert n == row.config.block_n
        assert m * n <= 4096
    assert plan.sum_tile(Config(16, 8192, 16)) == (1, 8192)


def test_a_file_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Config(64, 32, 16, members=2, swizzle=5, pieces=7, warps=2, stages=5)
    write(tmp_path / "own.json", (Row(CASE, own, "mine"),))
    assert read(tmp_path / "own.json") == (Row(CASE, own, "mine"),)
    usual = config_for(CASE)
    monkeypatch.setenv(tuning.OVERRIDE, str(tmp_path / "own.json"))
    tuning.forget()
    try:
        assert config_for(CASE) == own != usual
    finally:
        monkeypatch.delenv(tuning.OVERRIDE)
        tuning.forget()
    assert config_for(CASE) == usual


def _file(**config: int) -> str:
    usual = {"block_m": 16, "block_n": 16, "block_k": 16}
    return json.dumps({"rows": [{"case": vars(CASE), "config": usual | config}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a tuning table with a list of rows"),
        ("[]", "must be a tuning table with a list of rows"),
        (json.dumps({"rows": [{"case": {}}]}), "row 0: "),
        (_file(block_m=8), "row 0: block_m must be a power of two of at least 16, got 8"),
        (_file(warps=0), "row 0: warps must be an integer of at least 1, got 0"),
        (_file(tiles=3), r"row 0: Config has no \['tiles'\]"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)


def _problem(device: Device, operation: str = "spmm", batch: int = 8192) -> Problem:
    return Problem(operation, Structure.of(pattern("big-blocks").structure), 128, 128, batch, torch.bfloat16, device)


def test_stages_shrink_to_the_shared_memory() -> None:
    large, small = (configure(_problem(Device("sm90", 132, size))) for size in (227 << 10, 80 << 10))
    assert small.stages < large.stages
    assert plan.shared_memory(small, 2) <= 80 << 10 < plan.shared_memory(large, 2)


def test_too_little_shared_memory_is_told_before_the_launch() -> None:
    with pytest.raises(RuntimeError, match=r"spmm in torch.bfloat16 needs \d+ bytes of shared memory .* sm90 has 4096"):
        configure(_problem(Device("sm90", 132, 4096)))


def test_the_batch_is_cut_where_blocks_are_few() -> None:
    problem = _problem(Device("sm90", 132, 227 << 10), "sddmm")
    config = configure(problem)
    pieces, rows_of_each = stretches(problem, config, programs=6)
    assert pieces > 1
    assert rows_of_each % config.block_k == 0
    assert (pieces - 1) * rows_of_each < problem.batch <= pieces * rows_of_each
    assert stretches(problem, config, programs=10_000) == (1, 8192)


@pytest.mark.parametrize(("setting", "expected"), [("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")])
def test_fp32_obeys_torch(setting: str, expected: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        assert plan.input_precision(torch.float32) == expected
        assert plan.input_precision(torch.float64) == plan.input_precision(torch.bfloat16) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("setting", "expected"), [("ieee", "ieee"), ("tf32", "tf32")])
def test_fp32_obeys_torchs_newer_setting(setting: str, expected: str) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = setting
        assert plan.input_precision(torch.float32) == expected
    finally:
        matmul.fp32_precision = before
    assert plan.input_precision(torch.float32) == "ieee"
