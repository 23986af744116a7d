"""The folder of one run: whose it is, that only one process writes into it, and what it was made with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from efcn_sparse.checkpoint.atomic import SUFFIX, open_to_append, own_folder, read_json, write_text_atomically
from efcn_sparse.extension import extension_status
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.run.metrics import STAGES

_log = logging.getLogger("efcn_sparse.training")
_LOCK = ".lock"


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[TextIO]:
    """A file to append to, which only one process holds at a time.

    The lock is the kernel's (``flock``), so it is gone with the process, however that ends.

    Raises:
        BlockingIOError: another process holds it; ``busy`` is the message.
        ValueError: it is a symbolic link.
    """
    with os.fdopen(open_to_append(path), "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(busy) from None
        yield file


@contextlib.contextmanager
def held(path: Path, config: RelaxConfig) -> Iterator[None]:
    """Inside, this process alone writes into the run directory ``path``.

    Args:
        path: a folder that is missing, empty, or a run of which ``config`` is a continuation: the same, or with more
            seeds, arms and relax times.

    Raises:
        ValueError: ``path`` holds something else, or a run with another configuration; the fields are named. Or it
            cannot be made or written to.
        BlockingIOError: another process is at work in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run_dir must be a folder that can be made, got {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"run_dir must be a folder that can be written to, got {path}")
    with locked(path / _LOCK, f"run_dir {path} is in use by another process"):
        refuse_other(path, config)  # now that nobody else begins a run
        for folder in (path, own_folder(path / "checkpoints"), own_folder(path / STAGES)):
            for torn in folder.glob("*" + SUFFIX):
                torn.unlink()
        if not (path / "config.json").is_file() or read_config(path) != config:
            write_text_atomically(path / "config.json", config.to_json())
        yield


def note_environment(run_dir: Path, device: str, threads: int | None = None) -> None:
    """Write environment.json, or warn where it tells of another machine or other versions than these.

    Args:
        threads: of torch in the run; None: as they are.
    """
    here = environment(device) | ({} if threads is None else {"threads": threads})
    path = run_dir / "environment.json"
    if not path.is_file():
        write_text_atomically(path, json.dumps(here, indent=2) + "\n")
        return
    there = read_json(path)
    changed = [f"{key} {there.get(key)!r} became {value!r}" for key, value in here.items() if there.get(key) != value]
    if changed:
        _log.warning("going on in another environment, so the last bits may differ: %s", "; ".join(changed))


def read_config(run_dir: str | Path) -> RelaxConfig:
    """The configuration of a run.

    Raises:
        ValueError: ``run_dir`` is no run directory, or its config.json is damaged.
    """
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise ValueError(f"run_dir must be a run directory with a config.json, got {run_dir}")
    try:
        return RelaxConfig.from_json(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must hold a RelaxConfig, got: {error}") from None


def refuse_other(path: Path, config: RelaxConfig) -> None:
    """Raise ``ValueError`` unless ``path`` can hold a run with ``config``."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"run_dir must be a folder, got the file {path}")
    if (path / "config.json").is_file():
        broken = config.breaks_with(read_config(path))
        if broken:
            told = "; ".join(f"{name} is {there!r} there and {here!r} here" for name, (there, here) in broken.items())
            grows = " (a run can be given more of these, and keeps what it has)"
            told += grows if {"seeds", "arms", "relax_times"} & broken.keys() else ""
            raise ValueError(f"run_dir {path} holds a run with another configuration: {told}")
    elif path.is_dir():
        others = sorted(entry.name for entry in path.iterdir() if entry.name not in (_LOCK, "config.json" + SUFFIX))
        if set(others) - {"checkpoints", STAGES}:
            raise ValueError(f"run_dir must be empty or a run directory, got {path} with {', '.join(others[:3])}")


def environment(device: str) -> dict[str, object]:
    """Versions of the library and of what it stands on, and the machine, as JSON types."""
    import efcn_sparse

    on = torch.device(device)
    return {
        "efcn_sparse": efcn_sparse.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else str(on),
        "extension": "available" if extension_status().available else extension_status().reason,
    }


def cpu_name() -> str:
    """The CPU as the operating system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
