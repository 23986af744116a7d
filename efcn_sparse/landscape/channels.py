"""Which layers of a net read and write the same channels, by its ``torch.fx`` graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from efcn_sparse.activation import MaxPool2d, ReLU
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.refusals import CONVOLUTIONS
from efcn_sparse.linear import SparseLinear

# what works on each channel by itself, as modules and as names of functions and methods
_ELEMENTWISE = (
    nn.ReLU, ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Hardswish,
    nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, MaxPool2d, nn.MaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
_FUNCTIONS = frozenset((
    "relu", "relu_", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "dropout", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "interpolate", "contiguous", "add", "iadd", "mul", "sub",
))  # fmt: skip


class Layer(NamedTuple):
    """A layer whose weights belong to channels; -1 stands for channels that stay in their order."""

    name: str
    reads: int
    writes: int


@dataclass(frozen=True)
class Channels:
    """The groups of channels that can be permuted, each with its size, and the layers that read or write them."""

    sizes: dict[int, int]
    layers: list[Layer]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (EmbeddedConv, SparseLinear, ReLU, MaxPool2d)) or super().is_leaf_module(
            m, module_qualified_name
        )


class _Groups:
    """Groups that can be joined; 0 is the one that stays in its order."""

    def __init__(self) -> None:
        self._above = [0]

    def new(self) -> int:
        self._above.append(len(self._above))
        return len(self._above) - 1

    def of(self, group: int) -> int:
        while self._above[group] != group:
            group = self._above[group]
        return group

    def join(self, one: int, other: int) -> int:
        low, high = sorted((self.of(one), self.of(other)))
        self._above[high] = low
        return low


def channels_of(net: nn.Module) -> Channels:
    """The channels of a net that may be put in another order.

    Raises:
        ValueError: ``torch.fx`` cannot trace it, or there are none.
    """
    try:
        graph = _Tracer().trace(net)
    except Exception as error:
        raise ValueError(f"b must be a net that torch.fx can trace, got: {error}") from error
    groups = _Groups()
    at: dict[fx.Node, int] = {}
    found: dict[str, tuple[int, int]] = {}
    sizes: dict[int, int] = {}
    for node in graph.nodes:
        read = [at[one] for one in node.all_input_nodes]
        module = net.get_submodule(node.target) if node.op == "call_module" else None
        if _is_map(module) and len(read) == 1:
            reads, writes = found.get(node.target, (read[0], groups.new()))
            if isinstance(module, nn.Linear) and module.in_features % sizes.get(read[0], 1):
                reads = 0
            found[node.target] = groups.join(reads, read[0]), writes
            sizes[writes] = module.out_features if isinstance(module, nn.Linear) else _out_channels(module)
            at[node] = writes
        elif isinstance(module, _BatchNorm) and len(read) == 1:
            fits = module.num_features == sizes.get(read[0])
            groups.join(found.setdefault(node.target, (0, read[0] if fits else 0))[1], read[0])
            at[node] = read[0]
        elif read and _keeps_channels(node, module):
            at[node] = read[0]
            for other in read[1:]:
                groups.join(read[0], other)
        else:
            at[node] = 0
            for one in read:
                groups.join(one, 0)
    layers = [Layer(name, *(groups.of(group) or -1 for group in pair)) for name, pair in found.items()]
    free = {groups.of(group): size for group, size in sizes.items() if groups.of(group)}
    if not free:
        raise ValueError("b must have channels that may be in another order, got none between what it reads and writes")
    return Channels(free, [layer for layer in layers if layer.reads > 0 or layer.writes > 0])


def _is_map(module: nn.Module | None) -> bool:
    """Whether the weights of a module have one number for each pair of channels that it reads and writes."""
    if isinstance(module, EmbeddedConv):
        return module.geometry.groups == 1 and not module.geometry.transposed
    return type(module) is nn.Linear or (isinstance(module, CONVOLUTIONS) and module.groups == 1)


def _out_channels(module: Any) -> int:
    return int(module.geometry.out_channels if isinstance(module, EmbeddedConv) else module.out_channels)


def _keeps_channels(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        flattens = isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        return flattens or type(module) in _ELEMENTWISE
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    rest = [*node.args[1:], *node.kwargs.values()]
    if name == "flatten":
        return rest in ([1], [1, -1])
    if name == "mean":  # over pixels
        return bool(rest) and isinstance(rest[0], (tuple, list)) and all(int(dim) >= 2 for dim in rest[0])
    return name in _FUNCTIONS
