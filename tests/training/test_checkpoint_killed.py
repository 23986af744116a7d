"""Whatever moment a process dies at while it writes checkpoints, the last one that it finished can be loaded."""

import errno
import os
import re

import pytest
import torch

from efcn_sparse.checkpoint import shard_file
from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint
from tests.processes import numbers_of

# Forks of one process that has started no thread. Each writes checkpoint after checkpoint of ever larger numbers over
# the same name, telling each that is done, until it is killed: by the clock, or at a line of the package.
PROGRAM = """
import os, random, resource, signal, sys, time, torch
from pathlib import Path
import efcn_sparse
from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint
from tests.processes import die_at_line

torch.set_num_threads(1)
path, HOME = Path(sys.argv[1]) / "here.safetensors", os.path.dirname(efcn_sparse.__file__)
pattern = efcn_sparse.BlockPattern.dense((256, 256), (16, 16))
net = torch.nn.Sequential(efcn_sparse.SparseLinear(256, 256, pattern), torch.nn.Linear(256, 300))
optimizer = efcn_sparse.FusedOptimizer(net, lambda parameters: torch.optim.SGD(parameters, lr=0.0, momentum=0.9))
net(torch.ones(1, 256)).sum().backward()
optimizer.step()
tensors = [*net.parameters(), *(one["momentum_buffer"] for one in optimizer.state.values())]

@torch.no_grad()
def fill(number):
    for tensor in tensors:
        tensor.fill_(number)

def found():
    fill(-1.0)
    load_checkpoint(path, net, optimizer)
    (number,) = set(torch.cat([tensor.flatten() for tensor in tensors]).tolist())
    return int(number)

def child(first, before):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        before()
        number = first
        while True:
            fill(number)
            save_checkpoint(path, net, optimizer)
            os.write(tell, b".")
            number += 1
    os.close(tell)
    return pid, told

def last_told(told, first):
    done = os.read(told, 1 << 16)
    os.close(told)
    return first + len(done) - 1

fill(0)
save_checkpoint(path, net, optimizer)
first, chance, torn, written = 1, random.Random(20190611), 0, 0
lines = list(range(1, 500, 29))
while lines or written <= 10:  # on a busy machine the clock strikes before much is written
    kind, at = ("line", lines.pop()) if lines and chance.random() < 0.6 else ("clock", chance.uniform(0.0, 0.06))
    pid, told = child(first, (lambda: die_at_line(at, HOME)) if kind == "line" else (lambda: None))
    if kind == "clock":
        time.sleep(at)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    torn += path.with_name(path.name + ".tmp").exists()
    last, held = last_told(told, first), found()
    assert held in (last, last + 1), (kind, at, held, last)  # the one that was being written may be there, whole
    written += last - first + 1
    first = held + 1

def too_large():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

before = found()
pid, told = child(first, too_large)
assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGXFSZ
assert path.with_name(path.name + ".tmp").stat().st_size == 100_000, "killed in the middle of the file"
assert found() == before
save_checkpoint(path, net, optimizer)
assert not path.with_name(path.name + ".tmp").exists()
print(torn, written)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kills are tried in forks")
def test_killed_at_random_moments(tmp_path):
    torn, written = numbers_of(PROGRAM, tmp_path)
    assert torn > 3, "few kills struck while a file was being written"
    assert written > 10


@pytest.mark.parametrize("where", ["write_tensor", "write_all"])
def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(tmp_path, monkeypatch, where):
    path = tmp_path / "here.safetensors"
    model = torch.nn.Linear(40, 30)
    save_checkpoint(path, model)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shard_file, where, full)
        told = re.escape(f"No space left on device, so nothing was changed: '{path}'")
        with pytest.raises(OSError, match=told) as caught:
            save_checkpoint(path, torch.nn.Linear(40, 30))
    assert caught.value.errno == errno.ENOSPC
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
    other = torch.nn.Linear(40, 30)
    load_checkpoint(path, other)
    assert torch.equal(other.weight, model.weight)


def test_an_error_of_the_disk_while_it_is_forced_there_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "here.safetensors"
    model = torch.nn.Linear(4, 3)
    save_checkpoint(path, model)
    before = path.read_bytes()

    def broken(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output error, so nothing was changed: "):
            save_checkpoint(path, torch.nn.Linear(4, 3))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
