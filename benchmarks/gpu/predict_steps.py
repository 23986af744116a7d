"""The least time of a whole training step: a CNN's, and its local eFCN's with weights of different kinds.

What is not a product (normalization, activations, pooling, sums) is counted operator by operator on tensors without
memory, forward and backward, each reading its operands and writing its results once, as eager PyTorch does. Products
of the eFCN are the work model's; a convolution takes the larger of its FLOP and its bytes over the ceilings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu.cases import OPERATIONS, STEP_GOAL, Net
from benchmarks.gpu.nets import distinct_layers, make_cnn
from benchmarks.gpu.predict import NAMES, SM90
from efcn_sparse.ops.backends.triton import plan, work

# bytes that pass through memory for each stored weight and step, beside the products' own; plain SGD
WEIGHT_BYTES: Mapping[str, int] = {
    # cast 4 → 2 for the products, gradient 2 → 4, update: weight and gradient read, weight written
    "fp32 weights": 6 + 6 + 12,
    "fp32 weights, fused": 6 + 6 + 6 + 12,  # cast once more for dX
    # cast 4 → 2 once for forward and dX; weight read and written in fp32, where a bf16 gradient would have been written
    "fp32 weights, SGD inside dW": 6 + 8 - 2,
    "bf16 weights, fused": 6,
    # bf16 weights read once more, and written where the gradient would have been: what sddmm does with beta
    "bf16 weights, SGD inside dW": 2,
}


class _Traffic(TorchDispatchMode):
    """Bytes of the operators that are no convolutions; FLOP and bytes of those that are, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0
        self.convolutions: list[tuple[float, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in _CONVOLUTIONS:
            flops = flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.convolutions.append((float(flops), _bytes((args, out))))
        elif not function.is_view and function.overloadpacket not in _FREE:
            self.moved += _bytes((args, kwargs, out))
        return out


_CONVOLUTIONS = {torch.ops.aten.convolution, torch.ops.aten.convolution_backward}
_FREE = {torch.ops.aten.detach, torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty}


def _bytes(things: Any) -> int:
    return sum(thing.nbytes for thing in tree_flatten(things)[0] if isinstance(thing, Tensor))


@functools.cache
def traffic(net: Net) -> _Traffic:
    """Of one step of the CNN in bf16, without the update of its few weights."""
    with torch.device("meta"):
        model = make_cnn(net).to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.empty(net.batch, 3, net.pixels, net.pixels, dtype=torch.bfloat16)
        labels = torch.empty(net.batch, dtype=torch.int64)
    with _Traffic() as found:
        F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)).float(), labels).backward()
    return found


def products(machine: work.Machine, net: Net) -> tuple[float, int]:
    """Least seconds of all products of the eFCN, its input layer without dX; and its stored weights."""
    seconds, weights = 0.0, 0
    for number, (layer, count) in enumerate(distinct_layers(net)):
        weights += count * math.prod(layer.pattern.values_shape)
        for operation in OPERATIONS[:1] + OPERATIONS[2:] if number == 0 else OPERATIONS:
            problem = plan.Problem.of(NAMES[operation], layer.pattern, net.batch, torch.bfloat16, SM90)
            config = plan.configure(problem)
            entries = plan.super_rows(problem, config.members).cols.numel()
            count_work = work.sddmm_work if operation == "dw" else work.spmm_work
            seconds += count * count_work(problem.sizes(), entries, config).seconds(machine, 16)
    return seconds, weights


def steps_table(machines: Sequence[work.Machine], nets: Sequence[Net]) -> str:
    """Markdown: milliseconds of the parts, of the steps, and steps over the CNN's."""
    heads = ["net", "GPU", "both: the rest", "CNN: convolutions", "CNN", "eFCN: products", "weights", "eFCN", "/ CNN"]
    lines = [heads, ["---"] * len(heads)]
    for net in nets:
        found = traffic(net)
        for machine in machines:
            rest = found.moved / machine.memory
            convolutions = sum(max(f / machine.flops[16], b / machine.memory) for f, b in found.convolutions)
            ours, weights = products(machine, net)
            for name, moved in WEIGHT_BYTES.items():
                step = rest + ours + weights * moved / machine.memory
                ratio = step / (rest + convolutions)
                numbers = (rest, convolutions, rest + convolutions, ours, weights * moved / machine.memory, step)
                mark = "**" if ratio <= STEP_GOAL else ""
                lines.append([f"{net.model} {net.pixels}, N={net.batch}, {name}", machine.name,
                              *(f"{1e3 * number:.2f}" for number in numbers), f"{mark}{ratio:.2f}{mark}"])  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
