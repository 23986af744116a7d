import torch
from torch import nn

from efcn_sparse.measure.locally_connected import UnfoldLocallyConnected, unfold_twin
from efcn_sparse.models import vanilla_cnn


def test_unfold_twin_computes_the_cnn():
    torch.manual_seed(0)
    cnn, x = vanilla_cnn().double(), torch.randn(3, 3, 32, 32).double()
    twin = unfold_twin(cnn, x[:1])
    assert sum(isinstance(m, UnfoldLocallyConnected) for m in twin.modules()) == 3
    torch.testing.assert_close(twin(x), cnn(x))


def test_positions_are_untied():
    torch.manual_seed(0)
    layer = UnfoldLocallyConnected(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), 7, 6)
    before = layer(torch.ones(1, 2, 7, 6))
    with torch.no_grad():
        layer.weight[5] += 1
    changed = (layer(torch.ones(1, 2, 7, 6)) != before).any(1).flatten()
    assert changed.nonzero().flatten().tolist() == [5]
