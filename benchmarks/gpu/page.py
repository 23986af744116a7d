"""The results of a run as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


def page(found: Record) -> str:
    """The whole page."""
    parts = [_device(found), _suite(found), _products(found["cases"]), _steps(found["cases"]), _others(found["cases"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(heads: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (heads, ["---"] * len(heads), *rows))


def _device(found: Record) -> str:
    device = found["device"]
    if "device" not in device:
        return f"# No device, {found['date']}\n\n{device.get('failed', 'Nothing was measured.')}"
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items() if version)
    return (
        f"# {device['device']}, {found['date']}\n\n{versions}; commit {device['commit']}. Dense bf16 product "
        f"{1e-12 * device['flops']:.0f} TFLOP/s, copy {1e-12 * device['bytes_per_second']:.2f} TB/s, smallest kernel "
        f"{1e6 * device['launch_seconds']:.1f} µs."
    )


def _suite(found: Record) -> str:
    if "suite" not in found:
        return ""
    return "\n".join([f"Tests: {found['suite']['summary']}", *(f"- {line}" for line in found["suite"]["failed_tests"])])


def _products(cases: Sequence[Record]) -> str:
    rows = [
        [case["name"].removeprefix("product: "), operation, f"{1e6 * case[operation]['time']['seconds']:.1f}",
         f"{1e6 * case[operation]['dense']['seconds']:.1f}", f"{case[operation]['times_faster_than_dense']:.2f}",
         f"{case[operation]['fraction_of_dense_rate']:.2f}", f"{case[operation]['tflops']:.0f}"]
        for case in cases for operation in ("forward", "dx", "dw") if operation in case
    ]  # fmt: skip
    heads = ["product, bf16", "operation", "µs", "dense µs", "times faster", "rate / dense rate", "TFLOP/s"]
    return table(heads, rows) if rows else ""


def _steps(cases: Sequence[Record]) -> str:
    rows = []
    for case in cases:
        for variant, one in case.items():
            if isinstance(one, dict) and "peak_bytes" in one:
                graph = f"{1e3 * one['graph']['seconds']:.2f}" if "graph" in one else "–"
                rows.append([
                    case["name"].removeprefix("step: "), variant, f"{1e3 * one['eager']['seconds']:.2f}", graph,
                    f"{one.get('times_cnn', 1.0):.2f}", f"{one['peak_bytes'] / 2**20:.0f}",
                ])  # fmt: skip
    heads = ["training step", "net", "eager ms", "graph ms", "times the CNN's", "peak MiB"]
    return table(heads, rows) if rows else ""


def _others(cases: Sequence[Record]) -> str:
    failed = [f"- {case['name']}: {case['failed']}" for case in cases if "failed" in case]
    left = [f"- {case['name']}: {case['not_run']}" for case in cases if "not_run" in case]
    parts = (("Failed:", failed), ("Not run:", left))
    return "\n\n".join("\n".join([head, *lines]) for head, lines in parts if lines)
