"""The two factors of each sparse layer's gradient, checked, or caught while backward runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops.checks import check_alike, check_features, check_floating, check_pattern
from efcn_sparse.pattern import BlockPattern


class Factors(NamedTuple):
    """The gradient of a layer's weights is ``dyᵀ x``.

    Attributes:
        dy: ``[N, out_features]``, the gradient of the layer's output.
        x: ``[N, in_features]``, its input.
    """

    dy: Tensor
    x: Tensor

    @classmethod
    def joined(cls, uses: list[Factors]) -> Factors:
        """The factors of the sum of several gradients: their rows one below the other."""
        return uses[0] if len(uses) == 1 else cls(*(torch.cat(parts) for parts in zip(*uses, strict=True)))


def checked_factors(dy: Tensor, x: Tensor, pattern: BlockPattern) -> tuple[Tensor, Tensor]:
    """``dy`` and ``x`` as detached ``[N, out_features]`` and ``[N, in_features]``, or an error."""
    check_floating("dy", dy)
    check_floating("x", x)
    check_pattern(pattern, "dy", dy)
    check_features("dy", dy, pattern.shape[0])
    check_features("x", x, pattern.shape[1])
    check_alike("x", x, "dy", dy, may_cast=False)
    if dy.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"x must have the leading dimensions of dy, {list(dy.shape[:-1])}, got {list(x.shape[:-1])}")
    if dy.is_meta:
        raise ValueError(f"dy must hold numbers, got a meta tensor of shape {list(dy.shape)}")
    batch = math.prod(dy.shape[:-1])
    return dy.detach().reshape(batch, pattern.shape[0]), x.detach().reshape(batch, pattern.shape[1])


Take = Callable[[str, SparseLinear, Factors, int], None]


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """Every :class:`SparseLinear` of a model by name; a ``ValueError`` where there is none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    if not layers:
        raise ValueError(f"model must hold a SparseLinear, got {type(model).__name__} without one")
    return layers


@contextmanager
def watched(layers: Mapping[str, SparseLinear], take: Take) -> Iterator[None]:
    """Call ``take(name, layer, factors, uses)`` for each use of each layer, as its output's gradient arrives.

    ``uses`` is how many uses of the layer there have been so far, with or without their gradients. Hooks on outputs see
    the same whoever consumes the gradient afterwards, a fused optimizer included. Where ``layer.weight`` was read, as
    :class:`torch.nn.MultiheadAttention` does, its gradient is there as a matrix G: the factors are then I and G.
    """
    uses: Counter[str] = Counter()

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def after_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            if not y.requires_grad:
                return
            assert isinstance(module, SparseLinear)
            uses[name] += 1
            x = (args[0] if args else kwargs["input"]).detach()
            version = x._version

            def arrived(dy: Tensor) -> None:
                if not active:
                    return
                if x._version != version:
                    raise RuntimeError(f"{name or 'model'}: the input must not be changed in place before backward")
                batch = math.prod(dy.shape[:-1])
                left, right = dy.detach().reshape(batch, dy.shape[-1]), x.reshape(batch, x.shape[-1])
                take(name, module, Factors(left, right.to(left.dtype)), uses[name])  # autocast cast x in the same way

            y.register_hook(arrived)

        return after_forward

    def watch_weight(name: str, layer: SparseLinear) -> Callable[[Tensor], None]:
        def read(weight: Tensor) -> None:
            uses[name] += 1

            def arrived(gradient: Tensor) -> None:
                if active:
                    rows = torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
                    take(name, layer, Factors(rows, gradient.detach()), uses[name])

            weight.register_hook(arrived)

        return read

    active = True
    before = {name: layer._on_weight for name, layer in layers.items()}
    for name, layer in layers.items():
        layer._on_weight = (*before[name], watch_weight(name, layer))
    handles = [layer.register_forward_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        active = False
        for name, layer in layers.items():
            layer._on_weight = before[name]
        for handle in handles:
            handle.remove()


@contextmanager
def record_factors(model: nn.Module) -> Iterator[dict[str, Factors]]:
    """Keep the factors of the gradient of every :class:`SparseLinear` of a model, by name.

    Forward and backward must both run inside. Works with any optimizer, :class:`FusedOptimizer` included. A layer that
    is used several times, or in several backward passes, has the factors of its whole gradient, one use below the
    other. The factors are held until they are dropped: about as much memory as the layers' inputs and outputs. Where
    ``layer.weight`` was read, as :class:`torch.nn.MultiheadAttention` does, they are the identity and the gradient of
    the matrix, ``[out_features, out_features]`` and ``[out_features, in_features]``.

    Args:
        model: any module; modules that ``torch.compile`` has traced before do not see the recording.

    Law: ``(factors[name].dy.T @ factors[name].x)`` at the stored blocks is the gradient of the layer's ``values``.

    Raises:
        ValueError: the model holds no sparse layer.

    Example:
        >>> import torch, efcn_sparse as es
        >>> layer = es.SparseLinear(8, 8, es.BlockPattern.dense((8, 8), (4, 4)))
        >>> with es.record_factors(layer) as factors:
        ...     layer(torch.randn(3, 8)).square().sum().backward()
        >>> dy, x = factors[""]
        >>> torch.allclose(es.sddmm(dy, x, layer.pattern), layer.values.grad)
        True
    """
    uses: dict[str, list[Factors]] = {}
    factors: dict[str, Factors] = {}

    def take(name: str, layer: SparseLinear, one: Factors, _: int) -> None:
        uses.setdefault(name, []).append(one)

    with watched(sparse_layers(model), take):
        yield factors
    factors.update((name, Factors.joined(parts)) for name, parts in uses.items())


@contextmanager
def measured(
    layers: Mapping[str, SparseLinear], measure: Callable[[str, Factors], Tensor], recorder: str
) -> Iterator[dict[str, Tensor]]:
    """Keep ``measure(name, factors)`` of each layer, taken as soon as all its uses have their gradients.

    Args:
        layers: by the names that results and messages have.
        measure: takes the factors of a layer's whole gradient.
        recorder: the public function, for messages.

    Yields:
        The results by name, in the order of ``layers`` and complete once the ``with`` block has ended.

    Raises:
        RuntimeError: no gradient passed through any layer; or (in backward) a layer got a second one.
    """
    results: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    waiting: dict[str, list[Factors]] = {}

    def take(name: str, layer: SparseLinear, factors: Factors, uses: int) -> None:
        if name in found:
            raise RuntimeError(f"{name or 'model'}: must get one gradient within {recorder}, got a second one")
        parts = waiting.setdefault(name, [])
        parts.append(factors)
        if len(parts) == uses:
            finish(name)

    @torch.no_grad()
    def finish(name: str) -> None:
        found[name] = measure(name, Factors.joined(waiting.pop(name)))

    with watched(layers, take):
        yield results
    for name in list(waiting):
        finish(name)
    if not found:
        raise RuntimeError(f"{recorder} must hold the forward and the backward pass, got no gradient of a SparseLinear")
    results.update((name, found[name]) for name in layers if name in found)
