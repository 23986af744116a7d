"""What numbers were measured on."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import efcn_sparse


def describe(threads: int) -> dict[str, Any]:
    """Processor, software, commit, date and load of this machine, ready for JSON."""
    versions = {"efcn_sparse": efcn_sparse.__version__, "torch": torch.__version__}
    for name in ("numpy", "scipy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions,
        "extension": _extension(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def slug(machine: dict[str, Any]) -> str:
    """A name for files: processor, capability, date."""
    words = f"{machine['cpu']} {machine['capability']} {machine['date'][:10]}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def commit() -> str:
    """The commit of the source checkout that the package runs from, ``+changes`` if edited; empty elsewhere."""
    package = Path(efcn_sparse.__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != package.parent:
        return ""
    head = _git(package, "rev-parse", "--short=12", "HEAD")
    return head + ("+changes" if _git(package, "status", "--porcelain", "--untracked-files=no") else "")


def _extension() -> str:
    """The state of the extension, and whether the C++ of the checkout has changed since it was built."""
    status = efcn_sparse.extension_status()
    sources = (Path(efcn_sparse.__file__).resolve().parents[1] / "csrc").rglob("*.*")
    built = Path(status.path).stat().st_mtime if status.available else float("inf")
    changed = any(source.stat().st_mtime > built for source in sources)
    return str(status).partition(" from ")[0] + (", built before csrc changed" if changed else "")


def _git(where: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, flags=re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|\bCPU\b|@.*", " ", found["model name"])
    return f"{' '.join(name.split())} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"
