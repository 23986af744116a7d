"""The command that trains the digits CNN's eFCN in supports of all kinds and sizes, and compares the ends.

A run that is there, or was broken off, is gone on with; a finished one is only read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from efcn_sparse.analysis.figures.canvas import drawing_style, save
from efcn_sparse.analysis.figures.outcome import draw_stored_weights
from efcn_sparse.analysis.run_data import Run, read_run
from efcn_sparse.analysis.statistics import Final, Spread, finals
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.plan import is_embedded
from efcn_sparse.training.relax import run_relax

ARMS = (
    "cnn", "elcn", "efcn-dilated1", "efcn-dilated2", "efcn-grown1.5", "efcn-grown2", "efcn-grown3", "efcn-full",
)  # fmt: skip
_HEAD = (
    "arm", "relaxed at", "weights stored", "test accuracy, %", "minus the CNN's", "test loss", "δ",
    "leak, %", "captured, %",
)  # fmt: skip


def config(seeds: int, relax_times: Sequence[int], relax_epochs: int, threads: int) -> RelaxConfig:
    """What is run: the preset ``digits`` with ARMS."""
    return RelaxConfig.from_preset(
        "digits", arms=ARMS, seeds=tuple(range(seeds)), cnn_epochs=max(relax_times), relax_times=tuple(relax_times),
        relax_epochs=relax_epochs, threads=threads,
    )  # fmt: skip


def markdown(run: Run) -> str:
    """One row for each arm and relax time: mean ± standard deviation over seeds."""
    rows = [_row(final) for final in finals(run) if is_embedded(final.arm) or final.arm == "cnn"]
    lines = [_HEAD, ["---"] * len(_HEAD), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _row(final: Final) -> list[str]:
    return [
        f"`{final.arm}`" + ("" if final.complete else " (unfinished)"),
        "–" if final.relax_epoch is None else str(final.relax_epoch),
        f"{final.stored.mean:,.0f}" if final.stored.n else "–",
        _scaled(final.test_accuracy, 100).text(1),
        _scaled(final.against_cnn, 100).text(1),
        final.test_loss.text(2),
        final.delta.text(3),
        _scaled(final.leak, 100).text(1),
        _scaled(final.captured, 100).text(1),
    ]


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.mean * factor, spread.std * factor, spread.n)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, print the table, draw the figure; 2 where the options cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m experiments.off_local.compare", description=__doc__)
    add = parser.add_argument
    add("--run-dir", type=Path, default=Path("runs/supports"), help="default: runs/supports")
    add("--seeds", type=int, default=3, metavar="N", help="run the seeds 0 to N-1 (default: 3)")
    add("--relax-times", type=int, nargs="+", default=[2, 12], metavar="EPOCH", help="default: 2 12")
    add("--relax-epochs", type=int, default=16, metavar="N", help="default: 16")
    add("--threads", type=int, default=1, help="of torch (default: 1)")
    add("--out", type=Path, default=Path("docs/figures"), metavar="DIR", help="default: docs/figures")
    options = parser.parse_args(arguments)
    try:
        wanted = config(options.seeds, options.relax_times, options.relax_epochs, options.threads)
        run = read_run(run_relax(wanted, options.run_dir))
        print(markdown(run), end="")
        options.out.mkdir(parents=True, exist_ok=True)
        with drawing_style():
            for drawing in draw_stored_weights(run):
                save(drawing, options.out)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"off_local.compare: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
