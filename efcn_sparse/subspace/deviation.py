"""How far an embedded network is from the CNN subspace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv, convolutions_left, embedded_layers
from efcn_sparse.gradients.norms import split_squares
from efcn_sparse.subspace.backends import resolve
from efcn_sparse.subspace.plan import SubspacePlan, bias_blocks, weight_blocks

_COLUMNS = ("delta", "tied", "untied", "off_local", "norm", "bias_untied")


@dataclass(frozen=True)
class LayerDeviation:
    """The three orthogonal parts of one layer's weights W, as L2 norms.

    Attributes:
        delta: ‖off-local‖ / ‖W‖, 0.0 where W is zero.
        tied: norm of the CNN's part: the mean of each kernel entry's copies, at every copy.
        untied: norm of what the local entries differ from that mean.
        off_local: norm of the entries outside the receptive fields.
        norm: ‖W‖.
        bias_untied: norm of what the bias differs from its mean over positions; not part of the others.

    Law: ``norm**2 == tied**2 + untied**2 + off_local**2``.
    """

    delta: float
    tied: float
    untied: float
    off_local: float
    norm: float
    bias_untied: float

    @classmethod
    def of_squares(cls, tied: float, untied: float, off_local: float, bias_untied: float) -> LayerDeviation:
        """From the squares of the parts."""
        total = tied + untied + off_local
        delta = 0.0 if total == 0.0 else math.sqrt(off_local / total)
        return cls(delta, *(math.sqrt(square) for square in (tied, untied, off_local, total, bias_untied)))


@dataclass(frozen=True)
class Deviation(LayerDeviation):
    """The parts of all embedded convolutions' weights together; ``str()`` is a table.

    Attributes:
        layers: each embedded convolution's own parts, by name.
        left: the names of the convolutions that are still convolutions: modules, and those that functions compute.
        coverage: how many of the numbers in the kernels of all convolutions are in embedded ones, from 0 to 1.
    """

    layers: dict[str, LayerDeviation] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    coverage: float = 1.0

    def __str__(self) -> str:
        rows = [*self.layers.items(), ("all", self)]
        width = max(len(name) for name, _ in [*rows, ("layer", self)])
        lines = [f"{'layer':<{width}}" + "".join(f"  {name.replace('_', '-'):>11}" for name in _COLUMNS)]
        for name, layer in rows:
            lines.append(f"{name:<{width}}" + "".join(f"  {getattr(layer, column):>11.4e}" for column in _COLUMNS))
        if self.left:
            share = f"{self.coverage:.1%} of the convolutions' kernel numbers"
            lines.append(f"of {share}; still convolutions: {', '.join(self.left)}")
        return "\n".join(lines)


@torch.no_grad()
def deviation(model: nn.Module, *, backend: str = "auto") -> Deviation:
    """Split the weights of every embedded convolution into tied, untied and off-local parts, in one pass over them.

    δ is the deviation of d'Ascoli et al. (NeurIPS 2019, section 3.2): ‖θ_off-local‖ / ‖θ‖ over the weights that come
    from convolutions, low-rank parts included. Other layers, and biases, do not count. Sums are taken in fp64, and do
    not depend on the number of threads.

    Args:
        model: any module that holds embedded convolutions; it is not changed. A shared one counts once. Layers such as
            :class:`LocallyConnected2d` count as well: their kernels are untied from the start.
        backend: ``"auto"``, or the name of a backend, which is then used or refused.

    Returns:
        Norms for the whole model, and for each layer in ``.layers``.

    Law: ``norm**2 == tied**2 + untied**2 + off_local**2``; right after ``embed``, ``untied == off_local == 0``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` holds no embedded convolution.
        RuntimeError: the named backend cannot run here.

    Example:
        >>> import torch, efcn_sparse as es
        >>> twin = es.embed(torch.nn.Conv2d(2, 4, 3, padding=1), torch.zeros(1, 2, 8, 8), support=es.Full())
        >>> d = es.deviation(twin)
        >>> d.untied, d.off_local, d.delta
        (0.0, 0.0, 0.0)
        >>> with torch.no_grad():
        ...     for values in twin.parameters():
        ...         values += 0.01
        >>> 0.0 < es.deviation(twin).delta < 1.0
        True
    """
    embedded = embedded_layers(model)
    read = {name: _squares(layer, backend) for name, layer in embedded.items()}
    squares = {
        name: _numbers(*parts) for name, parts in read.items()
    }  # only now, so that a GPU reads all without a wait
    layers = {name: LayerDeviation.of_squares(*parts) for name, parts in squares.items()}
    whole = LayerDeviation.of_squares(*(sum(parts) for parts in zip(*squares.values(), strict=True)))
    left = convolutions_left(model)
    own = sum(layer.ties.counts.numel() for layer in embedded.values())
    return Deviation(**vars(whole), layers=layers, left=tuple(left), coverage=own / max(1, own + sum(left.values())))


def _squares(layer: EmbeddedConv, backend: str) -> tuple[Tensor, Tensor | None]:
    """‖tied‖², ‖untied‖², ‖off-local‖² of the weights, and of the bias if there is one."""
    weight, bias = _read(*weight_blocks(layer), backend), bias_blocks(layer)
    if layer.low_rank is not None:  # all of it is off-local, and none of it at a stored entry
        left, right = layer.low_rank.left.T, layer.low_rank.right.T
        weight = torch.stack([*weight[:2], weight[2] + split_squares(left, right, layer.linear.pattern)[1]])
    return weight, None if bias is None else _read(*bias, backend)


def _read(values: Tensor, plan: SubspacePlan, backend: str) -> Tensor:
    run = resolve(backend, values.device, values.dtype)
    return run.squares(values.contiguous(), plan)


def _numbers(weight: Tensor, bias: Tensor | None) -> list[float]:
    """The squares of the weights' parts, and ‖untied‖² of the bias."""
    return [*weight.tolist(), 0.0 if bias is None else bias.tolist()[1]]
