"""What embedding a model would store, without storing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.available import available_bytes
from efcn_sparse.embedding.blocks import choose_block_shape, count_stored
from efcn_sparse.embedding.build import build
from efcn_sparse.embedding.example_run import Example
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.support import Dilated, Local, Support
from efcn_sparse.embedding.survey import Site, survey
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.sizes import size_text


@dataclass(frozen=True)
class LayerPlan:
    """One convolution's embedding, not yet built.

    Attributes:
        name: in the model.
        geometry, support, block_shape, dtype: of the layer.
        stored_blocks: how many blocks its pattern has.
    """

    name: str
    geometry: ConvGeometry
    support: Support
    block_shape: tuple[int, int]
    dtype: torch.dtype
    stored_blocks: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.geometry.shape

    @property
    def local_weights(self) -> int:
        """Entries inside receptive fields."""
        return self.geometry.local_weights

    @property
    def support_weights(self) -> int:
        """Entries that may be non-zero; where a part is of low rank, its numbers are counted."""
        return self.support.free_numbers(self.geometry, self.block_weights)

    @property
    def rank(self) -> int:
        """Of the low-rank part; 0 without one."""
        return self.support.low_rank

    @property
    def block_weights(self) -> int:
        """Numbers in ``values``: those of the support, and the rest of the blocks that are partly inside it."""
        return self.stored_blocks * self.block_shape[0] * self.block_shape[1]

    @property
    def stored_weights(self) -> int:
        """Numbers in ``values`` and in the low-rank part."""
        return self.block_weights + self.rank * sum(self.shape)

    @property
    def full_weights(self) -> int:
        """Entries of the dense matrix."""
        return self.geometry.full_weights

    @property
    def block_bytes(self) -> int:
        """Memory of ``values``."""
        return self.block_weights * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Memory of ``values`` and of the low-rank part."""
        return self.stored_weights * self.dtype.itemsize

    @cached_property
    def pattern(self) -> BlockPattern:
        """The pattern itself as embedding builds it, built when first asked for."""
        return build(self.geometry, self.support, self.block_shape)[0]


@dataclass(frozen=True)
class EmbeddingPlan:
    """The layers that :func:`embed` would embed, with their sums."""

    layers: tuple[LayerPlan, ...]

    @property
    def local_weights(self) -> int:
        """Entries inside receptive fields, over all layers."""
        return sum(layer.local_weights for layer in self.layers)

    @property
    def support_weights(self) -> int:
        """Entries that may be non-zero, over all layers."""
        return sum(layer.support_weights for layer in self.layers)

    @property
    def stored_blocks(self) -> int:
        """Blocks, over all layers."""
        return sum(layer.stored_blocks for layer in self.layers)

    @property
    def stored_weights(self) -> int:
        """Numbers in ``values`` and in low-rank parts, over all layers."""
        return sum(layer.stored_weights for layer in self.layers)

    @property
    def full_weights(self) -> int:
        """Entries of the dense matrices, over all layers."""
        return sum(layer.full_weights for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Memory of all ``values`` and low-rank parts."""
        return sum(layer.bytes for layer in self.layers)


def plan(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...] | None = None,
    *,
    support: Support = Local(),
    layers: Mapping[str, Any] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    leave_uncalled: bool = False,
) -> EmbeddingPlan:
    """What :func:`embed` would store with these arguments, layer by layer, in seconds and without the weights.

    Args:
        model, example_input, support, layers, example_inputs, example_kwargs, leave_uncalled: as for :func:`embed`;
            the model and its inputs may be on the meta device, where the example run costs nothing.

    Raises:
        ValueError: what :func:`embed` refuses before it builds anything.
        TypeError: an argument is of the wrong kind.

    Example:
        >>> from efcn_sparse.models import vanilla_cnn
        >>> with torch.device("meta"):
        ...     planned = plan(vanilla_cnn(), torch.empty(1, 3, 32, 32))
        >>> planned.local_weights, planned.full_weights, planned.layers[0].block_shape
        (5722112, 73928704, (64, 6))
    """
    example = Example.of(example_input, example_inputs, example_kwargs)
    sites = survey(model, example, support, layers, leave_uncalled).sites
    shapes: dict[Any, tuple[tuple[int, int], int]] = {}
    planned = []
    for site in sites:
        geometry, rule = site.geometry, site.rule
        if (geometry, rule) not in shapes:
            shape = rule.block_shape or choose_block_shape(geometry, rule.support)
            shapes[geometry, rule] = shape, count_stored(geometry, rule.support, shape)
        block_shape, blocks = shapes[geometry, rule]
        dtype = next(site.conv.parameters()).dtype
        planned.append(LayerPlan(site.name, geometry, rule.support, block_shape, dtype, blocks))
    return EmbeddingPlan(tuple(planned))


def check_memory(sites: list[Site], device: torch.device | str | None = None) -> None:
    """Raise ``ValueError`` if the weights of these layers alone are more than there is memory for.

    The least that they take is known without building anything: their entries.

    Args:
        device: where the weights are to be; None: where those of the convolutions are.
    """
    by_device: dict[torch.device, list[Site]] = {}
    for site in sites:
        place = next(site.conv.parameters()).device if device is None else torch.device(device)
        by_device.setdefault(place, []).append(site)
    for place, here in by_device.items():
        there, needed = available_bytes(place), least_bytes(here, None)
        if there is None or needed <= there:
            continue
        smaller = [Local(), *map(Dilated, range(max(max(site.geometry.input_size) for site in here)))]
        fitting = [support for support in smaller if least_bytes(here, support) <= there]
        best = f"what fits is {fitting[-1]!r}, {size_text(least_bytes(here, fitting[-1]))}" if fitting else None
        given = ", ".join(dict.fromkeys(repr(site.rule.support) for site in here))
        raise ValueError(
            f"support must fit into the {size_text(there)} of memory available on {place}, got {given}, whose weights "
            f"alone take {size_text(needed)}; {best or 'not even Local() fits'}"
        )


def least_bytes(sites: list[Site], support: Support | None) -> int:
    """Of the weights of these layers with ``support``; with None, each with its own."""
    return sum(
        (support or site.rule.support).least_numbers(site.geometry) * next(site.conv.parameters()).dtype.itemsize
        for site in sites
    )
