"""How much of each layer's gradient falls outside its support, in every step that one cares to ask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from efcn_sparse.gradients.factors import Factors, measured, sparse_layers
from efcn_sparse.gradients.norms import split_squares


@dataclass(frozen=True)
class LayerLeak:
    """The gradient of one layer's weights, in two orthogonal parts.

    Attributes:
        outside: the norm of the entries outside the support, which the layer ignores.
        inside: the norm of the entries in the support: of ``values.grad``.
    """

    outside: float
    inside: float

    @property
    def share(self) -> float:
        """The part of the squared gradient that lies outside, in [0, 1]; 0.0 for a gradient of zero."""
        both = math.hypot(self.outside, self.inside)
        return (self.outside / both) ** 2 if both else 0.0


@dataclass
class Leak:
    """What :func:`record_leak` has read; complete once its ``with`` block has ended.

    Attributes:
        layers: by the layer's name, in the order of the model; layers that no gradient reached are absent.
    """

    layers: dict[str, LayerLeak] = field(default_factory=dict)

    @property
    def outside(self) -> float:
        """The norm over all layers of what lies outside."""
        return math.hypot(*(layer.outside for layer in self.layers.values()))

    @property
    def inside(self) -> float:
        """The norm over all layers of what lies inside."""
        return math.hypot(*(layer.inside for layer in self.layers.values()))

    @property
    def share(self) -> float:
        """The part of the squared gradient of all layers that lies outside."""
        return LayerLeak(self.outside, self.inside).share


@contextmanager
def record_leak(model: nn.Module, *, precise: bool = False) -> Iterator[Leak]:
    """Measure, exactly, how much of the gradient of every :class:`SparseLinear` lies outside its support.

    Forward and backward must both run inside, and each layer may get its gradient from one backward pass (it may be
    used several times in it). Training is not changed, and :class:`FusedOptimizer` works as ever. Costs two N × N Gram
    matrices in fp64 and one more :func:`sddmm` per layer, in bounded memory, while the layer's gradient passes.

    Args:
        model: any module; modules that ``torch.compile`` has traced before do not see the recording.
        precise: take the norm at the support from products in fp64, several times slower. In fp32, ``share`` has an
            absolute error of about 1e-7.

    Law: ``outside**2 + inside**2`` is the squared norm of the gradient of the dense matrix.

    Raises:
        ValueError: the model holds no sparse layer.
        RuntimeError: no gradient passed through a sparse layer inside; or (in backward) a layer got a second gradient.

    Example:
        >>> import torch, efcn_sparse as es
        >>> diagonal = es.BlockPattern.from_mask(torch.eye(2, dtype=torch.bool), (4, 4), shape=(8, 8))
        >>> model = es.SparseLinear(8, 8, diagonal)
        >>> with es.record_leak(model) as leak:
        ...     model(torch.ones(1, 8)).sum().backward()
        >>> leak.layers[""].outside, leak.layers[""].inside, leak.share
        (5.656..., 5.656..., 0.5...)
    """
    leak, layers = Leak(), sparse_layers(model)

    def measure(name: str, factors: Factors) -> Tensor:
        return torch.stack(split_squares(*factors, layers[name].pattern, precise=precise))

    with measured(layers, measure, "record_leak") as squares:
        yield leak
    for name, square in squares.items():
        inside, outside = square.sqrt().tolist()
        leak.layers[name] = LayerLeak(outside, inside)
