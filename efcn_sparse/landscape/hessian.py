"""Curvature: products with the Hessian, its largest eigenvalues and its trace, whole and by part of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from efcn_sparse.landscape.modes import evaluation_mode
from efcn_sparse.landscape.parts import check_part, dimension_of, layers_with_weights, part_of


class Trace(NamedTuple):
    """An estimate of a trace.

    Attributes:
        value: the mean over random vectors.
        standard_error: of that mean; NaN for a single vector.
    """

    value: float
    standard_error: float


class _Called(nn.Module):
    """``loss(model, batch)`` as a module, so that ``functional_call`` can exchange the parameters."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


def hessian(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], data: Iterable[Any]) -> Hessian:
    """The Hessian of a loss in the trainable parameters of ``model``, as an operator: it is never formed.

    The model is in evaluation mode meanwhile, so that its outputs depend on nothing but its parameters.

    Args:
        model: any module. It is not changed.
        loss: ``loss(model, batch)``, a scalar: the mean over the batch.
        data: batches. The Hessian is that of the mean of their losses. They are kept and used again for each product.

    Raises:
        ValueError: there are no batches, or nothing is trainable.

    Source: Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 1994. No kernel had to be written
    for it: the derivatives of spmm and sddmm, in either mode, are the two again.

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
        self._kept: tuple[list[tuple[int, Tensor]], dict[str, Tensor]] | None = None
        self._has_forward_mode = True

    def product(
        self, direction: dict[str, Tensor], part: str | None = None, *, keep_graph: bool = False
    ) -> dict[str, Tensor]:
        """H v, with the names and shapes of ``parameters``; with ``part``, P H P v. It costs about 2.7 gradients.

        It is the gradient of the loss's derivative along v (reverse over forward mode); where an operation of the model
        has no forward mode, the derivative along v of the gradient (reverse over reverse), about 3.3 gradients.

        Args:
            direction: v by name, one tensor for each of ``parameters``, of its shape and dtype.
            keep_graph: with a single batch, keep the graph of its gradient until the model changes, and a copy of the
                model's numbers. The first of many products then costs about 3.3 gradients, each further one about two.
        """
        if part is not None:
            direction = self._within(direction, part)
        total = dict[str, Tensor]()
        for batch in self._data:
            found = None if keep_graph and len(self._data) == 1 else self._forward_mode(batch, direction)
            if found is None:
                found = self._from_gradient(batch, direction)
            for name, product in found.items():
                if name in total:
                    total[name].add_(product, alpha=1 / len(self._data))
                else:
                    total[name] = product if len(self._data) == 1 else product / len(self._data)
        return total if part is None else self._within(total, part)

    def _forward_mode(self, batch: Any, direction: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """H v as the gradient of the loss's derivative along v; None if an operation has no forward mode."""
        if not self._has_forward_mode:
            return None
        called = _Called(self._model, self._loss)
        along = {name: direction[name] for name in self.parameters}

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(
                called, {f"model.{name}": value for name, value in parameters.items()}, (batch,)
            )

        def slope(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.jvp(loss, (parameters,), (along,))[1]

        try:
            with evaluation_mode(self._model):
                return torch.func.grad(slope)({name: value.detach() for name, value in self.parameters.items()})
        except (RuntimeError, NotImplementedError):  # what is wrong otherwise, reverse mode will say
            self._has_forward_mode = False
            return None

    def _from_gradient(self, batch: Any, direction: dict[str, Tensor]) -> dict[str, Tensor]:
        """H v as the derivative along v of the gradient, whose graph stays if it is kept."""
        gradient = self._gradient(batch)
        followed = [name for name, one in gradient.items() if one.requires_grad]  # else linear in all parameters
        products: Iterable[Tensor] = map(torch.zeros_like, self.parameters.values())
        if followed:
            products = torch.autograd.grad(
                [gradient[name] for name in followed],
                list(self.parameters.values()),
                [direction[name] for name in followed],
                retain_graph=len(self._data) == 1,
                materialize_grads=True,
            )
        # autograd may give the direction itself, where the loss is a sum of squares
        return {
            name: product.clone() if product.data_ptr() == direction[name].data_ptr() else product
            for name, product in zip(self.parameters, products, strict=True)
        }

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
            sum(float((direction[name].double() * other[name].double()).sum()) for name in direction)
            for other in (direction, product)
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

        Args:
            tol: relative accuracy.
            seed: of the first vector.

        Memory: about ``max(2 k + 1, 20)`` vectors of ``size`` numbers.

        Raises:
            ValueError: ``k`` is not in [1, size).
        """
        from scipy.sparse.linalg import LinearOperator, eigsh

        if not 1 <= k < self.size:
            raise ValueError(f"k must lie in [1, {self.size}), as eigsh needs it, got {k}")
        dtype = np.float64 if self._dtype == torch.float64 else np.float32

        def multiply(vector: np.ndarray) -> np.ndarray:
            direction = self._split(torch.from_numpy(np.ascontiguousarray(vector.reshape(-1), dtype)))
            return self._joined(self.product(direction, part, keep_graph=True)).cpu().numpy().astype(dtype)

        generator = torch.Generator().manual_seed(seed)
        start = self._split(torch.randn(self.size, generator=generator, dtype=torch.float64))
        if part is not None:
            start = self._within(start, part)
        first = self._joined(start).cpu().numpy().astype(dtype)
        if not first.any():  # nothing is stored in this part
            return [0.0] * k
        operator = LinearOperator((self.size, self.size), matvec=multiply, dtype=dtype)
        values = eigsh(operator, k=k, which="LM", v0=first, tol=tol, return_eigenvectors=False)
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
        found = torch.empty(samples, dtype=torch.float64)
        for sample in range(samples):
            signs = torch.randint(0, 2, (self.size,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            z = self._split(signs)
            product = self.product(z, part, keep_graph=samples > 1)
            found[sample] = sum(float((product[name].double() * z[name].double()).sum()) for name in product)
        error = float(found.std()) / math.sqrt(samples) if samples > 1 else math.nan
        return Trace(float(found.mean()), error)

    # -- vectors ---------------------------------------------------------------------------------------------------

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    def _gradient(self, batch: Any) -> dict[str, Tensor]:
        """The gradient of one batch's loss with its graph; the model's training flags are restored."""
        if self._kept is not None and self._unchanged_since(self._kept[0]):
            return self._kept[1]
        self._kept = None
        with evaluation_mode(self._model), torch.enable_grad():
            loss = self._loss(self._model, batch)
            gradient = torch.autograd.grad(
                loss, list(self.parameters.values()), create_graph=True, materialize_grads=True
            )
        found = dict(zip(self.parameters, gradient, strict=True))
        if len(self._data) == 1:
            self._kept = [(value._version, value.detach().clone()) for value in self._numbers()], found
        return found

    def _numbers(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]

    def _unchanged_since(self, kept: list[tuple[int, Tensor]]) -> bool:
        """Whether the model's numbers are those; versions alone don't tell: fused steps of torch 2.13 move none."""
        numbers = self._numbers()
        return len(numbers) == len(kept) and all(
            now._version == version and (now.dtype, now.device) == (then.dtype, then.device) and torch.equal(now, then)
            for now, (version, then) in zip(numbers, kept, strict=True)
        )

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        pieces = vector.split([value.numel() for value in self.parameters.values()])
        return {
            name: piece.view(value.shape).to(value.device, value.dtype)
            for (name, value), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def _joined(self, vector: dict[str, Tensor]) -> Tensor:
        return torch.cat([vector[name].reshape(-1) for name in self.parameters])

    def _within(self, vector: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        check_part(part)
        layers = {layer.linear.values: layer for layer in layers_with_weights(self._model).values()}
        return {
            name: part_of(layers[value], vector[name], part) if value in layers else torch.zeros_like(vector[name])
            for name, value in self.parameters.items()
        }
