"""Large results and parameters lie in huge pages, for which Linux was asked, and their memory serves again."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import efcn_sparse as es

pytestmark = pytest.mark.skipif(
    not es.extension_status().available or not Path("/proc/self/statm").exists(),
    reason="the compiled extension's memory, as Linux tells of it",
)
has_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this Linux has no huge pages to ask for"
)


def is_asked_for(tensor):
    """Whether the middle of a tensor's memory has the flag ``hg``."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if head == "VmFlags:" and inside:
            return "hg" in line.split()
        if not head.endswith(":"):
            first, last = (int(address, 16) for address in head.split("-"))
            inside = first <= middle < last
    raise AssertionError("no mapping holds the tensor")


@has_huge_pages
def test_values_gradients_and_outputs():
    pattern = es.BlockPattern.random((2048, 2048), (64, 64), 0.5)
    layer = es.SparseLinear(2048, 2048, pattern)
    y = layer(torch.randn(1024, 2048))
    y.sum().backward()
    for tensor in (layer.values, layer.values.grad, y):
        assert tensor.nbytes >= 1 << 22
        assert is_asked_for(tensor)


@has_huge_pages
def test_values_of_an_embedding_and_outputs_of_relu():
    conv = torch.nn.Conv2d(16, 64, 3)
    twin = es.embed(torch.nn.Sequential(conv, es.ReLU()), torch.randn(1, 16, 24, 24))
    assert is_asked_for(twin[0].linear.values)
    x = torch.randn(1 << 21, requires_grad=True)
    assert is_asked_for(es.ReLU()(x))


def of_bytes(size):
    """An output of ``size`` bytes, as a layer makes it."""
    pattern = es.BlockPattern.random((1024, 16), (16, 16), 1.0)
    return es.spmm(torch.ones(size // 4096, 16), torch.ones(pattern.values_shape), pattern)


@pytest.fixture
def empty():
    es.empty_cache()
    yield
    es.empty_cache()


def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def test_freed_memory_serves_the_next_tensor_of_about_that_size(empty):
    first = of_bytes(10 << 20)
    place = first.data_ptr()
    second = of_bytes(10 << 20)
    assert second.data_ptr() != place  # in use
    del first
    assert of_bytes(9 << 20).data_ptr() == place


def test_calls_fault_in_no_memory():
    """Where the C library gives everything from 128 KiB back to the system; a page is 4 KiB."""
    program = """
import resource
from tests.ops.test_large_memory import of_bytes
for size in (1 << 18, 1 << 20, 3 << 20, 1 << 23):
    of_bytes(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        of_bytes(size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20 * (size >> 13), size
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"})


def test_what_is_held_is_bounded_by_what_was_in_use(empty):
    before = resident()
    of_bytes(32 << 20)
    for size in range(2, 32):  # which would be 495 MiB
        of_bytes(size << 20)
    assert resident() - before < 72 << 20


def test_where_memory_runs_out_what_is_kept_goes_first():
    program = """
import resource, torch, efcn_sparse as es
from tests.ops.test_large_memory import of_bytes
[of_bytes(32 << 20) for _ in range(8)]
size = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (size + (40 << 20),) * 2)
assert of_bytes(100 << 20)[-1, -1] == 16
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_view_keeps_its_memory(empty):
    y = of_bytes(8 << 20)
    place, row = y.data_ptr(), y[-1]
    del y
    assert of_bytes(8 << 20).data_ptr() != place
    assert (row == 16).all()


def test_no_more_is_kept_than_it_says(empty):
    of_bytes(1 << 25)
    before, outputs = resident(), [of_bytes(1 << 25) for _ in range(12)]
    assert resident() - before > 10 << 25
    outputs.clear()
    assert resident() - before < 9 << 25  # 256 MiB, one of which was there
    es.empty_cache()
    assert resident() - before < 1 << 24


def test_the_sizes_of_a_tensor_may_change(empty):
    y = of_bytes(4 << 20)
    assert (y.resize_(2048, 1024)[:1024] == 16).all()
    y.resize_(10)
    del y
    assert of_bytes(4 << 20).sum() == 16 << 20


def test_threads_do_not_get_the_same_memory(empty):
    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(40):
            x = torch.full((2048, 16), float(torch.randint(1, 100, (), generator=generator)))
            y = es.spmm(x, ones, pattern)
            assert (y == 16 * x[0, 0]).all()

    pattern = es.BlockPattern.random((1024, 16), (16, 16), 1.0)
    ones = torch.ones(pattern.values_shape)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
