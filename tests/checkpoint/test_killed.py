"""Whatever moment a save dies at, the folder holds the old checkpoint or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from efcn_sparse.checkpoint import load_sharded, save_sharded
from tests.processes import numbers_of

# Forks of one process that has started no thread: each dies at another line of the package.
_PROGRAM = """
import os, resource, signal, sys, torch
from pathlib import Path
from efcn_sparse.checkpoint import load_sharded, save_sharded
from tests.processes import die_at_line

folder, HOME = Path(sys.argv[1]), os.path.dirname(sys.modules["efcn_sparse.checkpoint"].__file__)
old = {name: torch.full((700,), 1.0) for name in "abcd"}
new = {name: torch.full((700,), 2.0) for name in "abcd"}

def save_and_die(save, at_line):
    die_at_line(at_line, HOME)
    save()
    sys.settrace(None)

def run(action):
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1]

def found():
    held = {name: torch.zeros(700) for name in "abcd"}
    load_sharded(held, folder)
    (number,) = set(torch.cat(list(held.values())).tolist())
    return number

save_sharded(old, folder, shard_bytes=4000)
seen, line = [], 1
while run(lambda: save_and_die(lambda: save_sharded(new, folder, shard_bytes=4000), line)) != 0:
    seen.append(found())
    if seen[-1] == 2.0:
        save_sharded(old, folder, shard_bytes=4000)
    line += 11
assert seen == sorted(seen), seen
assert found() == 2.0
save_sharded(old, folder, shard_bytes=4000)
assert len(list(folder.iterdir())) == 5, "what dead saves left is gone"

def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    save_sharded(new, folder, shard_bytes=4000)

assert os.WTERMSIG(run(full_disk)) == signal.SIGXFSZ
assert found() == 1.0
assert [path.stat().st_size for path in folder.glob("*.tmp")] == [2000], "killed in the middle of the shard"
print(seen.count(1.0), seen.count(2.0))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kills are tried in forks")
def test_killed_at_any_line(tmp_path: Path) -> None:
    before, after = numbers_of(_PROGRAM, tmp_path)
    assert before > 10
    assert after > 1


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.nn.Linear(3, 3)
    save_sharded(one, tmp_path)
    files = sorted(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("efcn_sparse.checkpoint.shard_file.write_tensor", full)
        with pytest.raises(OSError, match="No space left on device"):
            save_sharded(torch.nn.Linear(3, 3), tmp_path)
    assert sorted(tmp_path.iterdir()) == files, "the unfinished shard is gone, the old ones are there"
    other = torch.nn.Linear(3, 3)
    load_sharded(other, tmp_path)
    assert torch.equal(one.weight, other.weight)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    import fcntl

    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError) as caught:
            save_sharded(torch.nn.Linear(2, 2), tmp_path)
        assert str(caught.value) == f"folder must have one writer at a time, got {tmp_path} in use"
        assert list(tmp_path.iterdir()) == []
    finally:
        os.close(descriptor)
    save_sharded(torch.nn.Linear(2, 2), tmp_path)
