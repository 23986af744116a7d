"""Available memory is the least of what the machine and each control group have left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efcn_sparse.available import available_bytes

_GIB = 1 << 30


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


_MEMINFO = {"proc/meminfo": f"MemTotal:  {99 << 20} kB\nMemAvailable:   {10 << 20} kB\nSwapFree: 0 kB\n"}
V2 = {
    "proc/self/cgroup": "0::/user/job\n",
    "sys/fs/cgroup/user/job/memory.max": "max\n",
    "sys/fs/cgroup/user/job/memory.current": f"{_GIB}\n",
    "sys/fs/cgroup/user/memory.max": f"{4 * _GIB}\n",
    "sys/fs/cgroup/user/memory.current": f"{3 * _GIB}\n",
    "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {_GIB}\n",
}
V1 = {
    "proc/self/cgroup": "3:cpu:/\n2:memory:/docker/abc\n",  # inside a container: its own group is the mount
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * _GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * _GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {_GIB // 2}\n",
}
CASES = {
    "machine": (_MEMINFO, 10 * _GIB),
    "version 2": ({**_MEMINFO, **V2}, 2 * _GIB),
    "version 1": ({**_MEMINFO, **V1}, _GIB + _GIB // 2),
    "version 1 without a limit": (
        {**_MEMINFO, **V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n"}, 10 * _GIB
    ),
    "group without meminfo": (V2, 2 * _GIB),
    "over its limit": ({**V1, "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{9 * _GIB}\n"}, 0),
    "nobody tells": ({}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_available(name: str, tmp_path: Path) -> None:
    files, expected = CASES[name]
    assert available_bytes(root=_write(tmp_path, files)) == expected


def test_here() -> None:
    here = available_bytes()
    assert here is None or 1 << 20 < here < 1 << 50
    assert available_bytes("meta") is None


def test_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * _GIB, 80 * _GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * _GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * _GIB)
    assert available_bytes("cuda:0") == 6 * _GIB
