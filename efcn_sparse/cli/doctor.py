"""``efcn-sparse doctor``: what embedding a model would store, and what training it would take."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from efcn_sparse.cli import doctor_sparsify
from efcn_sparse.cli.doctor_tables import add_supports, as_dict, supports_table, table
from efcn_sparse.cli.targets import INPUTS, factory_of, input_size, picture_path
from efcn_sparse.sizes import parse_size

if TYPE_CHECKING:
    from torch import nn

    from efcn_sparse.embedding.example_run import Example
    from efcn_sparse.embedding.plan import EmbeddingPlan
    from efcn_sparse.embedding.support import Support
    from efcn_sparse.planning.budget import Step, StepPlanner


def set_up(parser: argparse.ArgumentParser) -> None:
    """Give ``doctor`` its description and arguments."""
    parser.description = (
        "Plan the embedding of a model: block shapes, stored weights and memory per convolution. "
        "Nothing is allocated: the model is made and run on torch's meta device. With --batch, also what a training "
        "step on the CPU holds and does; with --budget, which supports fit. Python and torch are not counted."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"one of {', '.join(INPUTS)}, or package.module:function, a callable that returns an nn.Module, or it "
        "and its inputs: a tensor, a tuple, a dict of keyword arguments, or a tuple and a dict, the batch being the "
        "first side",
    )
    parser.add_argument(
        "--input", metavar="C,H,W", help="size of one input without the batch (default: that of the named model)"
    )
    parser.add_argument(
        "--support",
        help="local, full, dilated<radius>, grown<budget> or lowrank<rank> (default: local)",
    )
    parser.add_argument(
        "--supports", nargs="+", default=[], metavar="SUPPORT", help="also what each layer would store in each of these"
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        dest="layers",
        metavar="PATTERN",
        help="leave these convolutions as they are",
    )
    parser.add_argument(
        "--leave-uncalled", action="store_true", help="leave convolutions as they are that the model does not call"
    )
    parser.add_argument("--dtype", default="float32", help="of the weights (default: float32)")
    parser.add_argument("--batch", metavar="N", help="predict a training step with this many inputs")
    parser.add_argument(
        "--optimizer",
        metavar="NAME",
        help="sgd, sgd-inside (FusedOptimizer with inside=True), momentum or adamw (default: sgd)",
    )
    parser.add_argument("--fused", action="store_true", help="update inside the backward pass (FusedOptimizer)")
    parser.add_argument("--budget", metavar="SIZE", help="say which supports fit into this memory, such as 100GiB")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time forward and backward of each sparse layer on this machine",
    )
    parser.add_argument(
        "--picture", "--plot", metavar="FILE",
        help="draw the density of each layer's pattern, or with --sparsify the speed-ups: .png or .svg",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--sparsify", dest="func", action="store_const", const=doctor_sparsify.run,
        help="embed nothing: time each nn.Linear of the model on this machine with --batch rows, dense and "
        "block-sparse, and say below which density and in which blocks sparsity pays",
    )  # fmt: skip
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Plan the embedding and print it."""
    import torch

    from efcn_sparse.embedding.example_run import run as run_example
    from efcn_sparse.embedding.support import parse_support
    from efcn_sparse.planning.budget import Step, StepPlanner
    from efcn_sparse.planning.fused_cost import checked_optimizer

    support = parse_support("local" if args.support is None else args.support, name="--support")
    others = [parse_support(name, name="--supports") for name in args.supports]
    checked_optimizer(args.optimizer or "sgd")
    batch, picture = _batch(args), picture_path("--picture", args.picture)
    budget = None if args.budget is None else parse_size("--budget", args.budget)
    dtype = getattr(torch, args.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"--dtype must be a floating-point dtype of torch, got {args.dtype!r}")
    model, example = _made(args)
    model, example = model.to(dtype), example.to(dtype)
    runs = [(example, False)] if batch is None else [(example, False), (example.of_batch(batch), True)]
    for inputs, training in runs:
        try:
            run_example(model, inputs, training)
        except Exception as error:  # whatever a model raises that gets other inputs than it takes
            mode = " in training mode" if training else ""
            raise ValueError(
                f"{args.model} must run on {_told(inputs)}{mode}, got {type(error).__name__}: {error}; for other inputs"
                " let it return (model, inputs), with inputs a tensor, a tuple, or a dict of keyword arguments, or "
                "(model, tuple, dict)"
            ) from error
    planner = StepPlanner(
        model, layers=dict.fromkeys(args.layers), leave_uncalled=args.leave_uncalled,
        example_inputs=example.args, example_kwargs=example.kwargs,
    )  # fmt: skip
    planned = planner.plan(support)
    told, lines = as_dict(planned), [table(planned)]
    lines += _warning(support, planner)
    if others:
        plans = {str(other): planner.plan(other) for other in others}
        add_supports(told, plans)
        lines += ["", supports_table(plans)]
    if batch is not None:
        lines += _step(Step(support, batch, args.optimizer or "sgd", args.fused), planner, budget, args.measure, told)
    if picture is not None:
        from efcn_sparse.cli.doctor_picture import draw_plan

        draw_plan(planned, args.model, picture)
    print(json.dumps(told, indent=2) if args.json else "\n".join(lines))
    return 0


def _made(args: argparse.Namespace) -> tuple[nn.Module, Example]:
    """The model and its inputs, on the meta device."""
    import torch
    from torch import nn

    from efcn_sparse.embedding.example_run import Example

    factory = factory_of(args.model)
    with torch.device("meta"):
        made = factory()
        if not isinstance(made, tuple) or len(made) not in (2, 3):
            size = input_size(args.input or INPUTS.get(args.model)) if isinstance(made, nn.Module) else []
            made = made, torch.empty(1, *size)
        elif args.input is not None:
            raise ValueError(f"--input must be left out where MODEL returns its inputs too, got {args.input!r}")
    model, inputs, *named = made
    if not isinstance(model, nn.Module):
        raise ValueError(f"MODEL must return an nn.Module, got {type(model).__name__} from {args.model!r}")
    if isinstance(inputs, dict) and not named:
        inputs, named = (), [inputs]
    if not all(isinstance(keywords, dict) for keywords in named):
        raise ValueError(
            f"MODEL must return keyword arguments as a dict, got {type(named[0]).__name__} from {args.model!r}"
        )
    return model, Example(inputs if isinstance(inputs, tuple) else (inputs,), *named)


def _told(example: Example) -> str:
    from torch import Tensor

    parts = [(None, x) for x in example.args] + list(example.kwargs.items())
    sizes = [(name, list(x.shape) if isinstance(x, Tensor) else type(x).__name__) for name, x in parts]
    return "an input of " + ", ".join(f"{size}" if name is None else f"{name}={size}" for name, size in sizes)


def _warning(support: Support, planner: StepPlanner) -> list[str]:
    """A line if the weights alone are more than this machine has memory for, with what fits."""
    try:
        planner.check_memory(support)
    except ValueError as error:
        return ["", f"embed would refuse this here: {error}"]
    return []


def _step(step: Step, planner: StepPlanner, budget: int | None, measure: bool, told: dict[str, Any]) -> list[str]:
    """The lines about a training step; the same goes into ``told``."""
    from efcn_sparse.cli.doctor_tables import budget_lines, step_lines

    fit = None if budget is None else planner.fit(step, budget)
    prediction = planner.predict(step)
    told["step"] = {
        "batch": step.batch, "optimizer": step.optimizer, "fused": step.fused, "predicted": vars(prediction)
    }  # fmt: skip
    lines = ["", *step_lines(step, prediction)]
    if measure:
        lines += _measured(planner.plan(step.support), step.batch, told)
    if fit is not None:
        told["budget"] = {"fits": prediction.peak <= fit.budget, **vars(fit)}
        lines += ["", *budget_lines(fit)]
    return lines


def _measured(planned: EmbeddingPlan, batch: int, told: dict[str, Any]) -> list[str]:
    import torch

    from efcn_sparse.measure.layers import time_layers

    seconds, threads = time_layers(planned, batch), torch.get_num_threads()
    total = sum(seconds.values())
    told["step"]["measured"] = {"seconds": total, "layers": seconds, "threads": threads}
    on = f"{threads} {'thread' if threads == 1 else 'threads'}"
    return [f"  {'time':<11}  {f'{1e3 * total:,.3g} ms':>10}  forward and backward of the sparse layers, timed on {on}"]


def _batch(args: argparse.Namespace) -> int | None:
    if args.batch is None:
        given = {
            "--optimizer": args.optimizer, "--fused": args.fused or None, "--budget": args.budget,
            "--measure": args.measure or None,
        }  # fmt: skip
        names = [name for name, value in given.items() if value is not None]
        if names:
            raise ValueError(f"--batch must be given with {names[0]}, such as --batch 250")
        return None
    if not (args.batch.isascii() and args.batch.isdigit() and int(args.batch) >= 1):
        raise ValueError(f"--batch must be an integer of at least 1, got {args.batch!r}")
    return int(args.batch)
