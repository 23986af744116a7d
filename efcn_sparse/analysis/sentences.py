"""What was measured, in plain sentences that are computed from the readings."""

from __future__ import annotations

import math

from efcn_sparse.analysis.palette import look_of
from efcn_sparse.analysis.run_data import Run, Trace
from efcn_sparse.analysis.statistics import Final, finals, rank_correlation


def findings(run: Run) -> list[str]:
    """The sentences that open the page; fewer where there are fewer readings."""
    last = [final for final in finals(run) if final.test_accuracy.n]
    sentences = [_scratch(run, last)] if any(final.relax_epoch is None for final in last) else []
    for arm in run.arms:
        of_arm = [final for final in last if final.arm == arm and final.relax_epoch is not None]
        if of_arm:
            sentences += [_best(run, of_arm), _against_references(run, of_arm, last), _deviation(run, of_arm)]
    return [sentence for sentence in sentences if sentence]


def progress(run: Run) -> list[str]:
    """How far the training runs of the plan are: one sentence if all are done, otherwise one for each gap."""
    reached = {(t.arm, t.seed, t.relax_epoch): int(t.epochs[-1]) for t in run.traces}
    waiting, unfinished = 0, []
    for stage in run.plan:
        epoch = reached.get((stage.arm, stage.seed, stage.relax_epoch))
        if epoch is None:
            waiting += 1
        elif epoch < stage.last:
            time = "" if stage.relax_epoch is None else f", t_w = {stage.relax_epoch}"
            name = look_of(stage.arm, run.arms).name
            unfinished.append(f"{name} (seed {stage.seed}{time}) has reached epoch {epoch} of {stage.last}.")
    done = len(run.plan) - waiting - len(unfinished)
    if done == len(run.plan):
        return [f"The run is complete: {_count(done, 'training run')}."]
    began = f"The run is not complete: {done} of {_count(len(run.plan), 'training run')} are finished, "
    return [f"{began}{waiting} have not begun.", *unfinished]


def totals(trace: Trace) -> float:
    """Seconds that a training run took; 0 where none were noted."""
    return float(sum(value for value in trace.columns["seconds"] if math.isfinite(value)))


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _scratch(run: Run, last: list[Final]) -> str:
    parts = [
        f"{look_of(f.arm, run.arms).name} {f.test_accuracy.text()} (epoch {f.epochs[1]}, {_count(f.test_accuracy.n, 'seed')})"
        for f in last
        if f.relax_epoch is None
    ]  # fmt: skip
    return f"Final test accuracy from scratch: {'; '.join(parts)}."


def _best(run: Run, of_arm: list[Final]) -> str:
    best = max(of_arm, key=lambda final: final.test_accuracy.mean)
    name = look_of(best.arm, run.arms).name
    of = f", the best of {len(of_arm)} relax times" if len(of_arm) > 1 else ""
    text = f"{name} at t_w = {best.relax_epoch}{of}: {best.test_accuracy.text()}"
    if best.against_cnn.n:
        difference = 100 * best.against_cnn.mean
        side = "above" if difference > 0 else "below"
        gap = "level with" if abs(difference) < 0.005 else f"{abs(difference):.1f} points {side}"
        text += f", {gap} the CNN of the same seeds at the same epoch"
        if best.against_cnn.n > 1:
            text += f" (differences of {best.against_cnn.n} seeds spread by {100 * best.against_cnn.std:.1f})"
    return text + "."


def _against_references(run: Run, of_arm: list[Final], last: list[Final]) -> str:
    name, parts = look_of(of_arm[0].arm, run.arms).name, []
    fcn = next((final.test_accuracy for final in last if final.arm == "fcn"), None)
    if fcn is not None:
        parts.append(f"above the FCN at {sum(f.test_accuracy.mean > fcn.mean for f in of_arm)}")
    compared = [final for final in of_arm if final.against_cnn.n]
    if compared:
        parts.append(f"above the CNN at the same epoch at {sum(f.against_cnn.mean > 0 for f in compared)}")
    if not parts or len(of_arm) < 2:
        return ""
    text = f"{name} ends {' and '.join(parts)} of {len(of_arm)} relax times"
    rank = rank_correlation([f.relax_epoch or 0 for f in of_arm], [f.test_accuracy.mean for f in of_arm])
    return text + (f"; rank correlation of its accuracy with t_w {rank:+.2f}." if math.isfinite(rank) else ".")


def _deviation(run: Run, of_arm: list[Final]) -> str:
    read = [final for final in of_arm if final.delta.n]
    if not read or of_arm[0].arm == "elcn":
        return ""
    low, high = (pick(read, key=lambda final: final.delta.mean) for pick in (min, max))
    name = look_of(of_arm[0].arm, run.arms).name
    if low is high:
        return f"{name} ends at δ = {low.delta.mean:.3f}."
    return (
        f"{name} ends at δ between {low.delta.mean:.3f} (t_w = {low.relax_epoch}) and {high.delta.mean:.3f} "
        f"(t_w = {high.relax_epoch})."
    )
