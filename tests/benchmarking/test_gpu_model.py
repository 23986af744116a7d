"""The commands of the work model: schedules move what the model says; sampled checks see a wrong result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu import predict, sass, search, tiles, traffic
from benchmarks.gpu.cases import OPERATIONS, SMALL_NETS, Product
from benchmarks.gpu.predict_steps import WEIGHT_BYTES, steps_table
from benchmarks.gpu.predict_steps import traffic as traffic_of
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
    assert lines[0].startswith("H100: 798 TFLOP/s bf16, 3.0 TB/s memory")
    assert lines[1].startswith("H200: 790 TFLOP/s bf16, 4.3 TB/s memory")
    assert len(lines) == 3 + 2 + 4 * 4 * 3
    heads = [cell.strip() for cell in lines[3].split("|")]
    for line in lines[5:]:
        cells = [cell.strip() for cell in line.split("|")]
        for place in (at for at, head in enumerate(heads) if head == "memory allows"):
            assert 0 < float(cells[place + 1]) <= float(cells[place]) + 0.01 <= 1.02


def test_one_tile_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--device", "h200", "--tile", "64x32x16", "--batch", "256"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()[4:]
    assert len(lines) == 4 * 4 * 3
    assert {line.split("|")[4].strip() for line in lines} <= {"64×32×16", "64×16×16"}


def test_ceilings_come_from_a_run_or_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.json"
    records = [
        {"name": "environment", "result": {"device": "NVIDIA H100"}},
        {"name": "ceilings", "result": {"flops": 7e14, "memory": 2e12, "l2": 9e12, "launch": 1e-6}},
    ]
    run.write_text(json.dumps({"records": records}))
    assert predict.measured(run).l2 == 9e12
    assert predict.main(["--batch", "256", "--ceilings", str(run), "--l2", "6"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("NVIDIA H100, measured: 700 TFLOP/s bf16, 2.0 TB/s memory, 6.0 TB/s L2")
    run.write_text(json.dumps({"records": []}))
    with pytest.raises(ValueError, match="ceilings"):
        predict.measured(run)


def test_steps_of_small_nets_are_the_sum_of_their_parts() -> None:
    net = SMALL_NETS[0]
    found = traffic_of(net)
    flops = sum(flops for flops, _ in found.convolutions)
    # forward three convolutions of 2 · N · MACs each, backward twice that; nothing flows back into the images
    macs = [64 * 3 * 16 * 17**2, 64 * 64 * 25 * 8**2, 64 * 64 * 9 * 3**2]
    assert flops == 2 * net.batch * (2 * macs[0] + 3 * macs[1] + 3 * macs[2])
    lines = steps_table([H200], [net]).splitlines()[2:]
    assert len(lines) == len(WEIGHT_BYTES)
    for line in lines:
        rest, convolutions, cnn, ours, weights, step = (float(cell) for cell in line.split("|")[3:9])
        assert cnn == pytest.approx(rest + convolutions, abs=0.011)
        assert step == pytest.approx(rest + ours + weights, abs=0.016)


# of tiles of 256×128 in four stages and 128×128 in three, as counted
WIDE = sass.Instructions(before=475, loop=110, after=412, registers=204, shared=196704)
NARROW = sass.Instructions(before=390, loop=96, after=201, registers=118, shared=98400)


def test_programs_cost_beside_their_products_where_the_rest_is_fast() -> None:
    case = Product(128, 4096, 4096, 0.1, 8192)
    pattern = predict.make_pattern(case)
    quick = replace(H200, l2=20e12, memory=20e12)
    alone = predict.predict(case, pattern, "forward", quick)
    config = alone.config
    several = tiles.refine(alone, quick, WIDE)
    assert several.seconds > alone.seconds
    assert several.bound == "programs"
    assert several.resident == 1
    # with two programs at one time, one multiplies while the other begins or ends
    halved = replace(config, block_m=128, stages=3)
    two = tiles.refine(predict.predict(case, pattern, "forward", quick, halved), quick, NARROW)
    assert two.resident == 2
    assert two.fraction > several.fraction
    slow = replace(H200, l2=2e12)
    assert tiles.refine(predict.predict(case, pattern, "forward", slow), slow, WIDE).bound == "L2"


@pytest.mark.parametrize(("groups", "places", "end"), [([(4, 2.0)], 2, 4.0), ([(3, 2.0), (1, 1.0)], 2, 4.0),
                                                       ([(1, 5.0), (4, 1.0)], 2, 5.0), ([], 3, 0.0)])  # fmt: skip
def test_programs_go_where_it_is_free_first(groups: list[tuple[int, float]], places: int, end: float) -> None:
    assert tiles._makespan(groups, places) == end


SASS = """
\t.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/                   STG.E desc[UR4][R2.64], R0 ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);
        /*0070*/                   NOP;
"""


def test_instructions_are_counted_around_the_loop_with_the_products() -> None:
    assert sass.counted(SASS) == (2, 2, 1)
    with pytest.raises(ValueError, match="no loop"):
        sass.counted(SASS.replace("HGMMA", "FFMA"))


def test_layers_of_nets_are_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--net", "vanilla"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "H100; vanilla at 32 pixels, N=256"
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
