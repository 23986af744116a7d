"""Layers whose blocks are divided among processes compute what one process computes."""

import warnings

import pytest
import torch
import torch.distributed as dist

if not dist.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from efcn_sparse.checkpoint import load_sharded
from efcn_sparse.distributed.block_rows import run_of_blocks
from tests.distributed import block_rows, workers

CLOSE = dict(rtol=1e-11, atol=1e-12)


def same(found, expected, **tolerance):
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], **(tolerance or CLOSE), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", block_rows.patterns())
@pytest.mark.parametrize("cuts", [(0, 3), (1, 5), (2, 2)])
def test_w_is_the_sum_of_its_runs(kind, cuts):
    pattern = block_rows.patterns()[kind]
    values = torch.randn(pattern.values_shape)
    ends = [0, *(min(cut, pattern.nnz_blocks) for cut in cuts), pattern.nnz_blocks]
    runs = [run_of_blocks(pattern, *ends[i : i + 2]).to_dense(values[slice(*ends[i : i + 2])]) for i in range(3)]
    assert torch.equal(sum(runs), pattern.to_dense(values))


@pytest.mark.parametrize("optimizer", workers.OPTIMIZERS)
@pytest.mark.parametrize("kind", block_rows.patterns())
def test_a_layer_trains_as_in_one_process(ranks, kind, optimizer):
    sparse = block_rows.layer(kind)
    expected = block_rows.fit(sparse, optimizer)
    for rank in ranks:
        found = rank["layers"][kind, optimizer]
        same({name: found[name] for name in expected}, expected)
    same(ranks[0]["layers"][kind, optimizer]["state"], sparse.state_dict())


@pytest.mark.parametrize("kind", block_rows.patterns())
def test_blocks_are_divided_evenly(ranks, kind):
    own = [rank["layers"][kind, "sgd"]["own blocks"] for rank in ranks]
    total = block_rows.patterns()[kind].nnz_blocks
    assert own == [-(-total // 2), total // 2]


def _one_process(sparse):
    x, weight = block_rows.batch(sparse, 0)
    y = sparse(x.requires_grad_())
    (y * weight).sum().backward()
    return {"y": y.detach(), "dx": x.grad, "values": sparse.values.grad, "bias": sparse.bias.grad}


@pytest.mark.parametrize("layout", block_rows.LAYOUTS)
def test_layouts(ranks, layout):
    expected = _one_process(block_rows.layer("ragged"))
    found = [rank["layouts"][layout] for rank in ranks]
    if layout == "sharded features":
        assert [part["y"].shape[1] for part in found] == [7, 6]
        assert torch.equal(found[0]["dx"], found[1]["dx"])
    dims = {"sharded features": {"y": 1}, "sharded batch": {"y": 0, "dx": 0}, "DTensor": {}}[layout]
    for name, dim in dims.items():
        found[0][name] = torch.cat([part[name] for part in found], dim)
    same(found[0], expected)


def test_dtensors_between_layers(ranks):
    first, second = block_rows.chain()
    x, _ = block_rows.batch(first, 0)
    y = second(torch.relu(first(x)))
    y.square().sum().backward()
    expected = {"y": y.detach(), "values": first.values.grad, "bias": first.bias.grad}
    for rank in ranks:
        same(rank["chain"], expected)


def test_outputs_may_be_changed_in_place(ranks):
    sparse = block_rows.layer("ragged")
    expected = sparse(block_rows.batch(sparse, 0)[0]).relu()
    torch.testing.assert_close(ranks[1]["in place"], expected, **CLOSE)


def test_autocast_narrows_as_in_one_process(ranks):
    sparse = block_rows.layer("ragged").float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = sparse(block_rows.batch(sparse, 0)[0].float()).detach()
    assert ranks[1]["autocast"].dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(ranks[1]["autocast"], expected, rtol=2e-2, atol=1e-2)  # y is rounded before the bias


def test_without_a_source_nothing_travels(ranks):
    for rank in ranks:
        numbers = rank["own copy"][:, 0, 0].tolist()
        first = -(-len(numbers) // 2)
        assert numbers == [0.0] * first + [1.0] * (len(numbers) - first)


def test_a_net_trains_as_in_one_process(ranks):
    model = block_rows.net()
    optimizer = workers.OPTIMIZERS["adamw"](model.parameters())
    block_rows.train(model, optimizer)
    found = ranks[0]["block rows"]
    assert found["divided"] == ["0.linear.values", "2.linear.values", "4.values"]
    same(found["full"], model.state_dict(), rtol=1e-8, atol=1e-10)
    for name, parameter in model.named_parameters():
        moment = found["optimizer"]["state"][name]["exp_avg"]
        torch.testing.assert_close(moment, optimizer.state[parameter]["exp_avg"], rtol=1e-8, atol=1e-12)
    own = [rank["block rows"]["own numbers"] for rank in ranks]
    assert sum(own) == sum(p.numel() for p in model.parameters() if p.dim() == 3)
    assert max(own) < 0.52 * sum(own)
    for rank in ranks:
        assert rank["block rows"]["leak"] == pytest.approx(block_rows.leak(model), rel=1e-6)


def test_what_two_saved_loads_into_one(ranks, folder):
    full = ranks[0]["block rows"]["full"]
    plain, sharded, checkpoint = (block_rows.net(seed=9) for _ in range(3))
    plain.load_state_dict(full)
    load_sharded(sharded, folder / "shards of two")
    state = {"model": checkpoint.state_dict()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        torch.distributed.checkpoint.load(state, checkpoint_id=folder / "of two")
    checkpoint.load_state_dict(state["model"])
    for model in (plain, sharded, checkpoint):
        same(model.state_dict(), full, rtol=0, atol=0)


def test_what_one_saved_loads_into_two(ranks):
    of_one = block_rows.net(seed=5).state_dict()
    same(ranks[0]["block rows"]["loaded of one"], of_one, rtol=0, atol=0)
    same(ranks[0]["from meta"], of_one, rtol=0, atol=0)
    same(ranks[0]["block rows"]["loaded full"], block_rows.net(seed=6).state_dict(), rtol=0, atol=0)


def test_together_with_data_parallel(ranks):
    model = block_rows.net()
    optimizer = workers.OPTIMIZERS["adamw"](model.parameters())
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(block_rows.BATCH, 3, 6, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (block_rows.BATCH,), generator=generator)
    torch.nn.functional.cross_entropy(model(x), target).backward()
    optimizer.step()
    for state in ranks[0]["two-dimensional"]:
        same(state, model.state_dict(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    {
        "unlike patterns": "ValueError: patterns must be the same on every rank, got SparseLinear: ",
        "no sparse layer": "ValueError: module must hold a SparseLinear, got Linear without one",
        "layout": "must be given for a SparseLinear itself, got EmbeddedConv",
        "twice": "ValueError: DividedLinear: values must be a plain tensor, got DTensor",
        "fused": "NotImplementedError: 0.linear: has a fused optimizer",
        "low rank": "NotImplementedError: EmbeddedConv: has a low-rank part, which multiplies by all stored blocks",
        "fused later": "values must be a plain tensor for a fused optimizer, got DTensor",
        "mesh": "ValueError: device_mesh must have one dimension",
        "width": "ValueError: x must be [..., 17], got [6, 16]",
        "regrow": "ValueError: layer.values must be a plain tensor, got DTensor",
    }.items(),
)
def test_refused_on_every_rank(ranks, call, message):
    for rank in ranks:
        assert message in rank["refused"][call]
