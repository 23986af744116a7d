"""What was measured, in plain sentences that are computed from the evaluations."""

from __future__ import annotations

import math

from efcn_sparse.analysis.run_data import Run, Trace
from efcn_sparse.analysis.statistics import Final, finals, rank_correlation
from efcn_sparse.training.arms import CNN, ELCN, FCN, FULL

SHOWN = 8  # unfinished training runs that are told one by one


def headline(run: Run) -> str:
    """The run in one sentence: FCN, CNN and the best eFCN; empty without evaluations."""
    last = [final for final in finals(run) if final.test_accuracy.n]
    parts = [
        f"{final.arm.label} {final.test_accuracy.text()}" for arm in (FCN, CNN) for final in last if final.arm == arm
    ]
    efcn = [final for final in last if final.arm.embedded and final.arm != ELCN]
    if efcn:
        best = max(_complete(efcn), key=lambda final: final.test_accuracy.mean)
        name = best.arm.label
        parts.append(f"best eFCN ({name}, t_w = {best.relax_epoch}) {best.test_accuracy.text()}")
    return f"Final test accuracy{_labelled(', '.join(parts))}." if parts else ""


def findings(run: Run) -> list[str]:
    """One entry for the nets trained from scratch and one for each relaxed arm, as far as they have been evaluated."""
    last = [final for final in finals(run) if final.test_accuracy.n]
    entries = [_scratch(last)] if any(final.relax_epoch is None for final in last) else []
    for arm in run.arms:
        of_arm = _complete([final for final in last if final.arm == arm and final.relax_epoch is not None])
        if of_arm:
            sentences = (
                _best(of_arm),
                _against_references(of_arm, last),
                _deviation(of_arm),
                _support(of_arm, last),
            )
            entries.append(" ".join(sentence for sentence in sentences if sentence))
    return entries


def progress(run: Run) -> list[str]:
    """How far the plan's training runs are: a sentence for each one that has begun; empty if all are done."""
    reached = {(t.arm, t.seed, t.relax_epoch): int(t.epochs[-1]) for t in run.traces}
    lost = {(t.arm, t.seed, t.relax_epoch) for t in run.traces if t.diverged}
    waiting, unfinished = 0, []
    for stage in run.plan:
        epoch = reached.get((stage.arm, stage.seed, stage.relax_epoch))
        if epoch is None:
            waiting += 1
        elif epoch < stage.last and (stage.arm, stage.seed, stage.relax_epoch) not in lost:
            time = "" if stage.relax_epoch is None else f", t_w = {stage.relax_epoch}"
            name = stage.arm.label
            unfinished.append(f"{name} (seed {stage.seed}{time}) has reached epoch {epoch} of {stage.last}.")
    done = len(run.plan) - waiting - len(unfinished)
    if done == len(run.plan):
        return []
    began = f"The run is not complete: {done} of {count(len(run.plan), 'training run')} are finished, "
    more = [f"{len(unfinished) - SHOWN} more have begun."] if len(unfinished) > SHOWN else []
    return [f"{began}{waiting} have not begun.", *unfinished[:SHOWN], *more]


def divergences(run: Run) -> list[str]:
    """A sentence on the training runs that have diverged; empty if none has."""
    lost = [trace for trace in run.traces if trace.diverged]
    if not lost:
        return []
    names = [
        f"{t.arm.label} (seed {t.seed}" + ("" if t.relax_epoch is None else f", t_w = {t.relax_epoch}")
        + f", epoch {t.epochs[-1]}, learning rate {t.final('lr'):g})" for t in lost[:SHOWN]
    ]  # fmt: skip
    more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
    return [f"Diverged, and left out of all means: {', '.join(names)}{more}."]


def count(n: int, what: str) -> str:
    """``n`` of ``what``, which is a plural unless ``n`` is 1."""
    return f"{n} {what}" + ("" if n == 1 else "s")


def some(n: int) -> str:
    """``n``, or none: "at 0" would read as a relax time."""
    return str(n or "none")


def totals(trace: Trace) -> float:
    """Seconds that a training run took; 0 where none were noted."""
    return float(sum(value for value in trace.columns["seconds"] if math.isfinite(value)))


def _complete(last: list[Final]) -> list[Final]:
    """Those whose seeds have all come to the end, or all of them if none have."""
    return [final for final in last if final.complete] or last


def _scratch(last: list[Final]) -> str:
    parts = []
    for final in last:
        if final.relax_epoch is None:
            name, seeds = final.arm.label, count(final.test_accuracy.n, "seed")
            parts.append(f"{name} {final.test_accuracy.text()} (epoch {final.epochs[1]}, {seeds})")
    return f"Final test accuracy, trained from scratch{_labelled('; '.join(parts))}."


def _labelled(numbers: str) -> str:
    """A colon and ``numbers``, and before them what their ± is."""
    return (" (± one standard deviation)" if "±" in numbers else "") + f": {numbers}"


def _best(of_arm: list[Final]) -> str:
    best = max(of_arm, key=lambda final: final.test_accuracy.mean)
    name = best.arm.label
    of = f", the best of {len(of_arm)} relax times by test accuracy" if len(of_arm) > 1 else ""
    seeds = count(best.test_accuracy.n, "seed")
    text = f"{name} at t_w = {best.relax_epoch}{of}: {best.test_accuracy.text()} ({seeds})"
    if best.against_cnn.n:
        difference = 100 * best.against_cnn.mean
        spread = f" ± {100 * best.against_cnn.std:.1f}" if best.against_cnn.n > 1 else ""
        side = "above" if difference > 0 else "below"
        text += f", {abs(difference):.1f}{spread} points {side} the CNN of the same seeds at the same epoch"
    return text + "."


def _against_references(of_arm: list[Final], last: list[Final]) -> str:
    parts, times = [], count(len(of_arm), "relax time")
    fcn = next((final.test_accuracy for final in last if final.arm == FCN), None)
    if fcn is not None:
        parts.append(f"above the FCN at {some(sum(f.test_accuracy.mean > fcn.mean for f in of_arm))} of {times}")
    compared = [final for final in of_arm if final.against_cnn.n]
    if compared:
        above = some(sum(f.against_cnn.mean > 0 for f in compared))
        parts.append(f"above the CNN of the same epoch at {above} of {count(len(compared), 'relax time')}")
    if not parts or len(of_arm) < 2:
        return ""
    text = f"It ends {' and '.join(parts)}"
    rank = rank_correlation([f.relax_epoch or 0 for f in of_arm], [f.test_accuracy.mean for f in of_arm])
    return text + (f"; rank correlation of its accuracy with t_w {rank:+.2f}." if math.isfinite(rank) else ".")


def _deviation(of_arm: list[Final]) -> str:
    read = [final for final in of_arm if final.delta.n]
    if not read or of_arm[0].arm == ELCN:
        return ""
    low, high = (pick(read, key=lambda final: final.delta.mean) for pick in (min, max))
    if low is high:
        return f"It ends at δ = {low.delta.mean:.3f}."
    return (
        f"It ends at δ between {low.delta.mean:.3f} (t_w = {low.relax_epoch}) and {high.delta.mean:.3f} "
        f"(t_w = {high.relax_epoch})."
    )


def _support(of_arm: list[Final], last: list[Final]) -> str:
    """What the arm stores, and what share of the gradient its support leaves out and holds."""
    stored = max((final.stored.mean for final in of_arm if final.stored.n), default=math.nan)
    if not math.isfinite(stored):
        return ""
    full = max((final.stored.mean for final in last if final.arm == FULL and final.stored.n), default=stored)
    text = f"It stores {stored:,.0f} weights" + (
        f", {_percent(stored / full)} of the full eFCN's" if full > stored else ""
    )
    leaks = [final.leak.mean for final in of_arm if final.leak.n]
    if not leaks:
        return text + "."
    if max(leaks) == 0:
        return text + " and leaves out no gradient."
    held = [final.captured.mean for final in of_arm if final.captured.n]
    text += f"; {_range(leaks)} of the squared gradient falls outside its support"
    if not held or max(held) == 0:
        return text + "."
    return text + f", which holds {_range(held)} of the off-local part."


def _range(shares: list[float]) -> str:
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return f"{low}%" if low == high else f"{low} to {high}%"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"
