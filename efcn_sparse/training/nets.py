"""The net of each arm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import Dilated, EmbeddedConv, Full, Local, embed
from efcn_sparse.training.plan import CNN, CONTROL, FCN, FULL, dilation_of
from efcn_sparse.training.presets import PRESETS
from efcn_sparse.training.seeds import derived_seed


def build_cnn(preset: str, seed: int) -> nn.Module:
    """The preset's CNN with the initial weights that ``seed`` gives."""
    chosen = PRESETS[preset]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("cnn", seed))
        cnn = chosen.build(chosen.classes)
    return cnn.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_fcn(preset: str, seed: int) -> nn.Module:
    """The standard FCN: the CNN's widths, every convolution a full matrix, initialised like :class:`torch.nn.Linear`.

    An entry that would read zero padding does not exist, so the fan-in of every unit is the whole input.
    """
    model = embed(build_cnn(preset, seed), example_input(preset), support=Full())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("fcn", seed))
        for module in model.modules():
            if isinstance(module, EmbeddedConv):
                module.linear.reset_parameters()
            elif isinstance(module, nn.Linear):
                module.reset_parameters()
    return model


def embed_as(arm: str, cnn: nn.Module, preset: str) -> nn.Module:
    """A copy of ``cnn`` embedded with the support that ``arm`` names."""
    radius = dilation_of(arm)
    support = Full() if arm == FULL else Dilated(radius) if radius is not None else Local()
    return embed(cnn, example_input(preset), support=support)


def build_like(arm: str, preset: str, seed: int) -> nn.Module:
    """A net of ``arm``'s architecture; for arms that start from a CNN, from its initial weights."""
    if arm == FCN:
        return build_fcn(preset, seed)
    cnn = build_cnn(preset, seed)
    return cnn if arm in (CNN, CONTROL) else embed_as(arm, cnn, preset)


def example_input(preset: str) -> Tensor:
    """Two images' worth of noise, always the same, of the preset's shape."""
    shape = (2, *PRESETS[preset].image_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(derived_seed("example")))
