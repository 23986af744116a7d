"""Whether block sparsity pays: every linear layer's shape timed on this machine, dense and at several densities."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.available import available_bytes
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.refusals import as_linear, linear_base, reason_elsewhere, reason_to_keep
from efcn_sparse.measure.timing import in_turn
from efcn_sparse.ops.checks import DTYPES
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.sizes import size_text

PHASES = ("forward", "training")
_MOST_ROUNDS = 15
Shape = tuple[int, int]


@dataclass(frozen=True)
class Timing:
    """One block shape at one density, in seconds.

    Attributes:
        density: that was asked for.
        stored: that was timed; more where every block row and column must have a block.
        forward: without gradients; training: forward and backward, the gradient of the input included.
    """

    block_shape: Shape
    density: float
    stored: float
    forward: float
    training: float


@dataclass(frozen=True)
class LayerAdvice:
    """What was measured for all layers with a weight of one shape.

    Attributes:
        shape: ``(out_features, in_features)``.
        names: of the layers.
        dense: the :class:`torch.nn.Linear`, in seconds: ``forward`` and ``training``.
        timings: block shape by block shape, the highest density first.
    """

    shape: Shape
    names: tuple[str, ...]
    dense: Mapping[str, float]
    timings: tuple[Timing, ...]

    def speed_up(self, timing: Timing, phase: str = "training") -> float:
        """How many times faster than dense, ``"forward"`` or in ``"training"``."""
        return self.dense[phase] / float(getattr(timing, phase))

    def of(self, block_shape: Shape) -> list[Timing]:
        """The timings of one block shape, the highest density first."""
        return [timing for timing in self.timings if timing.block_shape == block_shape]

    def best_block_shape(self, phase: str = "training") -> Shape:
        """That with the largest geometric mean of its speed-ups over all densities."""
        shapes = dict.fromkeys(timing.block_shape for timing in self.timings)
        return max(shapes, key=lambda shape: sum(math.log(self.speed_up(t, phase)) for t in self.of(shape)))

    def pays_below(self, phase: str = "training", block_shape: Shape | None = None) -> float | None:
        """The density below which a block shape (None: the best) is faster than dense; None if it never is.

        Between two measured densities it is where the straight line between their times meets the dense time. If even
        the highest is faster, it is that one: more was not measured.
        """
        above = None
        for timing in self.of(block_shape or self.best_block_shape(phase)):
            if self.speed_up(timing, phase) > 1:
                if above is None:
                    return timing.stored
                low, high = (float(getattr(t, phase)) for t in (timing, above))
                return timing.stored + (above.stored - timing.stored) * (self.dense[phase] - low) / (high - low)
            above = timing
        return None


@dataclass(frozen=True)
class Advice:
    """The result of :func:`advise`; printing it shows the table.

    Attributes:
        layers: one entry for each shape of a weight.
        left: the layers that :func:`efcn_sparse.sparsify` could not replace, and why; they are not timed.
        batch: rows of each layer's input; threads: those of torch.
    """

    layers: tuple[LayerAdvice, ...]
    left: Mapping[str, str]
    batch: int
    dtype: str
    device: str
    threads: int

    def rules(self, density: float, phase: str = "training") -> dict[str, dict[str, Any]]:
        """For :func:`efcn_sparse.sparsify`: the layers for which ``density`` pays, in their best block shapes."""
        return {
            name: dict(density=density, block_shape=layer.best_block_shape(phase))
            for layer in self.layers
            for name in layer.names
            if density <= (layer.pays_below(phase) or 0.0)
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        layers = [
            {
                **asdict(layer),
                "best_block_shape": {phase: layer.best_block_shape(phase) for phase in PHASES},
                "pays_below": {phase: layer.pays_below(phase) for phase in PHASES},
            }
            for layer in self.layers
        ]
        return {**asdict(self), "layers": layers}

    def __str__(self) -> str:
        return _table(self)


def advise(
    model: nn.Module | Mapping[str, Shape],
    batch: int,
    *,
    block_shapes: Sequence[Shape] = ((16, 16), (32, 32), (64, 64)),
    densities: Sequence[float] = (0.5, 0.25, 0.1, 0.05),
    dtype: torch.dtype | None = None,
    seconds: float = 60.0,
) -> Advice:
    """Time each shape of :class:`torch.nn.Linear` of a model here and now, dense and block-sparse.

    Dense and sparse layers take turns, after a first call that is not timed; each time is a median. The blocks are
    random, and at least enough for one in each block row and column. Threads are torch's present ones.

    Args:
        model: any module, also one on the meta device, whose layers are then timed on the CPU; or ``(out_features,
            in_features)`` by name.
        batch: rows of the input of each layer: samples, or samples times tokens.
        block_shapes: those larger than a layer are left out for it.
        dtype: of weights and inputs; None: that of each layer.
        seconds: about how long to measure in all. Each call is made at least twice, however long that takes.

    Raises:
        ValueError: there is nothing to time, an argument is out of range, or a layer does not fit into memory.

    Example:
        >>> import efcn_sparse as es
        >>> net = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 128), nn.Linear(128, 128))
        >>> advice = es.advise(net, 32, block_shapes=[(32, 32)], densities=[0.25], seconds=0)
        >>> [(layer.shape, layer.names) for layer in advice.layers]
        [((128, 256), ('0',)), ((128, 128), ('2', '3'))]
        >>> advice.layers[0].timings[0].stored
        0.25
    """
    _check(batch, block_shapes, densities, dtype, seconds)
    kinds, left = _kinds(model, dtype)
    if not kinds:
        raise ValueError(f"model must hold an nn.Linear that can be replaced, got {left or type(model).__name__}")
    ordered = sorted(densities, reverse=True)
    until, layers = time.monotonic() + seconds, []
    for number, ((shape, kind, device), names) in enumerate(kinds.items()):
        share = (until - time.monotonic()) / (len(kinds) - number)
        fitting = [tuple(b) for b in block_shapes if b[0] <= shape[0] and b[1] <= shape[1]]
        if not fitting:
            left |= dict.fromkeys(names, "it is smaller than every block shape")
            continue
        layers.append(_timed(shape, names, batch, fitting, ordered, kind, device, share))
    if not layers:
        shapes = [list(shape) for shape, *_ in kinds]
        raise ValueError(f"block_shapes must hold one that fits into a layer, {shapes}, got {block_shapes!r}")
    dtypes, devices = ({str(kind[k]).removeprefix("torch.") for kind in kinds} for k in (1, 2))
    return Advice(
        tuple(layers), left, batch, ", ".join(sorted(dtypes)), ", ".join(sorted(devices)), torch.get_num_threads()
    )


def _kinds(model: Any, dtype: torch.dtype | None) -> tuple[dict[Any, tuple[str, ...]], dict[str, str]]:
    """The names of the layers for each (shape, dtype, device); and why the others cannot be replaced."""
    kinds: dict[Any, tuple[str, ...]] = {}
    left: dict[str, str] = {}
    if isinstance(model, Mapping):
        for name, (rows, cols) in model.items():
            kind: Any = ((rows, cols), dtype or torch.get_default_dtype(), torch.device("cpu"))
            kinds[kind] = (*kinds.get(kind, ()), name)
        return kinds, left
    for name, module in model.named_modules():
        base = linear_base(module)
        if base is None:
            continue
        reason = reason_to_keep(module, base, "forward") or reason_elsewhere(model, module)
        if reason is not None:
            left[name] = reason
            continue
        weight = as_linear(module).weight
        device = torch.device("cpu") if weight.is_meta else weight.device
        kind = (tuple(weight.shape), dtype or weight.dtype, device)
        kinds[kind] = (*kinds.get(kind, ()), name)
    return kinds, left


def _timed(
    shape: Shape,
    names: tuple[str, ...],
    batch: int,
    block_shapes: Sequence[Any],
    densities: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
) -> LayerAdvice:
    options = {"device": device, "dtype": dtype}
    held = 1 + len(block_shapes) * sum(densities)
    needed = int(2 * dtype.itemsize * (held * shape[0] * shape[1] + batch * sum(shape)))
    free = available_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"model must have layers that fit into memory: {names[0]!r} {list(shape)} at batch {batch} needs "
            f"{size_text(needed)}, got {size_text(free)} left; take a smaller batch or fewer densities"
        )
    patterns: dict[Any, BlockPattern] = {}
    generator = torch.Generator().manual_seed(1906)
    for block_shape, density in itertools.product(block_shapes, densities):
        grid = [-(-side // block) for side, block in zip(shape, block_shape, strict=True)]
        enough = max(density, max(grid) / (grid[0] * grid[1]))
        patterns[block_shape, density] = BlockPattern.random(shape, block_shape, enough, generator)
    layers: dict[Any, nn.Module] = {"dense": nn.Linear(shape[1], shape[0], **options)}  # type: ignore[arg-type]
    first: dict[Any, Any] = {}  # of those with as many blocks of one shape, which are timed once
    for key, pattern in patterns.items():
        if first.setdefault(pattern.values_shape, key) == key:
            layers[key] = SparseLinear(shape[1], shape[0], pattern, **options)  # type: ignore[arg-type]
    x = torch.randn(batch, shape[1], device=device).to(dtype).requires_grad_()
    dy = torch.randn(batch, shape[0], device=device).to(dtype)
    calls = {(key, phase): _call(phase, layer, x, dy) for key, layer in layers.items() for phase in PHASES}
    start = time.monotonic()
    times = in_turn(calls, rounds=1)  # type: ignore[arg-type]
    took = time.monotonic() - start
    rounds = min(_MOST_ROUNDS, int((seconds - took) / max(took, 1e-6)))
    if rounds > 0:
        times = in_turn(calls, rounds)  # type: ignore[arg-type]
    medians: Any = {key: statistics.median(own) for key, own in times.items()}
    timings = tuple(
        Timing(
            key[0],
            key[1],
            pattern.density,
            medians[first[pattern.values_shape], PHASES[0]],
            medians[first[pattern.values_shape], PHASES[1]],
        )
        for key, pattern in patterns.items()
    )
    return LayerAdvice(shape, names, {phase: medians["dense", phase] for phase in PHASES}, timings)


def _call(phase: str, layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], object]:
    def done() -> None:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    def forward() -> None:
        with torch.no_grad():
            layer(x)
        done()

    def training() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(dy)
        done()

    return forward if phase == "forward" else training


def _check(
    batch: int, block_shapes: Sequence[Shape], densities: Sequence[float], dtype: torch.dtype | None, seconds: float
) -> None:
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch must be an integer of at least 1, got {batch!r}")
    if not block_shapes or not all(len(shape) == 2 and min(shape) >= 1 for shape in block_shapes):
        raise ValueError(f"block_shapes must be pairs of integers of at least 1, got {block_shapes!r}")
    if not densities or not all(0 < density <= 1 for density in densities):
        raise ValueError(f"densities must lie in (0, 1], got {densities!r}")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype!r}")
    if not seconds >= 0:
        raise ValueError(f"seconds must be at least 0, got {seconds!r}")


def _table(advice: Advice) -> str:
    """Speed-ups over dense; in each column of a layer the best block shape has a star."""
    lines = [
        f"speed-up over nn.Linear, batch {advice.batch}, {advice.dtype} on {advice.device}, {advice.threads} thread(s)"
        "; * is the fastest"
    ]
    for layer in advice.layers:
        densities = list(dict.fromkeys(timing.density for timing in layer.timings))
        lines += ["", f"{layer.shape[0]:,}×{layer.shape[1]:,}  {_shortened(layer.names)}"]
        for phase in PHASES:
            best = layer.best_block_shape(phase)
            fastest = {d: max(layer.speed_up(t, phase) for t in layer.timings if t.density == d) for d in densities}
            head = f"  {phase} ({1e3 * layer.dense[phase]:.3g} ms dense)"
            lines.append(f"{head:<30}" + "".join(f"{density:>16.3g}" for density in densities) + "  pays below")
            for block_shape in dict.fromkeys(timing.block_shape for timing in layer.timings):
                cells = ""
                for t in layer.of(block_shape):
                    speed_up = layer.speed_up(t, phase)
                    more = f"({t.stored:.2g})" if t.stored > 1.1 * t.density else ""
                    cells += f"{f'{speed_up:.3g}×{more}':>15}{'*' if speed_up == fastest[t.density] else ' '}"
                bound = layer.pays_below(phase, block_shape)
                told = "never" if bound is None else f"{bound:.2g}"
                told += " and above" if bound == layer.of(block_shape)[0].stored else ""
                name = "×".join(map(str, block_shape)) + (" (best)" if block_shape == best else "")
                lines.append(f"    {name:<26}{cells}  {told}")
    if any(t.stored > 1.1 * t.density for layer in advice.layers for t in layer.timings):
        lines += ["", "in brackets: what is stored, where each block row and column needs a block"]
    return "\n".join(lines + [f"not timed: {name!r}: {reason}" for name, reason in advice.left.items()])


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
