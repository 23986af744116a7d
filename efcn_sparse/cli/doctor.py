"""``efcn-sparse doctor``: what embedding a model would store, and what training it would take."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from efcn_sparse.planning.sizes import parse_size, size_text

if TYPE_CHECKING:
    from torch import nn

    from efcn_sparse.embedding.plan import LayerPlan, Plan

_INPUTS = {"vanilla": "3,32,32", "alexnet": "3,32,32", "resnet18": "3,224,224"}
_HEAD = (
    "layer", "input", "output", "matrix", "support", "block", "blocks", "local", "stored", "of full", "memory"
)  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="what embedding a model would store, without building it",
        description="Plan the embedding of a model: block shapes, stored weights and memory per convolution. "
        "Nothing is allocated: the model is made and run on torch's meta device. With --batch, also what a training "
        "step on the CPU holds and does; with --budget, which supports fit. Python and torch are not counted.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"one of {', '.join(_INPUTS)}, or package.module:function, a callable that returns an nn.Module",
    )
    parser.add_argument(
        "--input", metavar="C,H,W", help="size of one input without the batch (default: that of the named model)"
    )
    parser.add_argument("--support", default="local", help="local, full or dilated<radius> (default: local)")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="PATTERN", help="leave these convolutions as they are"
    )
    parser.add_argument("--dtype", default="float32", help="of the weights (default: float32)")
    parser.add_argument("--batch", metavar="N", help="predict a training step with this many inputs")
    parser.add_argument("--optimizer", metavar="NAME", help="sgd, momentum or adamw (default: sgd)")
    parser.add_argument("--fused", action="store_true", help="update inside the backward pass (FusedOptimizer)")
    parser.add_argument("--budget", metavar="SIZE", help="say which supports fit into this memory, such as 100GiB")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Plan the embedding and print it."""
    import torch

    from efcn_sparse.embedding.support import parse_support
    from efcn_sparse.planning.budget import Step, StepPlanner
    from efcn_sparse.planning.fused_cost import checked_optimizer
    from efcn_sparse.planning.text import budget_lines, step_lines

    support = parse_support(args.support)
    checked_optimizer(args.optimizer or "sgd")
    batch = _batch(args)
    budget = None if args.budget is None else parse_size("--budget", args.budget)
    factory = _factory(args.model)
    size = _input_size(args.input or _INPUTS.get(args.model))
    dtype = getattr(torch, args.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"--dtype must be a floating-point dtype of torch, got {args.dtype!r}")
    with torch.device("meta"):
        try:
            model = factory()
        except TypeError as error:
            raise ValueError(f"MODEL must be callable without arguments, got {args.model!r}: {error}") from error
        example = torch.empty(1, *size, dtype=dtype)
    _check_model(args.model, model)
    try:
        planner = StepPlanner(model.to(dtype), example, dict.fromkeys(args.skip))
        planned = planner.plan(support)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{args.model} must run on an input of {list(example.shape)}, got {error}") from error
    told, lines = as_dict(planned), [table(planned)]
    if batch is not None:
        step = Step(support, batch, args.optimizer or "sgd", args.fused)
        fit = None if budget is None else planner.fit(step, budget)
        prediction = planner.predict(step)
        told["step"] = {"batch": batch, "optimizer": step.optimizer, "fused": step.fused, "predicted": vars(prediction)}
        lines += ["", *step_lines(step, prediction)]
        if fit is not None:
            told["budget"] = {"fits": prediction.peak <= fit.budget, **vars(fit)}
            lines += ["", *budget_lines(fit)]
    print(json.dumps(told, indent=2) if args.json else "\n".join(lines))
    return 0


def _batch(args: argparse.Namespace) -> int | None:
    if args.batch is None:
        given = {"--optimizer": args.optimizer, "--fused": args.fused or None, "--budget": args.budget}
        names = [name for name, value in given.items() if value is not None]
        if names:
            raise ValueError(f"--batch must be given with {names[0]}, such as --batch 250")
        return None
    if not (args.batch.isascii() and args.batch.isdigit() and int(args.batch) >= 1):
        raise ValueError(f"--batch must be an integer of at least 1, got {args.batch!r}")
    return int(args.batch)


def table(planned: Plan) -> str:
    """A line per layer, and the sums."""
    rows: list[tuple[str, ...]] = [_HEAD, *(_row(layer) for layer in planned.layers)]
    share = planned.stored_weights / planned.full_weights
    sums = (f"{planned.local_weights:,}", f"{planned.stored_weights:,}", f"{share:.2%}", size_text(planned.bytes))
    rows.append(("total", "", "", "", "", "", f"{planned.stored_blocks:,}", *sums))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    words = _HEAD.index("blocks")  # what comes before is text, the rest are numbers
    cells = list(zip(row, widths, strict=True))
    return [cell.ljust(width) for cell, width in cells[:words]] + [cell.rjust(width) for cell, width in cells[words:]]


def as_dict(planned: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    sums = ("local_weights", "support_weights", "stored_blocks", "stored_weights", "full_weights", "bytes")
    layers = [
        {
            "name": layer.name,
            "input_size": [layer.geometry.in_channels, *layer.geometry.input_size],
            "output_size": [layer.geometry.out_channels, *layer.geometry.output_size],
            "shape": list(layer.shape),
            "support": str(layer.support),
            "block_shape": list(layer.block_shape),
            **{name: getattr(layer, name) for name in sums},
        }
        for layer in planned.layers
    ]
    return {"layers": layers, "total": {name: getattr(planned, name) for name in sums}}


def _row(layer: LayerPlan) -> tuple[str, ...]:
    geometry = layer.geometry
    return (
        layer.name,
        "×".join(map(str, (geometry.in_channels, *geometry.input_size))),
        "×".join(map(str, (geometry.out_channels, *geometry.output_size))),
        "×".join(f"{side:,}" for side in layer.shape),
        str(layer.support),
        "×".join(map(str, layer.block_shape)),
        f"{layer.stored_blocks:,}",
        f"{layer.local_weights:,}",
        f"{layer.stored_weights:,}",
        f"{layer.stored_weights / layer.full_weights:.2%}",
        size_text(layer.bytes),
    )


def _input_size(text: str | None) -> list[int]:
    if text is None:
        raise ValueError("--input must be given for a model of your own, such as --input 3,224,224")
    size = [int(side) if side.isascii() and side.isdigit() else 0 for side in text.split(",")]
    if min(size) < 1:
        raise ValueError(f"--input must be integers of at least 1 with commas between, got {text!r}")
    return size


def _factory(name: str) -> Callable[[], Any]:
    from efcn_sparse.models import MODELS

    if name in MODELS:
        return MODELS[name]
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"MODEL must be one of {', '.join(MODELS)} or package.module:function, got {name!r}")
    sys.path.insert(0, os.getcwd())  # so that a file of one's own is found, as with python -m
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"MODEL must name something that can be imported, got {name!r}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ValueError(f"MODEL must name a callable, got {name!r}, a {type(found).__name__}")
    return found


def _check_model(name: str, model: nn.Module) -> None:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ValueError(f"MODEL must return an nn.Module, got {type(model).__name__} from {name!r}")
