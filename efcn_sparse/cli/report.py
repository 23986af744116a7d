"""``efcn-sparse report``: figures and a page from a run directory."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``report`` to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="draw the figures of a run and write its page",
        description="Write RUN_DIR/figures (PNG and SVG) and RUN_DIR/report.html, which opens from disk. "
        "Works on a run that is still going on, and says what is missing.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that efcn-sparse relax wrote")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and print the path of its page."""
    from efcn_sparse.analysis import write_report

    print(write_report(args.run_dir))
    return 0
