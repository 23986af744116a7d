"""The networks that are measured, as CNNs; and the layers of their local embeddings."""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import Net
from efcn_sparse.embedding import plan
from efcn_sparse.embedding.plan import LayerPlan
from efcn_sparse.models import MODELS

CLASSES = 10


def make_cnn(net: Net) -> nn.Module:
    """The network with random weights, on the default device.

    Raises:
        ModuleNotFoundError: it is torchvision's, which is not installed.
    """
    torch.manual_seed(1906)
    if net.model in MODELS:
        return MODELS[net.model](CLASSES)
    return getattr(importlib.import_module("torchvision.models"), net.model)(num_classes=CLASSES)


def images_of(net: Net, device: str, batch: int | None = None) -> Tensor:
    """Random images, channels last."""
    shape = (net.batch if batch is None else batch, 3, net.pixels, net.pixels)
    return torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)


@functools.cache
def distinct_layers(net: Net) -> tuple[tuple[LayerPlan, int], ...]:
    """The layers of ``embed(cnn, support=Local())``, each kind once, with how many layers are of that kind."""
    with torch.device("meta"):
        planned = plan(make_cnn(net), torch.empty(1, 3, net.pixels, net.pixels))
    kinds: dict[object, tuple[LayerPlan, int]] = {}
    for layer in planned.layers:
        key = layer.geometry, layer.block_shape
        first, count = kinds.get(key, (layer, 0))
        kinds[key] = first, count + 1
    return tuple(kinds.values())
