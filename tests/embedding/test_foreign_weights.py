"""Weights of other libraries' locally connected layers, against outputs that those libraries computed.

``tests/embedding/data`` holds inputs, weights and outputs, written by the packages and versions in the files' names.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import efcn_sparse as es

DATA = Path(__file__).parent / "data"
FLAX, KERAS = "flax-0.12.8-jax-0.10.2.npz", "tf_keras-2.21.0.npz"
FLAX_CASES = {
    "flax_1d_valid": dict(input_size=(7,), kernel_size=(3,), strides=(2,), padding="VALID"),
    "flax_2d_same": dict(input_size=(5, 4), kernel_size=(3, 2), strides=(2, 1)),
    "flax_2d_dilated": dict(input_size=(6, 5), kernel_size=(2, 2), padding="VALID", kernel_dilation=(2, 1)),
    "flax_2d_pairs": dict(input_size=(4, 5), kernel_size=(3, 3), strides=(1, 2), padding=((0, 1), (2, 0))),
}
KERAS_CASES = [
    (dims, implementation, layout)
    for dims, layouts in ((1, ("",)), (2, ("channels_last", "channels_first")))
    for implementation in (1, 2, 3)
    for layout in layouts
]


def arrays(file, case):
    with np.load(DATA / file) as data:
        return {name.split("/")[1]: data[name] for name in data.files if name.startswith(f"{case}/")}


def channels_last(x):
    return torch.from_numpy(x).movedim(-1, 1)


@pytest.mark.parametrize("case", FLAX_CASES)
def test_flax(case):
    data = arrays(FLAX, case)
    layer = es.convert.locally_connected_from_flax(data["kernel"], data["bias"], **FLAX_CASES[case])
    assert torch.allclose(layer(channels_last(data["x"])), channels_last(data["y"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dims", "implementation", "layout"), KERAS_CASES)
def test_keras(dims, implementation, layout):
    data = arrays(KERAS, f"keras_{dims}d_{implementation}" + (f"_{layout}" if layout else ""))
    config = dict(filters=4, kernel_size=3, strides=2)
    if dims == 2:
        config = dict(filters=3, kernel_size=(3, 2), strides=(2, 1))
    config |= dict(
        implementation=implementation, data_format=layout, padding="valid" if implementation == 1 else "same"
    )
    weights = [data[name] for name in ("w0", "w1") if name in data]
    layer = es.convert.locally_connected_from_keras(
        weights, config | dict(use_bias=len(weights) == 2), (5, 4) if dims == 2 else (7,)
    )
    move = torch.from_numpy if layout == "channels_first" else channels_last
    assert torch.allclose(layer(move(data["x"])), move(data["y"]), rtol=1e-5, atol=1e-5)


class Unfolded(nn.Module):
    """The module that is usually written."""

    def __init__(self, channels, out, size, kernel, stride):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.randn(1, out, channels, *size, kernel[0] * kernel[1]))
        self.bias = nn.Parameter(torch.randn(1, out, *size))

    def forward(self, x):
        x = x.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        x = x.contiguous().view(*x.shape[:-2], -1)
        return (x.unsqueeze(1) * self.weight).sum([2, -1]) + self.bias


def test_unfold():
    module, x = Unfolded(3, 5, (3, 3), (2, 3), (2, 1)), torch.randn(4, 3, 6, 5)
    layer = es.convert.locally_connected_from_unfold(
        module.weight, module.bias, input_size=(6, 5), kernel_size=(2, 3), stride=(2, 1)
    )
    assert torch.allclose(layer(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda c: c.locally_connected_from_flax(np.ones((4, 17, 2)), input_size=(4,), kernel_size=(2,)),
            r"kernel must be \[\*output_size, in_features \* 2, features\] with 3 dimensions, got \[4, 17, 2\]",
        ),
        (
            lambda c: c.locally_connected_from_flax(np.ones((3, 4, 2)), input_size=(4,), kernel_size=(2,)),
            r"weight must be \[4, 2, 2, 2\], got \[3, 2, 2, 2\]",
        ),
        (
            lambda c: c.locally_connected_from_keras(
                [np.ones(3)], dict(filters=1, kernel_size=1, use_bias=False), (2,)
            ),
            r"weights must begin with a kernel \[2, 1 C, 1\], got \[3\]",
        ),
        (
            lambda c: c.locally_connected_from_keras([], dict(filters=1, kernel_size=1, activation="relu"), (2,)),
            "linear activation, got 'relu'",
        ),
        (
            lambda c: c.locally_connected_from_keras([np.ones(3)], dict(filters=1, kernel_size=1), (2,)),
            "weights must be 2 arrays",
        ),
        (
            lambda c: c.locally_connected_from_unfold(torch.ones(1, 2, 3, 4), input_size=(4, 4), kernel_size=(3, 3)),
            "weight must be",
        ),
    ],
    ids=["channels", "positions", "size", "activation", "bias", "unfold"],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(es.convert)
