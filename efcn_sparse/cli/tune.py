"""``efcn-sparse tune``: time configurations of the GPU kernels, and keep the best in a tuning file."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efcn_sparse.measure.tune import Wanted

_DTYPES = ("bfloat16", "float16", "float32", "float64")


def set_up(parser: argparse.ArgumentParser) -> None:
    """Give ``tune`` its description and arguments."""
    parser.description = (
        "Time tiles of the Triton kernels on this GPU and write the best as rows of a tuning file, after "
        "each case. The same command goes on where it stopped. Programs read the file if EFCN_TUNING names it."
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="grid (random patterns), vanilla, alexnet, resnet18, resnet50, or package.module:function, "
        "which returns a BlockPattern or an nn.Module: its sparse layers, else its convolutions as a local eFCN",
    )
    parser.add_argument("--input", metavar="C,H,W", help="size of one input, for convolutions of a model of your own")
    parser.add_argument("--batch", type=int, nargs="+", default=[256], metavar="N", help="batch sizes (default: 256)")
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16", help="of the operands (default: bfloat16)")
    parser.add_argument("--minutes", type=float, default=30.0, help="begin nothing later than that (default: 30)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the tuning file (default: that of EFCN_TUNING, else efcn-tuning.json)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="all of it on the CPU, with a tiny pattern; its numbers say nothing"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Tune, write the file, and say how to use it."""
    if min(args.batch) < 1:
        raise ValueError(f"--batch must be integers of at least 1, got {args.batch}")
    if not args.minutes > 0:
        raise ValueError(f"--minutes must be more than 0, got {args.minutes}")
    output = args.output or Path(os.environ.get("EFCN_TUNING") or "efcn-tuning.json")
    if not output.parent.is_dir():
        raise ValueError(f"--output must lie in a folder that is there, got {output}")
    if args.dry_run:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is first imported

    import torch

    from efcn_sparse.ops.backends import triton

    device = "cpu" if args.dry_run else "cuda"
    dtype = getattr(torch, args.dtype)
    reason = triton.why_not(device, dtype)
    if reason is not None:
        raise ValueError(f"tune needs the Triton backend on {device}: {reason}")

    from efcn_sparse.measure import gpu_clock, tune

    if output.exists():
        tune.tuning.read(output)  # before minutes of work, not after
    else:
        tune.write(output, ())  # EFCN_TUNING may name it already
    clock = gpu_clock.DryClock() if args.dry_run else gpu_clock.Clock()
    wanted = [tune.Wanted("tiny", _tiny(), 16, dtype)] if args.dry_run else _wanted(args, dtype)
    most = 3 if args.dry_run else None
    found = tune.tune(wanted, output, clock, device, seconds=60 * args.minutes, most=most, tell=_tell)
    better = sum(one.after < one.before for one in found)
    print(f"{len(found)} cases timed, {better} of them faster than before; EFCN_TUNING={output} uses the file")
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _tiny() -> Any:
    import torch

    from efcn_sparse.pattern import BlockPattern

    return BlockPattern.random((64, 48), (16, 16), 0.5, torch.Generator().manual_seed(1))


def _wanted(args: argparse.Namespace, dtype: Any) -> Iterator[Wanted]:
    from efcn_sparse.measure.tune import Wanted

    for (name, pattern), batch in itertools.product(_patterns(args), args.batch):
        yield Wanted(name, pattern, batch, dtype)


def _patterns(args: argparse.Namespace) -> list[tuple[str, Any]]:
    import torch
    from torch import nn

    from efcn_sparse.cli.targets import INPUTS, factory_of, input_size
    from efcn_sparse.embedding import plan
    from efcn_sparse.pattern import BlockPattern

    if args.target == "grid":
        return list(_grid())
    factory = factory_of(args.target, "TARGET")
    with torch.device("meta"):
        model = None if args.target not in INPUTS else factory()
    if model is None:
        model = factory()
    if isinstance(model, BlockPattern):
        return [(args.target, model)]
    if not isinstance(model, nn.Module):
        raise ValueError(f"TARGET must return a BlockPattern or an nn.Module, got {type(model).__name__}")
    layers = [(name, layer.pattern) for name, layer in model.named_modules() if _is_sparse(layer)]
    if layers:
        return layers
    size = input_size(args.input or INPUTS.get(args.target))
    planned = plan(model.to("meta"), torch.empty(1, *size, device="meta"))
    if not planned.layers:
        raise ValueError(f"TARGET must have sparse layers or convolutions, got none in {args.target}")
    return [(layer.name, layer.pattern) for layer in planned.layers]


def _is_sparse(layer: Any) -> bool:
    from efcn_sparse.pattern import BlockPattern

    return isinstance(getattr(layer, "pattern", None), BlockPattern)


def _grid() -> Iterator[tuple[str, Any]]:
    import torch

    from efcn_sparse.pattern import BlockPattern

    for shape, block, density in itertools.product(
        ((4096, 4096), (16384, 4096)), (128, 64, 32, 16), (0.05, 0.1, 0.25, 0.5)
    ):
        generator = torch.Generator().manual_seed(1906)
        name = f"{shape[0]}×{shape[1]}, blocks {block}, {density:.0%}"
        yield name, BlockPattern.random(shape, (block, block), density, generator)
