"""A layer of the eFCN as dense matrices, with its local part marked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from efcn_sparse.embedding import ConvGeometry, Dilated, EmbeddedConv, Full, Local, Support
from efcn_sparse.embedding.blocks import choose_block_shape
from efcn_sparse.embedding.build import build


@dataclass(frozen=True, eq=False)
class Layer:
    """The sizes and supports of one embedded convolution.

    Attributes:
        geometry: of the convolution.
        block_shape: the one that ``Local()`` would have.
        local: bool ``[out_features, in_features]``: the receptive fields.
        dilated: how many pixels the receptive fields must grow to hold an entry: int ``[out_features, in_features]``,
            0 where it is local.
    """

    geometry: ConvGeometry
    block_shape: tuple[int, int]
    local: Tensor
    dilated: Tensor

    @classmethod
    def of(cls, module: EmbeddedConv) -> Layer:
        geometry = module.geometry
        shape = choose_block_shape(geometry, Local())
        local, everything = (_mask(geometry, support, shape) for support in (Local(), Full()))
        dilated = torch.zeros(local.shape, dtype=torch.int16)
        reached, radius = local, 0
        while not torch.equal(reached, everything):
            radius += 1
            dilated[~reached] = radius
            reached = _mask(geometry, Dilated(radius), shape) if radius < max(geometry.input_size) else everything
        return cls(geometry, shape, local, dilated)

    @property
    def off_local_weights(self) -> int:
        return self.local.numel() - self.local_weights

    @property
    def local_weights(self) -> int:
        return int(self.local.sum())

    @property
    def in_small_blocks(self) -> Layer:
        """The same with blocks of a quarter of the sides."""
        height, width = self.block_shape
        return replace(self, block_shape=(max(1, height // 4), max(1, width // 4)))

    def block_sums(self, matrix: Tensor) -> Tensor:
        """fp64 ``[block rows, block columns]``: the sum over each block of a matrix of this layer."""
        (height, width), (rows, cols) = self.block_shape, matrix.shape
        padded = pad(matrix.double(), (0, -cols % width, 0, -rows % height))
        return padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width).sum((1, 3))

    def spread(self, blocks: Tensor) -> Tensor:
        """``[out_features, in_features]``: what each block says, at each of its entries."""
        height, width = self.block_shape
        tall = blocks.repeat_interleave(height, 0)[: self.local.shape[0]]
        return tall.repeat_interleave(width, 1)[:, : self.local.shape[1]]


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """The embedded convolutions of ``model`` by name."""
    return {name: Layer.of(module) for name, module in embedded(model).items()}


def embedded(model: nn.Module) -> dict[str, EmbeddedConv]:
    return {name: module for name, module in model.named_modules() if isinstance(module, EmbeddedConv)}


def off_local_weights(model: nn.Module, layers: dict[str, Layer]) -> dict[str, Tensor]:
    """fp64 ``[out_features, in_features]`` for each layer: its weights, zero where they are local."""
    return {name: _off_local(module, module.linear.values, layers[name]) for name, module in embedded(model).items()}


def off_local_gradients(model: nn.Module, layers: dict[str, Layer], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The same of the gradient of the mean cross-entropy over ``x [N, C, H, W]`` and ``y [N]``; ``model`` is Full()."""
    model.eval()
    model.zero_grad()
    for part, labels in zip(x.split(600), y.split(600), strict=True):
        loss = nn.functional.cross_entropy(model(part), labels, reduction="sum") / len(y)
        loss.backward()
    found = {}
    for name, module in embedded(model).items():
        gradient = module.linear.values.grad
        assert gradient is not None
        found[name] = _off_local(module, gradient, layers[name])
    model.zero_grad()
    return found


def _off_local(module: EmbeddedConv, values: Tensor, layer: Layer) -> Tensor:
    dense = module.linear.pattern.to_dense(values.detach())
    return dense.double().masked_fill_(layer.local, 0)


def _mask(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> Tensor:
    return build(geometry, support, block_shape)[0].to_mask()
