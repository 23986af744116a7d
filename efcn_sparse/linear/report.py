"""What is stored of the linear layers of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from efcn_sparse.linear.initialize import fan_in_of_stored
from efcn_sparse.linear.sparse_linear import SparseLinear


@dataclass(frozen=True)
class LayerSparsity:
    """One layer.

    Attributes:
        shape: ``(out_features, in_features)``.
        block_shape: of its pattern; None for a dense layer.
        stored_blocks, blocks: stored, and in the whole matrix; of a dense layer 0 and 0.
        weights: how many entries of W may be non-zero.
        constant_outputs, unread_inputs: rows and columns of W without any such entry.
    """

    shape: tuple[int, int]
    block_shape: tuple[int, int] | None
    stored_blocks: int
    blocks: int
    weights: int
    constant_outputs: int
    unread_inputs: int

    @property
    def density(self) -> float:
        """``weights`` over the entries of W."""
        return self.weights / max(1, self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class Sparsity:
    """The linear layers of a model by name; ``print`` makes a table of it."""

    layers: dict[str, LayerSparsity]

    @property
    def density(self) -> float:
        """Weights over entries of W, of all layers together."""
        whole = sum(layer.shape[0] * layer.shape[1] for layer in self.layers.values())
        return sum(layer.weights for layer in self.layers.values()) / max(1, whole)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "out x in", "blocks of", "stored", "density", "constant outputs", "unread inputs")
        ]
        for name, layer in self.layers.items():
            block = "dense" if layer.block_shape is None else "x".join(map(str, layer.block_shape))
            stored = "" if layer.block_shape is None else f"{layer.stored_blocks}/{layer.blocks}"
            idle = (layer.constant_outputs, layer.unread_inputs)
            rows.append((name or "(model)", "x".join(map(str, layer.shape)), block, stored, f"{layer.density:.3f}",
                         *(str(count) if count else "" for count in idle)))  # fmt: skip
        rows.append(("all", "", "", "", f"{self.density:.3f}", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def sparsity(model: nn.Module) -> Sparsity:
    """What is stored of each linear layer of ``model``, sparse and dense, and which of its units do nothing.

    Example:
        >>> import efcn_sparse as es
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> print(es.sparsity(es.sparsify(net, {"0": dict(density=0.25, block_shape=(8, 8))})))
        layer  out x in  blocks of  stored  density  constant outputs  unread inputs
        0      32x64     8x8        8/32    0.250
        2      10x32     dense              1.000
        all                                 0.351
    """
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            layers[name] = layer_sparsity(module)
        elif isinstance(module, nn.Linear):
            shape = (module.out_features, module.in_features)
            layers[name] = LayerSparsity(shape, None, 0, 0, shape[0] * shape[1], 0, 0)
    return Sparsity(layers)


def layer_sparsity(layer: SparseLinear) -> LayerSparsity:
    """The figures of one layer."""
    pattern = layer.pattern
    outputs, inputs = fan_in_of_stored(pattern), fan_in_of_stored(pattern.transposed())
    return LayerSparsity(
        pattern.shape, pattern.block_shape, pattern.nnz_blocks, pattern.grid[0] * pattern.grid[1], pattern.nnz,
        int((outputs == 0).sum()), int((inputs == 0).sum()),
    )  # fmt: skip
