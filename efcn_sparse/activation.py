"""What stands between layers, in less memory: ReLU, max-pooling, and feature maps that functions may write into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.extension import extension_status
from efcn_sparse.ops.checks import under_transforms
from efcn_sparse.tracing import as_node


class ReLU(nn.ReLU):
    """``nn.ReLU`` that holds a bit for each number, and in its backward pass needs no new memory.

    For its backward pass ``nn.ReLU`` holds its output, and there it allocates as much again. This one keeps bits, and
    writes over the gradient that it is handed, where nobody else holds that: on a CPU, new memory takes longer than the
    ReLU. :func:`efcn_sparse.embed` puts it in the place of every ``nn.ReLU``; it serves in any other model as well.

    A gradient that a hook, a caller or a second derivative may still read is left as it is. Bits are held of fp32,
    fp64 and bf16 on a CPU; of other dtypes and devices the output is held, as torch holds it. Compiled and exported
    models, transforms of ``torch.func``, ``TorchDispatchMode``, and everything without the compiled extension, run
    torch's own. ``F.relu``, ``torch.relu`` and subclasses of ``nn.ReLU`` stay what they are.

    With ``create_graph=True``, the gradient is no function of the input, as whose torch gives the derivative zero.

    Args:
        inplace: as of ``nn.ReLU``.

    Shape:
        any, of any dtype that ``nn.ReLU`` takes; the output has the same.

    Law: outputs and gradients are those of ``nn.ReLU``, bit for bit.

    Source: Jain et al.: Gist: Efficient Data Encoding for Deep Neural Network Training, ISCA 2018.

    Example:
        >>> import torch, efcn_sparse as es
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), es.ReLU())
        >>> model(torch.ones(1, 2)).sum().backward()
    """

    def forward(self, input: Tensor) -> Tensor:
        if not _runs_compiled(input):
            node = as_node(self, input)
            return super().forward(input) if node is None else node
        operators = torch.ops.efcn_sparse_cpu
        return operators.relu_(input) if self.inplace else operators.relu(input)


class MaxPool2d(nn.MaxPool2d):
    """``nn.MaxPool2d`` that holds a byte for each output, where torch holds its input, and 8 bytes for each output.

    :func:`efcn_sparse.embed` puts it in the place of every ``nn.MaxPool2d``, and makes feature maps channels last. In
    a model of your own that takes ``model.to(memory_format=torch.channels_last)``. Bytes are held of fp32, fp64 and
    bf16 on a CPU, channels last in memory, with up to 255 numbers in a window. All else runs torch's own: other inputs,
    ``return_indices``, and what :class:`ReLU` leaves to torch.

    Args:
        kernel_size, stride, padding, dilation, return_indices, ceil_mode: as of ``nn.MaxPool2d``.

    Shape:
        ``[N, C, H, W]`` to ``[N, C, H_out, W_out]``, as ``nn.MaxPool2d`` has it.

    Law: outputs and gradients are those of ``nn.MaxPool2d``, bit for bit.

    Example:
        >>> import torch, efcn_sparse as es
        >>> x = torch.randn(1, 4, 7, 7, requires_grad=True).to(memory_format=torch.channels_last)
        >>> es.MaxPool2d(3, stride=2)(x).shape
        torch.Size([1, 4, 3, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        pooled = self._compiled(input, rectifies=False)
        if pooled is None:
            pooled = as_node(self, input)
        return super().forward(input) if pooled is None else pooled

    def _compiled(self, input: Tensor, *, rectifies: bool) -> Tensor | None:
        """The maxima of the input, or of its ReLU; None where torch's own modules are to compute them."""
        window = [_pair(size) for size in (self.kernel_size, self.stride, self.padding, self.dilation)]
        if None in window or self.return_indices or not _runs_compiled(input):
            return None
        return torch.ops.efcn_sparse_cpu.max_pool2d(input, *window, self.ceil_mode, rectifies)


class Sequential(nn.Sequential):
    """``nn.Sequential`` in which a :class:`MaxPool2d` does the work of the :class:`ReLU` before it.

    The maximum of what ReLU lets through is the maximum of the window and zero. So a pass over memory goes, and what
    the ReLU would write and hold, which is the largest feature map of many a net. :func:`efcn_sparse.embed` puts it in
    the place of every ``nn.Sequential``. In a model of your own, put an ``es.ReLU`` and an ``es.MaxPool2d`` directly
    one after the other into one ``es.Sequential``.

    The two run one by one, as always, where somebody may look between them (hooks, a ``forward`` of the instance's own,
    ``ReLU(inplace=True)``, which writes over its input), and wherever ``MaxPool2d`` leaves its work to torch.

    Law: outputs and gradients are those of ``nn.Sequential``, but for the sign of a zero.

    Example:
        >>> import torch, efcn_sparse as es
        >>> model = es.Sequential(torch.nn.Conv2d(3, 8, 3), es.ReLU(), es.MaxPool2d(2))
        >>> model(torch.randn(1, 3, 10, 10)).shape
        torch.Size([1, 8, 4, 4])
    """

    def forward(self, input: Any) -> Any:
        modules = list(self)
        at = 0
        while at < len(modules):
            module, following = modules[at], modules[at + 1] if at + 1 < len(modules) else None
            pooled = None
            if type(module) is ReLU and type(following) is MaxPool2d:
                unseen = not (module.inplace or is_seen(module) or is_seen(following))
                pooled = following._compiled(input, rectifies=True) if unseen else None
            input, at = (module(input), at + 1) if pooled is None else (pooled, at + 2)
        return input


IN_LESS_MEMORY: dict[type[nn.Module], type[nn.Module]] = {
    nn.ReLU: ReLU,
    nn.MaxPool2d: MaxPool2d,
    nn.Sequential: Sequential,
}
AS_TORCHS = {ours: theirs for theirs, ours in IN_LESS_MEMORY.items()}


def exchange(copied: nn.Module, original: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Make the modules of a copy what ``classes`` has for their class, unless the original shares them."""
    shared = {id(module) for module in original.modules()}
    for module in copied.modules():
        if type(module) in classes and id(module) not in shared:
            module.__class__ = classes[type(module)]


def feature_maps(units: Tensor, size: Sequence[int]) -> Tensor:
    """The outputs ``[N, prod(size)]`` of a layer as ``[N, C, *spatial]``, where ``size`` is ``(*spatial, C)``.

    They share memory, but to autograd it is no view. Of a view, a function in place (``nn.ReLU(inplace=True)``) would
    make copies in the backward pass that take several times as long as the function.
    """
    if _runs_compiled(units):
        return torch.ops.efcn_sparse_cpu.feature_maps(units, size)
    return units.view(units.shape[0], *size).movedim(-1, 1)


def is_seen(module: nn.Module) -> bool:
    """Whether hooks, or a ``forward`` of the instance's own, are handed the inputs or outputs of a module."""
    everywhere = vars(nn.modules.module)
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return "forward" in vars(module) or any(vars(module)[f"_{k}"] or everywhere[f"_global_{k}"] for k in kinds)


def _runs_compiled(x: Tensor) -> bool:
    """Whether autograd alone looks on: compilers, tracers, modes and transforms get operators that they know."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or under_transforms()
    return type(x) is Tensor and not traced and not _is_watched() and extension_status().available


def _is_watched() -> bool:
    """Whether a ``TorchDispatchMode`` is on, unless it counts memory, from that of operators that it does not know."""
    modes = range(torch._C._len_torch_dispatch_stack())
    return not all(getattr(torch._C._get_dispatch_stack_at(i), "counts_memory", False) for i in modes)


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width; None for what is neither one number nor two, which torch may know what to do with."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    return pair if len(pair) == 2 and all(type(side) is int for side in pair) else None
