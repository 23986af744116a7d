"""Counters of ncu, read as it writes them and joined to what was profiled; without them, the record says why."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import counters, page, summary

COLUMNS = ["ID", "Process ID", "Kernel Name", "gpu__time_duration.sum", "lts__t_sectors_srcunit_tex.sum",
           "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
           "smsp__average_warps_issue_stalled_barrier_not_issued_per_issue_active.ratio",
           "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio"]  # fmt: skip
NCU = """#!{python}
import sys
arguments = sys.argv[1:]
if {refuses} and "--metrics" in arguments:
    sys.exit("Failed to find metric")
with open(arguments[arguments.index("--log-file") + 1], "w") as log:
    log.write({text!r})
"""


def _csv(kernels: list[str]) -> str:
    rows = [COLUMNS, ["", "", "", "ns", "sector", "inst", "inst", "inst"]]
    rows += [[str(i), "77", name, "100,000", f"{1000 + i},000", "0.5", "9", "2.5"] for i, name in enumerate(kernels)]
    return "==PROF== Connected to process 77\n" + "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)


def _kernels() -> list[str]:
    return [kernel or "nvjet_tst_128x256_64x4" for _, kernel in counters.labels()]


def _fake(folder: Path, text: str, refuses: bool = False) -> str:
    path = folder / "ncu"
    path.write_text(NCU.format(python=sys.executable, refuses=refuses, text=text))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("refuses", [False, True], ids=["all", "sections only"])
def test_the_numbers_of_each_product(tmp_path: Path, refuses: bool) -> None:
    record = counters.measure(tmp_path, os.environ, 60, _fake(tmp_path, _csv(_kernels()), refuses))
    found = record["result"]["kernels"]
    assert [one["of"] for one in found] == [label for label, _ in counters.labels()]
    assert found[1]["µs"] == 100
    assert found[1]["L1↔L2 TB/s"] == pytest.approx(32 * 1_001_000 / 100e-6 / 1e12)
    assert found[0]["stalls"] == {"long_scoreboard": 2.5, "barrier": 0.5}
    assert found[-1]["kernel"].startswith("nvjet")
    assert "## Counters" in page.markdown([record])
    assert "blocks 128, dw: µs 100" in summary.text([record])


def test_a_kernel_that_is_missing_does_not_shift_the_others() -> None:
    kernels = _kernels()
    rows = counters.parsed(_csv(kernels[:-1]))
    assert [one["of"] for one in counters.chosen(rows)] == [label for label, _ in counters.labels()[:-1]]
    assert counters.parsed("==ERROR== nothing") == []


@pytest.mark.parametrize("text", ["", "==ERROR== Failed to initialize the profiler: LibraryNotLoaded"])
def test_without_numbers_the_record_says_why(tmp_path: Path, text: str) -> None:
    record = counters.measure(tmp_path, os.environ, 60, _fake(tmp_path, text))
    assert record["failed"].startswith("RuntimeError: ncu gave no numbers")
    assert text in record["failed"]


def test_without_ncu_the_record_says_so(tmp_path: Path) -> None:
    assert counters.measure(tmp_path, os.environ, 60, "no-such-ncu")["failed"].startswith("FileNotFoundError")
