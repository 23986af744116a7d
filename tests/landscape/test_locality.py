"""Measures of locality where the answer is known."""

import math

import pytest
import torch
from torch import nn

import efcn_sparse as es


def layer(support, **sizes):
    conv = nn.Conv2d(2, 3, 3, padding=1, **sizes).double()
    return es.embed(conv, torch.zeros(1, 2, 7, 7, dtype=torch.float64), support=support)


def fill(twin, weight):
    """Make W ``[out pixel, out channel, in pixel, in channel]`` a function of pixels' coordinates."""
    geometry = twin.geometry
    out = torch.cartesian_prod(*(torch.arange(side) for side in geometry.output_size))
    at = torch.cartesian_prod(*(torch.arange(side) for side in geometry.input_size))
    matrix = weight(out[:, None].double(), at[None].double())
    matrix = matrix.repeat_interleave(geometry.out_channels, 0).repeat_interleave(geometry.in_channels, 1)
    with torch.no_grad():
        twin.linear.values.copy_(twin.linear.pattern.gather(matrix))


def test_one_weight_is_one_place():
    twin = layer(es.Full())
    fill(twin, lambda out, at: (out == at).all(-1).double())
    found = es.locality(twin)[""]
    assert found.participation == pytest.approx(1 / 2)  # two input channels
    assert (found.gyration, found.non_locality, found.share_within) == (0.0, 0.0, 1.0)


def test_equal_weights_everywhere():
    twin = layer(es.Full())
    fill(twin, lambda out, at: torch.ones(len(out), at.shape[1]).double())
    found = es.locality(twin)[""]
    at = torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0)).double()
    assert found.participation == pytest.approx(1 / 98)
    assert found.gyration == pytest.approx(math.sqrt(2 * (49 - 1) / 12))  # of a uniform distribution over 7 x 7 pixels
    assert found.non_locality == pytest.approx(float(torch.cdist(at, at).mean()))
    assert found.share_within == pytest.approx((3 * 7 - 2) ** 2 / 49**2)


def test_two_far_pixels_and_a_unit_of_zeros_that_does_not_count():
    twin = layer(es.Full(), stride=2)
    corner = lambda at, where: (at == torch.tensor(where, dtype=torch.float64)).all(-1).double()  # noqa: E731
    fill(twin, lambda out, at: (corner(at, (0, 0)) + corner(at, (0, 6))) * (out.sum(-1) > 0))
    found = es.locality(twin)[""]
    assert found.gyration == pytest.approx(3.0)
    out = 2 * torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))[1:].double()
    ends = torch.tensor([[0.0, 0.0], [0.0, 6.0]], dtype=torch.float64)
    assert found.non_locality == pytest.approx(float(torch.cdist(out, ends).mean()))


def test_what_is_stored_outside_the_support_does_not_count():
    twin = es.embed(
        nn.Conv2d(2, 3, 3), torch.zeros(1, 2, 7, 7), layers={"*": dict(support=es.Local(), block_shape=(5, 7))}
    )
    before = es.locality(twin)[""]
    with torch.no_grad():
        twin.linear.values[~twin.linear.pattern.support_of_blocks()] = 100.0
    assert str(es.locality(twin)[""]) == str(before)


def test_a_linear_layer_is_read_channels_first():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 5 * 4, 3))
    with torch.no_grad():
        net[1].weight.zero_()
        image = net[1].weight.view(3, 2, 5, 4)
        image[:, :, 1, 3] = 1.0
        image[:, :, 4, 3] = 1.0
    found = es.locality(net, images={"1": (2, 5, 4)})["1"]
    assert found.gyration == pytest.approx(1.5)
    assert found.participation == pytest.approx(1 / 4)
    assert math.isnan(found.share_within)


def test_the_spectrum_of_a_cnn_is_that_of_its_kernel():
    conv = nn.Conv2d(2, 3, 3).double()  # no window reaches into a padding
    twin = es.embed(
        conv, torch.zeros(1, 2, 7, 5).double(), layers={"*": dict(support=es.Dilated(1), block_shape=(4, 5))}
    )
    kernel = torch.zeros(7, 5, dtype=torch.float64)
    kernel[:3, :3] = conv.weight.detach().mean((0, 1))
    found = es.landscape.power_spectrum(twin)
    assert torch.allclose(found, torch.fft.fftn(kernel).abs().square())
    assert float(found.mean()) == pytest.approx(float(kernel.square().sum()))


@pytest.mark.parametrize("conv", [nn.Conv2d(2, 3, 1, stride=2), nn.ConvTranspose2d(2, 3, 2, stride=2)])
def test_the_spectrum_of_one_weight_for_each_window_is_flat_wherever_windows_lie(conv):
    conv = conv.double()
    twin = es.embed(conv, torch.zeros(1, 2, 5, 4).double(), support=es.Full())
    found = es.landscape.power_spectrum(twin)
    assert torch.allclose(found, found[0, 0].expand_as(found))
    line = nn.Linear(2 * 5 * 4, 3)
    with torch.no_grad():
        line.weight.copy_(torch.cos(torch.arange(4) * math.pi / 2).expand(3, 2, 5, 4).reshape(3, 40))
    spectrum = es.landscape.power_spectrum(line, (2, 5, 4))
    assert float(spectrum[0, 1] + spectrum[0, 3]) == pytest.approx(
        float(spectrum.sum())
    )  # one wave along the last side


def test_activity():
    x = torch.randn(400, 2, 7, 7, dtype=torch.float64)
    tied = layer(es.Full(), stride=2)
    found = es.locality(nn.Sequential(tied), x)["0"]
    assert found.equivariance == 0.0
    assert abs(found.kurtosis) < 0.1  # sums of normal numbers
    with torch.no_grad():
        tied.linear.values.normal_()
        tied.linear.bias.zero_()
    assert es.locality(tied, x)[""].equivariance == pytest.approx(math.sqrt(2), rel=0.1)  # unrelated units
    transposed = es.embed(nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1).double(), x)
    assert math.isnan(es.locality(transposed, x)[""].equivariance)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(98, 3))
    assert es.locality(constant, x.float(), images={"1": (2, 7, 7)})["1"].kurtosis < 0.5


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (nn.ReLU(), None, "must hold an embedded convolution"),
        (nn.Sequential(nn.Linear(8, 2)), {"0": (2, 2, 3)}, "must be the .channels, .size. of a linear layer's inputs"),
        (nn.Sequential(nn.Linear(8, 2)), {"1": (2, 2, 2)}, "must be the .channels, .size. of a linear layer's inputs"),
        (layer(es.LowRank(1)), None, "a product"),
    ],
)
def test_what_does_not_fit_is_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        es.locality(model, images=images)
