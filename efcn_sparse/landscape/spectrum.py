"""The mean receptive field of a layer's units, and its power spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.landscape.locality import check_image, grid
from efcn_sparse.landscape.products import weights_of


@torch.no_grad()
def power_spectrum(layer: nn.Module, image: Sequence[int] | None = None) -> Tensor:
    """The power spectrum of the mean receptive field: how coarse what the units read is, on the whole.

    Args:
        layer: an embedded convolution, or a :class:`torch.nn.Linear` that takes an image flattened.
        image: ``(channels, *size)`` of that image; not for embedded convolutions.

    Returns:
        float64 ``[*size]``: the squared absolute values of the discrete Fourier transform of the mean over units and
        input channels of their weights at each input pixel; frequency 0 comes first, as in ``torch.fft``. The weights
        of an embedded convolution are moved beforehand, around the edges, so that the windows of all units begin at
        pixel 0: then that of a CNN is its kernel's, but for windows that reach into the padding.

    Law: the mean over frequencies is the sum over pixels of the squared mean weights (Parseval).

    Raises:
        ValueError: it is another layer, or one with the support ``LowRank``; or ``image`` does not fit.

    Example:
        >>> layer = nn.Linear(16, 3)
        >>> _ = nn.init.ones_(layer.weight)
        >>> spectrum = power_spectrum(layer, (1, 4, 4))         # equal weights have no other frequency
        >>> float(spectrum[0, 0]), float(spectrum.sum())
        (256.0, 256.0)
    """
    if isinstance(layer, EmbeddedConv):
        mean = _mean_field(layer)
    else:
        check_image("image", layer, image)
        assert isinstance(layer, nn.Linear)
        assert image is not None
        mean = layer.weight.double().view(-1, *image).mean((0, 1))
    return torch.fft.fftn(mean).abs().square()


def _mean_field(layer: EmbeddedConv) -> Tensor:
    values, pattern = weights_of(layer)
    geometry, (height, width) = layer.geometry, pattern.block_shape
    size = torch.tensor(geometry.input_size)
    # entries of a block with one output and one input pixel are added first
    tall, wide = math.gcd(height, geometry.out_channels), math.gcd(width, geometry.in_channels)
    rows = pattern.rows_of_blocks().cpu().long()[:, None] * height + torch.arange(0, height, tall)
    cols = pattern.col_indices.cpu().long()[:, None] * width + torch.arange(0, width, wide)
    rows, cols = rows.clamp(max=geometry.out_features - 1), cols.clamp(max=geometry.in_features - 1)  # past it all is 0
    sums = values.unflatten(2, (-1, wide)).sum(3, dtype=torch.float64).unflatten(1, (-1, tall)).sum(2).cpu()
    at = grid(geometry.input_size).long()[cols // geometry.in_channels][:, None]
    moved = (at - _first_pixels(geometry)[rows // geometry.out_channels][:, :, None]) % size
    place = sum(moved[..., dim] * math.prod(geometry.input_size[dim + 1 :]) for dim in range(len(size)))
    assert isinstance(place, Tensor)
    field = torch.zeros(math.prod(geometry.input_size), dtype=torch.float64)
    field.index_add_(0, place.flatten(), sums.flatten())
    return (field / (geometry.out_features * geometry.in_channels)).view(geometry.input_size)


def _first_pixels(geometry: ConvGeometry) -> Tensor:
    """int64 ``[output pixels, dimensions]``: where each window begins, in the padding if need be."""
    pixels, stride, low = (
        grid(geometry.output_size).long(),
        torch.tensor(geometry.stride),
        torch.tensor([low for low, _ in geometry.padding]),
    )
    if not geometry.transposed:
        return pixels * stride - low
    reach = torch.tensor([d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True)])
    return -((reach - low - pixels) // stride)
