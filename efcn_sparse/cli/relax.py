"""``efcn-sparse relax``."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path
from typing import Any

from efcn_sparse.training import PRESETS, RelaxConfig, run_relax
from efcn_sparse.training.arms import FORMS
from efcn_sparse.training.extras import require
from efcn_sparse.training.record import read_rows
from efcn_sparse.training.relaxing import RELAXING
from efcn_sparse.training.selective import COPIES


def add_parser(subparsers: Any) -> None:
    """Add ``relax`` to the commands of ``efcn-sparse``."""
    parser = subparsers.add_parser(
        "relax",
        help="train CNNs, embed them, train on: the relax protocol",
        description="Train a CNN, embed its snapshots, train on; beside it the CNN that goes on and a standard FCN. "
        "Killed and started again with the same command, it goes on where it stopped. "
        "What is left out comes from the preset.",
    )
    parser.add_argument("--preset", required=True, choices=tuple(PRESETS), help="architecture, data and settings")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where to write (default: runs/PRESET)")
    parser.add_argument("--data", metavar="DIR|NAME", help="folder of parquet files or images, or a Hub name")
    parser.add_argument("--download", action="store_true", help="fetch --data from the Hugging Face Hub")
    parser.add_argument("--seeds", type=_seeds, metavar="N", help="run the seeds 0 to N-1")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=FORMS.replace(",", ""))
    parser.add_argument("--epochs", type=int, dest="cnn_epochs", metavar="N", help="last epoch at which to embed")
    parser.add_argument("--relax-epochs", type=int, metavar="N", help="epochs of each embedded net")
    parser.add_argument("--fcn-epochs", type=int, metavar="N", help="epochs of the standard FCN")
    parser.add_argument("--snapshots", type=int, metavar="N", help="log-spaced relax times besides 0")
    parser.add_argument("--relax-times", type=int, nargs="+", metavar="EPOCH", help="the relax times themselves")
    parser.add_argument("--lr", type=float, help="learning rate of the CNN, and of all that have none of their own")
    parser.add_argument("--relaxed-lr", type=float, metavar="LR", help="learning rate after embedding")
    parser.add_argument("--fcn-lr", type=float, metavar="LR", help="learning rate of the standard FCN")
    parser.add_argument("--momentum", type=float)
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--batch-size", type=int, metavar="N")
    parser.add_argument(
        "--fused", action="store_true", default=None, help="update weights inside the backward pass: no gradients held"
    )
    parser.add_argument("--growth-every", type=int, metavar="STEPS", help="steps from one growth to the next")
    parser.add_argument("--growth-exchange", type=float, metavar="SHARE", help="off-local blocks that move at first")
    parser.add_argument(
        "--relaxing", choices=tuple(RELAXING), help="what embedded nets are free to leave (default: both)"
    )
    parser.add_argument(
        "--part", action="append", dest="parts", metavar="[LAYER/]PART:SETTING=NUMBER,...",
        help="of tied, untied or off-local: rate, weight-decay, l1, beta; may be given again, the last one counts",
    )  # fmt: skip
    parser.add_argument(
        "--copies", choices=COPIES, help="sum: tied weights move as the CNN's; mean: as plain SGD (default)"
    )
    parser.add_argument(
        "--carry-momentum", action="store_true", default=None, help="embedded nets go on with the CNN's momentum"
    )
    parser.add_argument("--train-limit", type=int, metavar="N", help="use only the first N training images")
    parser.add_argument("--test-limit", type=int, metavar="N", help="use only the first N test images")
    parser.add_argument("--device", help="torch device (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch")
    parser.add_argument("--no-report", action="store_true", help="leave the figures and the HTML page out")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the protocol, print its outcome and write the report."""
    fields = {field.name for field in dataclasses.fields(RelaxConfig)} - {"preset"}
    given = {name: value for name, value in vars(args).items() if name in fields and value is not None}
    config = RelaxConfig.from_preset(args.preset, **given)
    run_dir = run_relax(config, args.run_dir, download=args.download)
    print(outcome(run_dir))
    print(f"run directory: {run_dir}")
    if not args.no_report:
        _report(run_dir)
    return 0


def outcome(run_dir: Path) -> str:
    """A table of the last test accuracy in percent, mean and (over several seeds) deviation, per arm and relax time."""
    last: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_rows(run_dir / "metrics.csv"):
        last.setdefault((row["arm"], row["relax_epoch"]), {})[row["seed"]] = 100 * float(row["test_accuracy"])
    arms = list(dict.fromkeys(arm for arm, time in last))
    times = sorted({time for arm, time in last if time}, key=int)
    header = ["test accuracy, %", "no embedding", *(f"t_w={time}" for time in times)]
    table = [header] + [[arm, *(_spread(last.get((arm, time))) for time in ("", *times))] for arm in arms]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def _spread(accuracies: dict[str, float] | None) -> str:
    if not accuracies:
        return "-"
    values = list(accuracies.values())
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ±{statistics.stdev(values):.1f}"


def _report(run_dir: Path) -> None:
    try:
        for module, package in (("matplotlib", "matplotlib"), ("jinja2", "Jinja2")):
            require(module, package=package, extra="plot", needed_for="a report")
    except ModuleNotFoundError as missing:  # the run itself is whole
        print(f"report: not written; {missing}")
        return
    from efcn_sparse.analysis import write_report

    print(f"report: {write_report(run_dir)}")


def _seeds(text: str) -> tuple[int, ...]:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return tuple(range(count))
