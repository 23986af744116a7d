"""A training step of ResNet-18's eFCN in a process of its own; with the full shapes, of 1.2 billion weights."""

from __future__ import annotations

import pytest

from efcn_sparse.measure import machine
from experiments import scale
from experiments.scale_page import markdown

PIXELS = {"full": 192, "quick": 96, "tiny": 32}
LEAVE = 6 << 30  # bytes of memory, to others


def test_training_step_in_memory(shapes, pytestconfig, capsys):
    pixels, threads = PIXELS[shapes.name], pytestconfig.getoption("--threads")
    try:
        scale.check_fits(pixels, LEAVE)
    except MemoryError as error:
        pytest.skip(str(error))
    here = machine.describe(threads)
    result = scale.measure_apart(pixels, batch=4, steps=2, threads=threads)
    page = markdown(result, here)
    with capsys.disabled():
        print(f"\n{page}")
    directory = pytestconfig.getoption("--results")
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{here.slug}-scale-{pixels}.md").write_text(page)
    assert result.wrong() == []
