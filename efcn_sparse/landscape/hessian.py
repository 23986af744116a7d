"""Curvature: products with the Hessian, its largest eigenvalues and its trace, whole and by part of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from efcn_sparse.extension import compiled, extension_status
from efcn_sparse.landscape.modes import evaluation_mode
from efcn_sparse.landscape.parts import check_part, dimension_of, layers_with_weights, part_of
from efcn_sparse.landscape.products import dot
from efcn_sparse.landscape.string import scalar_of


class Trace(NamedTuple):
    """An estimate of a trace.

    Attributes:
        value: the mean over random vectors.
        standard_error: of that mean; NaN for a single vector.
    """

    value: float
    standard_error: float


@contextlib.contextmanager
def _unread_gradients() -> Iterator[None]:
    """Within, gradients of block-sparse weights are differentiated, not read: kernels leave out their numbers."""
    if not extension_status().available:
        yield
        return
    compiled().read_leaf_gradients(False)
    try:
        yield
    finally:
        compiled().read_leaf_gradients(True)


def hessian(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], data: Iterable[Any]) -> Hessian:
    """The Hessian of a loss in the trainable parameters of ``model``, as an operator: it is never formed.

    The model is in evaluation mode meanwhile, so that its outputs depend on nothing but its parameters.

    Args:
        model: any module. It is not changed.
        loss: ``loss(model, batch)``, a scalar: the mean over the batch.
        data: batches. The Hessian is that of the mean of their losses. They are kept and used again for each product.

    Raises:
        ValueError: there are no batches, or nothing is trainable.

    Source: Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 1994; here the gradient of
    ⟨gradient, v⟩, which no kernel had to be written for: the derivatives of spmm and sddmm are the two again.

    Example:
        >>> import torch, efcn_sparse as es
        >>> net = torch.nn.Linear(3, 1, bias=False).double()
        >>> x = torch.eye(3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0])
        >>> h = es.landscape.hessian(net, lambda net, x: net(x).square().sum() / 2, [x])
        >>> [round(value, 6) for value in h.top(2)], round(h.trace(4).value, 6)
        ([9.0, 4.0], 14.0)
    """
    return Hessian(model, loss, list(data))


class Hessian:
    """The Hessian of a loss; made by :func:`hessian`.

    ``part`` restricts it to one part of the weights of embedded convolutions: P H P with the orthogonal projection P
    onto ``"tied"``, ``"untied"`` or ``"off_local"`` weights. Biases and all other layers then do not move. Whether the
    direction away from the CNN is flat or sharp is the comparison of the three.

    Attributes:
        parameters: the trainable parameters by name, which vectors have the shapes of.
        size: how many numbers they hold together.
    """

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], data: list[Any]) -> None:
        self._model, self._loss, self._data = model, loss, data
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if not data:
            raise ValueError("data must hold at least one batch, got none")
        if not self.parameters:
            raise ValueError(f"model must have a trainable parameter, got {type(model).__name__} without one")
        self.size = sum(value.numel() for value in self.parameters.values())

    def product(self, direction: dict[str, Tensor], part: str | None = None) -> dict[str, Tensor]:
        """H v, with the names and shapes of ``parameters``; with ``part``, P H P v. It costs about three gradients.

        Args:
            direction: v by name, one tensor for each of ``parameters``, of its shape and dtype; other names do not
                count.
        """
        return self._product(direction, part)

    def _product(
        self, direction: dict[str, Tensor], part: str | None, gradient: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """H v; with a single batch, from its ``gradient`` if that is there, whose graph stays."""
        if part is not None:
            direction = self._within(direction, part)
        total = dict[str, Tensor]()
        for batch in self._data:
            found = gradient or self._gradient(batch)
            followed = [name for name, one in found.items() if one.requires_grad]  # else linear in all parameters
            products: Iterable[Tensor] = map(torch.zeros_like, self.parameters.values())
            if followed:
                products = torch.autograd.grad(
                    [found[name] for name in followed],
                    list(self.parameters.values()),
                    [direction[name] for name in followed],
                    retain_graph=gradient is not None,
                    materialize_grads=True,
                )
            for name, product in zip(self.parameters, products, strict=True):
                if len(self._data) > 1:
                    total[name] = product / len(self._data) if name not in total else total[name].add_(
                        product, alpha=1 / len(self._data)
                    )  # fmt: skip
                else:  # autograd may give the direction itself, where the loss is a sum of squares
                    same = product.data_ptr() == direction[name].data_ptr()
                    total[name] = product.clone() if same else product
        return total if part is None else self._within(total, part)

    def along(self, direction: dict[str, Tensor], part: str | None = None) -> float:
        """The curvature ⟨d, H d⟩ / ⟨d, d⟩ in one direction, or in that of its ``part``; NaN for a direction of zeros.

        Its mean over random directions is the trace divided by :meth:`dimension`: what is below that is flat.

        Args:
            direction: d by name, as :meth:`product` takes it.
        """
        if part is not None:
            direction = self._within(direction, part)
        product = self.product(direction, part)
        square, curved = (
            sum(dot(direction[name], other[name]) for name in self.parameters) for other in (direction, product)
        )
        return curved / square if square else math.nan

    def dimension(self, part: str | None = None) -> int:
        """In how many independent directions the weights of ``part``, or all trainable parameters, can move."""
        if part is None:
            return self.size
        return sum(
            dimension_of(layer, part)
            for layer in layers_with_weights(self._model).values()
            if layer.linear.values.requires_grad
        )

    def top(self, k: int = 1, *, part: str | None = None, tol: float = 1e-6, seed: int = 0) -> list[float]:
        """The ``k`` eigenvalues that are largest in magnitude, largest first, by SciPy's ``eigsh`` (Lanczos).

        NaN where a product is not finite. Beyond the dimension of ``part`` they are 0.0.

        Args:
            tol: relative accuracy.
            seed: of the first vector.

        Memory: about ``max(2 k + 1, 20)`` vectors of ``size`` numbers, and with a single batch the graph of its
        gradient, from which each further product costs about 2.4 gradients.

        Raises:
            ValueError: ``k`` is not in [1, size).
        """
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

        if not 1 <= k < self.size:
            raise ValueError(f"k must lie in [1, {self.size}), as eigsh needs it, got {k}")
        dtype = np.float64 if self._dtype == torch.float64 else np.float32
        gradient = self._kept_gradient()

        def multiply(vector: np.ndarray) -> np.ndarray:
            direction = self._split(torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype)))
            return self._joined(self._product(direction, part, gradient)).numpy()

        generator = torch.Generator().manual_seed(seed)
        start = self._split(torch.randn(self.size, generator=generator, dtype=torch.float64))
        if part is not None:
            start = self._within(start, part)
        first = self._joined(start).numpy()
        if not first.any():  # nothing is stored in this part
            return [0.0] * k
        operator = LinearOperator((self.size, self.size), matvec=multiply, dtype=dtype)
        try:
            values = eigsh(operator, k=k, which="LM", v0=first, tol=tol, return_eigenvectors=False)
        except ArpackError:  # of a product that is not finite, or all zeros
            product = multiply(first)
            if np.isfinite(product).all() and product.any():
                raise
            return [0.0 if np.isfinite(product).all() else math.nan] * k
        return sorted((float(value) for value in values), key=abs, reverse=True)

    def trace(self, samples: int = 16, *, part: str | None = None, seed: int = 0) -> Trace:
        """The trace, by Hutchinson's estimator: the mean of zᵀ H z over vectors z of random signs.

        Source: Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix, 1990.

        Args:
            samples: how many vectors.
            seed: of their signs.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        generator = torch.Generator().manual_seed(seed)
        gradient = self._kept_gradient()
        found = torch.empty(samples, dtype=torch.float64)
        for sample in range(samples):
            signs = torch.randint(0, 2, (self.size,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            z = self._split(signs)
            product = self._product(z, part, gradient)
            found[sample] = sum(dot(product[name], z[name]) for name in product)
        error = float(found.std()) / math.sqrt(samples) if samples > 1 else math.nan
        return Trace(float(found.mean()), error)

    # -- vectors ---------------------------------------------------------------------------------------------------

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    def _gradient(self, batch: Any) -> dict[str, Tensor]:
        """The gradient of one batch's loss, to be differentiated, not read; the model's training flags are restored."""
        with evaluation_mode(self._model), torch.enable_grad():
            loss = scalar_of(self._loss(self._model, batch))
            with _unread_gradients():
                gradient = torch.autograd.grad(
                    loss, list(self.parameters.values()), create_graph=True, materialize_grads=True
                )
        return dict(zip(self.parameters, gradient, strict=True))

    def _kept_gradient(self) -> dict[str, Tensor] | None:
        """The gradient of a single batch, for many products in a row."""
        return self._gradient(self._data[0]) if len(self._data) == 1 else None

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        pieces = vector.split([value.numel() for value in self.parameters.values()])
        return {
            name: piece.view(value.shape).to(value.device, value.dtype)
            for (name, value), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def _joined(self, vector: dict[str, Tensor]) -> Tensor:
        """One vector, as scipy takes it."""
        joined = torch.cat([vector[name].reshape(-1) for name in self.parameters])
        return joined.to("cpu", torch.float64 if self._dtype == torch.float64 else torch.float32)

    def _within(self, vector: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        check_part(part)
        layers = {layer.linear.values: layer for layer in layers_with_weights(self._model).values()}
        return {
            name: part_of(layers[value], vector[name], part) if value in layers else torch.zeros_like(vector[name])
            for name, value in self.parameters.items()
        }
