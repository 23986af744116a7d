"""EFCN_BUILD: what it builds, what it refuses, and what it says."""

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
