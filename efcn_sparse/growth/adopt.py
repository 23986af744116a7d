"""Layers whose blocks have moved, out of a state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from efcn_sparse.growth.exchange import GrowingLayer, exchange_blocks, growing_layer, is_growable
from efcn_sparse.growth.scores import flat_positions
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.state import CUT_OFF, read_pattern, stored_pattern, were_cut_off
from efcn_sparse.pattern import BlockPattern


@torch.no_grad()
def adopt_patterns(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> list[str]:
    """Give every sparse layer the pattern that a state dict has for it, so that the state dict can be loaded.

    :func:`regrow` moves blocks, and a layer refuses the state dict of another pattern. Blocks that a layer has already
    keep their values, others start at zero; the ties of embedded convolutions follow, and so do fused optimizers. State
    that another optimizer has for ``values`` does not: load its own state dict afterwards.

    Args:
        model: any module.
        state: a state dict of a model like this one; only the patterns in it, and the shapes of values, are read. None:
            take over what something has written into the layers' own buffers, together with the values: a loader that
            fills tensors in place, say. Values then stay as they are.

    Returns:
        The names of the layers whose pattern has changed.

    Law: ``adopt_patterns(model, other.state_dict())`` and then ``model.load_state_dict(other.state_dict())`` gives a
    model that computes what ``other`` does, wherever the blocks of ``other`` have been moved to.

    Raises:
        ValueError: a pattern is broken, is for another matrix or block shape, or lacks a block that must stay; no layer
            has been changed then.
        NotImplementedError: the blocks of a layer with another pattern may not move: a convolution whose support is
            not :class:`Grown`.

    Example:
        >>> import torch, efcn_sparse as es
        >>> grown, fresh = (es.SparseLinear(8, 8, es.BlockPattern.random((8, 8), (2, 2), 0.5)) for _ in range(2))
        >>> es.adopt_patterns(fresh, grown.state_dict())
        ['']
        >>> fresh.load_state_dict(grown.state_dict()), fresh.pattern == grown.pattern
        (<All keys matched successfully>, True)
    """
    changes = []
    for name, layer, linear, prefix in _layers(model):
        old = stored_pattern(linear)
        arrays, at = (linear._buffers, "") if state is None else (state, prefix)
        if were_cut_off(arrays, at, old):
            raise ValueError(f"{name or 'model'}: the pattern must be one that blocks moved to, got {CUT_OFF}")
        pattern = read_pattern(arrays, at, old)
        if pattern is None or pattern == old:
            continue
        _check_alike(name, old, pattern)
        if state is None and linear.product is not None:
            raise ValueError(
                f"{name or 'model'}: a fused optimizer cannot follow blocks that are there already; detach it"
            )
        growing = growing_layer(layer)
        source = _places(old, pattern)
        _check_keeps(name, growing, source)
        changes.append((name, growing, pattern.to(linear.values.device), source))
    for _, growing, pattern, source in changes:
        if state is None:
            follow = growing.follow(pattern, source)
            follow()
            growing.linear.pattern = pattern
        else:
            exchange_blocks(growing, pattern, source)
    return [name for name, *_ in changes]


class _Found(NamedTuple):
    name: str
    layer: nn.Module
    linear: SparseLinear
    prefix: str


def _layers(model: nn.Module) -> Iterator[_Found]:
    """Every sparse layer once; within a module that is built on its pattern, as that module."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        around = is_growable(module) and isinstance(getattr(module, "linear", None), SparseLinear)
        linear = module.linear if around else module
        if isinstance(linear, SparseLinear) and id(linear) not in seen:
            seen.add(id(linear))
            path = [part for part in (name, "linear" if around else "") if part]
            yield _Found(name, module, linear, "".join(f"{part}." for part in path))


def _check_alike(name: str, mine: BlockPattern, theirs: BlockPattern) -> None:
    if (mine.shape, mine.block_shape) != (theirs.shape, theirs.block_shape):
        raise ValueError(
            f"{name or 'model'}: the state dict's pattern must be {list(mine.shape)} in blocks {mine.block_shape}, "
            f"got {list(theirs.shape)} in blocks {theirs.block_shape}"
        )


def _places(old: BlockPattern, new: BlockPattern) -> Tensor:
    """int64 ``[new.nnz_blocks]``: which block of ``old`` lies at the place of each, -1 where there is none."""
    stored, wanted = flat_positions(old), flat_positions(new.to(old.device))
    if not stored.numel():
        return torch.full_like(wanted, -1)
    at = torch.searchsorted(stored, wanted).clamp(max=stored.numel() - 1)
    return torch.where(stored[at] == wanted, at, -1)


def _check_keeps(name: str, layer: GrowingLayer, source: Tensor) -> None:
    kept = torch.zeros_like(layer.movable)
    kept[source[source >= 0]] = True
    lost = int((~layer.movable & ~kept).sum())
    if lost and layer.linear.pattern_owner is not None:
        raise ValueError(f"{name or 'model'}: the state dict's pattern must hold every local block, got {lost} missing")
