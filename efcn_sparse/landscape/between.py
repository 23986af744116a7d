"""Nets on the segment between two nets, without a copy of the weights of either."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.copying import copy_of
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.refusals import has_own_forward
from efcn_sparse.landscape.products import squares_and_product
from efcn_sparse.linear import SparseLinear

_MAPS = (EmbeddedConv, SparseLinear)


class Between(nn.Module):
    """A net whose weights are a combination of those of two nets; moved along the segment by :meth:`move`.

    A layer with block-sparse weights is linear in them, so its combination is that of the outputs of both ends' layers:
    supports may differ, nothing is copied, and nothing dense is formed. All other parameters and buffers are combined
    as they are; integers are those of ``b``.

    Args:
        a, b: of one architecture, but that a convolution of one may be an embedded one in the other, and that supports
            may differ. They are not changed, and share their weights with this net: do not train them meanwhile.

    Raises:
        ValueError: the nets do not match; the message names the layer.
    """

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        mixed: dict[int, Any] = {}
        for _, ours, theirs in paired_layers(a, b):
            mixed.setdefault(id(theirs), _Combined(ours, theirs))
        self.net = copy_of(b, mixed)  # where deepcopy meets such a layer, it finds its combination
        self.combined: list[_Combined] = list(mixed.values())
        at = _tensors(self.net)
        of_a, of_b = _tensors(a), _tensors(b)
        joined = [
            f"{name}." if name else "" for name, module in self.net.named_modules() if isinstance(module, _Combined)
        ]
        for name in [*at, *(name for name in of_a if not name.startswith((*joined,)))]:
            got = [list(of[name].shape) if name in of else "none" for of in (of_a, of_b)]
            if got[0] != got[1]:
                raise ValueError(f"a and b must match, got {got[0]} and {got[1]} in {name!r}")
            may_differ = of_b[name].is_floating_point() or name.endswith("num_batches_tracked")
            if not may_differ and not torch.equal(of_a[name], of_b[name]):
                raise ValueError(f"a and b must match, got other integers in {name!r}")
        shared = [{name: id(tensor) for name, tensor in of.items() if name in at} for of in (of_a, of_b)]
        for name in at:
            if any((shared[0][name] == shared[0][one]) != (shared[1][name] == shared[1][one]) for one in at):
                raise ValueError(f"a and b must share the same parameters among layers, got others in {name!r}")
        self._plain = [(tensor, of_a[name].detach(), of_b[name].detach()) for name, tensor in at.items()]
        self.move(1.0)

    @torch.no_grad()
    def move(self, position: float, *, keep_norms: bool = False) -> None:
        """Go to ``(1 - position) · a + position · b``.

        Args:
            keep_norms: scale each parameter to the linear interpolation of its norms at both ends.
        """
        for tensor, a, b in self._plain:
            if not tensor.is_floating_point():
                continue
            mean = torch.lerp(a.to(tensor.dtype), b.to(tensor.dtype), position)
            if keep_norms:
                norm = mean.norm()
                if norm > 0:
                    mean *= ((1 - position) * a.norm() + position * b.norm()) / norm
            tensor.copy_(mean)
        weights_were_written()
        for layer in self.combined:
            layer.move(position, keep_norms)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)


class _Combined(nn.Module):
    """Two linear maps of one shape, and the combination of their outputs."""

    offset: Tensor | None

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self._ends = (a, b)  # in a tuple they are no submodules: modes and moves of this net leave them alone
        self.factors = (0.0, 1.0)
        self.offset = None
        self._known: tuple[tuple[float, float, float], Tensor, Tensor] | None = None

    def move(self, position: float, keep_norms: bool) -> None:
        self.factors, self.offset = (1 - position, position), None
        if not keep_norms:
            return
        if self._known is None:
            a, b = self._ends
            self._known = squares_and_product(a, b), _at_zero(a, b), _at_zero(b, a)
        (aa, ab, bb), bias_a, bias_b = self._known
        p, q = self.factors
        square = p * p * aa + 2 * p * q * ab + q * q * bb
        scale = (p * aa**0.5 + q * bb**0.5) / square**0.5 if square > 0 else 1.0
        bias = p * bias_a + q * bias_b
        norm = float(bias.norm())
        bias_scale = (p * float(bias_a.norm()) + q * float(bias_b.norm())) / norm if norm > 0 else 1.0
        self.factors = (p * scale, q * scale)
        self.offset = (bias_scale - scale) * bias

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        terms = [
            layer(*args, **kwargs) * factor for layer, factor in zip(self._ends, self.factors, strict=True) if factor
        ]
        y = sum(terms[1:], start=terms[0])
        return y if self.offset is None else y + self.offset


def paired_layers(a: nn.Module, b: nn.Module) -> list[tuple[str, nn.Module, nn.Module]]:
    """The layers of two nets of which one is block-sparse, by name; nets that do not match are refused."""
    ours, theirs = dict(a.named_modules()), dict(b.named_modules())
    pairs: list[tuple[str, nn.Module, nn.Module]] = []
    inside: list[str] = []
    for name, layer in theirs.items():
        if _within(name, inside):
            continue
        other = ours.get(name)
        if other is None:
            raise ValueError(f"a must have the layers of b, got none with the name {name!r}")
        if isinstance(layer, _MAPS) or isinstance(other, _MAPS):
            _check_layers(name, other, layer)
            pairs.append((name, other, layer))
            inside.append(name)
        elif _kind(other) != _kind(layer):
            got = " and ".join("{}({})".format(*_kind(one)) for one in (other, layer))
            raise ValueError(f"a and b must match, got {got} in {name!r}")
    for name in ours.keys() - theirs.keys():
        if not _within(name, inside):
            raise ValueError(f"b must have the layers of a, got none with the name {name!r}")
    return pairs


def _kind(module: nn.Module) -> tuple[str, str]:
    """The class and the settings of a module that change what it computes in evaluation mode.

    The class by its name: each module with parametrizations has one of its own.
    """
    dropout = isinstance(module, nn.modules.dropout._DropoutNd)
    return type(module).__qualname__, "" if dropout else re.sub(r"(, )?inplace=\w+", "", module.extra_repr())


def _within(name: str, layers: list[str]) -> bool:
    return any(name.startswith(f"{layer}." if layer else "") for layer in layers)


def _at_zero(layer: nn.Module, like: nn.Module) -> Tensor:
    """What ``layer`` gives for an input of zeros: its bias, at each position. Without the batch's dimension."""
    geometry = getattr(layer, "geometry", None) or getattr(like, "geometry", None)
    shape = (geometry.in_channels, *geometry.image_size) if geometry else (int(layer.in_features),)  # type: ignore[arg-type]
    size = [geometry.output_size] if geometry and geometry.transposed else []
    some = next(layer.parameters())
    return layer(torch.zeros((1, *shape), dtype=some.dtype, device=some.device), *size)[0]


def _check_layers(name: str, a: nn.Module, b: nn.Module) -> None:
    """Refuse two layers that are no linear maps of one shape."""
    known = next((layer for layer in (a, b) if isinstance(layer, EmbeddedConv)), None)
    if known is not None:
        fits = all(
            layer.geometry == known.geometry
            if isinstance(layer, EmbeddedConv)
            else isinstance(layer, _ConvNd) and _same(layer, known)
            for layer in (a, b)
        )
    else:
        fits = all(isinstance(layer, (SparseLinear, nn.Linear)) for layer in (a, b)) and (
            (a.in_features, a.out_features) == (b.in_features, b.out_features)
        )
    if not fits:
        raise ValueError(f"a and b must match, got\n  {a}\n  {b}\nin {name!r}")


def _same(conv: nn.Module, layer: EmbeddedConv) -> bool:
    geometry, original = layer.geometry, layer.original
    if geometry.transposed and original is not None:  # its output_padding is not used where it is called for a size
        geometry = ConvGeometry.of(original, geometry.image_size)
    return not has_own_forward(conv) and ConvGeometry.of(conv, geometry.image_size) == geometry


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(net.named_parameters(remove_duplicate=False)),
        **dict(net.named_buffers(remove_duplicate=False)),
    }
