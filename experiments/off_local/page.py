"""What was measured, as Markdown: means over seeds and relax times, with the least and the largest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from efcn_sparse.measure.machine import Machine
from experiments.off_local.curves import METHODS
from experiments.off_local.measure import BUDGETS, CHOOSERS, CUTS, OBJECTS
from experiments.off_local.train import TRAINED, TRAINED_BUDGETS

Record = dict[str, Any]


def markdown(records: Sequence[Record], machine: Machine) -> str:
    """The page that the command prints.

    Args:
        records: of :func:`measure`, all of the same nets, at least one.
    """
    first, seeds, times = records[0], _distinct(records, "seed"), _distinct(records, "time")
    lines = [
        "## What the command printed",
        "",
        f"{machine.cpu}, torch {machine.versions['torch']} on {machine.threads} thread(s), Python and system: "
        f"{machine.system}, {machine.date[:10]}, commit {machine.commit or 'unknown'}.",
        f"Digits CNN, seeds {seeds}, relax times {times}, then {first['epochs']} epochs of `Full()`. Cells are means "
        f"over all seeds and relax times, with (least–largest).",
        "",
        *_table(["layer", "W", "block", "local weights", "off-local"], (_sizes(n, at) for n, at in _layers(first))),
    ]
    for key, title in OBJECTS.items():
        lines += ["", f"### Share of the squared norm, %: {title}", ""]
        lines += _table(
            ["layer", "numbers / local", *METHODS.values()],
            (
                [f"`{name}`", f"{budget:g}", *(_percent(records, _at(name, key, method, i)) for method in METHODS)]
                for name, _ in _layers(first)
                for i, budget in enumerate(BUDGETS)
            ),
        )
    lines += ["", "### Share of the final squared off-local weights in blocks chosen by …, %", ""]
    lines += _table(
        ["layer", "numbers / local", *CHOOSERS.values()],
        (
            [f"`{name}`", f"{budget:g}", *(_percent(records, _chosen(name, chooser, i)) for chooser in CHOOSERS)]
            for name, _ in _layers(first)
            for i, budget in enumerate(BUDGETS)
        ),
    )
    for time in times:
        some = [record for record in records if record["time"] == time]
        lines += ["", f"### Relaxed at epoch {time}: the trained `Full()` net, its off-local part cut down", ""]
        lines += _outcomes(some, "cut", CUTS, BUDGETS)
        some = [record for record in some if "trained" in record]
        if some:
            title = f"trained with the restricted support (seeds {_distinct(some, 'seed')})"
            lines += ["", f"### Relaxed at epoch {time}: {title}", ""]
            lines += _outcomes(some, "trained", TRAINED, TRAINED_BUDGETS)
    return "\n".join(lines) + "\n"


def summary(values: Sequence[float], form: str) -> str:
    """Mean (least–largest).

    Example:
        >>> summary([0.5, 1.0, 1.5], ".1f")
        '1.0 (0.5–1.5)'
    """
    mean = format(sum(values) / len(values), form)
    return f"{mean} ({format(min(values), form)}–{format(max(values), form)})" if len(values) > 1 else mean


def _outcomes(records: list[Record], key: str, methods: Iterable[str], budgets: Sequence[float]) -> list[str]:
    """Test accuracy in per cent and training loss, per method and budget, between no off-local part and all of it."""

    def cell(read: Callable[[Record], dict[str, float]]) -> str:
        outcomes = [read(record) for record in records]
        accuracy = summary([100 * outcome["test_accuracy"] for outcome in outcomes], ".1f")
        return f"{accuracy} %, {sum(outcome['train_loss'] for outcome in outcomes) / len(outcomes):.3f}"

    none = cell(lambda record: record[key]["nothing"])
    everything = cell(lambda record: record["end"])
    head = ["test accuracy, training loss", *(f"{budget:g} × local" for budget in budgets)]
    rows = [
        [method, *(cell(lambda r, m=method, i=i: r[key][m][i]) for i in range(len(budgets)))]  # type: ignore[misc]
        for method in methods
    ]
    return [*_table(head, rows), "", f"Without off-local part: {none}. With all of it: {everything}."]


def _at(layer: str, key: str, method: str, i: int) -> Callable[[Record], float]:
    return lambda record: record["layers"][layer]["curves"][key][method]["at"][i]


def _chosen(layer: str, chooser: str, i: int) -> Callable[[Record], float]:
    return lambda record: record["layers"][layer]["chosen"][chooser][i]


def _percent(records: Sequence[Record], read: Callable[[Record], float]) -> str:
    return summary([100 * read(record) for record in records], ".0f")


def _layers(record: Record) -> list[tuple[str, Any]]:
    return list(record["layers"].items())


def _sizes(name: str, layer: Record) -> list[str]:
    shapes = ("×".join(map(str, layer[key])) for key in ("shape", "block_shape"))
    return [f"`{name}`", *shapes, f"{layer['local']:,}", f"{layer['off_local']:,}"]


def _distinct(records: Sequence[Record], key: str) -> list[int]:
    return sorted({record[key] for record in records})


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
