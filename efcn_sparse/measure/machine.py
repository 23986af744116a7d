"""What the numbers were taken on."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

import efcn_sparse


@dataclass(frozen=True)
class Machine:
    """The processor, what it can do, what ran on it, and when."""

    cpu: str
    capability: str
    instructions: tuple[str, ...]
    cores: int
    memory_gb: float
    caches: str
    threads: int
    load_average: float
    onednn_max_cpu_isa: str
    system: str
    versions: dict[str, str]
    extension: str
    commit: str
    date: str

    @property
    def has_amx(self) -> bool:
        """Whether oneDNN may use AMX, which ``ONEDNN_MAX_CPU_ISA`` can forbid."""
        isa = self.onednn_max_cpu_isa.upper()
        return "amx_bf16" in self.instructions and (isa in ("", "DEFAULT", "ALL") or "AMX" in isa)

    @property
    def slug(self) -> str:
        """A name for files: processor, capability, date."""
        words = f"{self.cpu} {self.capability} {self.date[:10]}"
        return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def describe(threads: int) -> Machine:
    """This machine, now."""
    cpu_info = _read("/proc/cpuinfo")
    return Machine(
        cpu=_cpu_name(cpu_info),
        capability=torch.backends.cpu.get_cpu_capability(),
        instructions=_instructions(),
        cores=os.cpu_count() or 1,
        memory_gb=round(_memory_bytes() / 2**30, 1),
        caches=_caches(),
        threads=threads,
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else float("nan"),
        onednn_max_cpu_isa=os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        versions=_versions(),
        extension="compiled extension" if efcn_sparse.extension_status().available else "no compiled extension",
        commit=commit(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True)
class CpuClock:
    """Seconds since some start: of the wall, of all processors at work, and of this process with its children."""

    wall: float
    everyone: float
    own: float

    @classmethod
    def now(cls) -> CpuClock | None:
        """None where the system does not tell (only Linux does)."""
        fields = _read("/proc/stat").partition("\n")[0].split()
        if len(fields) < 9:
            return None
        user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return cls(time.monotonic(), busy, sum(os.times()[:4]))

    def others_since(self, start: CpuClock) -> float:
        """The share of all processors' time that went to others between ``start`` and this."""
        others = (self.everyone - start.everyone) - (self.own - start.own)
        return max(0.0, others / ((self.wall - start.wall) * (os.cpu_count() or 1)))


def commit() -> str:
    """The commit of the source checkout that the package runs from, ``+changes`` if edited; empty elsewhere."""
    package = Path(efcn_sparse.__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != package.parent:
        return ""
    head = _git(package, "rev-parse", "--short=12", "HEAD")
    return head + ("+changes" if _git(package, "status", "--porcelain", "--untracked-files=no") else "")


def _git(where: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _instructions() -> tuple[str, ...]:
    """What oneDNN can use here, as torch sees it; the private probes are asked only where this torch has them."""
    probes = {
        "avx2": "_is_avx2_supported",
        "avx512": "_is_avx512_supported",
        "avx512_vnni": "_is_vnni_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_bf16": "_is_amx_tile_supported",
        "amx_fp16": "_is_amx_fp16_supported",
    }
    return tuple(name for name, probe in probes.items() if hasattr(torch.cpu, probe) and getattr(torch.cpu, probe)())


def _cpu_name(cpu_info: str) -> str:
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", cpu_info, flags=re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|\bCPU\b|@.*", " ", found["model name"])
    return f"{' '.join(name.split())} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"


def _caches() -> str:
    sizes = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(str(index / name)).strip() for name in ("level", "type", "size"))
        if kind != "Instruction" and size:
            sizes.append(f"L{level} {size}")
    return ", ".join(sizes)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _versions() -> dict[str, str]:
    found = {"efcn_sparse": efcn_sparse.__version__, "torch": torch.__version__}
    for name in ("numpy", "scipy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
