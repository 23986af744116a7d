"""A linear layer that stores, multiplies and trains only the blocks of its pattern."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from efcn_sparse.linear import state
from efcn_sparse.linear.dense_weight import lazy_weight
from efcn_sparse.linear.initialize import fan_in_of_stored, uniform_
from efcn_sparse.linear.select_blocks import strongest_blocks
from efcn_sparse.linear.state import Lineage
from efcn_sparse.memory import in_huge_pages
from efcn_sparse.ops import spmm
from efcn_sparse.ops.checks import DTYPES
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
    under SGD with momentum and weight decay and under Adam.

    The pattern's index arrays are buffers (``crow_indices``, ``col_indices``, and ``mask_index`` and ``masks`` where it
    has masks), so they travel in state dicts and through whatever fills modules. ``load_state_dict`` refuses another
    pattern. Where something writes one into the buffers (a loader of another library, a copy or an average of state
    dicts), the layer refuses to compute, until :func:`efcn_sparse.adopt_patterns` takes it over; a layer that was
    made on the meta device and has no numbers yet takes what is written over by itself.

    Initialize with :mod:`efcn_sparse.init`: ``torch.nn.init.kaiming_*`` and ``xavier_*`` take ``values`` for a
    convolution's kernels and read a wrong fan-in. :class:`torch.optim.Muon` refuses parameters of three dimensions:
    give it the matrices of the model, and ``values`` to AdamW.
    :mod:`torch.nn.utils.parametrize` cannot take a parameter with the name ``values``: torch raises ``KeyError``, and
    the layer has lost them. :func:`torch.func.functional_call` with values of one's own can stand in for it.

    Args:
        in_features, out_features: the sides of W; they must be those of ``pattern``.
        pattern: which blocks of W are stored; without it ``density`` and ``block_shape`` draw one, as
            :meth:`BlockPattern.random` does.
        bias: whether there is a bias.
        device, dtype: where and what the parameters are; the pattern follows them.

    Attributes:
        values: ``[nnz_blocks, block_rows, block_cols]``.
        bias: ``[out_features]`` or None.
        backend: ``"auto"``, or the name of the backend to use.
        pattern: which blocks are stored. Values belong to it; see :func:`efcn_sparse.adopt_patterns` to change it.
        pattern_owner: the kind of module that keeps something built on the pattern, which then cannot be replaced
            alone; None.
        product: replaces ``x Wᵀ + b`` while gradients are recorded (see :class:`Product`); None.

    Shapes: ``x`` is ``[..., in_features]``, ``y`` is ``[..., out_features]``.

    Law: ``layer(x) == layer.to_linear()(x)``.

    Raises:
        ValueError: the pattern is not ``[out_features, in_features]``; a state dict with another pattern is loaded; or
            another pattern was written into the buffers, or values that belong to another one put in.

    Example:
        >>> import torch, efcn_sparse as es
        >>> pattern = es.BlockPattern.random((128, 64), (16, 16), density=0.25)
        >>> layer = es.SparseLinear(64, 128, pattern)
        >>> layer(torch.randn(8, 64)).shape
        torch.Size([8, 128])
        >>> layer.values.shape
        torch.Size([8, 16, 16])
        >>> es.SparseLinear(64, 128, density=0.25, block_shape=(16, 16)).pattern.nnz_blocks
        8
    """

    bias: nn.Parameter | None
    pattern_owner: str | None = None
    _awaits_numbers: bool  # made on the meta device, and neither filled nor used since
    _pattern: BlockPattern
    _seen: state.Seen
    _checked_broadcast: bool
    _lineage: Lineage
    _moves: int  # of the lineage, when this layer last looked
    _copied: int | None = None  # the version of the values of a copy when it was made
    _on_weight: tuple[Callable[[Tensor], None], ...] = ()  # are told what ``weight`` gives, if it is differentiated

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pattern: BlockPattern | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float | None = None,
        block_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if pattern is None and density is not None and block_shape is not None:
            pattern = BlockPattern.random((out_features, in_features), block_shape, density)
            if pattern.nnz_blocks == 0 and out_features and in_features:
                warnings.warn("density=0 stores no block, so the output is the bias alone", stacklevel=2)
        elif density is not None or block_shape is not None:
            given = {"pattern": pattern, "density": density, "block_shape": block_shape}
            names = " and ".join(name for name, what in given.items() if what is not None)
            raise ValueError(f"pattern, or density and block_shape, must be given, got {names}")
        if not isinstance(pattern, BlockPattern):
            raise TypeError(f"pattern must be a BlockPattern, got {type(pattern).__name__}")
        if pattern.shape != (out_features, in_features):
            raise ValueError(f"pattern must be [{out_features}, {in_features}], got {list(pattern.shape)}")
        if device is None:  # under torch.device("meta"), as loaders of other libraries make models, parameters are meta
            default = torch.get_default_device()
            device = default if default.type == "meta" else pattern.device
        device = torch.device(device)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in DTYPES:
            raise TypeError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype!r}")
        self.out_features, self.in_features = pattern.shape
        self._lineage = Lineage()
        self.backend = "auto"
        self.product: Product | None = None
        self.values = nn.Parameter(in_huge_pages(torch.empty(pattern.values_shape, device=device, dtype=dtype)))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self._awaits_numbers = self.values.is_meta
        self.pattern = pattern.to(device)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw ``values`` and ``bias`` as :class:`torch.nn.Linear` does, each row by the fan-in that it stores."""
        if self.values.is_meta:
            return
        self._awaits_numbers = False
        self.pattern = self._pattern.to(self.values.device)
        fan_in = fan_in_of_stored(self.pattern)
        uniform_(self.values, self.pattern, fan_in)
        if self.bias is not None:
            bound = fan_in.clamp(min=1).to(self.bias.dtype).rsqrt()
            self.bias.uniform_(-1.0, 1.0).mul_(bound)

    # -- the pattern -------------------------------------------------------------------------------------------

    @property
    def pattern(self) -> BlockPattern:
        if not torch.compiler.is_compiling():
            self.check_pattern()
        return self._pattern

    @pattern.setter
    def pattern(self, pattern: BlockPattern) -> None:
        if "_pattern" in self.__dict__ and pattern != self._pattern:
            self._lineage.moves, self._lineage.latest = self._lineage.moves + 1, pattern.fingerprint
        self._pattern, self._checked_broadcast, self._moves = pattern, False, self._lineage.moves
        self._seen = state.write_buffers(self, pattern)
        if isinstance(self.values, nn.Parameter):
            self.values.of_pattern = pattern.fingerprint  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # a copy's arrays have new version counters, which would not tell that another pattern was written into them
        self._seen = [(part, None, -1) for part, _, _ in self._seen]
        self._lineage = self.__dict__.get("_lineage") or Lineage()
        self._moves, self._copied = self._lineage.moves, _version(self.values)

    def check_pattern(self) -> None:
        """See that values and buffers are those of the pattern, and that it is where they are; it is called often.

        Raises:
            ValueError: another pattern was written into the buffers, or ``values`` belong to another one.
        """
        values: Any = self.values
        pattern, own = self._pattern, self._buffers
        if isinstance(values, torch.fx.Proxy):  # traced: what it stands for is not known here
            return
        for part, tensor, version in self._seen:
            if tensor is None or own.get(part) is not tensor or (version >= 0 and tensor._version != version):
                self._settle()
                break
        owner = getattr(values, "of_pattern", None)
        if owner is not None and owner != self._pattern.fingerprint:
            raise ValueError(
                f"{self._title}: values must be those of the layer's pattern {self._pattern.fingerprint}, "
                f"got those of {owner}"
            )
        if values.device != pattern.device and not values.is_meta:
            self.pattern = self._pattern.to(values.device)
        if self._awaits_numbers and not values.is_meta:
            self._awaits_numbers = False

    def _others_moved(self) -> None:
        """Warn if this is a copy that looks like an average: written to, and not training itself."""
        self._moves = self._lineage.moves
        trains = torch.is_grad_enabled() and self.values.requires_grad
        written = self._copied is not None and _version(self.values) != self._copied
        if written and not trains and self._lineage.latest != self._pattern.fingerprint:
            warnings.warn(
                f"{self._title}: values were written, and blocks of the layer that this one is a copy of have moved: "
                "an average over parameters() would mix blocks of different places. Name the copy in "
                "Growth(copies=[...]), or call adopt_patterns(average, model.state_dict()) after blocks moved",
                stacklevel=2,
            )

    def _settle(self) -> None:
        """Compare the pattern with buffers that somebody has written or replaced.

        DistributedDataParallel writes them before each forward pass; on a GPU, where comparing would wait for it, they
        are compared the first time.
        """
        broadcast = state.were_broadcast(self, self._seen)
        if (broadcast and self._checked_broadcast and self.values.is_cuda) or state.agree(self, self._pattern):
            if not state.is_stacked(self):
                self._seen, self._checked_broadcast = state.seen_now(self), broadcast
            return
        written, told = state.written_pattern(self, self._pattern)
        if written is not None and self._awaits_numbers and self.pattern_owner is None:
            self.pattern = written
            return
        told = (
            state.CUT_OFF
            if not state.is_stacked(self) and state.were_cut_off(self._buffers, "", self._pattern)
            else f"{told} written over them; load_state_dict gives them back, and adopt_patterns(model) takes the new "
            "pattern over, if the values were written with it"
        )
        raise ValueError(
            f"{self._title}: crow_indices, col_indices and masks must be those of the layer's pattern "
            f"{self._pattern.fingerprint}, got {told}"
        )

    def _refuse_empty_under_fsdp(self) -> None:
        values = self.values
        if values.requires_grad and not hasattr(values, "of_pattern"):  # not the layer's own: FSDP has gathered them
            raise ValueError(
                f"{self._title}: pattern must store a block under fully_shard, which has no empty gradients, got none; "
                "freeze values, or name them in ignored_params"
            )

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}({self.in_features}, {self.out_features})"

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name in ("weight", "weight_orig"):  # weights tied by assignment; torch.nn.utils.prune
            raise TypeError(
                f"{self._title}: {name} cannot be a parameter, since weight is made of values at each reading: "
                "tie or prune values, or take to_linear()"
            )
        super().register_parameter(name, param)

    # -- computing ---------------------------------------------------------------------------------------------

    @property
    def weight(self) -> Tensor:
        """W as a dense matrix, differentiable; writing into it raises ``RuntimeError``.

        It is made when its numbers are first read: its dtype, device and shape cost nothing.

        For code that reads the weight of an :class:`torch.nn.Linear`, as :class:`torch.nn.MultiheadAttention` and
        :class:`torch.nn.TransformerEncoderLayer` do.
        """
        pattern = self.pattern
        pattern.check_values(self.values)
        weight = lazy_weight(pattern.shape, pattern.to_dense, lambda dy: (pattern.gather(dy),), self.values)
        self.tell(weight)
        return weight

    def tell(self, weight: Tensor) -> None:
        """Let those who watch the gradient of W know that ``weight`` was read in its place."""
        if weight.requires_grad and not torch.compiler.is_compiling():
            for told in self._on_weight:
                told(weight)

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and self._moves != self._lineage.moves:
            self._others_moved()
        if self._pattern.nnz_blocks == 0 and getattr(self, "_is_fsdp_managed_module", False):
            self._refuse_empty_under_fsdp()
        if self.product is None or not torch.is_grad_enabled():
            return spmm(input, self.values, self.pattern, bias=self.bias, backend=self.backend)
        return self.product(input)

    # -- conversion --------------------------------------------------------------------------------------------

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, density: float, block_shape: tuple[int, int], cover: bool = True
    ) -> SparseLinear:
        """The layer that keeps the ``density`` share of blocks of ``linear`` with the largest norms.

        ``requires_grad`` of weight and bias carries over. With ``cover`` each block row and block column keeps at least
        one block, or outputs would be constant and inputs unread; if there are too few blocks for that, more are kept.

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
        pattern = strongest_blocks(weight, density=density, block_shape=block_shape, cover=cover)
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
        """W as a :func:`torch.sparse_bsr_tensor` that shares the memory of ``values``; a copy where blocks are masked.

        Raises:
            ValueError: a side of W is no multiple of the block, which torch's BSR layout cannot hold.
        """
        from efcn_sparse.convert import to_bsr

        return to_bsr(self.values.detach(), self.pattern)

    # -- nn.Module ---------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        pattern = self._pattern
        rows, cols = pattern.block_shape
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, block_shape=({rows}, {cols}), "
            f"nnz_blocks={pattern.nnz_blocks}, density={pattern.density:.4g}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        self.check_pattern()
        super()._apply(fn, recurse)  # index arrays too, so they are written anew
        self.pattern = self._pattern.to(self.values.device)
        return self

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
        rest = dict(state_dict)
        if self._awaits_numbers and self.pattern_owner is None:
            unread = state.alike_pattern(self._pattern, rest, prefix)
            if unread is not None:  # ours was a placeholder
                self.pattern = unread.to(self._pattern.device)
        refused = state.take_pattern(self._pattern, rest, prefix, missing_keys)
        if refused:
            raise ValueError(refused)
        missing: list[str] = []
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        missing_keys += [key for key in missing if key not in state.index_keys(prefix)]
        self._awaits_numbers &= f"{prefix}values" not in state_dict or self.values.is_meta
        self.pattern = self._pattern.to(self.values.device)
        if self._copied is not None:
            self._copied = _version(self.values)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
