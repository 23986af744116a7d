"""ReLU: torch's numbers bit for bit, whoever holds the gradient, which is written over where nobody does."""

import numpy
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import efcn_sparse as es
from tests.activation.saved import held_bytes

needs_extension = pytest.mark.skipif(not es.extension_status().available, reason="without it, it is torch's")


class FromNumpy(torch.autograd.Function):
    """A layer whose gradient lies in an array that somebody else holds."""

    array = numpy.full((5, 7), 3.0, dtype=numpy.float32)

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return torch.from_numpy(FromNumpy.array)


def plain(relu, h):
    y = relu(h)
    y.square().sum().backward()
    return [y]


def with_hook(relu, h):
    kept = []
    y = relu(h)
    y.register_hook(kept.append)
    y.sin().sum().backward()
    return kept


def with_a_gradient_of_the_caller(relu, h):
    gradient = torch.full_like(h, 2.0)
    relu(h).backward(gradient)
    return [gradient]


def with_memory_of_numpy(relu, h):
    FromNumpy.apply(relu(h)).sum().backward()
    return [torch.tensor(FromNumpy.array)]


def kept_and_run_twice(relu, h):
    y = relu(h)
    y.retain_grad()
    loss = (y * 3).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return [y.grad]


def captured(relu, h):
    y = relu(h)
    return torch.autograd.grad((y * 3).sum(), [y, h], retain_graph=True)


def twice_differentiated(relu, h):
    y = relu(h)
    (first,) = torch.autograd.grad(y.exp().sum() + y.sum(), h, create_graph=True)
    first.sum().backward()
    return [first]


def in_a_checkpoint(relu, h):
    checkpoint(lambda h: relu(h * 2) * 3, h, use_reentrant=False).sum().backward()
    return []


def saved_elsewhere(relu, h):
    with torch.autograd.graph.save_on_cpu():
        y = relu(h)
    (y * 3).sum().backward()
    return [y]


def of_a_view(relu, h):
    y = relu(h[1:3])
    (h * 3).sum().backward(retain_graph=True)
    y.sum().backward()
    return [h, y]


USES = (
    plain, with_hook, with_a_gradient_of_the_caller, with_memory_of_numpy, kept_and_run_twice, captured,
    twice_differentiated, in_a_checkpoint, saved_elsewhere, of_a_view,
)  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_it_is_torchs(use, inplace):
    if inplace and use is captured:
        pytest.skip("h is overwritten, so there is no gradient to capture")
    numbers = torch.randn(5, 7)
    numbers[0, :3] = torch.tensor([-0.0, torch.nan, torch.inf])
    found = []
    for relu in (es.ReLU(inplace), nn.ReLU(inplace)):
        x = numbers.clone().requires_grad_()
        found.append([*(one.detach().clone() for one in use(relu, x * 2)), x.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@needs_extension
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_nobody_holds_is_written_over(memory_format, dtype):
    x = torch.randn(2, 3, 4, 5).to(dtype, memory_format=memory_format).requires_grad_()
    buffers = []
    for relu in (es.ReLU(), nn.ReLU()):
        y = relu(x * 2)
        assert y.is_contiguous(memory_format=memory_format)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
            y.square().sum().backward()
        buffers.append(sum(event.self_cpu_memory_usage == x.nbytes for event in profiled.events()))
    assert buffers[0] == buffers[1] - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200_000])
def test_sizes_and_dtypes(count, dtype):
    x = torch.randn(count, dtype=dtype)
    dy = torch.randn(count, dtype=dtype)
    found = []
    for relu in (es.ReLU(), nn.ReLU()):
        leaf = x.clone().requires_grad_()
        y = relu(leaf)
        y.backward(dy)
        found += [(y.detach(), leaf.grad)]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_other_layouts_of_input_and_gradient(layout):
    def laid_out(numbers):
        if layout == "transposed":
            return numbers.t()
        return numbers[:, ::2] if layout == "strided" else numbers[:1].expand(9, 12)

    found = []
    numbers, dy = torch.randn(9, 12), torch.randn(9, 12)
    for relu in (es.ReLU(), nn.ReLU()):
        x = numbers.clone().requires_grad_()
        y = relu(laid_out(x))
        y.backward(laid_out(dy).clone())  # contiguous, unlike y
        found.append((y.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_holds_a_bit_for_each_number(dtype):
    x = torch.randn(1000, dtype=dtype, requires_grad=True)
    assert held_bytes(lambda: es.ReLU()(x)) == 16 * 8


def transforms():
    def loss(relu, x):
        return relu(x).square().sum()

    yield "grad", lambda relu, x: torch.func.grad(lambda x: loss(relu, x))(x)
    yield "vmap of grad", lambda relu, x: torch.func.vmap(torch.func.grad(lambda x: loss(relu, x)))(x)
    yield "jvp", lambda relu, x: torch.func.jvp(relu, (x,), (x + 1,))[1]
    yield "hessian", lambda relu, x: torch.func.hessian(lambda x: loss(relu, x))(x)

    def dual(relu, x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(relu(forward_ad.make_dual(x.requires_grad_(), x + 1))).tangent.detach()

    yield "forward mode", dual


@pytest.mark.parametrize("transform", [pytest.param(call, id=name) for name, call in transforms()])
def test_transforms(transform, recwarn):
    x = torch.randn(3, 4)
    torch.testing.assert_close(transform(es.ReLU(), x.clone()), transform(nn.ReLU(), x.clone()), rtol=0, atol=0)
    assert not [one for one in recwarn.list if "performance drop" in str(one.message)]


@pytest.mark.parametrize("take", [lambda leaf: leaf, lambda leaf: leaf[:], lambda leaf: leaf.clone().chunk(2)[0]])
def test_errors_of_writing_in_place_come_before_it(take):
    leaf = torch.tensor([-1.0, 2.0], requires_grad=True)
    x = take(leaf)
    with pytest.raises(RuntimeError, match=r"leaf Variable|multiple views|view of a leaf"):
        es.ReLU(inplace=True)(x)
    assert torch.equal(x, leaf[: len(x)])
    assert torch.equal(leaf, torch.tensor([-1.0, 2.0]))


def test_what_was_saved_is_not_overwritten_unseen():
    leaf = torch.ones(3, requires_grad=True)
    saved = leaf.sigmoid()
    es.ReLU(inplace=True)(saved)
    assert saved._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_create_graph_and_many_gradients_at_once(dtype):
    x = torch.randn(4, dtype=dtype)
    scale = torch.randn(4, dtype=dtype)
    found = []
    for relu in (es.ReLU(), nn.ReLU()):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad((relu(leaf) * scale).sum(), leaf, create_graph=True)
        (each,) = torch.autograd.grad(relu(leaf), leaf, torch.eye(4, dtype=dtype), is_grads_batched=True)
        found.append((first.detach(), each))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_what_has_no_numbers_of_its_own_is_left_to_torch():
    numbers = torch.tensor([1 + 2j, 3 - 4j], requires_grad=True)
    negative = (numbers * 1).conj().imag
    assert negative.is_neg()
    assert torch.equal(es.ReLU()(negative), torch.relu(negative))
    assert torch.equal(es.ReLU(inplace=True)(negative.view(2)), torch.relu(negative))
    sparse = torch.tensor([-1.0, 0.0, 2.0]).to_sparse().requires_grad_()
    assert torch.equal(es.ReLU()(sparse).to_dense(), torch.tensor([0.0, 0.0, 2.0]))
    gradient = torch._neg_view(torch.ones(3))
    x = torch.tensor([-1.0, 1.0, 2.0], requires_grad=True)
    es.ReLU()(x * 1).backward(gradient)
    assert torch.equal(x.grad, torch.tensor([0.0, -1.0, -1.0]))


def test_graphs_hold_torchs_operator():
    program = torch.export.export(nn.Sequential(es.ReLU()), (torch.ones(2),))
    assert torch.ops.aten.relu.default in {node.target for node in program.graph.nodes}
    graph = make_fx(lambda x: es.ReLU()(x) * 2)(torch.ones(2, requires_grad=True)).graph
    assert torch.ops.aten.relu.default in {node.target for node in graph.nodes}
    assert "aten::relu(" in str(torch.jit.trace(es.ReLU(), torch.ones(2)).graph)
    compiled = torch.compile(es.ReLU(), fullgraph=True, backend="aot_eager")
    x = torch.randn(5, requires_grad=True)
    compiled(x * 2).sum().backward()
    assert torch.equal(x.grad, 2.0 * (x > 0))


def test_embed_puts_it_in_and_unembed_takes_it_out():
    class Own(nn.ReLU):
        pass

    class Net(nn.Sequential):
        """Its hook counts calls, in the net itself."""

        calls = 0

        def count(self, *_):
            self.calls += 1

    x = torch.randn(1, 1, 7, 7)
    cnn = Net(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3), Own()).eval()
    cnn[1].register_forward_hook(cnn.count)
    twin = es.embed(cnn, x)
    before = twin.calls
    twin(x)
    assert [type(twin[i]) for i in (1, 3)] == [es.ReLU, Own]
    assert (twin[1].inplace, twin[1].training, twin.calls - before) == (True, False, 1)
    back = es.unembed(twin)
    assert type(back[1]) is nn.ReLU
    assert type(cnn[1]) is nn.ReLU


def test_embed_leaves_what_copies_share():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def __deepcopy__(self, memo):
            return self

        def forward(self, x):
            return self.relu(x)

    cnn = nn.Sequential(nn.Conv2d(1, 2, 3), Shared())
    es.embed(cnn, torch.randn(1, 1, 7, 7))
    assert type(cnn[1].relu) is nn.ReLU
