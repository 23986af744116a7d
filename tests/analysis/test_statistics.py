"""Numbers and sentences of a run whose evaluations are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from efcn_sparse.analysis.run_data import Trace, read_run
from efcn_sparse.analysis.sentences import findings, headline, progress
from efcn_sparse.analysis.statistics import finals, mean_curve, rank_correlation, spread
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.run.metrics import LAYERS, METRICS

EVALUATIONS = {  # (arm, seed, relax epoch): (epoch, test accuracy, delta)
    ("cnn", 0, ""): [(0, 0.1, ""), (2, 0.5, ""), (3, 0.7, ""), (4, 0.8, "")],
    ("cnn", 1, ""): [(0, 0.1, ""), (2, 0.7, ""), (3, 0.8, ""), (4, 0.9, "")],
    ("fcn", 0, ""): [(2, 0.4, "")],
    ("fcn", 1, ""): [(2, 0.5, "")],
    ("efcn-full", 0, 0): [(0, 0.1, 0.0), (2, 0.6, 0.4)],
    ("efcn-full", 1, 0): [(0, 0.1, 0.0), (2, 0.6, 0.6)],
    ("efcn-full", 0, 2): [(2, 0.5, 0.0), (4, 0.9, 0.1)],
    ("efcn-full", 1, 2): [(2, 0.7, 0.0), (4, 1.0, 0.3)],
}


SUPPORT = {  # arm: (epoch, stored, leak, captured)
    "elcn": [(0, 250, "", ""), (1, 250, 0.5, 0.0), (2, 250, 0.7, 0.0)],
    "efcn-grown1.5": [(0, 400, "", ""), (1, 400, 0.3, 0.5), (2, 400, 0.1, 0.75)],
    "efcn-full": [(0, 1000, "", ""), (1, 1000, 0.0, 1.0), (2, 1000, 0.0, 1.0)],
}


def test_what_the_supports_store_and_hold_is_told(tmp_path):
    lines = [
        f"{arm},0,0,{epoch},0.1,1.0,0.5,1.0,0.5,0.1,1.0,0.0,0.1,{stored},{leak},{captured},1.0"
        for arm, rows in SUPPORT.items()
        for epoch, stored, leak, captured in rows
    ]
    run = _run(tmp_path, {})
    (tmp_path / "metrics.csv").write_text("\n".join([",".join(METRICS), *lines, ""]))
    run = read_run(tmp_path)
    elcn, grown, full = finals(run)
    assert (elcn.stored.mean, grown.stored.mean, full.stored.mean) == (250, 400, 1000)
    assert (elcn.leak.mean, grown.leak.mean, full.leak.mean) == pytest.approx((0.6, 0.2, 0.0))
    assert (elcn.captured.mean, grown.captured.mean, full.captured.mean) == pytest.approx((0.0, 0.625, 1.0))
    told = findings(run)
    assert told[0].endswith(
        "It stores 250 weights, 25% of the full eFCN's; 60% of the squared gradient falls outside its support."
    )
    assert told[1].endswith(
        "It stores 400 weights, 40% of the full eFCN's; 20% of the squared gradient falls outside its support, which "
        "holds 62% of the off-local part."
    )
    assert told[2].endswith("It stores 1,000 weights and leaves out no gradient.")


def _run(folder, evaluations):
    config = RelaxConfig(
        preset="digits", seeds=(0, 1), arms=("cnn", "fcn", "efcn-full"), cnn_epochs=2, relax_epochs=2, fcn_epochs=2,
        relax_times=(0, 2),
    )  # fmt: skip
    lines = [
        f"{arm},{seed},{time},{epoch},0.1,1.0,{accuracy},1.0,{accuracy},{delta},,,,,,,1.0"
        for (arm, seed, time), rows in evaluations.items()
        for epoch, accuracy, delta in rows
    ]
    (folder / "config.json").write_text(config.to_json())
    (folder / "metrics.csv").write_text("\n".join([",".join(METRICS), *lines, ""]))
    (folder / "layers.csv").write_text(",".join(LAYERS) + "\n")
    return read_run(folder)


def test_finals_are_means_over_seeds_at_the_last_epoch(tmp_path):
    by_key = {(str(final.arm), final.relax_epoch): final for final in finals(_run(tmp_path, EVALUATIONS))}
    assert list(by_key) == [("cnn", None), ("efcn-full", 0), ("efcn-full", 2), ("fcn", None)]
    cnn, late, fcn = by_key["cnn", None], by_key["efcn-full", 2], by_key["fcn", None]
    assert cnn.test_accuracy.mean == pytest.approx(0.85)
    assert cnn.test_accuracy.std == pytest.approx(math.sqrt(0.005))
    assert cnn.against_cnn.n == 0
    assert late.epochs == (4, 4)
    assert late.delta.mean == pytest.approx(0.2)
    assert all(final.complete for final in by_key.values())
    # against the CNN at the same epoch, not at its last one
    assert by_key["efcn-full", 0].control.mean == pytest.approx(0.6)
    assert by_key["efcn-full", 0].against_cnn.mean == pytest.approx(0.0)
    assert late.against_cnn.mean == pytest.approx(0.1)
    assert late.against_cnn.std == pytest.approx(0.0, abs=1e-12)
    assert fcn.against_cnn.mean == pytest.approx(-0.15)


def test_the_sentences_say_what_was_measured(tmp_path):
    run = _run(tmp_path, EVALUATIONS)
    assert headline(run) == (
        "Final test accuracy (± one standard deviation): FCN 0.450 ± 0.071, CNN 0.850 ± 0.071, "
        "best eFCN (eFCN full, t_w = 2) 0.950 ± 0.071."
    )
    scratch, full = findings(run)
    assert scratch == (
        "Final test accuracy, trained from scratch (± one standard deviation): CNN 0.850 ± 0.071 (epoch 4, 2 seeds); "
        "FCN 0.450 ± 0.071 (epoch 2, 2 seeds)."
    )
    assert full == (
        "eFCN full at t_w = 2, the best of 2 relax times by test accuracy: 0.950 ± 0.071 (2 seeds), 10.0 ± 0.0 points "
        "above the CNN of the same seeds at the same epoch. It ends above the FCN at 2 of 2 relax times and above the "
        "CNN of the same epoch at 1 of 2 relax times. It ends at δ between 0.200 (t_w = 2) and 0.500 (t_w = 0)."
    )
    assert progress(run) == []


def test_an_unfinished_arm_is_told_and_is_not_the_best(tmp_path):
    evaluations = {key: rows for key, rows in EVALUATIONS.items() if key != ("fcn", 1, "")}
    evaluations["efcn-full", 1, 2] = [(2, 0.99, 0.0)]
    run = _run(tmp_path, evaluations)
    assert [final.complete for final in finals(run)] == [True, True, False, False]
    assert headline(run) == (
        "Final test accuracy (± one standard deviation): FCN 0.400, CNN 0.850 ± 0.071, "
        "best eFCN (eFCN full, t_w = 0) 0.600 ± 0.000."
    )
    assert progress(run) == [
        "The run is not complete: 6 of 8 training runs are finished, 1 have not begun.",
        "eFCN full (seed 1, t_w = 2) has reached epoch 2 of 4.",
    ]


def test_a_run_without_readings_says_nothing(tmp_path):
    run = _run(tmp_path, {})
    assert (headline(run), findings(run), finals(run)) == ("", [], [])
    assert progress(run) == ["The run is not complete: 0 of 8 training runs are finished, 8 have not begun."]


def _trace(seed, epochs, values):
    return Trace("elcn", seed, 0, "", np.array(epochs), {"x": np.array(values, dtype=np.float64)})


def test_a_mean_curve_counts_the_seeds_that_have_reached_the_epoch():
    epochs, mean, std = mean_curve([_trace(0, [0, 1, 2], [1, 3, 5]), _trace(1, [0, 1], [3, math.nan])], "x")
    np.testing.assert_array_equal(epochs, [0, 1, 2])
    np.testing.assert_allclose(mean, [2, 3, 5])
    np.testing.assert_allclose(std, [math.sqrt(2), 0, 0])


def test_a_mean_curve_leaves_out_epochs_that_nobody_read():
    epochs, mean, _ = mean_curve([_trace(0, [0, 1], [math.nan, 4])], "x")
    assert (epochs.tolist(), mean.tolist()) == ([1], [4.0])


def test_rank_correlation_is_scipys():
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, 9).tolist(), rng.integers(0, 5, 9).tolist()
        assert rank_correlation(x, y) == pytest.approx(scipy.spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation([1, 2], [3, 4]))
    assert math.isnan(rank_correlation([1, 2, 3], [4, 4, 4]))


def test_nan_and_infinity_are_no_seeds():
    assert spread([math.nan, 0.5, math.inf]).text() == "0.500"
    assert spread([math.nan]).n == 0
