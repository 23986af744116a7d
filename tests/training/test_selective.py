"""SGD part by part: plain SGD if all parts are alike, the CNN's own SGD if only the tied part moves, and in between."""

import copy
import functools
import re

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.training import Part, SelectiveSGD

FROZEN = Part(rate=0.0)
SIZE = (2, 8, 7)


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch):
    monkeypatch.setattr("efcn_sparse.training.optim.shares._CHUNK_ELEMENTS", 1 << 10)


def cnn():
    """Padding, a stride, a dilation and groups, so that kernel entries differ in their number of copies."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(),
        nn.Conv2d(4, 6, 3, stride=2, padding=2, groups=2), nn.Tanh(),
        nn.Conv2d(6, 4, 2, dilation=2, bias=False), nn.Tanh(),
        nn.Flatten(), nn.LazyLinear(3),
    ).double()  # fmt: skip


@functools.cache
def made(support):
    torch.manual_seed(0)
    net = cnn()
    x = torch.randn(2, *SIZE, dtype=torch.double)
    net(x)
    return net, es.embed(net, x, support=support)


def pair(support=None):
    found = copy.deepcopy(made(support or es.Dilated(1)))
    torch.manual_seed(1)  # what is drawn next does not depend on who came first
    return found


def drifted(net, scale=0.1):
    """The same net away from the CNN subspace: gradients at the stored entries, which respect the support."""
    net(torch.randn(4, *SIZE, dtype=torch.double)).square().sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= scale * parameter.grad
    net.zero_grad()
    return net


def step(net, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, generator=generator, dtype=torch.double) for size in ((5, *SIZE), (5, 3)))
    optimizer.zero_grad()
    (net(x) - y).square().mean().backward()
    optimizer.step()


def assert_close(one, two, atol=1e-12):
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)


def parts_of(net):
    """Each parameter's tied, untied and off-local part, from the projections of the library."""
    tied, local = es.project(copy.deepcopy(net), "cnn"), es.project(copy.deepcopy(net), "lcn")
    triples = zip(net.parameters(), tied.parameters(), local.parameters(), strict=True)
    return [(t.detach(), (lo - t).detach(), (p - lo).detach()) for p, t, lo in triples]


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
@pytest.mark.parametrize("support", [es.Local(), es.Dilated(1), es.Full()])
def test_the_control_is_the_cnns_own_training_step_for_step(support, momentum, weight_decay):
    net, efcn = pair(support)
    settings = dict(lr=0.3, momentum=momentum, weight_decay=weight_decay)
    sgd, control = torch.optim.SGD(net.parameters(), **settings), SelectiveSGD.as_cnn(efcn, **settings)
    start = copy.deepcopy(net)
    for seed in range(12):
        step(net, sgd, seed)
        step(efcn, control, seed)
        assert_close(es.unembed(efcn), net)
        found = es.deviation(efcn)
        assert found.off_local == 0
        assert max(found.untied, found.bias_untied) < 1e-12
    moved = [float((a - b).detach().abs().max()) for a, b in zip(net.parameters(), start.parameters(), strict=True)]
    assert min(moved) > 0.01


def test_without_the_sum_over_copies_the_cnn_is_not_followed():
    net, efcn = pair()
    mean = SelectiveSGD(efcn, 0.3, untied=FROZEN, off_local=FROZEN)
    step(net, torch.optim.SGD(net.parameters(), 0.3), 0)
    step(efcn, mean, 0)
    assert float((es.unembed(efcn)[0].weight - net[0].weight).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_with_all_parts_alike_it_is_plain_sgd(weight_decay):
    _, efcn = pair(es.Full())
    other = copy.deepcopy(efcn)
    settings = dict(lr=0.3, momentum=0.9, weight_decay=weight_decay)
    alike = dict.fromkeys(("tied", "untied", "off_local"), Part(weight_decay=weight_decay))
    plain, selective = torch.optim.SGD(efcn.parameters(), **settings), SelectiveSGD(other, **settings, **alike)
    for seed in range(5):
        step(efcn, plain, seed)
        step(other, selective, seed)
    assert_close(efcn, other)
    if not weight_decay:
        assert all(torch.equal(a, b) for a, b in zip(efcn.parameters(), other.parameters(), strict=True))


def test_each_part_moves_at_its_own_rate_and_decays_by_its_own_weight_decay():
    _, efcn = pair()
    drifted(efcn)
    settings = [Part(0.5, 0.3), Part(2.0, 0.2), Part(0.25, 0.1)]
    optimizer = SelectiveSGD(efcn, 0.1, tied=settings[0], untied=settings[1], off_local=settings[2])
    before, start = parts_of(efcn), copy.deepcopy(efcn)
    step(efcn, optimizer, 0)
    slopes = copy.deepcopy(start)
    with torch.no_grad():
        for parameter, source in zip(slopes.parameters(), efcn.parameters(), strict=True):
            parameter.copy_(source.grad)
    after, gradients = parts_of(efcn), parts_of(slopes)
    embedded = [place for place, (name, _) in enumerate(efcn.named_parameters()) if ".linear." in name]
    assert len(embedded) == 5
    for place in embedded:
        for part, setting in enumerate(settings):
            was, gradient = before[place][part], gradients[place][part]
            expected = was - 0.1 * setting.rate * (gradient + setting.weight_decay * was)
            torch.testing.assert_close(after[place][part], expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("frozen", ["tied", "untied", "off_local"])
def test_a_part_with_rate_0_stays_under_momentum(frozen):
    _, efcn = pair()
    optimizer = SelectiveSGD(drifted(efcn), 0.1, momentum=0.9, **{frozen: FROZEN})
    before = parts_of(efcn)
    for seed in range(4):
        step(efcn, optimizer, seed)
    after = parts_of(efcn)
    for place, (name, _) in enumerate(efcn.named_parameters()):
        for part, label in enumerate(("tied", "untied", "off_local")):
            change = float((after[place][part] - before[place][part]).abs().max())
            exists = ".linear." in name and (label != "off_local" or name.endswith("values"))
            if label == frozen and ".linear." in name:
                assert change < 1e-13
            elif exists:
                assert change > 1e-4


def test_layers_are_chosen_by_name():
    _, efcn = pair()
    optimizer = SelectiveSGD(
        efcn, 0.1, off_local=FROZEN, layers={"0": dict(untied=FROZEN), "[02]": dict(off_local=Part())}
    )
    step(efcn, optimizer, 0)
    layers = es.deviation(efcn).layers
    assert layers["0"].untied < 1e-12 < 1e-3 < layers["2"].untied
    assert layers["4"].off_local == layers["0"].off_local == 0 < layers["2"].off_local
    assert layers["4"].untied > 1e-3


def test_the_l1_of_off_local_weights_is_soft_thresholding():
    _, efcn = pair()
    other = copy.deepcopy(efcn)
    plain, lasso = SelectiveSGD(efcn, 0.1), SelectiveSGD(other, 0.1, off_local=Part(l1=0.01))
    step(efcn, plain, 0)
    step(other, lasso, 0)
    for (tied, untied, off), (tied_too, untied_too, sparse) in zip(parts_of(efcn), parts_of(other), strict=True):
        torch.testing.assert_close(sparse, nn.functional.softshrink(off, 0.1 * 0.01), atol=1e-15, rtol=0)
        torch.testing.assert_close((tied, untied), (tied_too, untied_too), atol=1e-15, rtol=0)
    zeros = sum(
        int(((off != 0) & (sparse == 0)).sum())
        for (*_, off), (*_, sparse) in zip(parts_of(efcn), parts_of(other), strict=True)
    )
    assert zeros > 100


def test_the_l1_of_the_tied_part_is_that_of_the_cnns_kernels():
    net, efcn = pair()
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    lasso = SelectiveSGD(efcn, 0.1, momentum=0.9, tied=Part(l1=0.2), untied=FROZEN, off_local=FROZEN, copies="sum")
    for seed in range(6):
        step(net, sgd, seed)
        with torch.no_grad():
            for place in (0, 2, 4):
                net[place].weight.copy_(nn.functional.softshrink(net[place].weight, 0.1 * 0.2))
        step(efcn, lasso, seed)
        back = es.unembed(efcn)
        assert_close(back, net)
    zeros = [net[place].weight == 0 for place in (0, 2, 4)]
    assert sum(int(zero.sum()) for zero in zeros) > 10
    assert all(torch.equal(zero, back[place].weight == 0) for place, zero in zip((0, 2, 4), zeros, strict=True))


def beta_lasso(theta, gradient, eta, part):
    """One number's step, as in the paper: the subgradient of loss and penalty, then the threshold."""
    sign = (theta > 0) - (theta < 0)
    moved = theta - eta * (gradient + part.l1 * sign)
    return 0.0 if abs(moved) < part.beta * part.l1 else moved


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_beta_lasso_on_off_local_weights_is_the_papers_step_number_by_number(beta):
    _, efcn = pair()
    optimizer = SelectiveSGD(drifted(efcn), 0.1, off_local=Part(rate=0.5, l1=1e-3, beta=beta))
    off_local = {place: efcn[place].ties.maps[efcn[place].ties.class_of_block.long()] == -1 for place in (0, 2, 4)}
    zeros = []
    for seed in range(4):  # several, so that numbers at zero are met too
        before = {place: efcn[place].linear.values.detach()[there] for place, there in off_local.items()}
        step(efcn, optimizer, seed)
        for place, there in off_local.items():
            values, part = efcn[place].linear.values, optimizer.parts[str(place)].off_local
            pairs = zip(before[place].tolist(), values.grad[there].tolist(), strict=True)
            expected = torch.tensor([beta_lasso(*pair, 0.1 * 0.5, part) for pair in pairs], dtype=torch.double)
            torch.testing.assert_close(values.detach()[there], expected, atol=1e-16, rtol=1e-14)
            zeros += (expected == 0).tolist()
    assert sum(zeros) > {0.0: -1, 1.0: 10, 3.0: 100}[beta]
    assert zeros.count(False) > 100
    assert es.deviation(efcn).untied > 0.1  # which goes on as it would


def test_beta_lasso_on_the_tied_part_is_that_of_the_cnns_kernels():
    net, efcn = pair()
    part = Part(l1=0.004, beta=20.0)
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    lasso = SelectiveSGD(efcn, 0.1, momentum=0.9, tied=part, untied=FROZEN, off_local=FROZEN, copies="sum")
    for seed in range(6):
        signs = {place: net[place].weight.detach().sign() for place in (0, 2, 4)}
        step(net, sgd, seed)
        with torch.no_grad():
            for place, sign in signs.items():
                weight = net[place].weight.sub_(0.1 * part.l1 * sign)
                weight[weight.abs() < part.beta * part.l1] = 0
        step(efcn, lasso, seed)
        assert_close(es.unembed(efcn), net)
    back = es.unembed(efcn)
    zeros = [net[place].weight == 0 for place in (0, 2, 4)]
    assert 10 < sum(int(zero.sum()) for zero in zeros) < sum(zero.numel() for zero in zeros) - 10
    assert all(torch.equal(zero, back[place].weight == 0) for place, zero in zip((0, 2, 4), zeros, strict=True))


def test_away_from_zero_and_the_threshold_both_lassos_take_one_step():
    _, efcn = pair()
    other = drifted(efcn) and copy.deepcopy(efcn)
    settings = dict(lr=1e-4, momentum=0.9)
    step(efcn, SelectiveSGD(efcn, **settings, off_local=Part(l1=0.01)), 0)
    step(other, SelectiveSGD(other, **settings, off_local=Part(l1=0.01, beta=1e-9)), 0)
    for (*_, one), (*_, two) in zip(parts_of(efcn), parts_of(other), strict=True):
        far = one.abs() > 1e-4
        torch.testing.assert_close(one[far], two[far], atol=1e-16, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_a_tied_part_of_zero_has_no_sign_though_its_mean_has_rounding_errors(beta, dtype):
    _, efcn = pair()
    efcn.to(dtype)
    layer = efcn[0]
    with torch.no_grad():
        layer.linear.values.copy_(torch.randn_like(layer.linear.values) * (layer.linear.values != 0))
        tied = copy.deepcopy(efcn)
        es.project(tied, onto="cnn")
        layer.linear.values -= tied[0].linear.values
    before = layer.linear.values.detach().clone()
    optimizer = SelectiveSGD(efcn, 0.1, untied=FROZEN, off_local=FROZEN, tied=Part(l1=0.5, beta=beta))
    for _ in range(3):
        efcn.zero_grad()
        efcn(torch.zeros(5, *SIZE, dtype=dtype)).square().mean().backward()
        optimizer.step()
    assert float((layer.linear.values - before).abs().max()) < 1e-5 * float(before.abs().max())
    assert float(before.abs().max()) > 1


def test_a_copy_of_net_and_optimizer_trains_alike():
    _, efcn = pair()
    optimizer = SelectiveSGD(efcn, 0.1, momentum=0.9, untied=Part(rate=0.5), layers={"2": dict(tied=FROZEN)})
    step(efcn, optimizer, 0)
    other, copied = copy.deepcopy((efcn, optimizer))
    called = []
    copied.register_step_post_hook(lambda *_: called.append(1))
    for seed in (1, 2):
        step(efcn, optimizer, seed)
        step(other, copied, seed)
    assert_close(efcn, other, atol=0)
    assert called == [1, 1]
    assert copied.parts == optimizer.parts


@pytest.mark.parametrize("beta", [None, 0.0, 5.0])
def test_exact_zeros_without_a_gradient_stay_exact(beta):
    _, efcn = pair()
    x = torch.zeros(5, *SIZE, dtype=torch.double)  # so the first layer's weights have no gradient
    off_local = Part(l1=0.01, beta=beta)
    optimizer = SelectiveSGD(efcn, 0.1, momentum=0.9, off_local=off_local, tied=off_local)
    first = efcn[0].ties
    off = first.maps[first.class_of_block.long()] == -1
    for _ in range(3):
        optimizer.zero_grad()
        efcn(x).square().mean().backward()
        optimizer.step()
    assert bool((efcn[0].linear.values.detach()[off] == 0).all())
    assert int(off.sum()) > 100


@pytest.mark.parametrize("beta", [None, 3.0])
def test_entries_outside_the_support_stay_zero(beta):
    net = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.double)
    efcn = es.embed(net, x, layers={"*": dict(block_shape=(7, 4), support=es.Dilated(1))})
    optimizer = SelectiveSGD(
        efcn, 0.1, momentum=0.9, tied=Part(2.0, 0.1, 0.01, beta), off_local=Part(0.5, 0.1, 0.01, beta), copies="sum"
    )
    for _ in range(3):
        optimizer.zero_grad()
        efcn(x).square().sum().backward()
        optimizer.step()
    outside = ~efcn.linear.pattern.gather(efcn.linear.pattern.to_mask()).bool()
    assert bool(outside.any())
    assert bool((efcn.linear.values.detach()[outside] == 0).all())


def test_its_state_is_saved_and_loaded(tmp_path):
    from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint

    _, efcn = pair()
    other = copy.deepcopy(efcn)
    make = lambda net: SelectiveSGD(net, 0.1, momentum=0.9, untied=Part(rate=0.5))  # noqa: E731
    optimizer, resumed = make(efcn), make(other)
    step(efcn, optimizer, 0)
    save_checkpoint(tmp_path / "here.safetensors", efcn, optimizer)
    load_checkpoint(tmp_path / "here.safetensors", other, resumed)
    step(efcn, optimizer, 1)
    step(other, resumed, 1)
    assert all(torch.equal(a, b) for a, b in zip(efcn.parameters(), other.parameters(), strict=True))


def test_blocks_that_move_are_followed():
    """Local weights stay tied and off-local ones move by their own gradient alone, wherever growth puts them."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 56, 3)).double()
    efcn = es.embed(net, torch.zeros(2, *SIZE, dtype=torch.double), support=es.Grown(1.5))
    optimizer = SelectiveSGD(efcn, 0.1, momentum=0.9, untied=FROZEN, off_local=Part(rate=0.5, l1=1e-4, beta=1.0))
    growth = es.Growth(efcn, optimizer, every=2)
    generator, layer, moved = torch.Generator().manual_seed(0), efcn[0], 0
    for _ in range(6):
        x = torch.randn(5, *SIZE, generator=generator, dtype=torch.double)
        there = layer.ties.maps[layer.ties.class_of_block.long()] == -1
        before, buffer = layer.linear.values.detach().clone(), optimizer.state[layer.linear.values]
        momentum = buffer["momentum_buffer"].clone() if buffer else torch.zeros_like(before)
        optimizer.zero_grad()
        with growth.watch():
            efcn(x).square().mean().backward()
        slope = 0.9 * momentum + 0.5 * layer.linear.values.grad
        optimizer.step()
        expected = before - 0.1 * slope - 0.1 * 0.5 * 1e-4 * before.sign()
        expected = expected.masked_fill(expected.abs() < 1e-4, 0)[there]
        torch.testing.assert_close(layer.linear.values.detach()[there], expected, atol=1e-15, rtol=1e-12)
        moved += bool(growth.step())
        assert es.deviation(efcn).untied < 1e-12
    assert moved == 3
    assert es.deviation(efcn).off_local > 1e-3


def test_a_support_that_changed_is_refused():
    _, efcn = pair()
    optimizer = SelectiveSGD(efcn, 0.1)
    efcn[2].ties = copy.copy(efcn[0].ties)
    before = [parameter.detach().clone() for parameter in efcn.parameters()]
    with pytest.raises(RuntimeError, match=r"^2: ties must be of the \d+ blocks of values, got others"):
        step(efcn, optimizer, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, efcn.parameters(), strict=True))


BAD = [
    (dict(lr=-1.0), "lr must be a finite number of at least 0, got -1.0"),
    (dict(momentum=1.0), "momentum must lie in [0, 1), got 1.0"),
    (dict(copies="some"), "copies must be 'mean' or 'sum', got 'some'"),
    (dict(layers={"9": dict(tied=FROZEN)}),
     "layers must name embedded convolutions of the model, ['0', '2', '4'], got '9'"),
    (dict(layers={"0": dict(bias=FROZEN)}), "layers['0'] must be a dict of tied, untied and off_local, got "),
    (dict(untied=Part(l1=0.1)), "untied.l1 must be 0, got 0.1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_bad_input_is_told(change, message):
    _, efcn = pair()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        SelectiveSGD(efcn, **{"lr": 0.1, **change})


def test_a_part_must_be_a_part_and_a_model_an_embedded_one():
    _, efcn = pair()
    with pytest.raises(ValueError, match=r"l1 must be positive where beta is given, got 0 with beta 50"):
        Part(beta=50)
    with pytest.raises(TypeError, match=r"tied must be a Part, got 0\.1"):
        SelectiveSGD(efcn, 0.1, tied=0.1)
    with pytest.raises(ValueError, match="model holds no embedded convolution"):
        SelectiveSGD(nn.Linear(2, 2), 0.1)
    for bad in (-0.1, float("inf"), "fast"):
        with pytest.raises(ValueError, match="rate must be a finite number of at least 0"):
            Part(rate=bad)
