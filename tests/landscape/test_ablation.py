"""What is left of a net when only one part of its weights is kept."""

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.landscape.parts import PARTS, part_of
from tests.landscape.nets import batch, efcn


def test_parts_are_orthogonal_and_add_up():
    layer = efcn(es.Dilated(1), block_shape=(3, 4))[0]
    support = layer.linear.pattern.support_of_blocks()
    values = layer.linear.values.detach().masked_fill(~support, 0)
    parts = [part_of(layer, layer.linear.values, part) for part in PARTS]
    assert torch.allclose(sum(parts), values)
    for one in range(3):
        for other in range(one):
            assert abs(float((parts[one] * parts[other]).sum())) < 1e-9
    found = es.deviation(layer)
    assert [float(part.norm()) for part in parts] == pytest.approx([found.tied, found.untied, found.off_local])


def test_each_evaluation_sees_only_what_is_kept_and_weights_come_back():
    net = efcn(es.Dilated(1))
    before = [parameter.clone() for parameter in net.parameters()]
    seen = []

    def evaluate(net):
        seen.append(
            [(layer.tied > 0, layer.untied > 1e-9, layer.off_local > 0) for layer in es.deviation(net).layers.values()]
        )
        return float(len(seen))

    found = es.landscape.ablation(net, evaluate)
    whole, tied, local, off_local = (True,) * 3, (True, False, False), (True, True, False), (False, False, True)
    assert list(found) == ["0", "4", "all"]
    assert [row[0] for row in seen] == [tied, local, off_local, whole, whole, whole, tied, local, off_local, whole]
    assert found["all"] == {"tied": 7.0, "local": 8.0, "off_local": 9.0, "whole": 10.0}
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))


def test_weights_come_back_when_an_evaluation_raises():
    net = efcn(es.Dilated(1))
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(ZeroDivisionError):
        es.landscape.ablation(net, lambda net: 1 / 0)
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))
    assert net(batch()[0]).isfinite().all()


def test_values_that_layers_share_are_refused():
    cnn = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3, padding=1), torch.nn.Conv2d(2, 2, 3, padding=1))
    net = es.embed(cnn, torch.zeros(1, 2, 4, 4))
    net[1].linear.values = net[0].linear.values
    with pytest.raises(ValueError, match="got the same in '0' and '1'"):
        es.landscape.ablation(net, lambda net: 0.0)


def test_a_layer_with_the_name_of_all_together_is_refused():
    net = torch.nn.Sequential()
    net.add_module("all", torch.nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match="no layer may have the name 'all'"):
        es.landscape.ablation(es.embed(net, torch.zeros(1, 2, 4, 4)), lambda net: 0.0)
