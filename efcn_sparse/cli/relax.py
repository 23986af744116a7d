"""``efcn-sparse relax``."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import statistics
from pathlib import Path
from typing import Any

from efcn_sparse.training import PRESETS, RelaxConfig, run_relax
from efcn_sparse.training.arms import FORMS
from efcn_sparse.training.extras import require
from efcn_sparse.training.metrics import METRICS, read_evaluations
from efcn_sparse.training.plan import stages
from efcn_sparse.training.relax import unfinished
from efcn_sparse.training.relaxing import RELAXING
from efcn_sparse.training.run_directory import refuse_other
from efcn_sparse.training.selective import COPIES

_MOST_SEEDS = 1000
_OPTIONS = {  # as the command line calls the fields of RelaxConfig
    **{field.name: "--" + field.name.replace("_", "-") for field in dataclasses.fields(RelaxConfig)},
    "cnn_epochs": "--epochs", "parts": "--part", "run_dir": "--run-dir",
}  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Add ``relax`` to the commands of ``efcn-sparse``."""
    parser = subparsers.add_parser(
        "relax",
        help="train CNNs, embed them, train on: the relax protocol",
        description="Train a CNN, embed its snapshots, train on; beside it the CNN that goes on and a standard FCN. "
        "Killed and started again with the same command, it goes on where it stopped; with more seeds, arms or relax "
        "times, it keeps what is done. "
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
    parser.add_argument(
        "--repair", action="store_true", help="train again what a damaged metrics.csv or layers.csv has lost"
    )
    parser.add_argument("--no-report", action="store_true", help="leave the figures and the HTML page out")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the protocol, print its outcome and write the report."""
    fields = {field.name for field in dataclasses.fields(RelaxConfig)} - {"preset"}
    given = {name: value for name, value in vars(args).items() if name in fields and value is not None}
    try:
        config = RelaxConfig.from_preset(args.preset, **given)
        run_dir = Path("runs") / args.preset if args.run_dir is None else args.run_dir
        refuse_other(run_dir, config)
        idle = not args.repair and not unfinished(config, run_dir)
        if not idle:
            run_relax(config, run_dir, download=args.download, repair=args.repair)
    except ValueError as error:
        raise ValueError(_in_options(str(error))) from error
    print(outcome(run_dir))
    print(f"run directory: {run_dir}")
    if idle:
        print(f"nothing to do: all of its {len(stages(config))} training runs are finished")
    if not args.no_report:
        _report(run_dir)
    return 0


def outcome(run_dir: Path) -> str:
    """A table of the last test accuracy in percent, mean and (over several seeds) deviation, per arm and relax time."""
    last: dict[tuple[str, int | None], dict[int, float]] = {}
    for one in read_evaluations(run_dir / "metrics.csv", METRICS)[0]:
        accuracy = 100 * one.number("test_accuracy") if math.isfinite(one.number("train_loss")) else math.nan
        last.setdefault((str(one.arm), one.relax_epoch), {})[one.seed] = accuracy
    arms = list(dict.fromkeys(arm for arm, time in last))
    times = sorted({time for arm, time in last if time is not None})
    header = ["test accuracy, %", "no embedding", *(f"t_w={time}" for time in times)]
    table = [header] + [[arm, *(_spread(last.get((arm, time))) for time in (None, *times))] for arm in arms]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def _spread(accuracies: dict[int, float] | None) -> str:
    if not accuracies:
        return "-"
    values = [accuracy for accuracy in accuracies.values() if math.isfinite(accuracy)]
    if not values:
        return "diverged"
    lost = len(accuracies) - len(values)
    text = f"{statistics.mean(values):.1f}" + (f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else "")
    return text + (f" ({lost} diverged)" if lost else "")


def _report(run_dir: Path) -> None:
    try:
        for module, package in (("matplotlib", "matplotlib"), ("jinja2", "Jinja2")):
            require(module, package=package, extra="plot", needed_for="a report")
    except ModuleNotFoundError as missing:  # the run itself is whole
        print(f"report: not written; {missing}")
        return
    page, made_of = run_dir / "report.html", (run_dir / "metrics.csv", run_dir / "layers.csv", run_dir / "config.json")
    if page.is_file() and all(page.stat().st_mtime_ns > path.stat().st_mtime_ns for path in made_of if path.is_file()):
        print(f"report: {page}")
        return
    from efcn_sparse.analysis import write_report

    print(f"report: {write_report(run_dir)}")


def _in_options(message: str) -> str:
    """The message with the names of options in the place of those of fields."""
    at_start = re.match("(each of )?([a-z_]+) (?=must|is|[(/])", message)
    if at_start and at_start[2] in _OPTIONS:
        message = (at_start[1] or "") + _OPTIONS[at_start[2]] + message[at_start.end(2) :]
    return re.sub(r"(?<![\w/.])[a-z]+_[a-z_]+(?![\w/.])", lambda found: _OPTIONS.get(found[0], found[0]), message)


def _seeds(text: str) -> tuple[int, ...]:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= _MOST_SEEDS or len(text) > len(str(_MOST_SEEDS)):
        raise argparse.ArgumentTypeError(f"must be how many seeds to run, from 1 to {_MOST_SEEDS}, got {text!r}")
    return tuple(range(int(text)))
