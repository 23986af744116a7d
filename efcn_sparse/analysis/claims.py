"""The question of the experiment, what the paper found, and whether a run agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.sentences import count, some
from efcn_sparse.analysis.statistics import Final, Spread, finals, spread
from efcn_sparse.training.arms import ELCN, FCN, FULL, Arm

CLOSE = 0.5  # the paper has no threshold: below this, three quarters of ‖W‖² are local

AGREES, DISAGREES, OPEN = "agrees", "disagrees", "not decided"


@dataclass(frozen=True)
class Claim:
    """One of the paper's findings beside this run's.

    Attributes:
        paper: what the paper found.
        verdict: ``AGREES``, ``DISAGREES`` or ``OPEN``.
        told: the numbers of this run.
    """

    paper: str
    verdict: str
    told: str


def claims(run: Run) -> list[Claim]:
    """The paper's findings that this run can be held against, in their order; empty without a finished eFCN.

    They are told of the full eFCN, or where the run has none of the largest support that it has. A difference is clear
    where the 95% confidence interval of its mean over seeds leaves out zero, so one seed decides nothing.
    """
    arm = largest_efcn(run)
    done = [final for final in finals(run) if final.arm == arm and final.complete and final.test_accuracy.n]
    if arm is None or not done:
        return []
    name = arm.label
    found = []
    against_fcn = _against_fcn(run, arm, done)
    if any(one.n for one in against_fcn):
        found.append(_beats(f"{name} ends above the FCN", against_fcn, done, everywhere=True))
    against_cnn = [final.against_cnn for final in done]
    if any(one.n for one in against_cnn):
        found.append(_beats(f"{name} ends above the CNN of the same epoch", against_cnn, done, everywhere=False))
    lost = sum(final.diverged for final in finals(run) if final.arm == arm)
    if lost:
        found = [dataclasses.replace(one, told=f"{one.told} {lost} of its training runs diverged.") for one in found]
    deltas = [final.delta.mean for final in done if final.delta.n]
    if deltas:
        low, high = min(deltas), max(deltas)
        between = f"at δ = {low:.2f}" if len(deltas) == 1 else f"at δ between {low:.2f} and {high:.2f}"
        found.append(Claim(
            "The eFCN stays close to the CNN it came from.", AGREES if high < CLOSE else DISAGREES,
            f"{name} ends {between} (counted as close: below {CLOSE}).",
        ))  # fmt: skip
    return found


def answer(run: Run) -> str:
    """The verdicts in one sentence; what is missing, where there are none."""
    found = claims(run)
    if not found:
        return "No eFCN has come to its end, so there is no answer."
    counts = [
        (sum(claim.verdict == verdict for claim in found), text)
        for verdict, text in ((AGREES, "agrees with the paper in"), (DISAGREES, "disagrees in"), (OPEN, "leaves open"))
    ]
    parts = [f"{text} {count}" for count, text in counts if count]
    return f"Of {len(found)} findings of the paper, this run {' and '.join(parts)}."


def largest_efcn(run: Run) -> Arm | None:
    """The full eFCN, or the evaluated one with the largest support; None if there is none."""
    arms = [arm for arm in run.embedded_arms if arm != ELCN]
    return FULL if FULL in arms else arms[-1] if arms else None


def _against_fcn(run: Run, arm: Arm, done: Sequence[Final]) -> list[Spread]:
    fcn = {trace.seed: trace.final("test_accuracy") for trace in run.of(FCN)}
    return [
        spread([
            trace.final("test_accuracy") - fcn[trace.seed]
            for trace in run.of(arm, final.relax_epoch) if trace.seed in fcn
        ])
        for final in done
    ]  # fmt: skip


def _beats(what: str, differences: Sequence[Spread], done: Sequence[Final], *, everywhere: bool) -> Claim:
    compared = [(one, final) for one, final in zip(differences, done, strict=True) if one.n]
    above = [one.mean > 0 for one, _ in compared]
    clear = [is_clear(one) for one, _ in compared]
    wins = [up and sure for up, sure in zip(above, clear, strict=True)]
    losses = [sure and not up for up, sure in zip(above, clear, strict=True)]
    if everywhere:
        paper = "The eFCN ends above the standard FCN at every relax time."
        verdict = AGREES if all(wins) else DISAGREES if any(losses) else OPEN
    else:
        paper = "At some relax time the eFCN ends above the CNN."
        verdict = AGREES if any(wins) else DISAGREES if all(losses) else OPEN
    best, at = max(compared, key=lambda pair: pair[0].mean)
    interval = f" ± {100 * best.half_width:.1f}" if best.n > 1 else ""
    seeds = count(best.n, "seed") + (", ±: 95% interval of the mean" if interval else "")
    several = any(one.n > 1 for one, _ in compared)
    clearly = f", clearly at {some(sum(wins))} of them, and clearly below at {some(sum(losses))} of them"
    told = (
        f"{what} at {some(sum(above))} of {count(len(compared), 'relax time')}{clearly if several else ''}; at best by "
        f"{100 * best.mean:+.1f}{interval} points (t_w = {at.relax_epoch}, {seeds})."
    )
    return Claim(paper, verdict, told if several else f"{told} With one seed nothing is clear.")


def is_clear(difference: Spread) -> bool:
    """Whether the 95% confidence interval of a mean leaves out zero.

    Example:
        >>> is_clear(spread([0.2, 0.21])), is_clear(spread([0.01, 0.02])), is_clear(spread([0.5]))
        (True, False, False)
    """
    return abs(difference.mean) > difference.half_width
