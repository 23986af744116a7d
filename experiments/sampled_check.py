"""One training step of an embedded CNN, checked at sampled units against rows and columns of the dense matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv
from experiments.dense_rows import dense_column, dense_row, stored_row

LAYERS = (  # of ResNet-18: RGB; 3×3; strided; 1×1; the widest
    "conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.downsample.0", "layer4.1.conv2",
)  # fmt: skip
_UNITS = 4


@dataclass(frozen=True)
class SampledErrors:
    """Largest errors over the sampled units of a layer, relative to the same sums taken over magnitudes.

    Attributes:
        output: of pre-activations, against ``x · row``.
        input_gradient: against ``dy · column``; None where the layer's input needs no gradient.
        updated_row: of rows after the step, against ``row − lr · dyᵀ x`` inside the support, and zero outside.
        update: the difference that the step made, against ``−lr · dyᵀ x`` in L2; the rounding of the stored numbers,
            which may be far larger than the update, is taken off.
    """

    output: float
    input_gradient: float | None
    updated_row: float
    update: float


class StepRecorder:
    """Records inputs, outputs and their gradients of some layers during one step of plain SGD, while it is entered.

    Args:
        cnn: with the weights that ``efcn`` was embedded from.
        efcn: the embedded network.
        names: the layers to record.
        lr: of the step.
    """

    def __init__(self, cnn: nn.Module, efcn: nn.Module, names: Sequence[str], lr: float) -> None:
        self._cnn, self._efcn, self._names, self._lr = cnn, efcn, names, lr
        self._seen: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        self._handles: list[Any] = []

    def __enter__(self) -> StepRecorder:
        for name in self._names:
            linear = self._efcn.get_submodule(f"{name}.linear")
            self._handles.append(linear.register_forward_hook(self._note(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, name: str) -> Any:
        seen = self._seen[name]

        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen["x"], seen["y"] = inputs[0].detach(), output.detach()
            output.register_hook(lambda dy: seen.__setitem__("dy", dy))
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda dx: seen.__setitem__("dx", dx))

        return note

    @torch.no_grad()
    def errors(self) -> dict[str, SampledErrors]:
        """The errors by layer, after the step."""
        return {name: self._layer_errors(name) for name in self._names}

    def _layer_errors(self, name: str) -> SampledErrors:
        conv, layer = self._cnn.get_submodule(name), self._efcn.get_submodule(name)
        assert isinstance(layer, EmbeddedConv)
        bias = dict(conv.named_parameters()).get("bias")
        size, seen = layer.geometry.input_size, self._seen.pop(name)
        x = seen["x"].double()
        output = updated_row = off = changed = 0.0
        for unit in _sample(layer.linear.out_features):
            row, support = dense_row(conv, size, unit)
            dy = seen["dy"][:, unit].double()
            expected = x @ row + (0.0 if bias is None else bias[unit % bias.numel()])
            output = max(output, _relative(seen["y"][:, unit], expected, x.abs() @ row.abs()))
            change = -self._lr * (dy @ x) * support
            stored = stored_row(layer.linear, unit)
            scale = row.abs() + self._lr * (dy.abs() @ x.abs()) * support
            updated_row = max(updated_row, _relative(stored, row + change, scale))
            off += float(_beyond_rounding(stored - row - change, row.abs() + change.abs()).square().sum())
            changed += float(change.square().sum())
        input_gradient = None
        if "dx" in seen:
            dy, input_gradient = seen["dy"].double(), 0.0
            for unit in _sample(layer.linear.in_features):
                column = dense_column(conv, size, unit)
                found = seen["dx"][:, unit]
                input_gradient = max(input_gradient, _relative(found, dy @ column, dy.abs() @ column.abs()))
        update = math.sqrt(off / changed) if changed else math.inf  # no update is no evidence
        return SampledErrors(output, input_gradient, updated_row, update)


def _sample(units: int) -> list[int]:
    """The first, the last, and some between."""
    inner = torch.randint(units, (_UNITS - 2,), generator=torch.Generator().manual_seed(units))
    return [0, units - 1, *inner.tolist()]


def _relative(found: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest |error| / scale; where the scale is zero, any error is infinite."""
    error = (found.double() - expected).abs()
    return float(torch.where(error == 0, 0.0, error / scale).max())


def _beyond_rounding(error: Tensor, magnitude: Tensor) -> Tensor:
    """|error| less what rounding to fp32 explains."""
    return (error.abs() - torch.finfo(torch.float32).eps / 2 * magnitude).clamp(min=0)
