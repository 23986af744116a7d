"""The expected time of a step for ``doctor``, from rates that were measured before or are measured now."""

from __future__ import annotations

import sys
from typing import Any

import torch

from efcn_sparse.measure.rates_file import KeptRates, load_rates, save_rates
from efcn_sparse.measure.step_rates import measure_rates
from efcn_sparse.planning.duration import expected_time
from efcn_sparse.planning.text import seconds_text
from efcn_sparse.planning.work import StepWork

_SLOWER = 1.5  # steps took 0.96 to 1.5 times as long as expected where that was measured (docs/scale.md)


def time_of(work: StepWork, measure: bool) -> tuple[dict[str, Any], str]:
    """The time of a step as plain data and as a line of text; both say so where it is unknown, and why."""
    kept = load_rates()
    if measure:
        kept = _measured(work, kept)
    reason = kept.reason
    if kept.rates is not None:
        lacking = len(kept.rates.lacking(work.products))
        reason = f"the rates of {kept.date} lack {lacking} of this step's layers" if lacking else ""
    if kept.rates is None or reason:
        told: dict[str, Any] = {"seconds": None, "reason": reason}
        return told, f"  {'time':<11}  unknown: {reason}; --measure finds the rates of this machine in a few seconds"
    time, threads = expected_time(work, kept.rates), torch.get_num_threads()
    told = {"seconds": time.seconds, "up_to": _SLOWER * time.seconds, "rest": time.rest, "layers": time.products}
    told |= {"measured": kept.date, "threads": threads}
    on = f"{threads} {'thread' if threads == 1 else 'threads'}"
    share = f"{1 - time.rest / time.seconds:.0%} of it in sparse layers"
    expected = f"{seconds_text(time.seconds):>10}  to {_SLOWER:g} times that, on {on} and nothing else running; {share}"
    return told, f"  {'time':<11}  {expected}; rates of {kept.date}"


def _measured(work: StepWork, kept: KeptRates) -> KeptRates:
    probes = {product.probe.key: product.probe for product in work.products}
    rates = measure_rates(probes.values(), kept.rates.products if kept.rates is not None else None)
    try:
        save_rates(rates)
    except OSError as error:
        print(f"efcn-sparse: the rates could not be kept: {error}", file=sys.stderr)
        return KeptRates(rates, date="now")
    return load_rates()
