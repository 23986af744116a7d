"""The HTML page: a template, filled and escaped."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from efcn_sparse.analysis.claims import answer, claims
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.sentences import count, divergences, findings, headline, progress, totals
from efcn_sparse.analysis.statistics import finals
from efcn_sparse.checkpoint.atomic import read_json
from efcn_sparse.training.arms import ELCN, FCN, FULL
from efcn_sparse.training.presets import PRESETS
from efcn_sparse.training.run.trial import FILE as TASK


@dataclass(frozen=True)
class Picture:
    """A saved figure on the page.

    Attributes:
        png, svg: paths inside the run directory.
        width: in pixels of the page.
        narrow: the PNG for narrow screens, if it has one of its own.
        inverts: whether a dark page may turn its lightness around; not where lightness means something.
    """

    png: Path
    svg: Path
    alt: str
    caption: str
    width: int
    inverts: bool = True
    narrow: Path | None = None

    @property
    def data(self) -> str:
        """The PNG as a data URI, so that the page is one file."""
        return _data_uri(self.png)

    @property
    def narrow_data(self) -> str:
        """The same of the PNG for narrow screens; empty if there is none."""
        return "" if self.narrow is None else _data_uri(self.narrow)


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading, its pictures, and sentences on what is missing."""

    title: str
    pictures: Sequence[Picture]
    gaps: Sequence[str] = ()


def render_page(run: Run, sections: Sequence[Section]) -> str:
    """The page of ``run`` as HTML; every text from the run is escaped."""
    from jinja2 import Environment, StrictUndefined

    preset = PRESETS.get(run.config.preset)
    source = resources.files("efcn_sparse.analysis").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        name=run.path.resolve().name,
        task=f"the preset {run.config.preset}" if preset else "a task of one's own",
        data=preset.data if preset else "the data of the task",
        net=preset.net if preset else "the CNN of the task",
        limits=_limits(run),
        has=_has(run),
        answer=answer(run),
        claims=claims(run),
        headline=headline(run),
        findings=findings(run),
        progress=progress(run),
        problems=[*divergences(run), *run.problems],
        rows=_final_rows(run),
        supports=_support_rows(run),
        sections=sections,
        config=_table(_settings(run)),
        environment=_table(run.environment),
        training_runs=count(len(run.plan), "training run"),
        duration=_duration(sum(totals(trace) for trace in run.traces)),
    )


def _limits(run: Run) -> str:
    """How many images are used, where that is limited."""
    limits = ((run.config.train_limit, "training"), (run.config.test_limit, "test"))
    return " and ".join(f"the first {limit:,} {kind} images" for limit, kind in limits if limit is not None)


def _has(run: Run) -> dict[str, bool]:
    """Which kinds of arms the run has."""
    arms = {stage.arm for stage in run.plan}
    efcn = {arm for arm in arms if arm.embedded and arm != ELCN}
    return {"fcn": FCN in arms, "elcn": ELCN in arms, "efcn": bool(efcn), "parts": bool(efcn - {FULL})}


def _final_rows(run: Run) -> list[dict[str, str]]:
    rows = []
    for final in finals(run):
        look, against = run.looks[final.arm], final.against_cnn
        rows.append({
            "color": look.color,
            "arm": look.label,
            "time": "–" if final.relax_epoch is None else str(final.relax_epoch),
            "epoch": "–".join(str(epoch) for epoch in dict.fromkeys(final.epochs)) + ("" if final.complete else " *"),
            "test": final.test_accuracy.text(),
            "n": str(final.test_accuracy.n) + (f" ({final.diverged} diverged)" if final.diverged else ""),
            "against": _points(against.mean, against.std) if against.n else "–",
            "train": final.train_accuracy.text(),
            "loss": final.test_loss.text(),
            "delta": final.delta.text(),
        })  # fmt: skip
    return rows


def _support_rows(run: Run) -> list[dict[str, str]]:
    return [
        {
            "color": run.looks[final.arm].color,
            "arm": final.arm.label,
            "time": str(final.relax_epoch),
            "stored": f"{final.stored.mean:,.0f}",
            "leak": final.leak.text(),
            "captured": final.captured.text(),
        }
        for final in finals(run)
        if final.stored.n
    ]


def _points(mean: float, std: float) -> str:
    signed = f"{100 * mean:+.1f}".replace("-", "−")
    return signed + (f" ± {100 * std:.1f}" if math.isfinite(std) else "")


def _settings(run: Run) -> dict[str, Any]:
    """The configuration, without the numbers of SGD where the task has an optimizer of its own."""
    settings = dataclasses.asdict(run.config)
    task = read_json(run.path / TASK) if (run.path / TASK).is_file() else {}
    if task.get("optimizer", "none") != "none":
        settings |= dict.fromkeys(("momentum", "weight_decay"), "as the task's own optimizer has it")
    return settings


def _table(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _text(value)) for name, value in content.items()]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(one) for one in value) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return "–" if value in (None, "") else str(value)


def _duration(seconds: float) -> str:
    if seconds <= 0:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
