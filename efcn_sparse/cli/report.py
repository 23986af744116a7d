"""``efcn-sparse report``: figures and a page from a run directory."""

from __future__ import annotations

import argparse
from pathlib import Path


def set_up(parser: argparse.ArgumentParser) -> None:
    """Give ``report`` its description and arguments."""
    parser.description = (
        "Write RUN_DIR/figures (PNG and SVG) and RUN_DIR/report.html, which opens from disk. "
        "Works on a run that is still going on, and says what is missing."
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that efcn-sparse relax wrote")
    parser.add_argument("--task", metavar="TASK", help="my_file.py:name of the run's task, if it is not a preset's")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and print the path of its page."""
    from efcn_sparse.analysis import write_report
    from efcn_sparse.training.run.source import load_task

    print(write_report(args.run_dir, load_task(args.task) if args.task else None))
    return 0
