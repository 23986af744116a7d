import mmap

import pytest

from efcn_sparse.measure import memory, vanilla
from efcn_sparse.measure.contest import OURS
from efcn_sparse.measure.roofline import Roofline
from efcn_sparse.measure.shapes import VanillaShapes
from efcn_sparse.ops import contract

SHAPES = VanillaShapes(batch=2, rounds=1, memory_steps=1)


def test_the_contest_holds_every_variant_and_counts_the_known_weights():
    prepared = vanilla.prepare(SHAPES)
    prepared.contest.run(1)
    assert set(prepared.contest.contestants) == {*vanilla.VARIANTS, "deviation", "embed"}
    # taps that meet the image rather than its padding, along one side, squared; then channels
    first, second, third = 64**2 * 3 * 64, 34**2 * 64 * 64, 7**2 * 64 * 64
    assert first + second + third == 5_722_112
    biases = 64 * (17 * 17 + 8 * 8 + 3 * 3)
    head = 64 * 10 + 10
    assert prepared.parameters["cnn"] == 143_178
    assert prepared.parameters["lcn_unfold"] == 7_797_002
    assert prepared.parameters["efcn_dense"] == 73_928_704 + biases + head
    assert prepared.flops == 2 * 2 * (2 * first + 3 * (second + third + 64 * 10))  # no gradient of the images
    record = prepared.record(Roofline({"float32": {"linear": 100.0}}, 10.0, 10.0), {})
    assert set(record["times_faster_than"]) == set(vanilla.VARIANTS) - {OURS}
    assert set(record["goals_met"].values()) == {None}  # goals are for batch 250


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    true = contract.BACKENDS["reference"].sddmm

    def wrong(out, *arguments):
        true(out, *arguments)
        out.mul_(1.01)

    for backend in contract.BACKENDS.values():
        monkeypatch.setattr(backend, "sddmm", wrong)
    with pytest.raises(AssertionError, match=r"the gradient of 0\.linear"):
        vanilla.prepare(SHAPES)


def test_peak_memory_sees_what_a_step_holds(monkeypatch):
    class Trainer:
        def __call__(self):
            # fresh pages from the system: an allocator may hand out what other tests freed, without growing
            with mmap.mmap(-1, 64 << 20) as held:
                for page in range(0, len(held), mmap.PAGESIZE):
                    held[page] = 1

    monkeypatch.setattr(memory, "make_trainer", lambda variant, batch: Trainer())
    monkeypatch.setattr(memory, "_warm_up", lambda: None)
    peak = memory._measure(OURS, 1, 1)
    assert 60 << 20 <= peak <= 90 << 20
