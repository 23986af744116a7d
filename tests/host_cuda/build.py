"""Compiles the device's C++ part, once for each torch and Python; the file stays in ``build/host_cuda``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).with_name("native")
FOLDER = ROOT / "build" / "host_cuda"


def why_not() -> str | None:
    """The reason why it cannot be compiled here, None if it can."""
    import torch

    if torch.version.cuda or torch.version.hip:
        return "this torch has a CUDA device of its own: use a CPU build"
    if compiler() is None:
        return "there is no C++ compiler: install g++, or name one by CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there is no Python.h: install python3-dev"
    return None


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def library() -> Path:
    """The compiled part, compiled if it is not there (20 s).

    Raises:
        RuntimeError: it does not compile, or cannot be compiled here.
    """
    import torch

    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"no CUDA device in host memory: {reason}")
    code = (
        b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
        + f"{torch.__version__} {sys.version}".encode()
    )
    path = FOLDER / hashlib.sha256(code).hexdigest()[:16] / "efcn_host_cuda.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    torch_root = Path(torch.__file__).parent
    include, libraries = torch_root / "include", torch_root / "lib"
    abi = int(torch.compiled_with_cxx11_abi())
    unfinished = path.with_suffix(f".{os.getpid()}")
    command = [
        str(compiler()), "-O0", "-w", "-std=c++20", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        "-DTORCH_EXTENSION_NAME=efcn_host_cuda", f"-I{include}", f"-I{include / 'torch/csrc/api/include'}",
        f"-I{sysconfig.get_path('include')}", str(SOURCES / "host_cuda.cpp"), "-o", str(unfinished), f"-L{libraries}",
        "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", f"-Wl,-rpath,{libraries}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"it does not compile with torch {torch.__version__}:\n{done.stderr[-4000:]}")
    unfinished.replace(path)
    return path
