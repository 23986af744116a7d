"""EFCN_BUILD: what it builds, what it refuses, and what it says."""

import shutil
import sys

import pytest


@pytest.fixture(scope="module")
def setup_py(project, run):
    """``setup_py(**environment)``: setup.py asked for the version, which builds nothing but decides everything."""

    def setup_py(**environment):
        return run([sys.executable, "setup.py", "--version"], cwd=project, **environment)

    return setup_py


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "torch.py").write_text("raise ImportError(\"No module named 'torch'\")")
    return str(folder)


def only_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


def test_unknown_choice_is_refused(setup_py):
    done = setup_py(EFCN_BUILD="gpu")
    assert done.returncode != 0
    assert only_line(done.stderr) == "efcn_sparse: EFCN_BUILD must be one of auto, cpu, none, got 'gpu'"


def test_cpu_insists_on_a_compiler(setup_py):
    done = setup_py(EFCN_BUILD="cpu", CXX="nonesuch++")
    assert done.returncode != 0
    assert only_line(done.stderr).startswith(
        "efcn_sparse: EFCN_BUILD=cpu, but the extension cannot be compiled: there is no C++ compiler 'nonesuch++'"
    )


def test_auto_does_without_a_compiler_and_says_so(setup_py):
    done = setup_py(CXX="nonesuch++")
    assert done.returncode == 0
    assert only_line(done.stderr).startswith(
        "efcn_sparse: installed without the compiled extension: there is no C++ compiler 'nonesuch++'"
    )


@pytest.mark.parametrize("choice", ["auto", "cpu"])
def test_torch_must_be_there_to_build(setup_py, without_torch, choice):
    done = setup_py(EFCN_BUILD=choice, PYTHONPATH=without_torch)
    assert done.returncode != 0
    assert "install torch, then run pip install --no-build-isolation" in only_line(done.stderr)


def test_none_needs_neither_torch_nor_compiler(setup_py, without_torch):
    done = setup_py(EFCN_BUILD="none", CXX="nonesuch++", PYTHONPATH=without_torch)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_old_setuptools_is_one_line(setup_py, tmp_path, choice):
    (tmp_path / "setuptools.py").write_text("__version__ = '65.5.0'\nsetup = None")
    done = setup_py(EFCN_BUILD=choice, PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert only_line(done.stderr).startswith("efcn_sparse: setuptools must be 77 or newer, got 65.5.0: pip install")


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_an_extension_that_does_not_load_is_refused(project, run, tmp_path):
    """As clang++ builds it, whose OpenMP calls are not in the runtime that torch has loaded."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("csrc", "tests"))
    (copy / "csrc").mkdir()
    (copy / "csrc" / "one.cpp").write_text(
        'extern "C" void __kmpc_nowhere();\nextern "C" void* PyInit__C() { __kmpc_nowhere(); return nullptr; }\n'
    )
    done = run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=copy, EFCN_BUILD="cpu")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("efcn_sparse: the extension was compiled and does not load (ImportError: ")
    assert "undefined symbol: __kmpc_nowhere" in last
    assert not list((copy / "efcn_sparse").glob("_C*"))
