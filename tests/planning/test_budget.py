"""What fits is the most that fits; what cannot is refused with the figures and the nearest step that can."""

from __future__ import annotations

import re

import pytest
import torch

from efcn_sparse.embedding import Dilated, Full, Local
from efcn_sparse.models import vanilla_cnn
from efcn_sparse.planning import Step, StepPlanner
from efcn_sparse.sizes import parse_size, size_text

_MIB = 1 << 20


@pytest.fixture(scope="module")
def planner() -> StepPlanner:
    with torch.device("meta"):
        return StepPlanner(vanilla_cnn(), torch.empty(1, 3, 32, 32))


@pytest.mark.parametrize(("budget", "fused"), [(200, False), (256, True)])
def test_largest_radius(planner: StepPlanner, budget: int, fused: bool) -> None:
    fit = planner.fit(Step(Local(), 64, "sgd", fused), budget * _MIB)
    some = {*range(0, fit.reach + 1, 4), fit.largest_radius, fit.largest_radius + 1}
    peaks = {r: planner.predict(Step(Dilated(r), 64, "sgd", fused)).peak for r in some}
    assert all((peak <= budget * _MIB) == (r <= fit.largest_radius) for r, peak in peaks.items())
    assert fit.peaks[f"dilated{fit.largest_radius}"] <= budget * _MIB < fit.peaks[f"dilated{fit.largest_radius + 1}"]


def test_all_fits(planner: StepPlanner) -> None:
    fit = planner.fit(Step(Dilated(2), 8), 1 << 40)
    assert fit.largest_radius == fit.reach
    assert planner.plan(Dilated(fit.reach)).support_weights == planner.plan(Full()).support_weights
    assert planner.plan(Dilated(fit.reach - 1)).support_weights < planner.plan(Full()).support_weights
    assert list(fit.peaks) == ["local", f"dilated{fit.reach}", "full", "dilated2"]


def test_the_budget_is_the_last_byte(planner: StepPlanner) -> None:
    peak = planner.predict(Step(Dilated(1), 8)).peak
    assert planner.fit(Step(Local(), 8), peak).largest_radius == 1
    assert planner.fit(Step(Local(), 8), peak - 1).largest_radius == 0


REFUSED = {
    "fused": (Step(Local(), 50), 45, r"local at batch 50 with sgd, fused, \S+ MiB"),
    "smaller batch": (Step(Local(), 250, "adamw"), 110, r"local at batch \d+ with adamw, fused, 1\S+ MiB"),
    "sgd": (Step(Full(), 250, "adamw", True), 60, r"local at batch \d+ with sgd, fused, \S+ MiB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nearest(planner: StepPlanner, name: str) -> None:
    step, budget, nearest = REFUSED[name]
    asked = Step(Local(), step.batch, step.optimizer, step.fused)
    needed = size_text(planner.predict(asked).peak)
    with pytest.raises(
        ValueError, match=f"^budget must hold {asked}, {needed}, got {budget}.0 MiB; what fits is "
    ) as e:
        planner.fit(step, budget * _MIB)
    words = str(e.value).split("what fits is ")[1]
    assert re.fullmatch(nearest, words)
    batch, optimizer = int(words.split("batch ")[1].split()[0]), words.split("with ")[1].split(",")[0]
    assert planner.predict(Step(Local(), batch, optimizer, True)).peak <= budget * _MIB
    if batch < step.batch:
        assert planner.predict(Step(Local(), batch + 1, optimizer, True)).peak > budget * _MIB


def test_nothing_fits(planner: StepPlanner) -> None:
    least = size_text(planner.predict(Step(Local(), 1, "sgd", True)).peak)
    with pytest.raises(ValueError, match=f"got 1.0 MiB; the least is local at batch 1 with sgd, fused, {least}$"):
        planner.fit(Step(Local(), 8), _MIB)


@pytest.mark.parametrize(
    ("text", "size"), [("1B", 1), ("2KiB", 2048), ("1.5 gib", 3 << 29), ("3MB", 3_000_000), ("1PiB", 1 << 50)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("--budget", text) == size


@pytest.mark.parametrize("text", ["", "3", "GiB", "-1GiB", "0GiB", "0.1B", "1 GiBs", "nanGiB", "1e3MB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--budget must be a size such as 100GiB or 512MB, got ") as caught:
        parse_size("--budget", text)
    assert str(caught.value).endswith(repr(text))
