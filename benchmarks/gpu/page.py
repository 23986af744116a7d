"""The page of a run: tables of products, rivals and nets, what failed, what was not run. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.gpu.break_even import break_even
from benchmarks.gpu.cases import BREAK_EVEN_GOAL, GOALS, OPERATIONS, STEP_GOAL
from benchmarks.gpu.protocol import Record

_GIB, _MS = 1 << 30, 1e3


def markdown(records: Sequence[Record]) -> str:
    """The whole page."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if "result" in record:
            by_kind.setdefault(record["result"].get("kind", record["name"]), []).append(record["result"])
    parts = [
        _head(by_kind), _suite(records), _products(by_kind.get("product", [])), _rivals(by_kind.get("rivals", [])),
        _steps(by_kind.get("step", [])), _layers(by_kind.get("layers", [])), _readings(by_kind.get("reading", [])),
        _huge(by_kind.get("huge", [])), _alternatives(by_kind.get("alternatives", [])),
        _counters(by_kind.get("counters", [])), _left(records),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(by_kind: dict[str, list[dict[str, Any]]]) -> str:
    here = by_kind.get("environment", [{}])[0]
    lines = [f"# {here.get('device', 'unknown device')}, {here.get('date', '')[:10]}", ""]
    if here.get("dry"):
        lines += ["**A dry run on a CPU: it shows that the script goes through. Its numbers say nothing.**", ""]
    versions = ", ".join(f"{name} {here.get(name)}" for name in ("torch", "cuda", "triton", "python"))
    clocks = "; ".join(f"{key} {value}" for key, value in here.get("clocks", {}).items())
    lines.append(f"{versions}; commit {here.get('commit', 'unknown')}. nvidia-smi: {clocks or 'no answer'}.")
    for found in by_kind.get("ceilings", [])[:1]:
        l2 = "not measured" if found["l2"] is None else f"{1e-12 * found['l2']:.2f} TB/s"
        rates = f"{1e-12 * found['flops']:.0f} TFLOP/s (bf16, 8192³), copy {1e-12 * found['memory']:.2f} TB/s"
        launch = f"smallest kernel {1e6 * found['launch']:.1f} µs"
        lines += ["", f"Ceilings: {rates} read and written, L2 reads {l2}, {launch}."]
    return "\n".join(lines)


def _suite(records: Sequence[Record]) -> str:
    lines = []
    for record in (record for record in records if record.get("group") == "suite"):
        found = record.get("result", {})
        outcome = found.get("summary") or record.get("not_run") or record.get("failed")
        lines += [f"- {record['name']}: {outcome}", *(f"  - `{line}`" for line in found.get("failed_tests", []))]
    return "\n".join(["Tests on the GPU:", "", *lines]) if lines else ""


def _products(found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return ""
    rows = []
    for case in found:
        size = f"{case['out_features']}×{case['in_features']}"
        cells = [size, case["block"], f"{case['density']:.0%}", case["batch"]]
        for operation in OPERATIONS:
            one = case[operation]
            if "failed" in one:
                cells += ["failed", "", ""]
                continue
            cells += [f"{1e6 * one['time']['seconds']:.0f}", f"**{one['fraction_of_dense_rate']:.2f}**",
                      f"{one['predicted_fraction']:.2f}"]  # fmt: skip
        errors = [case[op]["relative_error"] for op in OPERATIONS if "failed" not in case[op]]
        cells += [f"{GOALS[case['block']]:.2f}" if case["block"] in GOALS else "", f"{max(errors):.1e}"]
        rows.append(cells)
    heads = ["W", "block", "density", "N"]
    for name in ("forward", "dX", "dW"):
        heads += [f"{name}, µs", "of dense", "model"]
    text = _table([*heads, "goal", "error"], rows)
    points = [
        [f"{size}", block, batch, *(_density(of.get(operation)) for operation in OPERATIONS)]
        for (size, block, batch), of in break_even(found).items()
    ]
    return (
        "## Products\n\nbf16. Our rate over stored entries as a fraction of the rate of the dense product of the same "
        "shape, a full random matrix, the two taking turns; beside it the work model's most. Errors: relative, against "
        "fp32. Break-even is with the dense product over the same zeros, which is a little faster.\n\n"
        + text
        + f"\n\nBreak-even density with the dense product (goal at blocks of 128: above {BREAK_EVEN_GOAL:.0%}):\n\n"
        + _table(["W", "block", "N", "forward", "dX", "dW"], points)
    )


def _rivals(found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return ""
    fixed = {"kind", "block", "out_features", "in_features", "density", "batch", "ours"}
    rows, absent = [], {}
    for case in found:
        for name in (key for key in case if key not in fixed):
            if "absent" in case[name]:
                absent[name] = case[name]["absent"]
                continue
            cells = [_rival(case[name].get(operation)) for operation in OPERATIONS]
            rows.append([case["block"], f"{case['density']:.0%}", case["batch"], name, *cells])
    text = _table(["block", "density", "N", "rival", "forward", "dX", "dW"], rows)
    missing = "".join(f"\n- {name}: {why}" for name, why in absent.items())
    return "## Rivals\n\nTheir time over ours.\n\n" + text + (f"\n\nNot here:{missing}" if missing else "")


def _rival(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    if "failed" in found:
        return "failed"
    return f"{found['times_ours']:.2f}" + (" (wrong)" if found["right"] is False else "")


def _steps(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for case in found:
        fixed = {"kind", "model", "pixels", "batch", "goal"}
        for name, one in ((key, value) for key, value in case.items() if key not in fixed):
            title = [f"{case['model']} {case['pixels']}", case["batch"], name]
            if "failed" in one:
                rows.append([*title, "failed", "", "", ""])
                continue
            graph = one.get("graph", {}).get("seconds")
            ratio = f"**{one['times_cnn']:.2f}**" if "times_cnn" in one else "1"
            rows.append([*title, f"{_MS * one['eager']['seconds']:.2f}", f"{_MS * graph:.2f}" if graph else "–", ratio,
                         f"{one['peak_bytes'] / _GIB:.2f}"])  # fmt: skip
    if not rows:
        return ""
    heads = ["net", "N", "variant", "eager, ms", "graph, ms", "/ CNN", "peak, GiB"]
    return f"## Training steps\n\nGoal: at most {STEP_GOAL} × the CNN's step.\n\n" + _table(heads, rows)


def _layers(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for case in found:
        for layer in case["layers"]:
            title = [case["model"], layer["layer"], layer["count"], "×".join(map(str, layer["block"]))]
            if "failed" in layer:
                rows.append([*title, "failed", *[""] * 7])
                continue
            cells = []
            for operation in OPERATIONS:
                cells += [f"{1e6 * layer[operation]['seconds']:.0f}", f"{layer[operation]['fraction_of_roofline']:.2f}"]
            rows.append([*title, f"{layer['gflop']:.1f}", layer["bound_by"], *cells])
    if not rows:
        return ""
    heads = ["net", "layer", "of its kind", "block", "GFLOP", "bound"]
    for name in ("forward", "dX", "dW"):
        heads += [f"{name}, µs", "of roof"]
    return "## Layers\n\nbf16; the roof is min(memory, MMA) of this run's ceilings.\n\n" + _table(heads, rows)


def _readings(found: Sequence[dict[str, Any]]) -> str:
    rows = [
        [case["model"], case["backend"], f"{case['bytes'] / _GIB:.2f}", f"{_MS * case['all_layers']['seconds']:.2f}",
         f"{case['fraction_of_memory']:.2f}", f"{case['largest_layer']['fraction_of_memory']:.2f}"]
        for case in found
    ]  # fmt: skip
    heads = ["net", "backend", "weights, GiB", "all layers, ms", "of memory speed", "largest layer, of memory speed"]
    return "## Subspace reading\n\n" + _table(heads, rows) if rows else ""


def _huge(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for case in found:
        step = case.get("step")
        measured = [f"{_MS * step['eager']['seconds']:.1f}", f"{step['peak_bytes'] / _GIB:.2f}"] if step else ["–", "–"]
        rows.append([f"{case['model']} {case['pixels']}", case["batch"], f"{case['predicted_weight_bytes'] / _GIB:.2f}",
                     f"{case['predicted_peak_bytes'] / _GIB:.2f}", case["stepped"], *measured])  # fmt: skip
    heads = ["net", "N", "weights, GiB", "predicted peak, GiB", "stepped", "ms", "peak, GiB"]
    return "## Planned, and stepped if it fits\n\n" + _table(heads, rows) if rows else ""


def _alternatives(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in (one for case in found for one in case["operations"]):
        title = [one["of"], one["operation"]]
        if "failed" in one:
            rows.append([*title, "failed", *[""] * 7])
            continue
        fractions = [f"{one[key]:.2f}" if key in one else "–" for key in ("fraction_before", "fraction_after")]
        gain, mark = f"{one['before'] / one['after']:.2f}", "**" if "row" in one else ""
        rows.append([*title, f"{1e6 * one['before']:.0f}", fractions[0], f"{1e6 * one['after']:.0f}", fractions[1],
                     mark + gain + mark, one["best"], f"{one['tried']}" + ("" if one["finished"] else ", cut short"),
                     len(one["left_out"])])  # fmt: skip
    if not rows:
        return "".join(f"## Other tiles\n\nNot here: {case['absent']}." for case in found[:1])
    heads = ["of", "operation", "table's tile, µs", "of dense", "best, µs", "of dense", "gain", "best", "tried"]
    heads += ["left out"]
    text = "Each tile's result was compared with that of the table's; the two times and the dense product took turns. "
    text += "Bold: a row of the tuning file that this run wrote.\n\n"
    return "## Other tiles\n\n" + text + _table(heads, rows)


def _counters(found: Sequence[dict[str, Any]]) -> str:
    rows, heads = [], ["of", "kernel"]
    for case in found:
        for one in case["kernels"]:
            heads += [title for title in one if title not in (*heads, "stalls")]
    for case in found:
        for one in case["kernels"]:
            cells = [_cell(one.get(title)) for title in heads]
            rows.append([*cells, ", ".join(f"{why} {value:.1f}" for why, value in one.get("stalls", {}).items())])
    text = "Of ncu, clocks left alone, L2 flushed. Stalls: warps waiting, for each instruction that is issued.\n\n"
    return "## Counters\n\n" + text + _table([*heads, "stalls"], rows) if rows else ""


def _cell(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _left(records: Sequence[Record]) -> str:
    failed = [f"- {where}: {why[:300]}" for record in records for where, why in failures(record["name"], record)]
    skipped = [f"- {record['name']}" for record in records if "not_run" in record]
    lines = ["## Failed", "", *(failed or ["Nothing."]), "", "## Not run, for want of time", ""]
    return "\n".join([*lines, *(skipped or ["Nothing."])])


def failures(where: str, found: Any) -> Iterator[tuple[str, str]]:
    """Of a case as a whole, and of its parts: where, and why."""
    if isinstance(found, dict):
        if isinstance(found.get("failed"), str):
            yield where, found["failed"].replace("\n", " ")
        for key, part in found.items():
            yield from failures(where if key == "result" else f"{where}, {key}", part)
    elif isinstance(found, list):
        for part in found:
            names = [part[key] for key in ("layer", "of", "operation") if isinstance(part, dict) and key in part]
            yield from failures(" ".join([where, *names]), part)


def _density(found: tuple[str, float] | None) -> str:
    return "–" if found is None else f"{found[0]}{found[1]:.0%}"


def _table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)
