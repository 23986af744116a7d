"""A pattern is immutable and is its content: equality, fingerprint, copies, pickles."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch

import efcn_sparse as es
from efcn_sparse import BlockPattern
from efcn_sparse.pattern import Structure
from tests.table import PATTERNS, pattern


@pytest.mark.parametrize("name", PATTERNS)
def test_equal_by_content(name: str) -> None:
    p, again = pattern(name), PATTERNS[name]()
    assert p is not again
    assert (p == again, hash(p) == hash(again), p.fingerprint == again.fingerprint) == (True, True, True)
    assert len(p.fingerprint) == 32
    assert set(p.fingerprint) <= set("0123456789abcdef")


def test_all_kinds_differ() -> None:
    assert len({pattern(name) for name in PATTERNS}) == len(PATTERNS)
    assert len({pattern(name).fingerprint for name in PATTERNS}) == len(PATTERNS)


def test_each_part_of_the_content_counts() -> None:
    def make(shape=(4, 6), block=(2, 3), crow=(0, 1, 2), col=(0, 1), index=None, masks=None) -> BlockPattern:
        index = None if index is None else torch.tensor(index)
        return BlockPattern.from_bsr(torch.tensor(crow), torch.tensor(col), shape, block, mask_index=index, masks=masks)

    masks = torch.ones(2, 2, 3, dtype=torch.uint8)
    masks[0, 0, 0] = masks[1, 1, 1] = 0
    variants = [
        make(),
        make(shape=(3, 6)),
        make(shape=(4, 5)),
        make(shape=(8, 2), block=(4, 1)),
        make(crow=(0, 2, 2)),
        make(col=(1, 0)),
        make(index=(0, -1), masks=masks),
        make(index=(-1, 0), masks=masks),
        make(index=(1, -1), masks=masks),
    ]
    assert len(set(variants)) == len(variants)


def test_the_numbering_of_masks_does_not_count() -> None:
    masks = torch.ones(4, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 1, 1] = masks[3, 1, 1] = False

    def make(*index: int, order: tuple[int, ...] = (0, 1, 2, 3)) -> BlockPattern:
        return BlockPattern.from_bsr(
            [0, 2, 4], [0, 1, 0, 1], (4, 4), (2, 2), mask_index=torch.tensor(index), masks=masks[list(order)]
        )

    p = make(0, 1, -1, 1)
    assert p.masks.shape[0] == 2
    assert p == make(0, 3, 2, 1)
    assert p == make(1, 0, 3, 2, order=(1, 0, 3, 2))
    assert p == make(0, 1, -1, 1, order=(0, 1))
    assert p != make(1, 0, -1, 0)
    assert make(2, 2, -1, 2) == BlockPattern.dense((4, 4), (2, 2))
    assert make(0, 1, -1, 1).transposed().transposed() == p


def test_not_equal_to_other_things() -> None:
    p = pattern("square")
    assert p != p.fingerprint
    assert p != None  # noqa: E711
    assert (p == 3) is False


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    p = BlockPattern.dense((4, 6), (2, 3))
    code = "import efcn_sparse as es; print(es.BlockPattern.dense((4, 6), (2, 3)).fingerprint)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == p.fingerprint


def test_nothing_can_be_set_or_deleted() -> None:
    p = pattern("square")
    with pytest.raises(AttributeError, match=r"^BlockPattern is immutable: shape cannot be set$"):
        p.shape = (1, 1)  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"^BlockPattern is immutable: anything cannot be set$"):
        p.anything = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"^BlockPattern is immutable: col_indices cannot be deleted$"):
        del p.col_indices
    assert isinstance(p.structure, tuple)


def test_index_arrays_are_read_as_copies() -> None:
    p, again = pattern("masked"), PATTERNS["masked"]()
    before = p.fingerprint
    for name in Structure._fields:
        getattr(p, name).fill_(99)
        getattr(p, name).numpy()[...] = 77
    assert (p.fingerprint, p) == (before, again)
    assert all(torch.equal(one, other) for one, other in zip(p.structure, again.structure, strict=True))


def test_writing_into_the_structure_itself_is_noticed() -> None:
    p, again = PATTERNS["square"](), pattern("square")
    assert p == again
    p.structure.col_indices[0] += 1
    assert p != again


def test_a_pattern_made_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        p = PATTERNS["masked"]()
        q = BlockPattern.from_bsr(*p.structure[:2], p.shape, p.block_shape)
    assert not any(part.is_inference() for part in (*p.structure, *q.structure))
    values = torch.randn(p.values_shape, requires_grad=True)
    es.spmm(torch.randn(2, p.shape[1]), values, p).sum().backward()
    assert values.grad is not None


@pytest.mark.parametrize("name", PATTERNS)
def test_pickles(name: str) -> None:
    p = pattern(name)
    again = pickle.loads(pickle.dumps(p))
    assert again == p
    assert all(torch.equal(one, other) for one, other in zip(again.structure, p.structure, strict=True))
    assert (again.shape, again.block_shape, again.grid, again.nnz) == (p.shape, p.block_shape, p.grid, p.nnz)
    file = io.BytesIO()
    torch.save(p, file)
    file.seek(0)
    assert torch.load(file, weights_only=False) == p


def test_copies_are_itself() -> None:
    p = pattern("masked")
    assert copy.copy(p) is p
    assert copy.deepcopy({"p": [p]})["p"][0] is p


def test_moving_to_where_it_is() -> None:
    p = pattern("masked")
    assert p.to("cpu") is p
    assert p.to(torch.device("cpu")) is p
    assert p.to("meta") is p


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_moving_to_another_device() -> None:
    p = pattern("masked")
    there = p.to("cuda")
    assert there.device.type == "cuda"
    assert all(tensor.is_cuda for tensor in there.structure)
    assert there == p
    assert there.to("cpu") == p


def test_what_it_prints() -> None:
    assert repr(pattern("square")) == (
        "BlockPattern(shape=(64, 48), block_shape=(16, 16), nnz_blocks=6, density=0.5, device=cpu)"
    )
    assert repr(pattern("masked-partly")) == (
        "BlockPattern(shape=(24, 32), block_shape=(8, 8), nnz_blocks=12, density=1, masked_blocks=2, device=cpu)"
    )
