"""Embedded networks for the tests of whole models."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

import efcn_sparse as es
from tests.table import Row, is_slow

SUPPORTS = {"local": es.Local(), "dilated": es.Dilated(1), "full": es.Full()}


def cnn() -> nn.Sequential:
    """RGB input, stride, even kernels, odd channel counts, groups, a convolution without bias, and a head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1, groups=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(10, 6, 3),
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 4),
    )


def small_cnn() -> nn.Sequential:
    """The same kinds of convolutions, for a backend that is slow here."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 2, padding=1, groups=4, bias=False), nn.Conv2d(8, 2, 1)
    )


@functools.cache
def _embedded(support: str, dtype: torch.dtype, small: bool) -> nn.Module:
    torch.manual_seed(0)
    net, x = (small_cnn(), torch.zeros(1, 3, 4, 4)) if small else (cnn(), torch.zeros(1, 3, 12, 12))
    return es.embed(net.to(dtype), x.to(dtype), support=SUPPORTS[support])


def embedded(support: str = "dilated", dtype: torch.dtype = torch.float32) -> nn.Module:
    return copy.deepcopy(_embedded(support, dtype, False))


def embedded_for(row: Row, support: str) -> nn.Module:
    """A network in the dtype and on the device of ``row``."""
    return copy.deepcopy(_embedded(support, row.dtype, is_slow(row))).to(row.device)


def example_for(row: Row) -> torch.Tensor:
    """An input of that network."""
    return torch.randn((2, 3, 4, 4) if is_slow(row) else (2, 3, 12, 12), dtype=row.dtype).to(row.device)


def _randn_like(tensor: torch.Tensor) -> torch.Tensor:
    """Drawn on the CPU: the same numbers on every device."""
    return torch.randn_like(tensor, device="cpu").to(tensor.device)


@torch.no_grad()
def shaken(model: nn.Module, by: float = 0.1) -> nn.Module:
    """Move every weight and bias that is in the support, off-local ones too."""
    for module in model.modules():
        if isinstance(module, es.SparseLinear):
            inside = module.pattern.gather(
                torch.ones(module.pattern.shape, dtype=module.values.dtype, device=module.values.device)
            )
            module.values += by * _randn_like(module.values) * inside
            if module.bias is not None:
                module.bias += by * _randn_like(module.bias)
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The embedded weights by layer, in fp64 on the CPU."""
    return {name: m.linear.values.detach().cpu().double() for name, m in model.named_modules() if hasattr(m, "ties")}
