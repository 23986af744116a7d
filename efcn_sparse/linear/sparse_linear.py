"""A linear layer that stores, multiplies and trains only the blocks of its pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from efcn_sparse.linear.initialize import fan_in_of_stored, uniform_
from efcn_sparse.linear.select_blocks import strongest_blocks
from efcn_sparse.linear.state import load_pattern, save_pattern
from efcn_sparse.ops import spmm
from efcn_sparse.pattern import BlockPattern


class Product(Protocol):
    """``x Wᵀ + b`` with a backward pass of its own, as :class:`efcn_sparse.FusedOptimizer` puts into a layer."""

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""

    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """Prepare for blocks that move; what is returned makes it so, cannot fail, and may be called again.

        Args:
            pattern: the one to come.
            source: int64 ``[nnz_blocks]``: which old block each new block is; -1: none, it starts at zero.
            values: the memory in which the values will be.
        """


class SparseLinear(nn.Module):
    """``y = x Wᵀ + b`` with W stored as the blocks of a pattern; as easy as :class:`torch.nn.Linear`.

    ``values`` and ``bias`` are plain parameters, so any optimizer, clipping, ``state_dict`` and safetensors work.
    Entries of a stored block outside the support start at zero and get zero gradients, so they stay exactly zero
    under SGD with momentum and weight decay and under Adam. The pattern travels in the state dict.
    :mod:`torch.nn.utils.parametrize` cannot take a parameter with the name ``values``;
    :func:`torch.func.functional_call` with values of one's own can stand in for it.

    Args:
        in_features, out_features: the sides of W; they must be those of ``pattern``.
        pattern: which blocks of W are stored.
        bias: whether there is a bias.
        device, dtype: where and what the parameters are; the pattern follows them.

    Attributes:
        values: ``[nnz_blocks, block_rows, block_cols]``.
        bias: ``[out_features]`` or None.
        backend: ``"auto"``, or the name of the backend to use.
        pattern_owner: the kind of module that keeps something built on the pattern, which then cannot be replaced
            alone; None.
        product: replaces ``x Wᵀ + b`` while gradients are recorded (see :class:`Product`); None.

    Shapes: ``x`` is ``[..., in_features]``, ``y`` is ``[..., out_features]``.

    Law: ``layer(x) == layer.to_linear()(x)``.

    Raises:
        ValueError: the pattern is not ``[out_features, in_features]``; or a state dict with another pattern is loaded.

    Example:
        >>> import torch, efcn_sparse as es
        >>> pattern = es.BlockPattern.random((128, 64), (16, 16), density=0.25)
        >>> layer = es.SparseLinear(64, 128, pattern)
        >>> layer(torch.randn(8, 64)).shape
        torch.Size([8, 128])
        >>> layer.values.shape
        torch.Size([8, 16, 16])
    """

    bias: nn.Parameter | None
    pattern_owner: str | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pattern: BlockPattern,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(pattern, BlockPattern):
            raise TypeError(f"pattern must be a BlockPattern, got {type(pattern).__name__}")
        if pattern.shape != (out_features, in_features):
            raise ValueError(f"pattern must be [{out_features}, {in_features}], got {list(pattern.shape)}")
        device = pattern.device if device is None else torch.device(device)
        self.in_features, self.out_features = in_features, out_features
        self.pattern = pattern.to(device)
        self.backend = "auto"
        self.product: Product | None = None
        self.values = nn.Parameter(torch.empty(pattern.values_shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw ``values`` and ``bias`` as :class:`torch.nn.Linear` does, each row by the fan-in that it stores."""
        if self.values.is_meta:
            return
        fan_in = fan_in_of_stored(self.pattern)
        uniform_(self.values, self.pattern, fan_in)
        if self.bias is not None:
            bound = fan_in.clamp(min=1).to(self.bias.dtype).rsqrt()
            self.bias.uniform_(-1.0, 1.0).mul_(bound)

    @property
    def weight(self) -> Tensor:
        """W as a dense matrix, made anew at each reading, differentiable.

        For code that reads the weight of an :class:`torch.nn.Linear`, as :class:`torch.nn.MultiheadAttention` and the
        fast path of :class:`torch.nn.TransformerEncoderLayer` do. Writing into it changes nothing.
        """
        return self.pattern.to_dense(self.values)

    def forward(self, x: Tensor) -> Tensor:
        if self.product is None or not torch.is_grad_enabled():
            return spmm(x, self.values, self.pattern, bias=self.bias, backend=self.backend)
        return self.product(x)

    # -- conversion --------------------------------------------------------------------------------------------

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, density: float, block_shape: tuple[int, int]) -> SparseLinear:
        """The layer that keeps the ``density`` share of blocks of ``linear`` with the largest norms.

        ``requires_grad`` of weight and bias carries over.

        Example:
            >>> layer = SparseLinear.from_linear(torch.nn.Linear(64, 32), density=0.5, block_shape=(8, 8))
            >>> layer.pattern.nnz_blocks
            16
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        if isinstance(linear, LazyModuleMixin):
            raise ValueError("linear must have a weight, got a lazy one without; run it once first")
        weight = linear.weight.detach()
        pattern = strongest_blocks(weight, density=density, block_shape=block_shape)
        layer = cls(
            linear.in_features, linear.out_features, pattern,
            bias=linear.bias is not None, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            layer.values.copy_(layer.pattern.gather(weight)).requires_grad_(linear.weight.requires_grad)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias).requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The dense :class:`torch.nn.Linear` that computes the same, with the same ``requires_grad``."""
        weight = self.pattern.to_dense(self.values)
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=weight.dtype
        ).to_empty(device=weight.device)
        linear.weight.copy_(weight).requires_grad_(self.values.requires_grad)
        if self.bias is not None:
            linear.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    def weight_bsr(self) -> Tensor:
        """W as a :func:`torch.sparse_bsr_tensor` that shares the memory of ``values``.

        Raises:
            ValueError: a side of W is no multiple of the block, which torch's BSR layout cannot hold.
        """
        from efcn_sparse.convert import to_bsr

        return to_bsr(self.values.detach(), self.pattern)

    # -- nn.Module ---------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        rows, cols = self.pattern.block_shape
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, block_shape=({rows}, {cols}), "
            f"nnz_blocks={self.pattern.nnz_blocks}, density={self.pattern.density:.4g}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        super()._apply(fn, recurse)
        self.pattern = self.pattern.to(self.values.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_pattern(self.pattern, destination, prefix)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        state = dict(state_dict)
        refused = load_pattern(self.pattern, state, prefix, missing_keys)
        if refused:
            raise ValueError(refused)
        rest: list[str] = []
        super()._load_from_state_dict(state, prefix, local_metadata, strict, missing_keys, rest, error_msgs)
        unexpected_keys.extend(rest)
