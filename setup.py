"""The compiled extension, and nothing else: everything about the package is in pyproject.toml.

EFCN_BUILD=auto, the default, builds it where a C++ compiler is found; cpu insists on it; none leaves it out.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

CHOICES = ("auto", "cpu", "none")


def what_is_missing() -> str:
    """The reason why the extension cannot be compiled here, or an empty string."""
    if not sys.platform.startswith("linux"):
        return f"it is compiled on Linux only, not on {sys.platform}"
    compiler = (shlex.split(os.environ.get("CXX", "")) or ["c++"])[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler!r}; install one, or name one in CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there is no Python.h; install the headers of this Python (python3-dev)"
    return ""


def with_extension() -> dict:
    """The arguments of ``setup`` that build ``efcn_sparse._C`` from all of csrc."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        sys.exit(
            f"efcn_sparse: the extension is compiled against the installed torch, which does not import ({error}): "
            "install torch, then run pip install --no-build-isolation, or set EFCN_BUILD=none to do without"
        )
    extension = CppExtension(
        "efcn_sparse._C",
        sources=sorted(str(path) for path in Path("csrc").rglob("*.cpp")),
        depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
        # -fopenmp is left out when linking: one process needs one OpenMP runtime, and torch has loaded it already.
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-fopenmp", "-Wall"],
    )
    return dict(ext_modules=[extension], cmdclass=dict(build_ext=BuildExtension.with_options(use_ninja=True)))


choice = os.environ.get("EFCN_BUILD", "auto")
if choice not in CHOICES:
    sys.exit(f"efcn_sparse: EFCN_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
missing = "" if choice == "none" else what_is_missing()
if missing and choice == "cpu":
    sys.exit(f"efcn_sparse: EFCN_BUILD=cpu, but the extension cannot be compiled: {missing}")
if missing:
    print(f"efcn_sparse: installed without the compiled extension: {missing}", file=sys.stderr)
setup(**({} if missing or choice == "none" else with_extension()))
