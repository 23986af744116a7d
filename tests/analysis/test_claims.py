"""What the paper found is held against what a run has, and decided only where its seeds decide it."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from efcn_sparse.analysis.claims import AGREES, DISAGREES, OPEN, answer, claims, is_clear
from efcn_sparse.analysis.run_data import Run, read_run
from efcn_sparse.analysis.sentences import divergences, progress
from efcn_sparse.analysis.statistics import spread
from tests.analysis.synthetic import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, config) -> Run:
    small = dataclasses.replace(config, seeds=(0, 1, 2), arms=("cnn", "fcn", "elcn", "efcn-full"), relax_times=(0, 4))
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "run", small, checkpoints=False))


def shifted(run: Run, by: dict[tuple[str, int | None], tuple[float, ...]]) -> Run:
    """The run with the last test accuracy of each arm and relax time as given, one number a seed."""
    traces = []
    for trace in run.traces:
        accuracy = trace.columns["test_accuracy"].copy()
        accuracy[-1] = (
            by[str(trace.arm), trace.relax_epoch][trace.seed] if (str(trace.arm), trace.relax_epoch) in by else 0
        )
        if str(trace.arm) == "cnn":
            accuracy[:] = by["cnn", None][trace.seed]
        traces.append(dataclasses.replace(trace, columns={**trace.columns, "test_accuracy": accuracy}))
    return dataclasses.replace(run, traces=tuple(traces))


CNN, FCN = (0.80, 0.90, 0.70), (0.5, 0.6, 0.4)


@pytest.mark.parametrize(
    ("early", "late", "verdicts"),
    [
        ((0.70, 0.80, 0.60), (0.82, 0.921, 0.72), [AGREES, AGREES, AGREES]),  # clear, though seeds differ by ten points
        ((0.70, 0.80, 0.60), (0.82, 0.87, 0.72), [AGREES, OPEN, AGREES]),  # one seed against two
        ((0.70, 0.80, 0.60), (0.75, 0.851, 0.65), [AGREES, DISAGREES, AGREES]),
        ((0.45, 0.551, 0.35), (0.82, 0.921, 0.72), [DISAGREES, AGREES, AGREES]),
        ((0.51, 0.59, 0.41), (0.82, 0.921, 0.72), [OPEN, AGREES, AGREES]),
    ],
)
def test_verdicts(run, early, late, verdicts):
    found = claims(
        shifted(run, {("cnn", None): CNN, ("fcn", None): FCN, ("efcn-full", 0): early, ("efcn-full", 4): late})
    )
    assert [claim.verdict for claim in found] == verdicts


def test_one_seed_decides_nothing(run):
    one = dataclasses.replace(
        run, traces=tuple(trace for trace in run.traces if trace.seed == 0),
        plan=tuple(stage for stage in run.plan if stage.seed == 0),
    )  # fmt: skip
    assert [claim.verdict for claim in claims(one)] == [OPEN, OPEN, AGREES]
    assert not is_clear(spread([0.9]))
    for claim in claims(one)[:2]:
        assert re.search(
            r" at (none|1|2) of 2 relax times; at best by .*, 1 seed\)\. With one seed nothing is clear\.$", claim.told
        )
        assert "clearly" not in claim.told


@pytest.mark.parametrize(
    ("early", "late", "told"),
    [
        (
            (0.75, 0.93, 0.65),
            (0.82, 0.87, 0.72),
            "1 of 2 relax times, clearly at none of them, and clearly below at none",
        ),
        ((0.70, 0.80, 0.60), (0.82, 0.921, 0.72), "1 of 2 relax times, clearly at 1 of them, and clearly below at 1"),
        (
            (0.70, 0.80, 0.60),
            (0.75, 0.851, 0.65),
            "none of 2 relax times, clearly at none of them, and clearly below at 2",
        ),
    ],
)
def test_a_count_of_relax_times_does_not_read_as_one_of_them(run, early, late, told):
    ends = {("cnn", None): CNN, ("fcn", None): FCN, ("efcn-full", 0): early, ("efcn-full", 4): late}
    assert (
        f"eFCN full ends above the CNN of the same epoch at {told} of them; at best by "
        in claims(shifted(run, ends))[1].told
    )


def test_the_largest_support_stands_in_for_the_full_one(run):
    fewer = dataclasses.replace(run, traces=tuple(trace for trace in run.traces if trace.arm.name != "efcn-full"))
    assert claims(fewer) == []
    assert answer(fewer) == "No eFCN has come to its end, so there is no answer."


def test_nets_that_diverged_are_told_and_decide_nothing(run):
    def lost(trace):
        if trace.arm.name != "efcn-full" or trace.seed == 2:
            return trace
        loss, accuracy = trace.columns["train_loss"].copy(), trace.columns["test_accuracy"].copy()
        loss[-1] = accuracy[-1] = np.nan
        return dataclasses.replace(trace, columns={**trace.columns, "train_loss": loss, "test_accuracy": accuracy})

    spoilt = dataclasses.replace(run, traces=tuple(map(lost, run.traces)))
    found = claims(spoilt)
    assert [claim.verdict for claim in found[:2]] == [OPEN, OPEN]
    assert found[0].told.endswith("1 seed). With one seed nothing is clear. 4 of its training runs diverged.")
    assert "±" not in found[0].told
    best = r"at best by [+-]\d+\.\d ± \d+\.\d points \(t_w = \d+, 3 seeds, ±: 95% interval of the mean\)"
    assert re.search(best, claims(run)[0].told)
    assert progress(spoilt) == []
    (told,) = divergences(spoilt)
    assert told.startswith("Diverged, and left out of all means: eFCN full (seed 0, t_w = 0, epoch 6, learning rate")
