"""Trainable blocks beside a frozen weight, against the dense layer with both in one matrix."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import efcn_sparse as es
from efcn_sparse.checkpoint import load_sharded, save_sharded
from efcn_sparse.finetune.scores import gradient_scores

PATTERNS = {
    "whole blocks": lambda: es.BlockPattern.random((24, 40), (8, 8), 0.4, torch.Generator().manual_seed(0)),
    "ragged": lambda: es.BlockPattern.random((24, 40), (7, 16), 0.5, torch.Generator().manual_seed(1)),
    "masked": lambda: es.BlockPattern.from_mask(torch.rand(24, 40) < 0.1, (6, 8)),
}


def filled(pattern):
    torch.manual_seed(3)
    layer = es.SparseDelta(nn.Linear(40, 24).double(), pattern)
    with torch.no_grad():
        layer.delta.values.normal_()
    return layer


@pytest.mark.parametrize("kind", PATTERNS)
def test_outputs_and_gradients_are_those_of_the_sum(kind):
    layer = filled(PATTERNS[kind]())
    x = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    weight = (layer.linear.weight + layer.delta.pattern.to_dense(layer.delta.values)).detach().requires_grad_()
    y, expected = layer(x), nn.functional.linear(twin, weight, layer.linear.bias)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    assert torch.allclose(y, expected)
    assert torch.allclose(x.grad, twin.grad)
    assert torch.allclose(layer.delta.values.grad, layer.delta.pattern.gather(weight.grad))
    assert layer.linear.weight.grad is None


@pytest.mark.parametrize("kind", PATTERNS)
def test_merging_is_undone_bit_for_bit(kind):
    layer = filled(PATTERNS[kind]())
    x = torch.randn(5, 40, dtype=torch.float64)
    y, before = layer(x), layer.linear.weight.clone()
    linear = layer.merge()
    layer.merge()  # a second time changes nothing
    assert torch.allclose(linear(x), y)
    assert torch.equal(layer(x), linear(x))
    layer.unmerge()
    layer.unmerge()
    assert torch.equal(layer.linear.weight, before)
    assert torch.equal(layer(x), y)


class Net(nn.Module):
    """A layer that is used twice, one that nothing before it requires, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.twice(self.twice(self.first(x).tanh()).tanh()))


def loss(net, batch):
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def batches():
    draw = torch.Generator().manual_seed(4)
    return [(torch.randn(6, 10, generator=draw), torch.randint(3, (6,), generator=draw)) for _ in range(3)]


@pytest.mark.parametrize("frozen", [False, True])
def test_scores_are_the_norms_of_the_blocks_of_the_dense_gradient(frozen):
    net = Net()
    expected = dict.fromkeys(("first", "twice", "head"), 0)
    for batch in batches():
        net.zero_grad()
        loss(net, batch).backward()
        for name in expected:
            gradient = getattr(net, name).weight.grad
            gradient = nn.functional.pad(gradient, (0, -gradient.shape[1] % 8, 0, -gradient.shape[0] % 4))
            expected[name] += gradient.double().unfold(0, 4, 4).unfold(1, 8, 8).square().sum((2, 3))
    net.zero_grad()
    net.requires_grad_(not frozen)
    found = gradient_scores(net, {name: (getattr(net, name), (4, 8)) for name in expected}, loss, batches())
    for name, score in expected.items():
        assert torch.allclose(found[name], score, rtol=1e-5)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_model_learns_through_its_deltas_alone():
    torch.manual_seed(0)
    net = Net()
    base, data = copy.deepcopy(net), batches()
    made = es.SparseDelta.add(net, {"head": None, "*": dict(density=0.5, block_shape=(4, 4))}, loss, data)
    assert list(made) == ["first", "twice"]
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "first.delta.values",
        "twice.delta.values",
    ]
    x = data[0][0]
    assert torch.equal(net(x), base(x))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.02)
    start = loss(net, data[0]).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(net, data[0]).backward()
        optimizer.step()
    assert loss(net, data[0]).item() < 0.8 * start
    for name in ("first", "twice"):
        assert torch.equal(getattr(net, name).linear.weight, getattr(base, name).weight)
    again = Net()
    es.SparseDelta.add(again, {"head": None, "*": dict(density=0.5, block_shape=(4, 4))}, loss, data)
    assert [layer.delta.pattern.nnz_blocks for layer in (again.first, again.twice)] == [6, 8]


def test_the_fused_optimizer_moves_the_same_and_holds_no_gradient_of_a_delta():
    torch.manual_seed(0)
    net, data = Net(), batches()
    es.SparseDelta.add(net, {"head": None, "*": dict(density=0.5, block_shape=(4, 4))}, loss, data)
    twin = copy.deepcopy(net)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.02)
    fused = es.FusedOptimizer(net, lambda parameters: torch.optim.AdamW(parameters, lr=0.02))
    for batch in data:
        loss(twin, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss(net, batch)
        with fused.updating():
            total.backward()
        assert net.first.delta.values.grad is None
        fused.step()
        fused.zero_grad()
    assert net.first.delta.values.any()
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), twin.parameters(), strict=True))


def test_a_shared_layer_stays_shared():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.Tanh(), shared)
    rules = {"*": dict(density=0.5, block_shape=(2, 2))}
    made = es.SparseDelta.add(net, rules, lambda net, x: net(x).sum(), [torch.ones(1, 4)])
    assert list(made) == ["0"]
    assert net[0] is net[2] is made["0"]


def test_the_blocks_are_those_with_the_largest_gradient():
    net = nn.Sequential(nn.Linear(8, 8))
    x = torch.zeros(3, 8)
    x[:, 6] = 1.0  # only columns 4 to 7 get a gradient
    es.SparseDelta.add(net, {"*": dict(density=0.5, block_shape=(4, 4))}, lambda net, x: net(x).sum(), [x])
    assert net[0].delta.pattern.col_indices.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("rules", "data", "message"),
    [
        ({"nothing": None}, None, r"rules must each match an nn.Linear, got \['nothing'\]"),
        ({"*": dict(density=0.5)}, None, r"rules\['\*'\] must be a dict of density and block_shape or None"),
        ({"*": dict(density=0.0, block_shape=(4, 4))}, None, "rules must be dict"),
        ({"*": dict(density=0.5, block_shape=(4, 4))}, [], "at least one batch"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(rules, data, message):
    net = Net()
    with pytest.raises(ValueError, match=message):
        es.SparseDelta.add(net, rules, loss, batches() if data is None else data)
    assert type(net.first) is nn.Linear
    assert net.first.weight.requires_grad


def test_layers_that_the_batches_do_not_use_or_that_are_tied_are_refused_by_name():
    net = Net()
    rule = {"*": dict(density=0.5, block_shape=(4, 4))}
    with pytest.raises(ValueError, match="got no gradient in twice, head"):
        es.SparseDelta.add(net, rule, lambda net, batch: net.first(batch[0]).sum(), batches())
    net.head.bias = net.twice.bias
    with pytest.raises(ValueError, match=r"'twice' cannot have a delta: its bias is shared with 'head\.bias'"):
        es.SparseDelta.add(net, rule, loss, batches())
    linear = nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"pattern must be \[4, 3\], got \[3, 4\]"):
        es.SparseDelta(linear, es.BlockPattern.dense((3, 4), (2, 2)))
    with pytest.raises(TypeError, match="pattern must be a BlockPattern, got float"):
        es.SparseDelta(linear, 0.25)
    assert linear.weight.requires_grad
    assert es.SparseDelta(linear, density=0.5, block_shape=(2, 1)).delta.pattern.nnz_blocks == 3


def encoder():
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(32, 4, 72, batch_first=True, dropout=0.0).double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("names", [("linear1", "linear2"), ("self_attn.out_proj",)])
def test_code_that_reads_the_weight_gets_the_sum(training, names):
    """Torch's encoder does in evaluation mode, and its attention always."""
    layer, x = encoder().train(training), torch.randn(4, 6, 32, dtype=torch.float64)
    dense = copy.deepcopy(layer)
    for name in names:
        delta = es.SparseDelta(layer.get_submodule(name), density=0.5, block_shape=(8, 8))
        nn.init.normal_(delta.delta.values)
        with torch.no_grad():
            dense.get_submodule(name).weight += delta.delta.pattern.to_dense(delta.delta.values)
        layer.set_submodule(name, delta)
    layer.requires_grad_(False)
    for name in names:
        layer.get_submodule(name).delta.requires_grad_(True)
    expected = dense(x)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected)
    y = layer(x)
    assert torch.allclose(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for name in names:
        delta, gradient = layer.get_submodule(name).delta, dense.get_submodule(name).weight.grad
        assert torch.allclose(delta.values.grad, delta.pattern.gather(gradient))


def test_a_second_round_begins_with_the_merged_layers():
    net = nn.Sequential(nn.Linear(8, 8))
    rules = {"*": dict(density=0.5, block_shape=(4, 4))}
    add = [net, rules, lambda net, x: net(x).square().sum(), [torch.ones(1, 8)]]
    es.SparseDelta.add(*add)
    with pytest.raises(ValueError, match="model must hold no SparseDelta yet, got '0'"):
        es.SparseDelta.add(*add)
    net[0] = net[0].merge()
    assert list(es.SparseDelta.add(*add)) == ["0"]


def test_the_frozen_layer_of_a_delta_stays():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    block = dict(density=0.5, block_shape=(4, 4))
    es.SparseDelta.add(net, {"0": block, "1": None}, lambda net, x: net(x).square().sum(), [torch.ones(1, 8)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    uses = [
        lambda rules: es.sparsify(net, rules),
        lambda rules: es.Pruner(net, rules, es.CubicSchedule(begin=0, end=1), optimizer),
    ]
    for use in uses:
        with pytest.raises(
            ValueError, match=r"'0\.linear'.*: it is the frozen layer of a SparseDelta; put what its merge"
        ):
            use({"*": block})
    assert list(es.advise(net, 4, seconds=0.01, block_shapes=[(4, 4)]).left) == ["0.linear"]
    assert type(net[0].linear) is type(net[1]) is nn.Linear
    es.sparsify(net, {"0.linear": None, "*": block})
    net.load_state_dict(net.state_dict())


def test_a_state_dict_is_of_the_layer_that_is_not_merged(tmp_path):
    layer, other = filled(PATTERNS["ragged"]()), filled(PATTERNS["ragged"]())
    with torch.no_grad():
        other.delta.values.neg_()
        other.linear.weight.neg_()
    x = torch.randn(5, 40, dtype=torch.float64)
    y, state = layer(x), layer.state_dict()
    for load in (other.load_state_dict, nn.Sequential(other)[0].load_state_dict):
        other.merge()
        load(state)
        assert not other.merged
        assert torch.equal(other(x), y)
    save_sharded(layer, tmp_path)
    layer.merge()
    for call in (layer.state_dict, lambda: save_sharded(layer, tmp_path), lambda: load_sharded(layer, tmp_path)):
        with pytest.raises(RuntimeError, match="a state dict must be of a SparseDelta that is not merged"):
            call()
    both = nn.ModuleDict({"delta": layer, "head": nn.Linear(2, 2)})
    both.load_state_dict({"head.bias": torch.ones(2)}, strict=False)
    assert layer.merged
    assert torch.allclose(layer(x), y)


def test_unmerging_brings_the_weight_back_whatever_happened_to_the_delta():
    layer = filled(PATTERNS["whole blocks"]())
    before = layer.linear.weight.clone()
    layer.merge()
    es.regrow(layer.delta, torch.randn(4, 24).double(), torch.randn(4, 40).double(), blocks=2)
    layer.unmerge()
    assert torch.equal(layer.linear.weight, before)
    layer.delta.values.data[0] = torch.nan
    layer.merge()
    layer.delta.values.data.fill_(1.0)
    layer = copy.deepcopy(layer)
    layer.unmerge()
    assert torch.equal(layer.linear.weight, before)


def test_of_several_deltas_of_one_layer_the_last_is_unmerged_first():
    first = filled(PATTERNS["whole blocks"]())
    before = first.linear.weight.clone()
    second = es.SparseDelta(first.linear, es.BlockPattern.random((24, 40), (8, 8), 0.8))
    nn.init.normal_(second.delta.values)
    first.merge(), second.merge()
    both = first.linear.weight.clone()
    with pytest.raises(RuntimeError, match=r"linear.weight must be as merge\(\) left it, got other numbers"):
        first.unmerge()
    assert torch.equal(first.linear.weight, both)
    second.unmerge(), first.unmerge()
    assert torch.equal(first.linear.weight, before)
    pair = nn.ModuleList([first, second])
    state = copy.deepcopy(pair.state_dict())
    first.merge(), second.merge()
    pair.load_state_dict(state)
    assert (first.merged, second.merged) == (False, False)
    assert torch.equal(first.linear.weight, before)


def test_a_merged_delta_goes_where_the_weight_goes_and_averages_do_not_see_it():
    layer = filled(PATTERNS["ragged"]())
    average = AveragedModel(layer, use_buffers=True)
    layer.merge()
    average.update_parameters(layer)
    assert not [name for name, _ in layer.named_buffers() if "delta" not in name]
    layer.to(torch.bfloat16)
    before = layer._merged.before
    assert before.dtype == torch.bfloat16
    layer.double().unmerge()
    assert torch.equal(layer.delta.pattern.gather(layer.linear.weight), before.double())


def test_a_weight_that_is_computed_is_refused():
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"linear\.weight must be a parameter, got one that is computed"):
        es.SparseDelta(linear, density=0.5, block_shape=(4, 4))


class ByName(nn.Module):
    """Calls its layer by keyword, has buffers that a pass changes, one that nobody can write into, and one to come."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.idle = nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mask", torch.ones(1).expand(8))
        self.register_buffer("last", None)

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        return self.norm(nn.functional.relu(self.linear(input=x), inplace=True)) * self.mask


@pytest.mark.parametrize("frozen", [False, True])
def test_placing_deltas_changes_no_buffer(frozen):
    net, x = ByName().requires_grad_(not frozen), torch.randn(6, 10)
    net(x)
    net.last = None
    before, y = copy.deepcopy(dict(net.named_buffers())), net.eval()(x)
    net.train().last, net.calls = None, before["calls"]
    rules = {"linear": dict(density=0.5, block_shape=(4, 5))}
    made = es.SparseDelta.add(net, rules, lambda net, x: net(x)[0].sum(), [x])
    assert list(made) == ["linear"]
    after = dict(net.named_buffers())
    assert net.last is None
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(net.eval()(x), y)


def test_a_layer_that_no_batch_uses_is_named():
    rules = {"idle": dict(density=0.5, block_shape=(4, 4))}
    with pytest.raises(ValueError, match="batches must use every layer that gets a delta, got no gradient in idle"):
        es.SparseDelta.add(ByName(), rules, lambda net, x: net(x).sum(), [torch.randn(6, 10)])
