"""Where the gradient of an embedded network points: into the receptive fields, into the rest of the support, or out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv, embedded_layers
from efcn_sparse.embedding.ties import OFF_LOCAL
from efcn_sparse.fused.workspace import workspace_bytes
from efcn_sparse.gradients.factors import Factors, measured
from efcn_sparse.gradients.norms import split_squares
from efcn_sparse.ops import sddmm
from efcn_sparse.pattern.slices import RowSlice, row_slices

_BYTES_PER_NUMBER = 16  # the gradient, a copy of its mixed blocks, and their squares in fp64


@dataclass(frozen=True)
class LayerGradientParts:
    """The three orthogonal parts of the gradient of one layer's dense matrix, as L2 norms.

    Attributes:
        local: norm of the entries inside the receptive fields, which every support holds.
        off_local: norm of the off-local entries that the support holds.
        outside: norm of the entries that are not stored, all of them off-local, which training ignores, save for what a
            low-rank part makes of them: that is not counted as captured.

    Law: ``local**2 + off_local**2 + outside**2`` is the squared norm of the gradient of the dense matrix.
    """

    local: float
    off_local: float
    outside: float

    @property
    def leak(self) -> float:
        """The share of the squared gradient that lies outside the support, in [0, 1]; 0.0 for a gradient of zero."""
        whole = math.hypot(self.local, self.off_local, self.outside)
        return (self.outside / whole) ** 2 if whole else 0.0

    @property
    def captured(self) -> float:
        """The share of the squared off-local gradient that the support holds: 0 for ``Local()``, 1 for ``Full()``.

        nan where the off-local gradient is zero.
        """
        off_local = math.hypot(self.off_local, self.outside)
        return (self.off_local / off_local) ** 2 if off_local else math.nan


@dataclass
class GradientParts:
    """What :func:`record_gradient_parts` has read; complete once its ``with`` block has ended.

    Attributes:
        layers: by the layer's name, in the order of the model; layers that no gradient reached are absent.
    """

    layers: dict[str, LayerGradientParts] = field(default_factory=dict)

    @property
    def total(self) -> LayerGradientParts:
        """The parts of the gradients of all layers together."""
        parts = self.layers.values()
        return LayerGradientParts(
            math.hypot(*(layer.local for layer in parts)),
            math.hypot(*(layer.off_local for layer in parts)),
            math.hypot(*(layer.outside for layer in parts)),
        )


@contextmanager
def record_gradient_parts(model: nn.Module) -> Iterator[GradientParts]:
    """Measure, exactly, how the gradient of every embedded convolution falls on its support and outside of it.

    Forward and backward must both run inside, and each layer may get its gradient from one backward pass (it may be
    used several times in it). Training is not changed by a bit, and :class:`FusedOptimizer` works as ever. Costs two
    N × N Gram matrices in fp64 (where the support is not everything) and one more :func:`sddmm` per layer, in bounded
    memory, while the layer's gradient passes.

    Args:
        model: holds embedded convolutions; modules that ``torch.compile`` has traced before do not see the recording.

    Law: the squares of a layer's three parts sum to the squared norm of the gradient of the dense matrix. In fp32 each
        has an absolute error of about 1e-7 of that sum; for ``Full()``, ``outside`` is exactly zero, and for
        ``Local()``, ``off_local`` is.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model holds no embedded convolution.
        RuntimeError: no gradient passed through one inside; or (in backward) a layer got a second gradient.

    Example:
        >>> import torch, efcn_sparse as es
        >>> twin = es.embed(nn.Conv2d(2, 4, 3, padding=1), torch.zeros(1, 2, 8, 8), support=es.Dilated(1))
        >>> with record_gradient_parts(twin) as parts:
        ...     twin(torch.ones(1, 2, 8, 8)).sum().backward()
        >>> 0.0 < parts.total.leak < 1.0, 0.0 < parts.total.captured < 1.0
        (True, True)
    """
    parts, embedded = GradientParts(), embedded_layers(model)
    linears = {name: layer.linear for name, layer in embedded.items()}

    def measure(name: str, factors: Factors) -> Tensor:
        return gradient_squares(*factors, embedded[name])

    with measured(linears, measure, "record_gradient_parts") as squares:
        yield parts
    for name, square in squares.items():
        parts.layers[name] = LayerGradientParts(*square.sqrt().tolist())


@torch.no_grad()
def gradient_squares(a: Tensor, b: Tensor, layer: EmbeddedConv) -> Tensor:
    """fp64 ``[3]``: the squares of the local, the off-local and the outside part of the gradient ``aᵀ b``.

    Args:
        a: ``[N, out_features]``, the gradient of the layer's output.
        b: ``[N, in_features]``, its input, of the same dtype.
    """
    pattern, maps = layer.linear.pattern, layer.ties.maps
    off_local = maps == OFF_LOCAL
    some, all_ = off_local.flatten(1).any(1), (maps < 0).flatten(1).all(1)
    most = max(1, workspace_bytes(a.device) // (_BYTES_PER_NUMBER * math.prod(pattern.block_shape)))
    dtype = torch.promote_types(a.dtype, torch.float32)
    right = b.to(dtype)
    inside, held = a.new_zeros((2,), dtype=torch.float64)
    whole = RowSlice(slice(0, pattern.shape[0]), slice(0, pattern.nnz_blocks), pattern)
    for part in row_slices(pattern, most) if pattern.nnz_blocks > most else [whole]:
        classes = layer.ties.class_of_block[part.blocks].to(torch.int64)
        gradient = sddmm(a[:, part.rows].to(dtype), right, part.pattern)
        squares = torch.linalg.vector_norm(gradient, dim=(1, 2), dtype=torch.float64).square_()
        inside += squares.sum()
        held += squares[some[classes] & all_[classes]].sum()
        mixed = (some & ~all_)[classes].nonzero().squeeze(1)
        if mixed.numel():
            held += (gradient[mixed] * off_local[classes[mixed]]).double().square_().sum()
    _, outside = split_squares(a, b, pattern, inside)
    return torch.stack([(inside - held).clamp(min=0), held, outside])
