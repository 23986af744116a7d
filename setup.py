"""The compiled extension, and nothing else: everything about the package is in pyproject.toml.

EFCN_BUILD=auto, the default, builds it where a C++ compiler is found; cpu insists on it; none leaves it out.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import setup

if int(setuptools.__version__.split(".")[0]) < 77:  # older ones stop at pyproject.toml's license, with a traceback
    sys.exit(
        f"efcn_sparse: setuptools must be 77 or newer, got {setuptools.__version__}: pip install 'setuptools>=77,<82' "
        "(torch 2.11 refuses 82)"
    )
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


LOADS = "import sys, torch, importlib.util as u; u.module_from_spec(u.spec_from_file_location('_C', sys.argv[1]))"


def check_that_it_loads(file: str) -> None:
    """Remove what was built and stop, if this Python cannot load it."""
    done = subprocess.run([sys.executable, "-c", LOADS, file], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        Path(file).unlink()
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        sys.exit(
            f"efcn_sparse: the extension was compiled and does not load ({reason}): use the compiler whose OpenMP "
            "runtime torch has loaded, as a rule CXX=g++ (clang++ needs libomp, and one process one runtime)"
        )


def with_extension() -> dict:
    """The arguments of ``setup`` that build ``efcn_sparse._C`` from all of csrc."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        sys.exit(
            f"efcn_sparse: the extension is compiled against the installed torch, which does not import ({error}): "
            "install torch, then run pip install --no-build-isolation, or set EFCN_BUILD=none to do without"
        )
    os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))  # ninja's default, two more, is slower
    extension = CppExtension(
        "efcn_sparse._C",
        # The largest first, so that the last to be compiled takes a moment.
        sources=[str(path) for path in sorted(Path("csrc").rglob("*.cpp"), key=lambda path: -path.stat().st_size)],
        depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
        # -fopenmp is left out when linking: one process needs one OpenMP runtime, and torch has loaded it already.
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-fopenmp", "-Wall"],
    )

    class BuildAndLoad(BuildExtension):
        def run(self) -> None:
            super().run()
            folder = Path() if self.inplace else Path(self.build_lib)
            check_that_it_loads(str((folder / self.get_ext_filename(extension.name)).resolve()))

    return dict(ext_modules=[extension], cmdclass=dict(build_ext=BuildAndLoad))


choice = os.environ.get("EFCN_BUILD", "auto")
if choice not in CHOICES:
    sys.exit(f"efcn_sparse: EFCN_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
missing = "" if choice == "none" else what_is_missing()
if missing and choice == "cpu":
    sys.exit(f"efcn_sparse: EFCN_BUILD=cpu, but the extension cannot be compiled: {missing}")
if missing:
    print(f"efcn_sparse: installed without the compiled extension: {missing}", file=sys.stderr)
setup(**({} if missing or choice == "none" else with_extension()))
