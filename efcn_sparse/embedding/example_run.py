"""Running a model on an example without leaving a trace, and seeing which convolutions it computes."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from efcn_sparse.copying import copy_of
from efcn_sparse.embedding.geometry import ConvGeometry

_CONVOLUTION = re.compile(r"conv(?!ert)")  # aten::conv2d, aten::convolution, aten::mkldnn_convolution, ...
_UNFOLD = ("aten::im2col", "aten::unfold")


@dataclass(frozen=True)
class Example:
    """The arguments of a model's call.

    Attributes:
        args, kwargs: positional and by keyword; tensors may lie in tuples, lists and dicts, and others may be there.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, example_input: Any, example_inputs: Any = None, example_kwargs: Any = None, *, name: str = "example_input"
    ) -> Example:
        """The arguments as :func:`embed` takes them; ``name`` is what the caller calls the first one.

        Raises:
            TypeError: one of them is of the wrong kind, or there are none.
        """
        if example_input is not None and example_inputs is not None:
            raise TypeError(f"example_inputs must be None where {name} is given, got both")
        if example_inputs is not None and not isinstance(example_inputs, (tuple, list)):
            raise TypeError(f"example_inputs must be a tuple, got {type(example_inputs).__name__}")
        if example_kwargs is not None and not isinstance(example_kwargs, Mapping):
            raise TypeError(f"example_kwargs must be a dict, got {type(example_kwargs).__name__}")
        if example_inputs is None and (example_input is not None or not example_kwargs):
            example_inputs = (example_input,) if isinstance(example_input, Tensor) else example_input
            tensors = isinstance(example_inputs, (tuple, list)) and all(isinstance(x, Tensor) for x in example_inputs)
            if not tensors or not example_inputs:
                raise TypeError(
                    f"{name} must be a tensor or a tuple of tensors, got {type(example_input).__name__}; other "
                    "arguments of the model go into example_inputs=(...) and example_kwargs={...}"
                )
        return cls(tuple(example_inputs or ()), dict(example_kwargs or {}))

    def call(self, model: nn.Module) -> Any:
        """What ``model`` returns for these arguments."""
        return model(*self.args, **self.kwargs)

    @property
    def batch(self) -> int | None:
        """The first side of the first tensor; None without one."""
        return next((len(x) for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor) and x.dim()), None)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Example:
        """The same with ``change(x)`` in the place of each tensor x."""
        return Example(*tree_map_only(Tensor, change, (self.args, dict(self.kwargs))))

    def of_batch(self, batch: int) -> Example:
        """The same with the rows of the batch repeated or cut off: of all tensors whose first side is the batch's."""
        own = self.batch
        return self.changed(lambda x: x[torch.arange(batch, device=x.device) % own] if x.dim() and len(x) == own else x)

    def with_other_numbers(self, scale: float) -> Example:
        """The same with other numbers in all floating-point tensors, larger or smaller."""
        return self.changed(lambda x: scale * (x + torch.randn_like(x)) if x.is_floating_point() else x)

    def to(self, *target: Any) -> Example:
        """The same with all floating-point tensors on a device or of a dtype."""
        return self.changed(lambda x: x.to(*target) if x.is_floating_point() else x)


@dataclass(frozen=True)
class Call:
    """A convolution that was computed.

    Attributes:
        name: of the innermost module of the model that computed it.
        weight: the name of the parameter that is its kernel; None where the kernel was computed.
        kernel: how many numbers the kernel has.
    """

    name: str
    weight: str | None
    kernel: int


@dataclass(frozen=True)
class Traced:
    """A call of a module that was a convolution.

    Attributes:
        geometry: with the zeros that the module put around its input.
        numbers: the weight and the bias that the module computed without its input; None: they are its parameters.
    """

    geometry: ConvGeometry
    numbers: tuple[Tensor, Tensor | None] | None

    def same_as(self, other: Traced | None) -> bool:
        """Whether another call multiplied with the same numbers at the same places."""
        if other is None or self.geometry != other.geometry or self.numbers is None or other.numbers is None:
            return other is not None and (self.geometry, self.numbers) == (other.geometry, other.numbers)
        return all(
            one is two or (one is not None and two is not None and (one.is_meta or torch.equal(one, two)))
            for one, two in zip(self.numbers, other.numbers, strict=True)
        )


@dataclass
class Run:
    """What a model did on an example.

    Attributes:
        example, training: what it was given, and in which mode.
        output: what it returned.
        computed: the convolutions, in order.
        unfolded: names of the modules that laid windows of their input side by side, as for a convolution by a product.
        shapes: by the name of a watched convolution, the shape of what it got at each call and, if it is a transposed
            one, of what it returned; else ``()``.
        traced: by the name of a traced module, the convolution that each of its calls was; None where it was more.
    """

    example: Example
    training: bool
    output: Any = None
    computed: list[Call] = field(default_factory=list)
    unfolded: set[str] = field(default_factory=set)
    shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = field(default_factory=dict)
    traced: dict[str, list[Traced | None]] = field(default_factory=dict)


def run(
    model: nn.Module,
    example: Example,
    training: bool,
    watched: Iterable[str] = (),
    traced: Iterable[str] = (),
    *,
    shares_parameters: bool = False,
) -> Run:
    """The model's output in the given mode, without gradients, and which convolutions it computed.

    It is a copy that runs, and the states of the random generators of torch, NumPy and Python are put back; so the
    model is as before. Where a traced module computes its weight, the copy runs on other numbers, too.

    Args:
        watched, traced: names of convolutions whose shapes are noted, and whose calls are looked into.
        shares_parameters: the copy has those of ``model``, and only buffers of its own.
    """
    shared = {id(parameter): parameter for parameter in model.parameters()} if shares_parameters else {}
    copied = copy_of(model, shared)
    done, watch = Run(example, training), _Watch(copied)
    for name in watched:
        copied.get_submodule(name).register_forward_hook(_noting_shapes(done, name), with_kwargs=True)
    for name in traced:
        copied.get_submodule(name).register_forward_pre_hook(watch.start)
        copied.get_submodule(name).register_forward_hook(_tracing(done, name, watch), with_kwargs=True)
    copied.train(training)
    gpus = sorted({p.get_device() for p in copied.parameters() if p.is_cuda})
    with random_numbers_kept(gpus), torch.no_grad():
        with watch:
            done.output = example.call(copied)
        done.computed, done.unfolded = list(watch.computed), set(watch.unfolded)
        if any(call is not None and call.numbers is not None for calls in done.traced.values() for call in calls):
            try:  # the numbers may depend on the data, on earlier calls or on chance
                for scale in (0.1, 2.0):
                    with watch:
                        example.with_other_numbers(scale).call(copied)
            except Exception:
                done.traced = {name: [None] for name in done.traced}
    return done


def _noting_shapes(done: Run, name: str) -> Callable[..., None]:
    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        transposed = getattr(module, "transposed", False) and isinstance(output, Tensor)  # it may be called for a size
        got = (arguments[0] if arguments else named["input"]).shape
        done.shapes.setdefault(name, []).append((tuple(got), tuple(output.shape) if transposed else ()))

    return note


def _tracing(done: Run, name: str, watch: _Watch) -> Callable[..., None]:
    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        done.traced.setdefault(name, []).append(
            watch.traced(module, arguments[0] if arguments else named["input"], output)
        )

    return note


class _Watch(TorchDispatchMode):
    """Notes every convolution that is computed, by a module, a function or a script."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.computed: list[Call] = []
        self.unfolded: set[str] = set()
        self._names = {id(module): name for name, module in model.named_modules()}
        self._parameters = dict(model.named_parameters())  # holds them, so that their ids stay theirs
        self._weights = {id(parameter): name for name, parameter in self._parameters.items()}
        self._operations: list[tuple[Any, tuple[Any, ...], Any]] | None = None  # of the traced module that runs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name
        if self._operations is not None:
            self._operations.append((func, args, output))
        if name in _UNFOLD:
            self.unfolded.add(self._innermost())
        elif _CONVOLUTION.search(name) and isinstance(output, Tensor) and len(args) > 1:
            self.computed.append(Call(self._innermost(), self._weights.get(id(args[1])), args[1].numel()))
        return output

    def _innermost(self) -> str:
        frame: Any = sys._getframe(2)
        while frame is not None:
            found = self._names.get(id(frame.f_locals.get("self")))
            if found is not None:
                return found
            frame = frame.f_back
        return ""

    def start(self, *_: Any) -> None:
        """A traced module is called."""
        self._operations = []

    def traced(self, module: nn.Module, input: Tensor, output: Any) -> Traced | None:
        """The convolution that the module was, if all it did with its input is to put zeros around it and convolve.

        It may have computed the weight and the bias, but not from random numbers.
        """
        operations, self._operations = self._operations or [], None
        if not operations:
            return None
        *before, (last, args, result) = operations
        if not _CONVOLUTION.search(last._schema.name) or len(args) != 9 or result is not output:
            return None
        x, weight, bias, stride, padding, dilation, transposed, _, groups = args
        uses = [one for one in before if any(leaf is input or leaf is x for leaf in tree_leaves(one[1]))]
        around: list[int] = []  # [last low, last high, second last low, ...]
        if x is not input:
            pads = [
                arguments
                for func, arguments, padded in uses
                if func._schema.name == "aten::constant_pad_nd" and padded is x and arguments[0] is input
            ]
            if len(uses) != 1 or len(pads) != 1 or (len(pads[0]) > 2 and pads[0][2] != 0):
                return None
            around = pads[0][1]
        elif uses:
            return None
        dims = input.dim() - 2
        sides = [*around, *[0] * (2 * dims - len(around))]
        if transposed or len(sides) != 2 * dims or min(sides) < 0:
            return None
        zeros = [(sides[2 * dim], sides[2 * dim + 1]) for dim in reversed(range(dims))]
        geometry = ConvGeometry(
            input.shape[1], output.shape[1], groups, tuple(input.shape[2:]), tuple(weight.shape[2:]), tuple(stride),
            tuple((low + p, high + p) for (low, high), p in zip(zeros, padding, strict=True)), tuple(dilation),
        )  # fmt: skip
        own = module._parameters
        if weight is own.get("weight") and bias is own.get("bias"):
            return Traced(geometry, None) if len(before) == len(uses) else None
        random = any(torch.Tag.nondeterministic_seeded in func.tags for func, *_ in before)
        return (
            Traced(geometry, (weight, bias)) if weight.dtype == next(module.parameters()).dtype and not random else None
        )


@contextmanager
def random_numbers_kept(gpus: Iterable[Any]) -> Iterator[None]:
    """Put the states of the random generators of Python, NumPy, the CPU and ``gpus`` back afterwards."""
    python, arrays = random.getstate(), numpy.random.get_state()  # noqa: NPY002  # models and data draw from it
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)  # noqa: NPY002


def run_embedded(twin: nn.Module, kind: type[nn.Module], runs: list[tuple[Example, bool]]) -> list[Any]:
    """What the embedded copy returns for each example, in training mode or not.

    Where it cannot run on feature maps that are channels last, its layers are told to return contiguous ones.

    Args:
        kind: of the layers that have ``contiguous_output``.

    Raises:
        ValueError: the copy runs with neither.
    """
    layers: list[Any] = [module for module in twin.modules() if isinstance(module, kind)]
    for contiguous in (False, True):
        for layer in layers:
            layer.contiguous_output = contiguous
        try:
            return [run(twin, example, training, shares_parameters=True).output for example, training in runs]
        except Exception as error:
            failure = error
    name = type(failure).__name__
    raise ValueError(f"the embedded copy must run on the example, got {name}: {failure}") from failure
