"""The command: measure, then print the page and draw the figure."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from efcn_sparse.measure import machine as machines
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.data import load_data
from efcn_sparse.training.nets import embed_as, load_arm
from efcn_sparse.training.plan import CNN, FULL
from efcn_sparse.training.run_directory import read_config
from experiments.off_local.measure import measure
from experiments.off_local.train import train_each
from experiments.off_local.trajectory import cnn_at, recorded, trained

NAME = "off_local"


def main(arguments: list[str] | None = None) -> int:
    """Measure what the options ask for; 2 where they cannot be met."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    machine = machines.describe(options.threads)
    try:
        records = [record for path in options.records for record in json.loads(path.read_text())["records"]]
        if not records:
            records = _measured(options)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"off_local: error: {error}", file=sys.stderr)
        return 2
    _write(records, options.out)

    from experiments.off_local.figure import draw
    from experiments.off_local.page import markdown

    print(markdown(records, machine), end="")
    draw(records, options.out)
    return 0


def _measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    config = _config(options)
    records = []
    for seed in options.seeds or config.seeds:
        images = load_data(config, seed)
        for time in config.relax_times:
            print(f"seed {seed}, relax time {time}", file=sys.stderr)
            if options.run is None:
                cnn = cnn_at(config, seed, time, images)
                full = embed_as(FULL, copy.deepcopy(cnn), config.preset)
                nets = trained(full, config, seed, time, time + config.relax_epochs, images)
            else:
                cnn, nets = load_arm(options.run, CNN, seed, None, time), recorded(options.run, seed, time)
            record, layers, gradients = measure(nets, images, seed=seed, time=time, batch_size=config.batch_size)
            if not options.no_training:
                record["trained"] = train_each(cnn, layers, gradients, config, images, seed=seed, time=time)
            records.append(record)
            _write(records, options.out)  # what is measured stays, whatever happens next
    return records


def _config(options: argparse.Namespace) -> RelaxConfig:
    """Of the run if there is one, else of the preset with the options."""
    if options.run is None:
        times = tuple(options.times or (2, 12))
        return RelaxConfig.from_preset(
            "digits", seeds=(0, 1, 2), relax_times=times, cnn_epochs=max(times), relax_epochs=options.epochs
        )
    config = read_config(options.run)
    if config.preset != "digits":
        raise ValueError(f"the run must be of the preset digits, whose matrices are small, got {config.preset}")
    known = config.relax_times
    if options.times is not None and not set(options.times) <= set(known):
        raise ValueError(f"the times must be relax times of the run, {known}, got {tuple(options.times)}")
    return dataclasses.replace(config, relax_times=tuple(options.times or known), device="cpu")


def _write(records: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps({"records": records}, separators=(",", ":")) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.off_local",
        description="What supports of different kinds hold of the off-local part of an eFCN of the digits CNN.",
    )
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", help="default: 0 1 2, or those of the run")
    add("--times", type=int, nargs="+", help="relax times (default: 2 12, or those of the run)")
    add("--epochs", type=int, default=16, help="epochs after the embedding (default: 16, or those of the run)")
    add("--run", type=Path, metavar="DIR", help="take the nets of efcn-full from this run instead of training them")
    add("--no-training", action="store_true", help="train no nets with restricted supports")
    add("--records", type=Path, nargs="+", default=[], metavar="JSON", help="only page and figure, of these")
    add("--out", type=Path, default=Path("docs/figures"), metavar="DIR", help="default: docs/figures")
    add("--threads", type=int, default=1, help="of torch (default: 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
