"""Predictions as lines of text."""

from __future__ import annotations

from efcn_sparse.planning.budget import Fit, Step
from efcn_sparse.planning.sizes import size_text
from efcn_sparse.planning.step import StepPrediction

_PARTS = {
    "inputs": "the batch",
    "weights": "parameters and buffers",
    "structure": "patterns and ties, about",
    "optimizer": "its state",
    "gradients": "after the backward pass",
    "activations": "held for the backward pass",
    "workspace": "of fused updates",
    "peak": "held at one time, at most",
}


def step_lines(step: Step, predicted: StepPrediction) -> list[str]:
    """What the step holds, part by part, and does."""
    lines = [f"a training step of {step}"]
    lines += [f"  {part:<11}  {size_text(getattr(predicted, part)):>10}  {told}" for part, told in _PARTS.items()]
    work = f"{predicted.flops / 1e9:,.1f} GFLOP"
    return [*lines, f"  {'work':<11}  {work}, {size_text(predicted.moved)} read and written"]


def seconds_text(seconds: float) -> str:
    """Two digits that mean something.

    Example:
        >>> seconds_text(0.00213), seconds_text(0.0874), seconds_text(12.34), seconds_text(7200)
        ('2.1 ms', '87 ms', '12 s', '2 h')
    """
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:.2g} {unit}" if seconds < 99 * size else f"{seconds / size:,.0f} {unit}"
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.0995 else f"{1e3 * seconds:.0f} ms"


def budget_lines(fit: Fit) -> list[str]:
    """Which supports fit."""
    width = max(map(len, fit.peaks))
    lines = [f"in {size_text(fit.budget)}"]
    for name, peak in fit.peaks.items():
        verdict = "fits" if peak <= fit.budget else "does not fit"
        lines.append(f"  {name:<{width}}  {size_text(peak):>10}  {verdict}")
    if fit.largest_radius is None:
        return [*lines, "no radius of dilated fits"]
    end = ", and holds every weight" if fit.largest_radius == fit.reach else ""
    return [*lines, f"the largest radius of dilated that fits is {fit.largest_radius}{end}"]
