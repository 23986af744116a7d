"""Two nets written with the same stored blocks, so that their weights can be added, compared and trained as one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from efcn_sparse.copying import copy_of
from efcn_sparse.embedding import EmbeddedConv, Full
from efcn_sparse.embedding.build import classify
from efcn_sparse.embedding.refusals import without_weight_norm
from efcn_sparse.embedding.ties import Ties
from efcn_sparse.landscape.between import paired_layers
from efcn_sparse.landscape.products import common_blocks, in_smaller_blocks, weights_of
from efcn_sparse.linear import SparseLinear
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.sources import unique_masks
from efcn_sparse.pattern.structure import grid_of

Structure = tuple[BlockPattern, Ties]


@torch.no_grad()
def on_common_support(a: nn.Module, b: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Copies of two nets whose block-sparse layers have the union of both supports, in blocks that divide both.

    A convolution whose partner is embedded is embedded too. Nothing dense is formed.

    Raises:
        ValueError: the nets do not match, or a layer has the support ``LowRank``; the message names the layer.
    """
    in_a: dict[int, Any] = {}
    in_b: dict[int, Any] = {}
    for name, one, other in paired_layers(a, b):
        in_a[id(one)], in_b[id(other)] = _pair(name, one, other)
    return copy_of(a, in_a), copy_of(b, in_b)


def _pair(name: str, a: nn.Module, b: nn.Module) -> tuple[nn.Module, nn.Module]:
    if isinstance(a, EmbeddedConv) and isinstance(b, EmbeddedConv):
        return _union(a, b)
    if isinstance(a, EmbeddedConv):
        return copy.deepcopy(a), _embedded_like(b, a)
    if isinstance(b, EmbeddedConv):
        return _embedded_like(a, b), copy.deepcopy(b)
    if isinstance(a, SparseLinear) and isinstance(b, SparseLinear):
        if a.pattern == b.pattern:
            return copy.deepcopy(a), copy.deepcopy(b)
        pattern, places = _union_pattern(a, b)
        made = [
            SparseLinear(layer.in_features, layer.out_features, pattern, bias=layer.bias is not None, device="meta")
            for layer in (a, b)
        ]
        for new, layer, place in zip(made, (a, b), places, strict=True):
            _fill(new, layer, pattern, place)
        return made[0], made[1]
    raise ValueError(f"a and b must both have block-sparse weights in {name!r}, got {a} and {b}")


def _embedded_like(conv: nn.Module, layer: EmbeddedConv) -> EmbeddedConv:
    conv = without_weight_norm(conv)
    assert isinstance(conv, _ConvNd)
    weights_of(layer)  # refuses a low-rank part
    structure = (layer.linear.pattern, layer.ties)
    made = EmbeddedConv.from_conv(
        conv, layer.geometry.image_size, layer.support, structure=structure, geometry=layer.geometry
    )
    made.contiguous_output = layer.contiguous_output
    return made


def _union(a: EmbeddedConv, b: EmbeddedConv) -> tuple[EmbeddedConv, EmbeddedConv]:
    if a.linear.pattern == b.linear.pattern:
        return copy.deepcopy(a), copy.deepcopy(b)
    pattern, places = _union_pattern(a, b)
    cpu = pattern.to("cpu")
    classes, maps = classify(
        a.geometry, Full(), pattern.block_shape, cpu.rows_of_blocks().long(), cpu.col_indices.long()
    )
    ties = Ties.of_classes(a.geometry.kernel_shape, classes, maps).to(pattern.device)
    made = []
    for layer, place in zip((a, b), places, strict=True):
        new = EmbeddedConv(
            a.geometry, Full(), bias=layer.linear.bias is not None, device="meta", structure=(pattern, ties)
        )
        new.ties = ties
        new.contiguous_output, new.unread_kernel = layer.contiguous_output, layer.unread_kernel
        _fill(new.linear, layer.linear, pattern, place)
        made.append(new.train(layer.training))
    return made[0], made[1]


def _fill(new: SparseLinear, layer: SparseLinear, pattern: BlockPattern, place: Tensor) -> None:
    values, old = weights_of(layer)
    blocks, _ = in_smaller_blocks(values, old, pattern.block_shape)
    filled = values.new_zeros(pattern.values_shape)
    filled[place] = blocks
    new.pattern = pattern
    new.values = nn.Parameter(filled, requires_grad=layer.values.requires_grad)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)


def _union_pattern(a: EmbeddedConv | SparseLinear, b: EmbeddedConv | SparseLinear) -> tuple[BlockPattern, list[Tensor]]:
    """The pattern of both supports together, and where the smaller blocks of each layer lie in it."""
    patterns = [weights_of(layer)[1] for layer in (a, b)]
    shape, block_shape = patterns[0].shape, common_blocks(*patterns)
    supports = [_support_in(pattern, block_shape) for pattern in patterns]
    where = torch.unique(torch.cat([at for _, at in supports]))
    places = [torch.searchsorted(where, at) for _, at in supports]
    inside = torch.zeros((len(where), *block_shape), dtype=torch.bool, device=where.device)
    for (support, _), place in zip(supports, places, strict=True):
        inside[place] |= support
    across = grid_of(shape, block_shape)[1]
    bare = BlockPattern.from_blocks(where // across, where % across, shape, block_shape)
    index, masks = unique_masks(inside, bare.structure.inside(shape, block_shape))
    pattern = BlockPattern.from_bsr(
        bare.crow_indices, bare.col_indices, shape, block_shape, mask_index=index, masks=masks
    )
    return pattern, places


def _support_in(pattern: BlockPattern, block_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    support = pattern.support_of_blocks()
    if support is None:
        support = torch.ones(pattern.values_shape, dtype=torch.bool, device=pattern.device)
    return in_smaller_blocks(support, pattern, block_shape)
