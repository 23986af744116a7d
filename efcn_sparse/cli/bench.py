"""``efcn-sparse bench``: measure this machine."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any


def set_up(parser: argparse.ArgumentParser) -> None:
    """Give ``bench`` its description and arguments."""
    parser.description = (
        "Measure SpMM, SDDMM and a VanillaCNN training step against their rivals, as ratios in one "
        "process; locally connected layers, each rival in its own; and what paths and curvature cost. Takes minutes, "
        "and wants a machine that does nothing else."
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--quick", action="store_true", help="smaller shapes and fewer rounds")
    shapes.add_argument("--tiny", action="store_true", help="only to see that everything runs: the numbers say nothing")
    parser.add_argument(
        "--suite",
        choices=["all", "ops", "few-rows", "calls", "densities", "vanilla", "local", "landscape"],
        default="all",
        help="which part (default: all)",
    )
    parser.add_argument(
        "--flax-python", default=sys.executable, metavar="PYTHON", help="one that has Flax (default: this one)"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of torch (default: 2)")
    parser.add_argument(
        "--shared", action="store_true", help="others use the machine: processor time in place of time, on one thread"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="write <machine>-<date>.json and .md into that folder"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the files asked for."""
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    if args.shared and args.suite not in ("ops", "few-rows", "calls", "densities", "landscape"):
        raise ValueError(f"--shared goes with --suite ops, few-rows, calls, densities or landscape, got {args.suite}")
    if args.json is not None and not args.json.parent.is_dir():  # before minutes of work, not after
        raise ValueError(f"--json must lie in a folder that is there, got {args.json}")

    from efcn_sparse.measure import calls, landscape, locally_connected, ops, report, vanilla
    from efcn_sparse.measure.timing import in_turn, threads_set_to

    clock = time.thread_time if args.shared else time.perf_counter
    threads = 1 if args.shared else args.threads
    shapes = "quick" if args.quick else "tiny" if args.tiny else "full"
    rounds = {"full": 11, "quick": 5, "tiny": 2}[shapes]
    tables: dict[str, list[dict[str, Any]]] = {}
    versions: dict[str, str] = {}
    with threads_set_to(threads):
        for suite, title, cases, turns in (
            ("ops", "Operations, {0.size}×{0.size}, {0.density:.0%} stored", ops.cases, rounds),
            ("few-rows", "One row and eight, {0.size}×{0.size}, {0.density:.0%} stored", ops.few_row_cases, 3 * rounds),
            ("densities", "Speed-up by density, {0.size}×{0.size}", ops.density_cases, min(rounds, 5)),
        ):
            if args.suite not in ("all", suite):
                continue
            chosen = list(cases(shapes))
            rows = tables[title.format(chosen[0])] = []
            for case in chosen:
                print(f"{suite}: {case}, {case.density:.0%} stored", file=sys.stderr, flush=True)
                contestants, density = ops.contestants(case, sparse=suite != "densities")
                row = ops.row(case, in_turn(contestants, turns, clock), density)
                rows.append({"density": density, **row} if suite == "densities" else row)
        if args.suite in ("all", "calls"):
            tables["A call"] = calls.rows(rounds, clock)
        batch = {"full": 250, "quick": 50, "tiny": 2}[shapes]
        if args.suite in ("all", "vanilla"):
            print("vanilla: training steps, then the peak memory of each", file=sys.stderr, flush=True)
            tables[f"VanillaCNN, batch {batch}"] = vanilla.rows(batch, rounds, args.threads)
        if args.suite in ("all", "local"):
            title = f"Locally connected layers of VanillaCNN, forward and backward, batch {batch}"
            tables[title], versions = locally_connected.rows(batch, rounds, args.threads, args.flax_python)
        if args.suite in ("all", "landscape"):
            print("landscape: products with the Hessian, then the memory of a path", file=sys.stderr, flush=True)
            pixels = {"full": 192, "quick": 96, "tiny": 32}[shapes]
            tables[f"The landscape, batch {batch}"] = landscape.rows(batch, rounds, pixels, threads, clock)
    title = f"Kernels and a training step, shapes {shapes}" + (", processor time" if args.shared else "")
    results = report.results(title, threads, tables)
    results["machine"]["versions"] |= versions
    print(report.markdown(results), end="")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.results is not None:
        for path in report.write(results, args.results, "" if args.suite == "all" else args.suite):
            print(f"wrote {path}", file=sys.stderr)
    return 0
