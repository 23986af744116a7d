"""The low-rank part is U Vᵀ outside the stored entries, and nothing at them: against dense matrices in fp64."""

import copy
import io

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.embedding import EmbeddedConv, parse_support, plan
from efcn_sparse.embedding.ties import OUTSIDE
from tests.embedding.convolutions import CASES, element_map
from tests.oracle import dense

NAMES = [
    "24-channels", "groups-in-wide-blocks", "same-even-kernel", "holes", "only-meets-padding", "unread-inputs", "1d",
    "3d", "blocks-of-pixels", "larger-than-the-matrix", "no-bias",
]  # fmt: skip


def made(name: str, rank: int = 3) -> tuple[EmbeddedConv, torch.Tensor, torch.Tensor]:
    """A layer with random U, its input, and 1 where ``U Vᵀ`` counts."""
    torch.manual_seed(0)
    case = CASES[name]
    support = es.LowRank(rank, case.support)
    layer = EmbeddedConv.from_conv(case.conv(), case.size, support, case.block_shape)
    with torch.no_grad():
        layer.low_rank.left.normal_()
    return layer, case.example(), (element_map(case) == OUTSIDE).double()


@pytest.mark.parametrize("name", NAMES)
def test_computes_the_dense_matrix(name):
    layer, x, outside = made(name)
    assert outside.any() == (name != "only-meets-padding")
    linear, low_rank = layer.linear, layer.low_rank
    y = layer(x)
    dy = torch.randn_like(y)
    inputs = [low_rank.left, low_rank.right, linear.values, x.requires_grad_()]
    got = torch.autograd.grad(layer(x), inputs, dy)
    left, right = (part.detach().requires_grad_() for part in (low_rank.left, low_rank.right))
    stored = dense(linear.values, linear.pattern).requires_grad_()
    units = x.detach().movedim(1, -1).flatten(1).requires_grad_()
    flat = units @ (stored + left @ right.T * outside).T
    if linear.bias is not None:
        flat = flat + linear.bias.detach()
    torch.testing.assert_close(y.movedim(1, -1).flatten(1), flat, rtol=1e-12, atol=1e-12)
    flat_dy = dy.movedim(1, -1).flatten(1)
    true = list(torch.autograd.grad(flat, [left, right, stored, units], flat_dy))
    true[2] = linear.pattern.gather(true[2])
    true[3] = true[3].view(x.movedim(1, -1).shape).movedim(-1, 1)
    for mine, his in zip(got, true, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-11, atol=1e-11)


def test_masked_entries_of_stored_blocks_are_of_low_rank():
    layer, _, outside = made("blocks-of-pixels")
    pattern = layer.linear.pattern
    blocks = pattern.gather(outside)
    assert pattern.masks.numel()
    assert (blocks == 0).any()
    in_blocks = torch.zeros_like(outside)
    rows, cols = pattern.block_shape
    for row, col in zip(pattern.rows_of_blocks().tolist(), pattern.col_indices.tolist(), strict=True):
        in_blocks[row * rows : (row + 1) * rows, col * cols : (col + 1) * cols] = 1
    masked = in_blocks * outside
    assert masked.any()
    product = (layer.low_rank.left @ layer.low_rank.right.T).detach()
    with torch.no_grad():
        y = layer.low_rank(torch.eye(pattern.shape[1], dtype=torch.float64), layer.linear).T
    torch.testing.assert_close(y * in_blocks, product * masked, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("start", [es.Local(), es.Dilated(1)])
def test_starts_as_the_convolution_and_goes_back_to_it(start):
    torch.manual_seed(0)
    cnn = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 2, stride=2))
    x = torch.randn(2, 2, 6, 6)
    state = torch.get_rng_state()
    twin = es.embed(cnn, x, support=es.LowRank(5, start))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(twin(x), es.embed(cnn, x, support=start)(x))
    with torch.no_grad():
        twin[0].low_rank.left.normal_()
    assert not torch.allclose(twin(x), cnn(x), atol=1e-2)
    back = es.unembed(twin)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), cnn.parameters(), strict=True))
    assert twin[0].linear.pattern == es.embed(cnn, x, support=start)[0].linear.pattern


def test_is_a_module_like_others():
    layer, x, _ = made("rgb")
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    case = CASES["rgb"]
    again = EmbeddedConv.from_conv(case.conv(), case.size, es.LowRank(3), case.block_shape)
    again.load_state_dict(torch.load(file))
    assert torch.equal(again(x), layer(x))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    assert twin.low_rank.left is not layer.low_rank.left
    half = copy.deepcopy(layer).float()
    torch.testing.assert_close(half(x.float()).double(), layer(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match=r"low_rank.left"):
        EmbeddedConv.from_conv(case.conv(), case.size, es.LowRank(4), case.block_shape).load_state_dict(
            layer.state_dict()
        )
    frozen = EmbeddedConv.from_conv(case.conv().requires_grad_(False), case.size, es.LowRank(3))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    on_meta = EmbeddedConv(layer.geometry, es.LowRank(2), device="meta")
    assert on_meta.low_rank.left.is_meta
    fresh = EmbeddedConv(layer.geometry, es.LowRank(2))
    assert not fresh.low_rank.left.any()
    assert fresh.low_rank.right.any()


def test_second_derivatives():
    layer, x, _ = made("1d", rank=2)
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in layer.named_parameters()}
    left, right = parameters["low_rank.left"], parameters["low_rank.right"]

    def run(left, right, x):
        return torch.func.functional_call(layer, {**parameters, "low_rank.left": left, "low_rank.right": right}, (x,))

    assert torch.autograd.gradgradcheck(run, (left, right, x[:1, :, :].requires_grad_()), atol=1e-4)


def test_compiles_as_one_graph():
    layer, x, _ = made("24-channels")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    dy = torch.randn_like(layer(x))
    parameters = list(layer.parameters())
    for mine, his in zip(
        torch.autograd.grad(compiled(x), parameters, dy), torch.autograd.grad(layer(x), parameters, dy), strict=True
    ):
        torch.testing.assert_close(mine, his, rtol=1e-12, atol=1e-12)


def test_autocast():
    layer, x, _ = made("rgb")
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), layer(x.float()).double(), rtol=5e-2, atol=0.2)


def test_v_starts_along_the_gradient_outside():
    layer, _, outside = made("24-channels", rank=4)
    case = CASES["24-channels"]
    with torch.no_grad():
        layer.low_rank.left.zero_()
    x = case.example(batch=20)
    with es.record_factors(layer) as factors:
        y = layer(x)
        (y * torch.randn_like(y)).sum().backward()
    dy, units = factors["linear"]
    gradient = (dy.T @ units) * outside
    best = torch.linalg.svdvals(gradient)[:4].square().sum()
    held_at_random = (gradient @ torch.linalg.qr(layer.low_rank.right.detach())[0]).square().sum()
    es.start_low_rank(layer, factors)
    right = layer.low_rank.right.detach()
    torch.testing.assert_close(right.T @ right, torch.eye(4, dtype=torch.float64))
    held = (gradient @ right).square().sum()
    assert held_at_random < 0.2 * best
    assert 0.99 * best < held <= best * (1 + 1e-12)
    assert layer.low_rank.right.requires_grad
    assert not layer.low_rank.left.any()
    # the first step of U is the gradient's projection onto V
    layer.zero_grad()
    layer(x).sum().backward()
    assert layer.low_rank.left.grad.any()
    assert not layer.low_rank.right.grad.any()


def test_v_where_it_cannot_start_along_a_gradient():
    layer, x, _ = made("1d", rank=60)  # more columns than inputs
    with torch.no_grad():
        layer.low_rank.left.zero_()
    before = layer.low_rank.right.detach().clone()
    with es.record_factors(layer) as factors:
        (layer(x) * 0).sum().backward()
    es.start_low_rank(layer, factors)
    assert torch.equal(layer.low_rank.right, before)
    with es.record_factors(layer) as factors:
        layer(x).square().sum().backward()
    es.start_low_rank(layer, factors)
    assert torch.isfinite(layer.low_rank.right).all()
    assert torch.equal(layer.low_rank.right[:, -1], before[:, -1])
    with pytest.raises(ValueError, match=r"^factors must hold 'linear', got \[\]$"):
        es.start_low_rank(layer, {})
    with torch.no_grad():
        layer.low_rank.left.fill_(1.0)
    with pytest.raises(ValueError, match=r"^model must not have trained yet, got a U that is not zero in 'model'$"):
        es.start_low_rank(layer, factors)
    with pytest.raises(ValueError, match=r"^model must hold a layer with the support LowRank\(rank\), got Linear$"):
        es.start_low_rank(torch.nn.Linear(2, 2), factors)


def test_support():
    for support in (es.LowRank(8), es.LowRank(12, es.Dilated(2))):
        assert parse_support(str(support)) == support
    for rank in (0, -1, 1.0, True, "2"):
        with pytest.raises(ValueError, match=r"^rank must be an integer of at least 1, got "):
            es.LowRank(rank)
    with pytest.raises(ValueError, match=r"^start must be Local\(\) or Dilated\(radius\), got Full\(\)$"):
        es.LowRank(2, es.Full())
    for text in ("lowrank", "lowrank0", "lowrank-1", "lowrank2.5", "lowrank2-full"):
        with pytest.raises(
            ValueError, match=r"^support must (be local|have a rank that is an integer of at least 1, got )"
        ):
            parse_support(text)


def test_plan_counts_what_is_stored():
    cnn, x = torch.nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 7, 7)
    (layer,), (local,) = (plan(cnn, x, support=support).layers for support in (es.LowRank(4), es.Local()))
    twin = es.embed(cnn, x, support=es.LowRank(4))
    numbers = twin.linear.values.numel() + sum(part.numel() for part in twin.low_rank.parameters())
    assert (layer.stored_weights, layer.bytes) == (numbers, 4 * numbers)
    assert layer.stored_weights - local.stored_weights == layer.support_weights - local.support_weights == 4 * 539
    assert (layer.stored_blocks, layer.block_shape) == (local.stored_blocks, local.block_shape)


def test_growth_does_not_apply():
    layer, _, _ = made("rgb")
    with pytest.raises(NotImplementedError, match=r"^layer must have the support Grown\(budget\) .*, got lowrank3$"):
        layer.movable_blocks()
