"""Where relaxing beats the CNN it came from: the table and the figure of docs/relax.md, on Fashion-MNIST.

    python -m experiments.headline --workers 2 --results benchmarks/results/headline.json

Settings were chosen on the last sixth of the training images, and the runs see no others beside those they train on.
The test images are read once for each net, at the end. Every number is paired by seed with the CNN that went on for as
many epochs at the same learning rate.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.analysis.statistics import spread
from efcn_sparse.models import fashion_cnn
from efcn_sparse.training import RelaxConfig, Task, load_arm, run_relax
from efcn_sparse.training.data.idx import FASHION_MNIST, find_idx, read_idx
from efcn_sparse.training.data.images import Images

SHIFT = 6  # pixels at most, up, down, left and right
ARMS = ("elcn", "efcn-full")


class Case(NamedTuple):
    """One thing that is varied."""

    words: str
    relax_times: tuple[int, ...] = (0, 20, 60)
    relax_epochs: int = 60
    images: int = 1000
    shifted: bool = False
    width: int = 8
    copies: str = "mean"

    def task(self, folder: Path) -> Task:
        """What the runs of this case train and are validated on."""
        load = functools.partial(images_of, folder, self.shifted)
        return Task(
            functools.partial(fashion_cnn, width=self.width),
            functools.partial(_part, load, ("train_x", "train_y")),
            functools.partial(_part, load, ("test_x", "test_y")),
        )

    def configs(self, seeds: tuple[int, ...]) -> dict[str, RelaxConfig]:
        """The CNN at every epoch that something is compared with, and all arms."""
        common: dict[str, Any] = dict(seeds=seeds, lr=0.05, batch_size=50, train_limit=self.images, test_limit=1000)
        times = sorted({*self.relax_times, *(time + self.relax_epochs for time in self.relax_times)})
        return {
            "cnn": RelaxConfig(arms=("cnn",), cnn_epochs=times[-1], relax_times=tuple(times), **common),
            "all": RelaxConfig(
                arms=("cnn", *ARMS), cnn_epochs=max(self.relax_times), relax_epochs=self.relax_epochs,
                relax_times=self.relax_times, copies=self.copies, **common,
            ),
        }  # fmt: skip


CASES = {
    "aligned": Case("1,000 images, as they are"),
    "copies-sum": Case("the same, tied step as the CNN's (copies=sum)", copies="sum"),
    "shifted": Case(f"1,000 images, each shifted by up to {SHIFT} pixels", shifted=True),
    "few": Case("200 images", (0, 100, 300), 300, images=200),
    "many": Case("10,000 images", (0, 5, 15), 15, images=10_000),
    "wide": Case("1,000 images, a CNN twice as wide", width=16),
}


@functools.lru_cache(maxsize=2)
def images_of(folder: Path, shifted: bool, test: bool = False) -> Images:
    """The first five sixths of the training images, and the last sixth or the test images; normalized by the first."""
    x, y = _read(folder, "train")
    split = len(x) - len(x) // 6
    parts = [x[:split], y[:split], *(_read(folder, "t10k") if test else (x[split:], y[split:]))]
    if shifted:
        parts[0], parts[2] = _shift(parts[0], 0), _shift(parts[2], 2 if test else 1)
    return Images.normalized(*(part.unsqueeze(1) if part.dim() == 3 else part for part in parts))


def _read(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    return (
        read_idx(find_idx(folder, f"{prefix}-images-idx3-ubyte")),
        read_idx(find_idx(folder, f"{prefix}-labels-idx1-ubyte")),
    )


def _part(load: Callable[[], Images], names: tuple[str, str], seed: int) -> tuple[Tensor, Tensor]:
    x, y = (getattr(load(), name) for name in names)
    return x, y


def _shift(x: Tensor, seed: int) -> Tensor:
    shifts = np.random.default_rng(seed).integers(-SHIFT, SHIFT + 1, (len(x), 2)).tolist()
    padded = torch.nn.functional.pad(x, (SHIFT,) * 4)
    return torch.stack([
        padded[i, SHIFT - down : SHIFT - down + x.shape[1], SHIFT - right : SHIFT - right + x.shape[2]]
        for i, (down, right) in enumerate(shifts)
    ])  # fmt: skip


def accuracies(
    case: Case, run_dirs: Mapping[str, Path], seeds: tuple[int, ...], folder: Path
) -> dict[str, list[float]]:
    """Test accuracy in per cent by seed, of each ``arm/relax time/epoch``; the CNN has no relax time."""
    task, images = case.task(folder), images_of(folder, case.shifted, test=True)
    ends = [(time, time + case.relax_epochs) for time in case.relax_times]
    nets = [("cnn", None, epoch) for epoch in sorted({epoch for pair in ends for epoch in pair})]
    nets += [(arm, time, end) for arm in ARMS for time, end in ends]
    found = {}
    for arm, time, epoch in nets:
        run_dir = run_dirs["cnn" if arm == "cnn" else "all"]
        found[f"{arm}/{'' if time is None else time}/{epoch}"] = [
            _accuracy(load_arm(run_dir, arm, seed, time, epoch, task=task), images) for seed in seeds
        ]
    return found


@torch.no_grad()
def _accuracy(net: torch.nn.Module, images: Images) -> float:
    batches = zip(images.test_x.split(500), images.test_y.split(500), strict=True)
    return 100 * sum(int((net(x).argmax(1) == y).sum()) for x, y in batches) / len(images.test_y)


class Row(NamedTuple):
    """One relax time of one case: mean accuracies, and paired differences with half their 95% intervals."""

    case: str
    time: int
    end: int
    cnn: float
    elcn: float
    efcn: float
    over_cnn: tuple[float, float]
    over_elcn: tuple[float, float]
    over_stem: tuple[float, float]


def rows(results: Mapping[str, Mapping[str, list[float]]]) -> list[Row]:
    """The table of :func:`accuracies` by case."""
    table = []
    for name, found in results.items():
        for key in found:
            arm, time, end = key.split("/")
            if arm != "efcn-full":
                continue
            efcn, elcn, cnn, stem = (found[k] for k in (key, f"elcn/{time}/{end}", f"cnn//{end}", f"cnn//{time}"))
            means = [statistics.mean(values) for values in (cnn, elcn, efcn)]
            pairs = [spread([a - b for a, b in zip(efcn, other, strict=True)]) for other in (cnn, elcn, stem)]
            table.append(Row(name, int(time), int(end), *means, *((pair.mean, pair.half_width) for pair in pairs)))
    return table


def page(table: list[Row]) -> str:
    """The table in Markdown."""
    head = "| case | relax time | CNN | eLCN | eFCN | eFCN − CNN | eFCN − eLCN | eFCN − the CNN it stemmed from |"
    lines = [head, "|" + "---|" * 8]
    for row in table:
        pairs = (f"{mean:+.1f} ± {half:.1f}" for mean, half in (row.over_cnn, row.over_elcn, row.over_stem))
        means = (f"{mean:.1f}" for mean in (row.cnn, row.elcn, row.efcn))
        lines.append(f"| {CASES[row.case].words} | {row.time} | {' | '.join((*means, *pairs))} |")
    return "\n".join(lines) + "\n"


def draw(table: list[Row], path: Path) -> None:
    """The differences to both controls, case by case and relax time by relax time."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.case for row in table))
    figure, axes = pyplot.subplots(1, len(names), figsize=(1.9 * len(names) + 1.2, 3.4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        of_case = [row for row in table if row.case == name]
        for field, shift, color, label in (
            ("over_cnn", -0.09, "#c2410c", "the CNN that went on"), ("over_elcn", 0.09, "#1d4ed8", "the eLCN"),
        ):  # fmt: skip
            means, halves = zip(*(getattr(row, field) for row in of_case), strict=True)
            places = [i + shift for i in range(len(of_case))]
            axis.errorbar(places, means, halves, fmt="o", color=color, capsize=3, label=label)
        axis.axhline(0, color="gray", linewidth=0.8)
        axis.set_xticks(range(len(of_case)), [str(row.time) for row in of_case])
        axis.set_xlim(-0.5, len(of_case) - 0.5)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("relax time (epoch)", fontsize=9)
    axes[0][0].set_ylabel("test accuracy of the eFCN minus that of\nits control, points")
    axes[0][0].legend(fontsize=8, frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--data", type=Path, default=FASHION_MNIST, help="folder of the IDX files")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/headline"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--results", type=Path, help="JSON file that gets all accuracies")
    parser.add_argument("--figure", type=Path, help="file that gets the figure")
    chosen = parser.parse_args(arguments)
    seeds = tuple(range(chosen.seeds))
    results = {}
    alone = chosen.workers == 1
    pool = contextlib.nullcontext() if alone else ProcessPoolExecutor(chosen.workers, get_context("spawn"))
    with pool as executor:
        for name in chosen.cases:
            run_dirs = {
                kind: run_relax(
                    CASES[name].task(chosen.data), config, chosen.run_dir / f"{name}-{kind}", executor=executor
                )
                for kind, config in CASES[name].configs(seeds).items()
            }
            results[name] = accuracies(CASES[name], run_dirs, seeds, chosen.data)
    table = rows(results)
    print(page(table))
    if chosen.results is not None:
        chosen.results.write_text(json.dumps(results, indent=1) + "\n")
    if chosen.figure is not None:
        draw(table, chosen.figure)


if __name__ == "__main__":
    main()
