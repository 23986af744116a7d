"""The programs behind the figures of docs/pruning.md run, and say what the page concludes."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def printed(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True, text=True).stdout


def test_memory_of_deltas_is_that_of_lora():
    rows = [line.split(" | ") for line in printed("experiments.finetune_memory", "--tokens", "64").splitlines()[2:]]
    full, lora, delta, fused = (int(row[2].split()[0]) for row in rows)
    assert [row[1] for row in rows] == ["28,311,552"] + 3 * ["1,474,560"]
    assert max(delta, fused) < 1.1 * lora < 0.7 * full


def test_pruned_transformer():
    lines = printed("experiments.prune_transformer", "--steps", "3").splitlines()
    assert "1,048,576 MLP weights" in lines[1]
    assert "104,448 MLP weights" in lines[2]
    assert "one token" in lines[-1]
