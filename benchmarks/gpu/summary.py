"""A run in a few thousand characters: what is printed last, where only the end of the output is kept. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.break_even import break_even
from benchmarks.gpu.cases import BREAK_EVEN_GOAL, GOALS, OPERATIONS, STEP_GOAL
from benchmarks.gpu.page import failures
from benchmarks.gpu.protocol import Record

MOST = 11_000  # characters
_FAILED_TESTS, _FAILED, _SLOWEST, _GAINS = 12, 15, 8, 10
Found = Sequence[dict[str, Any]]


def text(records: Sequence[Record], most: int = MOST) -> str:
    """The summary; the failures, which come last, are cut if it would be longer than ``most``."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if "result" in record:
            by_kind.setdefault(record["result"].get("kind", record["name"]), []).append(record["result"])
    products = by_kind.get("product", [])
    lines = [
        *_head(by_kind), *_suite(records), *_first_products(products), *_other_products(products),
        *_break_even(products), *_steps(by_kind.get("step", [])), *_rivals(by_kind.get("rivals", [])),
        *_layers(by_kind.get("layers", [])), *_readings(by_kind.get("reading", [])),
        *_alternatives(by_kind.get("alternatives", [])), *counter_lines(by_kind.get("counters", [])), *_left(records),
    ]  # fmt: skip
    whole = "\n".join(line[:220] for line in lines)
    return whole if len(whole) <= most else whole[: most - 4] + " ..."


def _head(by_kind: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    here = by_kind.get("environment", [{}])[0]
    yield f"== {here.get('device', 'unknown')}, {here.get('date', '')}, commit {here.get('commit', 'unknown')} =="
    for found in by_kind.get("ceilings", [])[:1]:
        l2 = "not measured" if found["l2"] is None else f"{1e-12 * found['l2']:.2f} TB/s"
        yield (f"ceilings: {1e-12 * found['flops']:.0f} TFLOP/s bf16, copy {1e-12 * found['memory']:.2f} TB/s, "
               f"L2 {l2}, smallest kernel {1e6 * found['launch']:.1f} µs")  # fmt: skip
    for found in by_kind.get("clocks", [])[:1]:
        yield "clocks: " + ", ".join(f"{key} {value}" for key, value in found.items() if key != "kind")


def _suite(records: Sequence[Record]) -> Iterator[str]:
    for record in (record for record in records if record.get("group") == "suite"):
        found = record.get("result", {})
        yield f"{record['name']}: {found.get('summary') or record.get('not_run') or record.get('failed')}"
        yield from (f"  {line[:160]}" for line in found.get("failed_tests", [])[:_FAILED_TESTS])


def _fractions(case: dict[str, Any]) -> list[float | None]:
    return [case[operation].get("fraction_of_dense_rate") for operation in OPERATIONS]


def _first_products(found: Found) -> Iterator[str]:
    first = [case for case in found if case["batch"] == 8192 and case["out_features"] == case["in_features"]]
    if first:
        yield "-- products, N=8192, square: of the dense rate, forward dX dW (model); * the goal is met"
    for case in first:
        told = [_told(case[operation]) for operation in OPERATIONS]
        yield f"{case['block']:4d} {case['density']:4.0%} goal {GOALS[case['block']]:.2f}:  " + "  ".join(told)


def _told(one: dict[str, Any]) -> str:
    if "failed" in one:
        return "FAILED"
    rate, mark = one["fraction_of_dense_rate"], "*" if one["goal_met"] else " "
    return f"{rate:.2f}{mark}({one['predicted_fraction']:.2f}) {1e6 * one['time']['seconds']:.0f}µs"


def _other_products(found: Found) -> Iterator[str]:
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for case in found:
        if case["batch"] != 8192 or case["out_features"] != case["in_features"]:
            key = f"{case['out_features']}×{case['in_features']}", case["batch"], case["block"]
            groups.setdefault(key, []).append(case)
    if groups:
        yield "-- other products: least and median of the dense rate over densities, forward dX dW"
    for (size, batch, block), cases in groups.items():
        cells = []
        for operation in OPERATIONS:
            rates = [c[operation]["fraction_of_dense_rate"] for c in cases if "failed" not in c[operation]]
            cells.append(f"{min(rates):.2f} {statistics.median(rates):.2f}" if rates else "FAILED")
        yield f"{size} N={batch} blocks {block}: " + " | ".join(cells)


def _break_even(found: Found) -> Iterator[str]:
    for (size, block, batch), of in break_even(found).items():
        if block == 128 and batch == 8192:
            points = ", ".join(f"{op} {of[op][0]}{of[op][1]:.0%}" for op in OPERATIONS if op in of)
            yield f"break-even with dense, blocks 128, {size} (goal above {BREAK_EVEN_GOAL:.0%}): {points}"


def _steps(found: Found) -> Iterator[str]:
    if found:
        yield f"-- training steps: eager ms, graph ms, / CNN (goal at most {STEP_GOAL}), peak GiB"
    for case in found:
        fixed = {"kind", "model", "pixels", "batch", "goal"}
        for name, one in ((key, value) for key, value in case.items() if key not in fixed):
            if "failed" in one:
                yield f"{case['model']} {case['pixels']} {name}: FAILED {one['failed'][:120]}"
                continue
            graph = one.get("graph", {}).get("seconds")
            times = f"{1e3 * one['eager']['seconds']:.2f} {f'{1e3 * graph:.2f}' if graph else '–'}"
            ratio = f"{one['times_cnn']:.2f}" if "times_cnn" in one else "1"
            yield f"{case['model']} {case['pixels']} {name}: {times} {ratio} {one['peak_bytes'] / 2**30:.2f}"


def _rivals(found: Found) -> Iterator[str]:
    fixed = {"kind", "block", "out_features", "in_features", "density", "batch", "ours"}
    if found:
        yield "-- rivals: their time over ours, forward dX dW"
    absent: dict[str, str] = {}
    for case in found:
        cells = []
        for name in (key for key in case if key not in fixed):
            if "absent" in case[name]:
                absent[name] = case[name]["absent"]
                continue
            ratios = [f"{case[name].get(op, {}).get('times_ours', float('nan')):.2f}" for op in OPERATIONS]
            cells.append(f"{name} {' '.join(ratios)}")
        yield f"{case['block']:4d} {case['density']:.0%} N={case['batch']}: " + " | ".join(cells)
    yield from (f"not here: {name}: {why[:80]}" for name, why in absent.items())


def _layers(found: Found) -> Iterator[str]:
    lost = []
    for case in found:
        for layer in (layer for layer in case["layers"] if "failed" not in layer):
            for operation in OPERATIONS:
                one = layer[operation]
                gap = layer["count"] * one["seconds"] * (1 - one["fraction_of_roofline"])
                where = f"{case['model']} {layer['layer']} ×{layer['count']} {operation}"
                of_roof = f"{1e6 * one['seconds']:.0f} µs, {one['fraction_of_roofline']:.2f} of its roof"
                lost.append((gap, f"{where}: {of_roof}"))
    if lost:
        yield "-- layers with the most time over min(memory, MMA)"
    yield from (line for _, line in sorted(lost, reverse=True)[:_SLOWEST])


def _readings(found: Found) -> Iterator[str]:
    for case in found:
        whole, largest = case["fraction_of_memory"], case["largest_layer"]["fraction_of_memory"]
        yield f"subspace reading of {case['model']}: {whole:.2f} of memory speed, largest layer {largest:.2f}"


def _alternatives(found: Found) -> Iterator[str]:
    all_of = [one for case in found for one in case["operations"] if "before" in one]
    gained = sorted((one for one in all_of if "row" in one), key=lambda one: one["after"] / one["before"])
    if all_of:
        yield f"-- other tiles: {len(gained)} of {len(all_of)} operations have a faster one; the largest gains"
    for one in gained[:_GAINS]:
        rate = f", of dense {one['fraction_before']:.2f} → {one['fraction_after']:.2f}" if "goal" in one else ""
        yield (f"{one['of']} {one['operation']}: {one['before'] / one['after']:.2f}×{rate}; {one['best']} "
               f"(table: {one['present']})")  # fmt: skip


def counter_lines(found: Found) -> Iterator[str]:
    """Of each profiled kernel, on a line."""
    for case in found:
        yield "-- counters"
        for one in case["kernels"]:
            stalls = ", ".join(f"{why} {value:.1f}" for why, value in one.get("stalls", {}).items())
            numbers = ", ".join(
                f"{title} {value:.3g}" for title, value in one.items() if title not in ("of", "kernel", "stalls")
            )
            yield f"{one['of']}: {numbers}"
            yield f"    {one['kernel'][:40]}; stalls: {stalls}"


def _left(records: Sequence[Record]) -> Iterator[str]:
    failed = [f"{where}: {why[:180]}" for record in records for where, why in failures(record["name"], record)
              if record.get("group") != "suite"]  # fmt: skip
    yield f"-- {len(failed)} failed, {sum('not_run' in record for record in records)} not run for want of time"
    yield from failed[:_FAILED]
