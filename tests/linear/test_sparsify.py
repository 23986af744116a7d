"""``sparsify`` swaps the nn.Linear modules that rules name, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import efcn_sparse as es
from efcn_sparse.linear.refusals import weight_of
from tests.refused import assert_refused

pytestmark = pytest.mark.filterwarnings("ignore:sparsify")  # of the first and last layer; see test_cover.py

RULE = dict(density=0.5, block_shape=(4, 4))


def _net() -> nn.Module:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    return nn.ModuleDict({"encoder": nn.ModuleDict({"0": nn.ModuleDict({"mlp": mlp}), "norm": nn.LayerNorm(16)}),
                          "head": nn.Linear(16, 8)})  # fmt: skip


def _kinds(net: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in net.named_modules() if not list(module.children())}


def test_named_linears_are_swapped() -> None:
    net = _net()
    assert es.sparsify(net, {"encoder.*.mlp.*": RULE}) is net
    assert _kinds(net) == {
        "encoder.0.mlp.0": "SparseLinear",
        "encoder.0.mlp.1": "GELU",
        "encoder.0.mlp.2": "SparseLinear",
        "encoder.norm": "LayerNorm",
        "head": "Linear",
    }
    assert net.get_submodule("encoder.0.mlp.0").pattern.density == 0.5


def test_density_one_changes_nothing() -> None:
    net, x = _net().double(), torch.randn(3, 16, dtype=torch.float64)
    mlp = net.get_submodule("encoder.0.mlp")
    before = mlp(x)
    es.sparsify(net, {"*": dict(density=1.0, block_shape=(8, 8))})
    torch.testing.assert_close(net.get_submodule("encoder.0.mlp")(x), before)


def test_the_first_rule_that_matches_counts() -> None:
    net = es.sparsify(_net(), {"head": dict(density=1.0, block_shape=(8, 8)), "*": RULE})
    assert net.get_submodule("head").pattern.density == 1.0
    assert net.get_submodule("encoder.0.mlp.2").pattern.density == 0.5


def test_a_shared_linear_stays_shared() -> None:
    linear = nn.Linear(16, 16)
    net = es.sparsify(nn.ModuleDict({"a": linear, "b": linear}), {"*": RULE})
    assert net["a"] is net["b"]
    assert isinstance(net["a"], es.SparseLinear)


def test_a_linear_itself() -> None:
    linear = nn.Linear(16, 16)
    layer = es.sparsify(linear, {"*": RULE})
    assert isinstance(layer, es.SparseLinear)


def test_the_swapped_model_trains() -> None:
    torch.manual_seed(0)
    net = es.sparsify(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), {"*": RULE})
    stepper = torch.optim.Adam(net.parameters(), lr=0.02)
    x, target, losses = torch.randn(64, 16), torch.randint(4, (64,)), []
    for _ in range(30):
        stepper.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        stepper.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
@pytest.mark.parametrize("rule", ["linear*", "*"])
def test_torchs_transformer_layers_keep_working(mode: str, rule: str) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    es.sparsify(encoder, {rule: RULE})
    x = torch.randn(2, 5, 16)
    expected = encoder(x).detach()
    encoder.train(mode == "train")
    with torch.set_grad_enabled(mode != "no_grad"):
        torch.testing.assert_close(encoder(x).detach(), expected)
    encoder.train()
    encoder(x).sum().backward()
    assert encoder.linear1.values.grad is not None


class _Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def _tied() -> nn.Module:
    net = nn.ModuleDict({"embedding": nn.Embedding(32, 16), "head": nn.Linear(16, 32)})
    net["head"].weight = net["embedding"].weight
    return net


def _hooked() -> nn.Module:
    net = nn.ModuleDict({"head": nn.Linear(16, 16)})
    net["head"].register_forward_hook(lambda *_: None)
    return net


def _pruned() -> nn.Module:
    linear = nn.Linear(16, 16)
    prune.l1_unstructured(linear, "weight", 0.5)
    return linear


COMPUTED = "its weight is computed by a parametrization (weight_norm, spectral_norm, pruning), not stored"
REFUSED = {
    "tied": (_tied, "(Linear): its weight is shared with 'embedding.weight'"),
    "weight-norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), f"({{}}): {COMPUTED}"),
    "old-spectral-norm": (lambda: nn.utils.spectral_norm(nn.Linear(16, 16)), f"(Linear): {COMPUTED}"),
    "pruned": (_pruned, f"(Linear): {COMPUTED}"),
    "lazy": (lambda: nn.LazyLinear(16), "(LazyLinear): a lazy module has no weight yet; run the model once first"),
    "own-forward": (lambda: _Doubled(16, 16), "(_Doubled): its class has a forward of its own"),
    "complex": (
        lambda: nn.Linear(16, 16, dtype=torch.complex64),
        "(Linear): its weight must be of a floating-point dtype",
    ),
    "hooked": (_hooked, "(Linear): its hooks would be lost"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused_by_name(case: str) -> None:
    make, reason = REFUSED[case]
    module = make()
    net = module if "head" in dict(module.named_children()) else nn.ModuleDict({"head": module})
    net["tail"] = nn.Linear(16, 16)
    before, kind = _kinds(net), type(net["head"]).__name__
    with pytest.raises(ValueError, match="cannot sparsify") as error:
        es.sparsify(net, {"tail": RULE, "*": RULE})
    reason = reason.format(kind)
    assert str(error.value) == (
        f"cannot sparsify 'head' {reason}; the rule {{'head': None}} before the others leaves it as it is"
    )
    assert _kinds(net) == before
    es.sparsify(net, {"head": None, "*": RULE})
    assert isinstance(net["tail"], es.SparseLinear)
    assert type(net["head"]).__name__ == kind


def test_requires_grad_carries_over() -> None:
    net = _net()
    net["head"].requires_grad_(False)
    es.sparsify(net, {"*": RULE})
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {"head.values", "head.bias"}


def test_conv1d_of_transformers() -> None:
    class Conv1D(nn.Module):  # as in transformers.pytorch_utils: the weight is [in, out]
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(16, 24)), nn.Parameter(torch.randn(24))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], 24)

    Conv1D.__module__ = "transformers.pytorch_utils"
    torch.manual_seed(0)
    conv, x = Conv1D(), torch.randn(2, 3, 16)
    net = es.sparsify(nn.Sequential(conv), {"0": dict(density=1.0, block_shape=(8, 8))})
    assert isinstance(net[0], es.SparseLinear)
    torch.testing.assert_close(net(x), conv(x))
    es.sparsify(nn.Sequential(conv), {"0": RULE})(x).sum().backward()
    assert conv.weight.grad is None
    assert torch.equal(weight_of(conv), conv.weight.T)


@pytest.mark.parametrize(
    "module", [es.SparseDelta(nn.Linear(8, 4), density=0.5, block_shape=(4, 4)), nn.Conv2d(8, 4, 1), nn.ReLU()]
)
def test_the_sides_of_others_are_not_guessed(module: nn.Module) -> None:
    kind = type(module).__name__
    with pytest.raises(TypeError, match=f"linear must be an nn.Linear or the Conv1D of transformers, got {kind}"):
        weight_of(module)


def test_padding_on_the_fast_path_of_torchs_encoder() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = es.sparsify(nn.TransformerEncoder(layer, 2), {"*": RULE})
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected = encoder.train()(x, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        got = encoder.eval()(x, src_key_padding_mask=padding)  # nested tensors between the layers
    torch.testing.assert_close(got[~padding], expected[~padding])


def test_a_rule_without_a_match_is_refused_and_nothing_changes() -> None:
    net = _net()
    before = _kinds(net)
    with pytest.raises(ValueError, match="rules must each match") as error:
        es.sparsify(net, {"head": RULE, "decoder.*": RULE})
    assert str(error.value) == (
        "rules must each match an nn.Linear, got ['decoder.*'] against ['encoder.0.mlp.0', 'encoder.0.mlp.2', 'head']"
    )
    assert _kinds(net) == before


@pytest.mark.parametrize(
    ("rule", "kind", "message"),
    [
        (dict(density=2.0, block_shape=(4, 4)), ValueError, "density must lie in [0, 1], got 2.0"),
        (
            dict(density=0.5, block_shape=(0, 4)),
            ValueError,
            "block_shape must be two integers of at least 1, got (0, 4)",
        ),
        (dict(density=0.5, block_shape=4), ValueError, "block_shape must be two integers, got 4"),
        (dict(density="x", block_shape=(4, 4)), TypeError, "density must be a number in [0, 1], got 'x'"),
        (
            dict(densty=0.5, block_shape=(4, 4)),
            ValueError,
            "rules['head'] must be a dict of density and block_shape (and cover) or None, got "
            "{'densty': 0.5, 'block_shape': (4, 4)}",
        ),
    ],
)
def test_bad_rules_change_nothing(rule: dict[str, object], kind: type[Exception], message: str) -> None:
    net = _net()
    before = _kinds(net)
    assert_refused(es.sparsify, kind, message, net, {"encoder.*": RULE, "head": rule})
    assert _kinds(net) == before
