"""The programs in examples/ run as they stand, for a few steps."""

import runpy
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.stem for example in EXAMPLES])
def test_example_runs(example: Path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(example), "--steps", "3"])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.count("\n") >= 2
