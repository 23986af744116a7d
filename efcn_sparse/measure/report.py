"""Results as JSON, and as the Markdown that people read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efcn_sparse.measure.contest import OURS
from efcn_sparse.measure.shapes import DEVIATION_GOAL, EMBED_GOAL
from efcn_sparse.measure.vanilla import VARIANTS

Results = dict[str, Any]
_BUSY = 0.05


def write(results: Results, directory: Path, slug: str) -> tuple[Path, Path]:
    """``<slug>.json`` and ``<slug>.md`` in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / f"{slug}.json", directory / f"{slug}.md"
    write_json(results, paths[0])
    paths[1].write_text(markdown(results))
    return paths


def write_json(results: Results, path: Path) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n")


def markdown(results: Results) -> str:
    """The whole page."""
    parts = [_machine(results), _roofline(results["roofline"])]
    if results["ops"]:
        parts += [_ops_against_dense(results["ops"]), _ops_against_sparse(results["ops"])]
    if results["vanilla"]:
        parts.append(_vanilla(results["vanilla"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(results: Results) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# {machine['cpu']}, torch on {machine['threads']} thread(s), {machine['date'][:10]}",
        "",
        f"Shapes `{results['shapes']}`. {machine['capability']}; oneDNN may use {', '.join(machine['instructions'])}"
        + (f" (ONEDNN_MAX_CPU_ISA={machine['onednn_max_cpu_isa']})" if machine["onednn_max_cpu_isa"] else "")
        + f". {machine['cores']} cores, {machine['caches']}, {machine['memory_gb']} GiB, {machine['system']}.",
        f"{versions}; {machine['extension']}; commit {machine['commit'] or 'unknown'}. "
        f"Load average at the start: {machine['load_average']}.",
    ]
    if load := _load(results["others_share"]):
        lines.append(load)
    return "\n".join(lines)


def _load(others_share: float | None) -> str:
    if others_share is None:
        return ""
    line = f"Other processes took {others_share:.1%} of the processors' time during the run."
    return (
        line if others_share <= _BUSY else line + "\n\n**The machine was busy: these numbers are not for the record.**"
    )


def _roofline(roofline: Results) -> str:
    rows = [
        [dtype, *(_rate(routes.get(name)) for name in ("linear", "onednn"))]
        for dtype, routes in roofline["gemm"].items()
    ]
    return (
        "## Roofline\n\n"
        + _table(["dense product, GFLOP/s", "`F.linear`", "oneDNN"], rows)
        + f"\n\nMemory: read {roofline['read']:.1f} GB/s, copy {roofline['copy']:.1f} GB/s (read and written)."
    )


def _ops_against_dense(records: Sequence[Results]) -> str:
    rows = [
        [
            record["op"], record["dtype"], str(record["batch"]), str(record["block"]),
            _rate(record["gflops"]), _rate(record["dense_gflops"]), f"**{record['rate_to_dense']:.2f}**",
            f"{record['rate_to_dense_quartiles'][0]:.2f}–{record['rate_to_dense_quartiles'][1]:.2f}",
            _goal(record["goal"], record["goal_met"]), f"{record['gb_s']:.1f}",
            f"{record['roofline_fraction']:.0%} of {record['limited_by']}",
        ]
        for record in records
    ]  # fmt: skip
    first = records[0]
    return (
        f"## Operations, {first['size']}×{first['size']} at {first['density']:.1%}, backend `{first['backend']}`\n\n"
        "GFLOP/s of stored entries; the ratio is our rate over that of the dense product of the same dtype "
        "(`F.linear`, `dy @ W`, `dy.T @ x`), median of the rounds' ratios and their quartiles.\n\n"
        + _table(["op", "dtype", "N", "block", "ours", "dense", "ratio", "quartiles", "goal", "GB/s", "roofline"], rows)
    )


def _ops_against_sparse(records: Sequence[Results]) -> str:
    names = ["dense", "dense_onednn", "torch_sparse_bsr", "torch_sparse_csr", "scipy_bsr"]
    rows = [
        [record["op"], record["dtype"], str(record["batch"]), str(record["block"])]
        + [_times(record["times_faster_than"].get(name)) for name in names]
        for record in records
    ]
    heads = ["dense", "dense, oneDNN", "torch BSR", "torch CSR `sampled_addmm`", "SciPy BSR (1 thread)"]
    return "### Time of each rival over ours\n\n" + _table(["op", "dtype", "N", "block", *heads], rows)


def _vanilla(record: Results) -> str:
    rows = []
    for name, title in VARIANTS.items():
        seconds, goal = record["seconds"][name], record["goals"].get(name)
        rows.append([
            title, f"{record['parameters'][name]:,}", f"{1e3 * seconds['median']:.1f}",
            f"{1e3 * seconds['low']:.1f}–{1e3 * seconds['high']:.1f}",
            "1" if name == OURS else f"**{record['times_faster_than'][name]:.2f}**",
            _goal(goal, record["goals_met"].get(name)), f"{record['peak_memory_bytes'][name] / 2**20:.0f}",
        ])  # fmt: skip
    heads = ["network", "parameters", "step, ms", "quartiles", "its step / ours", "goal", "peak memory, MiB"]
    return (
        f"## VanillaCNN, batch {record['batch']}: forward, backward, SGD\n\n"
        + _table(heads, rows)
        + f"\n\nOurs: {record['gflops']:.0f} GFLOP/s, {record['gb_s']:.1f} GB/s, "
        + f"{record['roofline_fraction']:.0%} of the {record['limited_by']} roof. "
        + f"One deviation reading: {record['deviation_share_of_step']:.1%} of a step "
        + f"(goal under {DEVIATION_GOAL:.0%}{_short(record['deviation_goal_met'])}). Embedding: "
        + f"{record['embed_seconds']:.2f} s (goal under {EMBED_GOAL:g} s{_short(record['embed_goal_met'])})."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _goal(goal: float | None, met: bool | None) -> str:
    return "–" if goal is None else f"≥ {goal:.2f}{_short(met)}"


def _short(met: bool | None) -> str:
    return {True: ", met", False: ", short", None: ", not judged here"}[met]


def _rate(gflops: float | None) -> str:
    return "–" if gflops is None else f"{gflops:.0f}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"
