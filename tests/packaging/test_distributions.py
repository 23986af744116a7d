"""A wheel and a source archive carry what they need, and the wheel works from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

TRAINS = """
import torch, efcn_sparse as es
print(es.__file__)
print(es.extension_status())
pattern = es.BlockPattern.random((32, 16), (8, 8), density=0.5)
layer = es.SparseLinear(16, 32, pattern)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
x, y = torch.randn(64, 16), torch.randn(64, 32)
losses = []
for _ in range(20):
    loss = torch.nn.functional.mse_loss(layer(x), y)
    optimizer.zero_grad(), loss.backward(), optimizer.step()
    losses.append(loss.item())
print(losses[-1] < losses[0])
"""


@pytest.fixture(scope="module")
def wheel(project, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = run([*pip, "--wheel-dir", str(folder), str(project)], EFCN_BUILD="none")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    done = run([*pip, str(wheel)])
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def package_files(project: Path) -> set[str]:
    files = (path for path in (project / "efcn_sparse").rglob("*") if path.is_file())
    return {path.relative_to(project).as_posix() for path in files if "__pycache__" not in path.parts}


def test_wheel_holds_every_file_of_the_package(project, wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("efcn_sparse/")}
    assert packed == package_files(project)
    assert "efcn_sparse/py.typed" in packed


def test_wheel_holds_the_package_only(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"efcn_sparse"}


def test_wheel_trains_from_an_empty_folder(installed, run):
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    # -S: no .pth files, or an editable installation in this environment would lend the wheel its extension.
    done = run([sys.executable, "-S", "-c", TRAINS], PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    file, status, improved = done.stdout.splitlines()
    assert Path(file).is_relative_to(installed)
    assert status.startswith("no extension: it was not built")
    assert improved == "True"


def test_source_archive_holds_what_the_build_needs(project, run, tmp_path):
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    done = run([sys.executable, "-c", build], cwd=project, EFCN_BUILD="none")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(project).as_posix() for path in (project / "csrc").rglob("*") if path.is_file()}
    assert package_files(project) | sources | {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= packed


def test_command_is_installed():
    command = Path(sys.executable).with_name("efcn-sparse")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    assert "relax" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
