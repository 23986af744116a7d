"""``efcn-sparse bench``: what it times is right, in turn, and what it prints is what it writes."""

import contextlib
import json
import math
import mmap
import os
from pathlib import Path

import pytest
import torch

import efcn_sparse
from benchmarks.picture import drawable, picture
from efcn_sparse.cli.main import main
from efcn_sparse.extension import ExtensionStatus
from efcn_sparse.measure import landscape, locally_connected, machine, memory, ops, report, timing, vanilla
from efcn_sparse.measure.ops import OPS, OpsCase


def test_it_writes_what_it_prints(tmp_path, capsys):
    out, folder = tmp_path / "out.json", tmp_path / "results"
    options = ["--tiny", "--suite", "ops", "--threads", "1", "--json", str(out), "--results", str(folder)]
    assert main(["bench", *options]) == 0
    results = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert printed == report.markdown(results)
    [page] = folder.glob("*.md")
    assert page.read_text() == printed
    [rows] = results["tables"].values()
    assert len(rows) == 12
    assert results["machine"]["threads"] == 1
    assert rows[0]["rate to dense"] == pytest.approx(rows[0]["speed-up"] / 4)


@pytest.mark.parametrize(("suite", "lines"), [("few-rows", 2), ("calls", 2)])
def test_small_suites(tmp_path, suite, lines):
    out = tmp_path / "found.json"
    assert main(["bench", "--tiny", "--suite", suite, "--threads", "1", "--shared", "--json", str(out)]) == 0
    (rows,) = json.loads(out.read_text())["tables"].values()
    assert len(rows) == lines


def test_it_says_that_the_extension_is_older_than_its_sources(tmp_path, monkeypatch):
    library, source = tmp_path / "_C.so", tmp_path / "csrc" / "cpu" / "spmm.cpp"
    source.parent.mkdir(parents=True)
    for path in (source, library):
        path.touch()
    status = ExtensionStatus(True, "", str(library))
    monkeypatch.setattr(efcn_sparse, "__file__", str(tmp_path / "efcn_sparse" / "__init__.py"))
    monkeypatch.setattr(efcn_sparse, "extension_status", lambda: status)
    for seconds, said in (
        (-1, "compiled extension loaded"),
        (1, "compiled extension loaded, built before csrc changed"),
    ):
        os.utime(source, (library.stat().st_mtime + seconds,) * 2)
        assert machine.describe(1)["extension"] == said


def test_the_densities_are_those_of_the_patterns(tmp_path):
    out = tmp_path / "out.json"
    assert main(["bench", "--tiny", "--suite", "densities", "--threads", "1", "--json", str(out)]) == 0
    [rows] = json.loads(out.read_text())["tables"].values()
    assert [row["density"] for row in rows] == [0.25] * 3 + [0.5] * 3
    assert all(row["rate to dense"] == pytest.approx(row["speed-up"] * row["density"]) for row in rows)


def test_the_landscape_is_measured_beside_a_gradient_and_the_weights(monkeypatch):
    monkeypatch.setattr(landscape, "apart", lambda module, *arguments: [*landscape.path_peak(32)])
    rows = landscape.rows(batch=2, rounds=2, pixels=32, threads=1)
    assert [row["/ gradient"] for row in rows if row["call"].startswith("gradient")] == [1.0, 1.0]
    assert rows[-1]["/ weights"] > 1  # the second net, which is made after the count begins


def test_bad_arguments_are_refused_before_any_work(tmp_path, capsys):
    assert main(["bench", "--threads", "0"]) == 2
    assert "--threads must be at least 1, got 0" in capsys.readouterr().err
    assert main(["bench", "--shared"]) == 2
    assert "--shared goes with --suite ops, few-rows, calls, densities or landscape, got all" in capsys.readouterr().err
    assert main(["bench", "--json", str(tmp_path / "no" / "out.json")]) == 2
    assert "--json must lie in a folder that is there" in capsys.readouterr().err


def test_calls_take_turns_and_a_slow_rival_sits_out(monkeypatch):
    calls = []
    timing.in_turn({"rival": lambda: calls.append("r"), timing.OURS: lambda: calls.append("o")}, 3)
    assert "".join(calls) == "ro" + "rroo" * 3  # warm-up, then an untimed and a timed call of each
    monkeypatch.setattr(timing, "_timed", lambda call, clock: 1.5)
    found = timing.in_turn({"rival": lambda: None, timing.OURS: lambda: None}, 6)
    assert {name: len(times) for name, times in found.items()} == {"rival": 3, timing.OURS: 6}
    assert timing.median_ratio([3.0, 6.0, 12.0], [1.0, 2.0, 4.0, 5.0]) == 3.0


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_result_is_not_timed(op, monkeypatch):
    case = OpsCase(op, torch.float32, batch=8, block=16, size=64, density=0.25)
    found, density = ops.contestants(case)
    assert {"dense", "torch_sparse", timing.OURS} <= set(found)
    assert density == 0.25
    name = "sddmm" if op == "dw" else "spmm"
    true = getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *args, **options: 1.01 * true(*args, **options))
    with pytest.raises(AssertionError, match="efcn_sparse must be within"):
        ops.contestants(case)


@pytest.mark.parametrize("op", OPS)
def test_bf16_runs_beside_our_own_fp32(op, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    case = OpsCase(op, torch.bfloat16, batch=8, block=16, size=64, density=0.25)
    found, density = ops.contestants(case)
    assert set(found) >= {"dense", "float32", timing.OURS}
    assert {name: call().dtype for name, call in found.items() if name != "onednn"} == {
        "dense": torch.float32, "float32": torch.float32, timing.OURS: torch.bfloat16
    }  # fmt: skip
    row = ops.row(case, {"dense": [3.0], "float32": [2.0], timing.OURS: [1.0]}, density)
    assert (row["dtype"], row["our float32 / ours"]) == ("bfloat16, dense float32", 2.0)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert ops.row(case, {"dense": [3.0], timing.OURS: [1.0]}, density)["dtype"] == "bfloat16"


def test_variants_compute_the_same_and_a_wrong_gradient_is_not_timed(monkeypatch):
    trainers = vanilla.checked_trainers(batch=2)
    counts = {name: sum(p.numel() for p in trainer.model.parameters()) for name, trainer in trainers.items()}
    biases, head = 64 * (17 * 17 + 8 * 8 + 3 * 3), 64 * 10 + 10
    expected = {"cnn": 143_178, "unfold": 7_797_002, "dense": 73_928_704 + biases + head}
    assert {name: counts[name] for name in expected} == expected
    make = vanilla.make_trainer

    def with_wrong_gradients(variant, batch):
        trainer = make(variant, batch)
        if variant == timing.OURS:
            trainer.model[0].linear.values.register_hook(lambda gradient: 1.01 * gradient)
        return trainer

    monkeypatch.setattr(vanilla, "make_trainer", with_wrong_gradients)
    with pytest.raises(AssertionError, match=r"the gradient of 0\.linear"):
        vanilla.checked_trainers(batch=2)


def test_locally_connected_rivals_agree_and_flax_may_be_absent(capsys, monkeypatch, tmp_path):
    layer = locally_connected.Layer(3, 16, 6, 3, 2, 1)
    monkeypatch.setattr(locally_connected, "VANILLA", (layer,))
    nowhere, digests = str(tmp_path / "python"), []

    class Kept(locally_connected.Process):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            digests.append(self.ready["digest"])

    monkeypatch.setattr(locally_connected, "Process", Kept)
    (row, total), versions = locally_connected.rows(batch=2, rounds=1, threads=1, flax_python=nowhere)
    assert versions == {}
    assert row["layer"] == "3→16, 3×3, stride 2, on 6×6"
    assert min(row["ms"], row["unfold + bmm, ms"], row["unfold + bmm / ours"]) > 0
    assert row["Flax ConvLocal, ms"] is total["Flax ConvLocal / ours"] is None
    assert total["ms"] == row["ms"]
    assert "without Flax ConvLocal" in capsys.readouterr().err
    unfold, ours = digests
    assert unfold["y"] != ours["y"]  # by rounding: each is computed in its own way


@pytest.mark.parametrize("what", ["y", "dx", "dw"])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(("off", "agrees"), [(5e-5, True), (2e-4, False), (-2e-4, False), (math.nan, False)])
def test_a_locally_connected_rival_that_computes_something_else_is_refused(monkeypatch, what, part, off, agrees):
    running = set()

    class Rival:
        def __init__(self, python, rival, layer, batch, threads):
            digest = {name: [7.0, 50.0] for name in ("y", "dx", "dw")}
            if rival == locally_connected.UNFOLD:
                digest[what][part] += 50.0 * off
            self.ready = {"digest": digest}
            running.add(self)

        def close(self):
            running.remove(self)

    monkeypatch.setattr(locally_connected, "Process", Rival)
    refusal = pytest.raises(AssertionError, match=rf"unfold \+ bmm must agree in {what} of 3→16, 3×3")
    with (
        contextlib.nullcontext() if agrees else refusal,
        locally_connected.processes(locally_connected.Layer(3, 16, 6, 3, 2, 1), 2, 1, "python") as (calls, missing),
    ):
        assert (list(calls), missing) == ([locally_connected.FLAX, locally_connected.UNFOLD, timing.OURS], "")
        assert running == set(calls.values())
    assert not running


def test_peak_memory_sees_what_a_step_holds(monkeypatch):
    def step():
        # fresh pages from the system: an allocator may hand out what other tests freed, without growing
        with mmap.mmap(-1, 64 << 20) as held:
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1

    monkeypatch.setattr(vanilla, "make_trainer", lambda variant, batch: step if batch > 1 else (lambda: None))
    assert 60 << 20 <= memory._step_peak(timing.OURS, 2) <= 90 << 20


def test_committed_results_can_be_drawn_or_are_left_out():
    """As the site does it when it is built; a page of all measurements is drawn whole."""
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    drawn = [picture(results) for path in folder.glob("*.json") if drawable(results := json.loads(path.read_text()))]
    assert drawn
    assert all("<svg" in text and "nn.Linear" in text for text in drawn)
    assert any("a training step" in text and "Faster than nn.Linear" in text for text in drawn)
