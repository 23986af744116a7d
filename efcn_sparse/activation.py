"""ReLU that trains in less memory, and feature maps that functions in place may write into without copies."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from efcn_sparse.extension import extension_status
from efcn_sparse.ops.checks import under_transforms


class ReLU(nn.ReLU):
    """``nn.ReLU`` whose backward pass writes over the gradient that it is handed, where nobody else holds that.

    It allocates one buffer of the size of its output less, and on a CPU new memory takes longer than the ReLU.
    :func:`efcn_sparse.embed` puts it in the place of every ``nn.ReLU``; it serves in any other model as well.

    A gradient that a hook, a caller or a second derivative may still read is left as it is. Compiled and exported
    models, transforms of ``torch.func``, and everything without the compiled extension, run torch's own.

    Args:
        inplace: as of ``nn.ReLU``.

    Shape:
        any, of any dtype that ``nn.ReLU`` takes; the output has the same.

    Law: outputs and gradients are those of ``nn.ReLU``, bit for bit.

    Example:
        >>> import torch, efcn_sparse as es
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), es.ReLU())
        >>> model(torch.ones(1, 2)).sum().backward()
    """

    def forward(self, input: Tensor) -> Tensor:
        if not _runs_compiled(input):
            return super().forward(input)
        operators = torch.ops.efcn_sparse_cpu
        return operators.relu_(input) if self.inplace else operators.relu(input)


def copies_as(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> dict[int, nn.Module]:
    """Copies of the modules whose class is ``old`` as ones of ``new``, by ``id``: a memo for ``copy.deepcopy``."""
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        if type(module) is old:
            found[id(module)] = copy.deepcopy(module)
            found[id(module)].__class__ = new
    return found


def feature_maps(units: Tensor, size: Sequence[int]) -> Tensor:
    """The outputs ``[N, prod(size)]`` of a layer as ``[N, C, *spatial]``, where ``size`` is ``(*spatial, C)``.

    They share memory, but to autograd it is no view. Of a view, a function in place (``nn.ReLU(inplace=True)``) would
    make copies in the backward pass that take several times as long as the function.
    """
    if _runs_compiled(units):
        return torch.ops.efcn_sparse_cpu.feature_maps(units, size)
    return units.view(units.shape[0], *size).movedim(-1, 1)


def _runs_compiled(x: Tensor) -> bool:
    """Whether autograd alone looks on; torch.compile, torch.export and transforms get operators that they know."""
    plain = type(x) is Tensor and not torch.compiler.is_compiling() and not under_transforms()
    return plain and extension_status().available
