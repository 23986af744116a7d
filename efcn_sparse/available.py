"""How much memory a process may still take: of the machine, of its control groups, or of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

_UNLIMITED = 1 << 60  # cgroup v1 writes a huge number where there is no limit


def available_bytes(device: torch.device | str = "cpu", root: Path = Path("/")) -> int | None:
    """What a new process can take without swapping, control groups' limits included; None where nobody tells.

    Args:
        device: of a GPU, its free memory, and what torch has reserved and does not use.
        root: where ``proc`` and ``sys`` are.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _free_of_gpu(device)
    if device.type != "cpu":
        return None
    known = [size for size in (_machine(root), *_groups(root)) if size is not None]
    return max(0, min(known)) if known else None


def _free_of_gpu(device: torch.device) -> int | None:
    if not torch.cuda.is_available():
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _machine(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _groups(root: Path) -> Iterator[int]:
    """What each control group of this process, from its own to the outermost, has left."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            mount, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # inside a container the name may be that of the host, and the container's own group is the mount itself
        parts = [part for part in name.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield from _left(mount.joinpath(*parts[:depth]), *files)


def _left(group: Path, limit_file: str, usage_file: str, cache_key: str) -> Iterator[int]:
    limit, usage = _read(group / limit_file).strip(), _read(group / usage_file).strip()
    if not (limit.isdigit() and usage.isdigit()) or int(limit) >= _UNLIMITED:
        return
    cached = dict(line.split() for line in _read(group / "memory.stat").splitlines() if len(line.split()) == 2)
    yield int(limit) - max(0, int(usage) - int(cached.get(cache_key, 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
