"""What bounds a product, by the GPU's own counters: a handful of products under Nsight Compute (``ncu``).

    python benchmarks/gpu/run.py --profile              # after all measurements
    python -m benchmarks.gpu.counters                   # the products alone, for ncu to look at

Whole sections of ncu are asked for, whose names stay; of the hundreds of numbers the telling ones are picked by
pattern, and all are kept in ``counters.csv``. The clocks are left alone. No torch here but in the profiled process.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import suite
from benchmarks.gpu.cases import Product
from benchmarks.gpu.protocol import Record

NAME = "counters"
LONGEST = 85.0  # seconds for everything here
PRODUCTS = tuple(Product(block, 4096, 4096, 0.10, 8192) for block in (128, 64, 32))
DENSE = "dense"
OF_OPERATION = {"forward": "spmm_kernel", "dx": "spmm_kernel", "dw": "sddmm_kernel"}
_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables", "ComputeWorkloadAnalysis",
             "SchedulerStats", "WarpStateStats", "LaunchStats", "Occupancy")  # fmt: skip
_METRICS = ("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_sectors_srcunit_tex.sum",
            "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
            "smsp__issue_active.avg.pct_of_peak_sustained_active")  # fmt: skip
_KERNELS = "regex:spmm_kernel|sddmm_kernel|nvjet|gemm|cutlass|xmma"
_STALLED = tuple(map(re.compile, (
    r"warps_issue_stalled_(?P<why>\w+)(?<!_not_issued)_per_issue_active", r"issue_stalled_(?P<why>\w+)\.(?:ratio|pct)",
)))  # fmt: skip
# title → what its column is called, the first that is there; names differ between chips and versions
WANTED: Mapping[str, tuple[str, ...]] = {
    "µs": (r"^gpu__time_duration\.(sum|max)$",),
    "SM MHz": (r"^(sm|smsp|gpc)__cycles_elapsed\.avg\.per_second$",),
    "tensor pipe %": (r"^sm__pipe_tensor_cycles_active\.avg\.pct", r"^sm__inst_executed_pipe_tensor.*\.pct"),
    "issue slots %": (r"^smsp__issue_active\.avg\.pct", r"^sm__inst_issued\.avg\.pct", r"^smsp__inst_issued.*\.pct"),
    "L2 %": (r"^lts__throughput\.avg\.pct",),
    "L2 hits %": (r"^lts__t_sector_hit_rate\.pct",),
    "L1↔L2 sectors": (r"^lts__t_sectors_srcunit_tex\.sum$",),
    "memory %": (r"^(gpu__)?dram_+throughput\.(avg|max)\.pct",),
    "read bytes": (r"^dram__bytes_read\.sum$",),
    "written bytes": (r"^dram__bytes_write\.sum$",),
    "L1 %": (r"^l1tex__throughput\.avg\.pct",),
    "registers": (r"^launch__registers_per_thread$",),
    "programs of an SM, by shared memory": (r"^launch__occupancy_limit_shared_mem$",),
    "programs of an SM, by registers": (r"^launch__occupancy_limit_registers$",),
    "warps active %": (r"^sm__warps_active\.avg\.pct",),
}


def labels() -> list[tuple[str, str]]:
    """What is profiled, in order: a name, and how its kernel is called (empty: a library's)."""
    ours = [(f"blocks {p.block}, {operation}", kernel) for p in PRODUCTS for operation, kernel in OF_OPERATION.items()]
    return [*ours, (DENSE, "")]


def measure(folder: Path, environment: Mapping[str, str], seconds: float = LONGEST, ncu: str = "ncu") -> Record:
    """The record; whatever goes wrong is in it, and the rest of a run goes on."""
    record: Record = {"name": NAME, "group": "device"}
    began = time.monotonic()
    try:
        record["result"] = {"kind": NAME} | _profiled(folder, environment, began + seconds, ncu)
    except Exception as error:
        record["failed"] = f"{type(error).__name__}: {error}"[:1500]
    return record | {"seconds": round(time.monotonic() - began, 1)}


def _profiled(folder: Path, environment: Mapping[str, str], deadline: float, ncu: str) -> dict[str, Any]:
    program = shutil.which(ncu)
    if program is None:
        raise FileNotFoundError(f"{ncu} is not installed")
    told = ""
    for metrics in (_METRICS, ()):  # an unknown name among the metrics must not cost the sections
        path = folder / f"{NAME}.csv"
        path.unlink(missing_ok=True)
        command = [
            program, "--log-file", str(path), "--csv", "--page", "raw", "--print-units", "base", "--clock-control",
            "none", "--profile-from-start", "off", "--kernel-name-base", "demangled", "--kernel-name", _KERNELS,
            *(word for section in _SECTIONS for word in ("--section", section)),
            *(["--metrics", ",".join(metrics)] if metrics else []),
            sys.executable, "-m", "benchmarks.gpu.counters",
        ]  # fmt: skip
        left = deadline - time.monotonic()
        if left < 15:
            break
        told = _ended(command, environment, left if not metrics else 0.65 * left)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        rows = parsed(text)
        if rows:
            return {"kernels": chosen(rows)}
        told = f"{told.strip()[-600:]} {text.strip()[-600:]}"
    raise RuntimeError(f"ncu gave no numbers: {told.strip()}")


def _ended(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> str:
    """What it printed, and the whole family of it ended after so long."""
    process = subprocess.Popen(
        command, cwd=suite.ROOT, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        text = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        text = suite.end(process) + f"\nended after {seconds:.0f} seconds".encode()
    return text.decode(errors="replace")


def parsed(text: str) -> list[dict[str, str]]:
    """One dictionary for each profiled kernel: column → what is in it."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if not lines:
        return []
    rows = list(csv.DictReader(lines))
    return [row for row in rows if (row.get("ID") or "").strip().isdigit()]  # the row of units has no number


def chosen(rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """The telling numbers of each label, whose kernels come in their order."""
    left, found = list(rows), []
    for label, kernel in labels():
        for at, row in enumerate(left):
            name = row.get("Kernel Name", "")
            if kernel in name if kernel else not any(ours in name for ours in OF_OPERATION.values()):
                found.append({"of": label, "kernel": name[:80]} | _telling(row))
                del left[: at + 1]
                break
    return found


def _telling(row: Mapping[str, str]) -> dict[str, Any]:
    numbers = {column: value for column, text in row.items() if (value := _number(text)) is not None}
    told: dict[str, Any] = {}
    for title, patterns in WANTED.items():
        matching = (numbers[c] for pattern in patterns for c in numbers if re.search(pattern, c))
        value = next(matching, None)
        if value is not None:
            told[title] = value
    for title, factor in (("µs", 1e-3), ("SM MHz", 1e-6)):  # from ns and Hz
        if title in told:
            told[title] *= factor
    if "L1↔L2 sectors" in told and told.get("µs"):
        told["L1↔L2 TB/s"] = 32e-6 * told["L1↔L2 sectors"] / told["µs"]
    for pattern in _STALLED:
        stalls = {m["why"]: value for column, value in numbers.items() if (m := pattern.search(column))}
        if stalls:
            told["stalls"] = dict(sorted(stalls.items(), key=lambda one: -one[1])[:4])
            break
    return told


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def main() -> int:
    """Each labeled call once while the profiler listens, after it ran twice while it did not."""
    import torch

    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.products import operands
    from efcn_sparse.ops import sddmm, spmm

    bench = Bench.make(dry=False)

    def listened_to(call: Any) -> None:
        call(), call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()

    for case in PRODUCTS:
        pattern, values, _ = operands(bench, case.block, case.out_features, case.in_features, case.density)
        x, dy = bench.randn(case.batch, case.in_features), bench.randn(case.batch, case.out_features)
        listened_to(partial(spmm, x, values, pattern, backend="triton"))
        listened_to(partial(spmm, dy, values, pattern, transpose=True, backend="triton"))
        listened_to(partial(sddmm, dy, x, pattern, backend="triton"))
    full = bench.randn(PRODUCTS[0].out_features, PRODUCTS[0].in_features)
    listened_to(lambda: x @ full.T)
    return 0


if __name__ == "__main__":
    sys.exit(main())
