"""Swapping the convolutions of a model for fully-connected twins, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from efcn_sparse.activation import AS_TORCHS, IN_LESS_MEMORY, exchange
from efcn_sparse.copying import copy_of
from efcn_sparse.embedding.blocks import choose_block_shape
from efcn_sparse.embedding.build import build
from efcn_sparse.embedding.conv import EmbeddedConv
from efcn_sparse.embedding.example_run import Example, run_embedded
from efcn_sparse.embedding.plan import check_memory
from efcn_sparse.embedding.refusals import is_convolution, refuse
from efcn_sparse.embedding.same_output import check_same_output
from efcn_sparse.embedding.support import Local, Support
from efcn_sparse.embedding.survey import survey

_LEFT = "_efcn_sparse_convolutions_left"  # an attribute of an embedded model: those that functions compute


def embed(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...] | None = None,
    *,
    support: Support = Local(),
    layers: Mapping[str, Any] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    leave_uncalled: bool = False,
) -> nn.Module:
    """A copy of ``model`` in which every convolution is a block-sparse fully-connected layer that computes the same.

    Everything else (normalization, residual sums, heads) is copied as it is, but for ``nn.ReLU``, ``nn.MaxPool2d`` and
    ``nn.Sequential``: :class:`ReLU`, :class:`MaxPool2d` and :class:`Sequential` compute the same in less time and
    memory. To find the input size of each convolution, the model runs on the example: in evaluation mode, at another
    batch size, and in training mode (the last two only if it can). Then the copy runs in the same ways and is compared.
    Copies run, so neither the model nor the random generators of torch, NumPy and Python change.

    Convolutions that no module computes (``F.conv2d``, scripted blocks) are seen in the run, and refused by name unless
    ``layers`` leaves them as they are. A border that is not zeros (``padding_mode``) is put around the input first, and
    its pixels are input units like all others. A class with a forward of its own is embedded if all it does is to put
    zeros around the input and to convolve (TensorFlow's "same" padding). Where the parameter ``weight`` is not used as
    it is (``weight_norm``, or a forward that standardizes it), what is computed from it now is embedded, and trains
    freely, and :func:`unembed` gives a plain convolution with it. It must not depend on the input, on the mode, on
    chance or on earlier calls: the model runs on other numbers, too, to see.

    Args:
        model: any module with convolutions of torch in it, transposed ones too; it is not changed.
        example_input: a tensor or a tuple of tensors, of the size that the copy shall take; any batch size.
        support: which weights may be non-zero: ``Local()``, ``Dilated(radius)``, ``Grown(budget)``,
            ``LowRank(rank)`` or ``Full()``.
        layers: choices by shell-style name pattern, the first match counts: a support; None to leave the convolution
            as it is; or ``dict(support=..., block_shape=(rows, cols))``.
        example_inputs, example_kwargs: in place of ``example_input`` the model's positional and keyword arguments,
            of any kind: dicts, lists, numbers, None.
        leave_uncalled: whether convolutions that the example run does not call stay convolutions.

    Returns:
        The copy. A convolution that is shared under several names stays shared; ``requires_grad`` carries over. Its
        feature maps are channels last in memory, unless the model cannot run on those (``x.view(n, -1)``).

    Law: ``embed(model, x)(x) == model(x)`` and ``unembed(embed(model, x))`` has the parameters of ``model``.

    Raises:
        ValueError: a convolution cannot be embedded exactly (lazy, quantized or otherwise parametrized; a
            forward or hooks of its own; computed by a function; called at two sizes or not at all; a shared weight); a
            name pattern matches nothing; the weights do not fit into memory; or the copy computes something else on the
            example, by more than rounding (of the model in its own dtype, measured in fp64, where that is large).
        TypeError: an argument is of the wrong kind.

    Source: d'Ascoli, Sagun, Biroli, Bruna: Finding the Needle in the Haystack with Convolutions, NeurIPS 2019.

    Example:
        >>> import torch, efcn_sparse as es
        >>> cnn = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> x = torch.randn(4, 3, 6, 6)
        >>> efcn = es.embed(cnn, x, support=es.Dilated(1))
        >>> torch.allclose(efcn(x), cnn(x), atol=1e-5)
        True
        >>> efcn[0].linear.pattern.shape
        (288, 108)
    """
    example = Example.of(example_input, example_inputs, example_kwargs)
    found = survey(model, example, support, layers, leave_uncalled)
    for site in found.sites:
        if next(site.conv.parameters()).is_meta:
            raise refuse(
                site.name,
                site.conv,
                "it is on the meta device and has no numbers; efcn-sparse doctor takes such models",
            )
    check_memory(found.sites)
    structures: dict[Any, Any] = {}
    embedded: dict[int, Any] = {}
    for site in found.sites:
        rule, geometry = site.rule, site.geometry
        key = (geometry, rule)
        if key not in structures:
            shape = rule.block_shape or choose_block_shape(geometry, rule.support)
            structures[key] = build(geometry, rule.support, shape)
        embedded[id(site.conv)] = EmbeddedConv.from_conv(
            site.plain, geometry.image_size, rule.support, structure=structures[key], geometry=geometry
        )
    twin = copy_of(model, embedded)  # where deepcopy meets a convolution, it finds its twin already made
    exchange(twin, model, IN_LESS_MEMORY)
    outputs = run_embedded(twin, EmbeddedConv, [(done.example, done.training) for done in found.runs])
    for done, output in zip(found.runs, outputs, strict=True):
        if not done.training:  # batch statistics and what else there is may magnify rounding errors
            check_same_output(model, done.example, done.output, output)
    if found.left:
        setattr(twin, _LEFT, found.left)
    return twin


def unembed(model: nn.Module) -> nn.Module:
    """The nearest CNN: a copy of ``model`` in which every embedded convolution is a convolution again.

    Each kernel entry is the mean over its stored copies and each bias the mean over positions, which is the nearest
    point in the L2 norm; off-local weights are dropped. ``model`` is not changed. :class:`LocallyConnected2d` layers of
    one's own stay; ``layer.to_conv()`` gives the nearest convolution of one.

    Law: ``unembed(embed(cnn, x))`` has exactly the parameters of ``cnn``, save for weights that ``cnn`` computes.

    Raises:
        ValueError: ``model`` holds no embedded convolution.
        TypeError: ``model`` is no module.

    Example:
        >>> import torch, efcn_sparse as es
        >>> cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> back = es.unembed(es.embed(cnn, torch.randn(1, 1, 8, 8)))
        >>> torch.equal(back[0].weight, cnn[0].weight)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    convolutions: dict[int, Any] = {
        id(module): module.to_conv()
        for module in model.modules()
        if isinstance(module, EmbeddedConv) and module.stands_for_convolution
    }
    if not convolutions:
        raise ValueError(f"model must hold an embedded convolution, got {type(model).__name__} without one")
    cnn = copy_of(model, convolutions)
    exchange(cnn, model, AS_TORCHS)
    return cnn


def convolutions_left(model: nn.Module) -> dict[str, int]:
    """The convolutions of an embedded model that are still convolutions, each with the size of its kernel.

    Returns:
        By name, how many numbers the kernel has: of the modules, and of what functions compute where the rules of
        :func:`embed` left that as it is.

    Example:
        >>> import torch, efcn_sparse as es
        >>> cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
        >>> convolutions_left(es.embed(cnn, torch.randn(1, 1, 8, 8), layers={"0": None}))
        {'0': 36}
    """
    modules = {name: module for name, module in model.named_modules() if is_convolution(module)}
    kernels = {name: getattr(module, "weight", None) for name, module in modules.items()}
    sizes = {name: kernel.numel() if isinstance(kernel, Tensor) else 0 for name, kernel in kernels.items()}
    return {**sizes, **getattr(model, _LEFT, {})}
