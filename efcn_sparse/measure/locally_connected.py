"""A locally connected layer as it is usually written in PyTorch: unfold, then a batched product over positions."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnfoldLocallyConnected(nn.Module):
    """The eLCN of a convolution by ``unfold`` and ``bmm``, with weights ``[positions, C_in·k·k, C_out]``.

    Padding columns are stored, as ``unfold`` makes them.

    Law: equals ``conv`` until it is trained.
    """

    def __init__(self, conv: nn.Conv2d, height: int, width: int) -> None:
        super().__init__()
        if conv.groups != 1 or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(f"conv must have one group and numbered zero padding, got {conv}")
        self.window = dict(
            kernel_size=conv.kernel_size, stride=conv.stride, padding=conv.padding, dilation=conv.dilation
        )
        self.grid = tuple(
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                (height, width), conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
            )
        )
        positions = self.grid[0] * self.grid[1]
        kernel = conv.weight.detach().flatten(1).T
        self.weight = nn.Parameter(kernel.expand(positions, *kernel.shape).contiguous())
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias.expand(positions, 1, conv.out_channels).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, **self.window).permute(2, 0, 1)  # [positions, N, C_in·k·k]
        y = torch.baddbmm(self.bias, patches, self.weight)
        return y.permute(1, 2, 0).unflatten(2, self.grid)


def unfold_twin(model: nn.Module, example_input: Tensor) -> nn.Module:
    """A copy of ``model`` whose ``Conv2d`` layers are :class:`UnfoldLocallyConnected`."""
    twin = copy.deepcopy(model)
    sizes: dict[str, tuple[int, int]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: sizes.__setitem__(name, tuple(inputs[0].shape[-2:]))
        )
        for name, module in twin.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        twin(example_input)
    for hook in hooks:
        hook.remove()
    for name, size in sizes.items():
        conv = twin.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        twin.set_submodule(name, UnfoldLocallyConnected(conv, *size))
    return twin
