"""A frozen linear layer and trainable blocks that are added to its weight."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.finetune.scores import gradient_scores
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.dense_weight import lazy_weight
from efcn_sparse.linear.refusals import chosen_linears, weight_of
from efcn_sparse.linear.sparsify import as_dense
from efcn_sparse.pattern import BlockPattern


class _Merged(NamedTuple):
    """Blocks of the weight around ``merge()``, and where they lie: the delta's may move meanwhile."""

    pattern: BlockPattern
    before: Tensor
    after: Tensor


class SparseDelta(nn.Module):
    """``y = x (W + Δ)ᵀ + b``: a frozen :class:`torch.nn.Linear`, and a block-sparse Δ that starts at zero and trains.

    A fine-tuned model then is its base and a few blocks. Δ has any rank, at places of one's own choice; :meth:`add`
    puts it where the gradient of some batches is largest.

    Args:
        linear: is frozen (``requires_grad`` becomes False), and not copied; also the ``Conv1D`` of transformers' GPT-2.
        pattern: the blocks of Δ; without it ``density`` and ``block_shape`` draw them.

    Attributes:
        linear: as given.
        delta: the blocks, a :class:`SparseLinear` without bias: ``delta.values`` is the only trainable parameter. With
            :class:`FusedOptimizer` no gradient of it is held.
        merged: whether Δ is in ``linear.weight`` at present. A state dict is of the unmerged layer: to ask for one is
            an error while merged, and to load one unmerges.

    Law: right after it is made, and after ``merge()`` and ``unmerge()``, all outputs are what they were.

    Raises:
        ValueError: the pattern is not of the shape of ``linear.weight``, or that is no parameter.

    Example:
        >>> linear = nn.Linear(64, 32)
        >>> layer = SparseDelta(linear, BlockPattern.random((32, 64), (8, 8), density=0.25))
        >>> x = torch.randn(4, 64)
        >>> torch.equal(layer(x), linear(x)), [name for name, p in layer.named_parameters() if p.requires_grad]
        (True, ['delta.values'])
    """

    keeps_its_linear: ClassVar[bool] = True  # which nothing else may replace
    _merged: _Merged | None

    def __init__(
        self,
        linear: nn.Module,
        pattern: BlockPattern | None = None,
        *,
        density: float | None = None,
        block_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        weight = weight_of(linear)
        if "weight" not in linear._parameters:
            raise ValueError("linear.weight must be a parameter, got one that is computed (a parametrization)")
        rows, cols = weight.shape
        delta = SparseLinear(
            cols, rows, pattern, bias=False, device=weight.device, dtype=weight.dtype, density=density,
            block_shape=block_shape,
        )  # fmt: skip
        self.linear, self.delta = linear.requires_grad_(False), delta
        nn.init.zeros_(self.delta.values)
        self._merged = None

    @property
    def merged(self) -> bool:
        """Whether Δ is in ``linear.weight`` at present."""
        return self._merged is not None

    @property
    def weight(self) -> Tensor:
        """W + Δ ``[out_features, in_features]``, made anew at each reading, differentiable, as a ``SparseLinear``'s.

        The frozen W is ``linear.weight``.
        """
        frozen = weight_of(self.linear)
        if self.merged:
            return frozen
        pattern, values = self.delta.pattern, self.delta.values
        pattern.check_values(values)

        def total(weight: Tensor, values: Tensor) -> Tensor:
            return weight + pattern.to_dense(values)

        weight = lazy_weight(pattern.shape, total, lambda dy: (dy, pattern.gather(dy)), frozen, values)
        self.delta.tell(weight)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.linear._parameters["bias"]

    def forward(self, input: Tensor) -> Tensor:
        y = self.linear(input)
        return y if self.merged else y + self.delta(input)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Add Δ to the frozen weight, in place, for inference at the cost of the dense layer; gives the linear layer.

        The blocks of the weight that change are kept, so that :meth:`unmerge` brings them back bit for bit. To leave it
        at that, for a state dict or an export, put the linear layer in the place of this one.
        """
        if self._merged is None:
            pattern, weight = self.delta.pattern, weight_of(self.linear)
            before = pattern.gather(weight)
            _write(weight, pattern, before + self.delta.values)
            self._merged = _Merged(pattern, before, pattern.gather(weight))
        return self.linear

    @torch.no_grad()
    def to_linear(self) -> nn.Module:
        """A copy of ``linear`` with Δ in its weight."""
        linear = copy.deepcopy(self.linear)
        if not self.merged:
            weight, pattern = weight_of(linear), self.delta.pattern
            _write(weight, pattern, pattern.gather(weight) + self.delta.values)
        return linear

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo :meth:`merge`.

        Raises:
            RuntimeError: those blocks of ``linear.weight`` have changed since; nothing is changed then.
        """
        self._unmerge(is_checked=True)

    @torch.no_grad()
    def _unmerge(self, *, is_checked: bool) -> None:
        if self._merged is None:
            return
        weight, (pattern, before, after) = weight_of(self.linear), self._merged
        pattern = pattern.to(before.device)
        if is_checked and not torch.allclose(pattern.gather(weight), after, rtol=0, atol=0, equal_nan=True):
            raise RuntimeError(
                "linear.weight must be as merge() left it, got other numbers; where several deltas are merged into one "
                "layer, the last one is unmerged first"
            )
        _write(weight, pattern, before)
        self._merged = None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module, while not merged."""
        if self.merged:
            raise RuntimeError(
                "a state dict must be of a SparseDelta that is not merged, got a merged one: unmerge() it, or put the "
                "linear layer that merge() gave in its place"
            )
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            loaded, weight = state_dict.get(f"{prefix}linear.weight"), self.linear.get_parameter("weight")
            self._unmerge(is_checked=getattr(loaded, "shape", None) != weight.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseDelta:
        super()._apply(fn, recurse)
        if self._merged is not None:  # no buffers, which averages and DDP would count
            self._merged = self._merged._replace(before=fn(self._merged.before), after=fn(self._merged.after))
        return self

    @staticmethod
    def add(
        model: nn.Module,
        rules: Mapping[str, Mapping[str, Any] | None],
        loss: Callable[[nn.Module, Any], Tensor],
        batches: Iterable[Any],
    ) -> dict[str, SparseDelta]:
        """Put a delta beside every :class:`torch.nn.Linear` whose name matches a rule (the first counts), in place.

        The blocks are those with the largest sum over the batches of the squared norm of their gradient, which is
        computed exactly, a part of it at a time.

        Args:
            model: any module without deltas; it runs in its present mode, and all its parameters are frozen.
            rules: shell-style name patterns to ``dict(density=..., block_shape=(rows, cols))``, or None to leave a
                layer frozen without a delta.
            loss: ``loss(model, batch)``, a scalar.
            batches: of the data to fine-tune on; a few are enough.

        Returns:
            The new layers by name.

        Raises:
            ValueError: a rule matches no Linear or is no such dict, there are no batches, a layer was not used by them,
                it cannot be replaced without losing something, or the model has deltas. Nothing has been replaced then.

        Example:
            >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
            >>> x = torch.randn(8, 16)
            >>> rules = {"2": None, "*": dict(density=0.25, block_shape=(8, 8))}
            >>> list(SparseDelta.add(net, rules, lambda net, x: net(x).square().mean(), [x]))
            ['0']
        """
        there = [name for name, module in model.named_modules() if isinstance(module, SparseDelta)]
        if there:
            raise ValueError(
                f"model must hold no SparseDelta yet, got {there[0] or 'model'!r}: put what its merge() gives in its "
                "place first"
            )
        chosen = chosen_linears(model, rules, "have a delta")
        given = {name: (module, rule["block_shape"]) for name, (module, rule) in chosen.items()}
        scores = gradient_scores(model, given, loss, batches)
        patterns = {}
        for name, (module, rule) in chosen.items():
            rows, cols = scores[name].shape
            most = max(1, round(rule["density"] * rows * cols))
            best = scores[name].flatten().topk(most).indices
            shape = weight_of(module).shape
            patterns[name] = BlockPattern.from_blocks(best // cols, best % cols, shape, rule["block_shape"])
        model.requires_grad_(False)
        made = {name: SparseDelta(module, patterns[name]) for name, (module, _) in chosen.items()}
        beside = {id(layer.linear): layer for layer in made.values()}
        for name, module in list(model.named_modules(remove_duplicate=False)):  # a shared layer stays shared
            if id(module) in beside:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, beside[id(module)])
        return made

    def extra_repr(self) -> str:
        return f"merged={self.merged}"


@as_dense.register
def _(module: SparseDelta) -> nn.Module:
    return module.to_linear()


def _write(weight: Tensor, pattern: BlockPattern, values: Tensor) -> None:
    """Set the entries of ``weight`` in the support to ``values``, block by block."""
    (height, width), support = pattern.block_shape, pattern.support_of_blocks()
    rows, cols = pattern.rows_of_blocks().tolist(), pattern.col_indices.tolist()
    for number, (row, col) in enumerate(zip(rows, cols, strict=True)):
        part = weight[row * height : (row + 1) * height, col * width : (col + 1) * width]
        new = values[number, : part.shape[0], : part.shape[1]]
        part.copy_(new if support is None else new.where(support[number, : part.shape[0], : part.shape[1]], part))
    weights_were_written()
