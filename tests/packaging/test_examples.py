"""The programs in examples/ run as they stand, for a few steps."""

import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.stem for example in EXAMPLES])
def test_example_runs(run, example: Path):
    done = run([sys.executable, str(example), "--steps", "3"], PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 2
