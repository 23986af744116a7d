"""``efcn-sparse relax``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import statistics
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from efcn_sparse.analysis.claims import claims
from efcn_sparse.analysis.landscape_tables import aligned
from efcn_sparse.analysis.run_data import read_run
from efcn_sparse.importing import require
from efcn_sparse.training import PRESETS, Event, RelaxConfig, Task, run_relax
from efcn_sparse.training.arms import FORMS
from efcn_sparse.training.optim.relaxing import RELAXING
from efcn_sparse.training.optim.selective import COPIES
from efcn_sparse.training.run.metrics import METRICS, read_evaluations
from efcn_sparse.training.run.plan import stages
from efcn_sparse.training.run.relax import unfinished
from efcn_sparse.training.run.run_directory import refuse_other
from efcn_sparse.training.run.source import Source
from efcn_sparse.training.run.watch import Callback
from efcn_sparse.training.run.workers import Processes, dask_workers

_MOST_SEEDS = 1000
_MOST_WORKERS = 999


def set_up(parser: argparse.ArgumentParser) -> None:
    """Give ``relax`` its description and arguments."""
    parser.description = (
        "Train a CNN, embed its snapshots, train on; beside it the CNN that goes on and a standard FCN. "
        "Killed and started again with the same command, it goes on where it stopped; with more seeds, arms or relax "
        "times, it keeps what is done. "
        "What is left out comes from the preset."
    )
    parser.add_argument("task", nargs="?", metavar="TASK", help="my_file.py:name or package.module:name of a Task")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="architecture, data and settings, in place of TASK")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where to write (default: runs/PRESET, runs/task)")
    parser.add_argument("--data", metavar="DIR|NAME", help="folder of parquet files or images, or a Hub name")
    parser.add_argument("--download", action="store_true", help="fetch --data from the Hugging Face Hub")
    parser.add_argument("--seeds", type=_seeds, metavar="N", help="run the seeds 0 to N-1")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=FORMS.replace(",", ""))
    parser.add_argument(
        "--epochs", type=int, dest="cnn_epochs", metavar="N", help="the last epoch at which the CNN may be embedded"
    )
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
    workers = parser.add_mutually_exclusive_group()
    workers.add_argument("--workers", type=_count, metavar="N", help="train in N processes, of one thread each")
    workers.add_argument("--dask", metavar="ADDRESS", help="train on the workers of this Dask scheduler")
    parser.add_argument("--tensorboard", action="store_true", help="write RUN_DIR/tensorboard as well")
    parser.add_argument(
        "--repair", action="store_true", help="train again what a damaged metrics.csv or layers.csv has lost"
    )
    parser.add_argument("--no-report", action="store_true", help="leave the figures and the HTML page out")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the protocol, print its outcome and write the report."""
    fields = {field.name for field in dataclasses.fields(RelaxConfig)} - {"preset"}
    given = {name: value for name, value in vars(args).items() if name in fields and value is not None}
    if (args.task is None) == (args.preset is None):
        raise ValueError("TASK or --preset must be given, and not both")
    if "snapshots" in given and "relax_times" in given:
        raise ValueError(f"snapshots must be left out beside relax_times, got {given['snapshots']}")
    config = RelaxConfig.from_preset(args.preset, **given) if args.preset else RelaxConfig(**given)
    source = Source(target=args.task or "", download=args.download)
    task = source.load(config)
    run_dir = Path("runs") / (args.preset or "task") if args.run_dir is None else args.run_dir
    refuse_other(run_dir, config)
    idle = not args.repair and not unfinished(config, run_dir, task)
    if idle:
        run_relax(args.task or args.preset, config, run_dir)  # refuses another task
    else:
        with _executor(args) as executor, _tensorboard(args, run_dir) as callbacks:
            run_relax(
                args.task or args.preset, config, run_dir, executor=executor, callbacks=callbacks,
                download=args.download, repair=args.repair,
            )  # fmt: skip
    print(outcome(run_dir))
    for claim in claims(read_run(run_dir)):
        print(f"{claim.paper} This run: {claim.verdict}. {claim.told}")
    print(f"run directory: {run_dir}")
    if idle:
        print(f"nothing to do: all of its {len(stages(config))} training runs are finished")
    if not args.no_report:
        _report(run_dir, task)
    return 0


def _executor(args: argparse.Namespace) -> contextlib.AbstractContextManager[Executor | None]:
    if args.workers:
        return Processes(args.workers)
    return dask_workers(args.dask) if args.dask else contextlib.nullcontext()


@contextlib.contextmanager
def _tensorboard(args: argparse.Namespace, run_dir: Path) -> Iterator[list[Callback]]:
    """A callback that writes each stage as a run of its own."""
    if not args.tensorboard:
        yield []
        return
    board = require("torch.utils.tensorboard", package="tensorboard", extra="tensorboard", needed_for="--tensorboard")
    with contextlib.ExitStack() as opened:
        writers: dict[str, Any] = {}

        def write(event: Event) -> None:
            if event.kind == "start":
                writer = board.SummaryWriter(str(run_dir / "tensorboard" / event.stage))
                writers[event.stage] = opened.enter_context(contextlib.closing(writer))
            elif event.kind == "epoch":
                for name, value in event.values.items():
                    writers[event.stage].add_scalar(name, value, event.epoch)
            else:
                writers.pop(event.stage).close()

        yield [write]


def outcome(run_dir: Path) -> str:
    """A table of the last test accuracy in percent, mean and (over several seeds) deviation, per arm and relax time."""
    last: dict[tuple[str, int | None], dict[int, float]] = {}
    for one in read_evaluations(run_dir / "metrics.csv", METRICS)[0]:
        accuracy = 100 * one.number("test_accuracy") if math.isfinite(one.number("train_loss")) else math.nan
        last.setdefault((str(one.arm), one.relax_epoch), {})[one.seed] = accuracy
    arms = list(dict.fromkeys(arm for arm, time in last))
    times = sorted({time for arm, time in last if time is not None})
    rows = [[arm, *(_spread(last.get((arm, time))) for time in (None, *times))] for arm in arms]
    spread = " ± standard deviation" if "±" in str(rows) else ""
    return aligned([[f"test accuracy, %{spread}", "no embedding", *(f"t_w={time}" for time in times)], *rows])


def _spread(accuracies: dict[int, float] | None) -> str:
    if not accuracies:
        return "-"
    values = [accuracy for accuracy in accuracies.values() if math.isfinite(accuracy)]
    if not values:
        return "diverged"
    lost = len(accuracies) - len(values)
    text = f"{statistics.mean(values):.1f}" + (f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else "")
    return text + (f" ({lost} diverged)" if lost else "")


def _report(run_dir: Path, task: Task) -> None:
    try:
        for module, package in (("matplotlib", "matplotlib"), ("jinja2", "Jinja2")):
            require(module, package=package, extra="plot", needed_for="a report")
    except ModuleNotFoundError as missing:  # the run itself is whole
        print(f"report: not written; {missing}")
        return
    made_of = [run_dir / name for name in ("metrics.csv", "layers.csv", "config.json", "landscape.json")]
    page = run_dir / "report.html"
    if page.is_file() and all(page.stat().st_mtime_ns > path.stat().st_mtime_ns for path in made_of if path.is_file()):
        print(f"report: {page}")
        return
    from efcn_sparse.analysis import write_report

    print(f"report: {write_report(run_dir, task)}")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"must be how many processes, from 1 to {_MOST_WORKERS}, got {text!r}")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= _MOST_SEEDS or len(text) > len(str(_MOST_SEEDS)):
        raise argparse.ArgumentTypeError(f"must be how many seeds to run, from 1 to {_MOST_SEEDS}, got {text!r}")
    return tuple(range(int(text)))
