"""Which tile is taken: the rule of the architecture, unless a measured row is near; errors name file and row."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.measure.tune import write
from efcn_sparse.ops.backends.triton import plan, spmm_kernel, tiles, tuning
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.launch import input_precision
from efcn_sparse.ops.backends.triton.plan import Problem, configure, stretches
from efcn_sparse.ops.backends.triton.tiles import OPERATIONS, RULES, Case, Config, best_members, by_rule
from efcn_sparse.ops.backends.triton.tuning import Row, choose, read
from tests.table import GPU, needs_triton, pattern

H100 = Device("sm90", 132, 227 << 10, "H100")
CASE = Case("spmm", "sm90", 16, 64, 64, 2048, 0.125, 4096)


def _problem(device: Device = H100, operation: str = "spmm", batch: int = 8192) -> Problem:
    return Problem.of(operation, pattern("big-blocks"), batch, torch.bfloat16, device)


# -- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [*RULES, "sm86", "sm103", "sm120", "gfx950", "interpreter"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_there_is_a_tile_for_every_case(arch: str, operation: str, bits: int) -> None:
    for side, batch in ((1, 1), (3, 100), (64, 8192), (500, 1 << 20)):
        config, why = by_rule(Case(operation, arch, bits, side, 2 * side, batch, 0.0, side), 100)
        assert isinstance(config, Config)
        assert why


@pytest.mark.parametrize(
    ("operation", "arch", "batch", "results", "tile"),
    [
        ("spmm", "sm90", 8192, 4096, (256, 128)),
        ("spmm", "sm90", 1024, 4096, (256, 128)),  # 128 programs for 132 multiprocessors
        ("spmm", "sm90", 512, 4096, (128, 128)),
        ("spmm_t", "sm90", 256, 4096, (64, 128)),
        ("spmm", "sm90", 256, 1 << 18, (256, 128)),  # an early layer of a net at 224 pixels
        ("spmm", "sm90", 100, 1 << 18, (128, 128)),  # no more rows than there are
        ("spmm", "sm90", 256, 1024, (64, 32)),
        ("spmm", "sm80", 8192, 4096, (128, 128)),
        ("spmm", "sm120", 8192, 4096, (128, 128)),
        ("spmm", "gfx942", 256, 4096, (64, 128)),
        ("sddmm", "sm90", 256, 1 << 20, (64, 128)),
        ("sddmm", "sm90", 8192, 1 << 21, (256, 128)),  # the batch is cut, so that there are programs enough
        ("sddmm", "sm90", 256, 1 << 16, (64, 32)),
    ],
)
def test_batch_and_size_choose_the_tile(
    operation: str, arch: str, batch: int, results: int, tile: tuple[int, int]
) -> None:
    config, why = by_rule(Case(operation, arch, 16, 128, 128, batch, 0.1, results), 132)
    assert (config.block_m, config.block_n) == tile
    assert why.startswith(f"rule of {tiles.family(arch)}: ")


def test_a_step_is_no_deeper_than_a_block() -> None:
    assert [by_rule(replace(CASE, width=width), 132)[0].block_k for width in (6, 16, 24, 64, 128)] == [
        16,
        16,
        32,
        64,
        64,
    ]


def test_rows_are_joined_where_they_share_columns() -> None:
    case, config = replace(CASE, height=16, width=16), Config(256, 128, 16)
    assert best_members(case, config, {1: 800, 2: 400, 4: 200, 8: 100}) == 8  # all of them
    assert best_members(case, config, {1: 800, 2: 800, 4: 800, 8: 800}) == 1  # none: the smaller of equals
    tall = replace(case, arch="sm80")  # a narrow balance: zeros cost more than loads
    assert best_members(tall, config, {1: 800, 2: 500, 4: 400, 8: 380}) == 4


def test_stages_shrink_to_the_shared_memory() -> None:
    large, small = (configure(_problem(Device("sm90", 132, size))) for size in (227 << 10, 60 << 10))
    assert small.stages < large.stages
    assert plan.shared_memory(small, 2) <= 60 << 10 < plan.shared_memory(large, 2)
    with pytest.raises(RuntimeError, match=r"spmm in torch.bfloat16 needs \d+ bytes of shared memory .* sm90 has 4096"):
        configure(_problem(Device("sm90", 132, 4096)))


def test_the_batch_is_cut_where_blocks_are_few() -> None:
    problem = _problem(operation="sddmm")
    config = configure(problem)
    pieces, rows_of_each = stretches(problem, config, programs=6)
    assert pieces > 1
    assert rows_of_each % config.block_k == 0
    assert (pieces - 1) * rows_of_each < problem.batch <= pieces * rows_of_each
    assert stretches(problem, config, programs=10_000) == (1, 8192)


def test_sums_of_a_program_are_few() -> None:
    for m, n, _ in {tile for rule in RULES.values() for tile in rule.tiles}:
        sum_m, sum_n = spmm_kernel.sum_tile(Config(m, n, 16))
        assert m % sum_m == 0
        assert (sum_n, sum_m * sum_n <= 4096) == (n, True)
    assert spmm_kernel.sum_tile(Config(16, 8192, 16)) == (1, 8192)


@needs_triton
@pytest.mark.skipif(GPU, reason="says the interpreter's tile")
def test_explain_says_the_tile_and_why() -> None:
    layer = es.SparseLinear(48, 64, pattern("square"))
    assert es.explain(layer).tiles == {}
    layer.backend = "triton"
    found = es.explain(layer)
    assert list(found.tiles) == list(OPERATIONS)
    assert "spmm_t at batch 256: tile 64×64×64, 4 warps, 3 stages, 4 block rows joined (the interpreter's)" in str(
        found
    )


@needs_triton
@pytest.mark.skipif(GPU, reason="asks for the interpreter's tile")
def test_explain_says_that_a_tuning_file_is_bad(own: Path) -> None:
    own.write_text("{")
    tuning.forget()
    layer = es.SparseLinear(48, 64, pattern("square"))
    layer.backend = "triton"
    found = es.explain(layer).tiles["spmm"]
    assert found.startswith(f"none: {own} must be a tuning table with a list of rows: ")


# -- measured rows ---------------------------------------------------------------------------------------------------

OWN = Config(64, 32, 16, members=2, swizzle=5, pieces=7, warps=2, stages=5)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's file with one row, in force."""
    write(tmp_path / "own.json", (Row(CASE, OWN, "measured on mine"),))
    monkeypatch.setenv(tuning.OVERRIDE, str(tmp_path / "own.json"))
    tuning.forget()
    yield tmp_path / "own.json"
    monkeypatch.undo()
    tuning.forget()


def test_a_measured_row_comes_first_where_it_is_near(own: Path) -> None:
    assert read(own) == (Row(CASE, OWN, "measured on mine"),)
    assert choose(CASE, 132) == (OWN, "measured on mine")
    assert choose(replace(CASE, batch=4096, density=0.25), 132).config == OWN
    for far in (dict(arch="sm80"), dict(bits=32), dict(operation="spmm_t"), dict(height=512), dict(batch=1)):
        assert choose(replace(CASE, **far), 132) == by_rule(replace(CASE, **far), 132)  # type: ignore[arg-type]


def test_the_nearer_row_is_taken(own: Path) -> None:
    other = replace(OWN, swizzle=6)
    write(own, (*read(own), Row(replace(CASE, height=32), other, "nearer")))
    tuning.forget()
    assert choose(replace(CASE, height=40), 132).config == other
    assert choose(replace(CASE, height=60), 132).config == OWN


def test_rows_of_the_package_are_measured() -> None:
    found = read(tuning.TABLE)
    assert len({row.case for row in found}) == len(found)
    assert all(row.source.startswith("measured on ") for row in found)


def test_one_configuration_for_everything_is_for_comparing_only() -> None:
    chosen = Config(32, 32, 16, members=1, stages=2)
    with tuning.only(chosen):
        assert configure(_problem()) == chosen
    assert configure(_problem()) != chosen


def _file(**config: int) -> str:
    usual = {"block_m": 16, "block_n": 16, "block_k": 16}
    return json.dumps({"rows": [{"case": asdict(CASE), "config": usual | config}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a tuning table with a list of rows"),
        ("[]", "must be a tuning table with a list of rows"),
        (json.dumps({"rows": [{"case": {}}]}), "row 0: "),
        (_file(block_m=8), "row 0: block_m must be a power of two of at least 16, got 8"),
        (_file(warps=0), "row 0: warps must be an integer of at least 1, got 0"),
        (_file(descriptors=3), r"row 0: Config has no \['descriptors'\]"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)


# -- fp32 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "expected"), [("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")])
def test_fp32_obeys_torch(setting: str, expected: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        assert input_precision(torch.float32) == expected
        assert input_precision(torch.float64) == input_precision(torch.bfloat16) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


def test_fp32_obeys_torchs_newer_setting() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert input_precision(torch.float32) == "tf32"
    finally:
        matmul.fp32_precision = before
    assert input_precision(torch.float32) == "ieee"
