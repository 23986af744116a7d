"""``efcn-sparse landscape``: losses and curvature between the nets that a run has kept."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path


def set_up(parser: argparse.ArgumentParser) -> None:
    """Give ``landscape`` its description and arguments."""
    from efcn_sparse.analysis.landscape import KINDS

    parser.description = (
        "Measure the losses on the way from CNNs to the nets that left them, and the curvature where these "
        "start and end, into RUN_DIR/landscape.json, which efcn-sparse report draws. What is there is not measured "
        "again: started again, it goes on where it stopped."
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that efcn-sparse relax wrote")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["linear"], help="of paths (default: linear)")
    parser.add_argument("--points", type=int, metavar="N", help="nets on a path, both ends included (default: 11)")
    parser.add_argument("--images", type=int, metavar="N", help="training and test images on a path (default: 2000)")
    parser.add_argument("--curvature-images", type=int, metavar="N", help="images in the Hessian (default: 500)")
    parser.add_argument("--vectors", type=int, metavar="N", help="random vectors for each trace (default: 8)")
    parser.add_argument("--task", metavar="TASK", help="my_file.py:name of the run's task, if it is not a preset's")
    parser.add_argument("--data", metavar="DIR|NAME", help="the images, if no longer where the run found them")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure what is missing, and print the barriers and curvatures."""
    from efcn_sparse.analysis.landscape import measure_landscape, read_landscape, settings_of
    from efcn_sparse.analysis.landscape_tables import tables
    from efcn_sparse.training.run.source import load_task

    names = ("points", "images", "curvature_images", "vectors")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    settings = dataclasses.replace(settings_of(args.run_dir), **given)
    file = measure_landscape(
        args.run_dir,
        settings,
        kinds=args.kinds,
        data=args.data,
        task=load_task(args.task) if args.task else None,
        tell=functools.partial(print, flush=True),
    )
    print(tables(read_landscape(args.run_dir)))
    print(file)
    return 0
