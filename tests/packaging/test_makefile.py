"""``make`` says in one line what it cannot install itself, before it installs anything."""

import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
DRY_RUN = ["make", "--dry-run"]


@pytest.mark.parametrize("target", ["demo", "test", "bench"])
@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("PYTHON", "Python 3.10 or newer is missing"),
        ("CXX", "A C++ compiler is missing (nonesuch)"),
    ],
)
def test_missing_requirement(project, run, target, variable, message):
    for done in (
        run([*DRY_RUN, target, f"{variable}=nonesuch"], cwd=project),
        run([*DRY_RUN, target], cwd=project, **{variable: "nonesuch"}),
    ):
        assert done.returncode != 0
        assert done.stdout == ""
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("target", "tools", "last"), [("demo", False, "report.html"), ("test", True, "pytest")])
def test_only_what_a_target_needs_is_installed(project, run, target, tools, last):
    done = run([*DRY_RUN, target], cwd=project)
    assert done.returncode == 0, done.stderr
    assert ("--editable '.[dev]'" in done.stdout) is tools
    assert last in done.stdout.splitlines()[-1]


def test_requirements_are_constraints_too():
    """Make passes the file to pip as both, and pip refuses constraints with extras."""
    lines = (Path(__file__).parents[2] / "requirements-dev.txt").read_text().splitlines()
    assert [line for line in lines if "[" in line.partition("#")[0]] == []
