"""The digits of the demo: disjoint originals, positions that the seed decides, every digit whole on its canvas."""

import pytest
import torch
from sklearn.datasets import load_digits

from efcn_sparse.training.data.digits import aligned_digits, digits, place, split_originals


def test_train_and_test_originals_are_disjoint_and_all_are_used():
    train, test = split_originals(0)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(1797))


def test_each_image_shows_an_original_of_its_own_side_with_its_label():
    source = load_digits()
    pixels, labels = torch.from_numpy(source.images).int(), source.target
    shown_by = {_cut_out(original): index for index, original in enumerate(pixels)}
    assert len(shown_by) == len(pixels)  # no two originals look alike
    images, (train, test) = digits(3), split_originals(3)
    for x, y, allowed in ((images.train_x, images.train_y, train), (images.test_x, images.test_y, test)):
        gray = x[:, 0] - x.amin()
        gray = (gray * (16 / gray.amax())).round().int()
        found = [shown_by[_cut_out(image)] for image in gray]
        assert set(found) == set(allowed.tolist())
        assert labels[found].tolist() == y.tolist()


def _cut_out(image):
    """What is left when empty rows and columns around the digit are cut away."""
    rows, cols = image.any(1).nonzero(), image.any(0).nonzero()
    cut = image[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    return tuple(cut.shape), tuple(cut.flatten().tolist())


def test_a_digit_lies_where_it_was_placed():
    originals = torch.rand(3, 8, 8) + 1
    positions = torch.tensor([[0, 0], [12, 12], [5, 9]])
    canvas = place(originals, positions)
    assert canvas.shape == (3, 1, 20, 20)
    for index, (row, col) in enumerate(positions.tolist()):
        assert torch.equal(canvas[index, 0, row : row + 8, col : col + 8], originals[index])
        assert int(canvas[index].count_nonzero()) == 64


def test_the_seed_decides_everything():
    one, same, other = digits(1), digits(1), digits(2)
    assert torch.equal(one.train_x, same.train_x)
    assert torch.equal(one.test_y, same.test_y)
    assert not torch.equal(one.train_x, other.train_x)


def test_an_original_is_shown_at_several_positions():
    images = digits(0)
    assert len(images.train_x) == 2 * 1200
    assert len(images.test_x) == 2 * 597
    assert torch.equal(images.train_y[:1200], images.train_y[1200:2400])
    assert not torch.equal(images.train_x[:1200], images.train_x[1200:2400])


def test_normalized_on_the_training_images():
    images = digits(0)
    assert float(images.train_x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.train_x.std()) == pytest.approx(1, abs=1e-4)
    assert float(images.test_x.amin()) == float(images.train_x.amin())  # the same shift and scale


def test_aligned_digits_are_always_tested_on_the_same_images_and_trained_on_others():
    one, other = aligned_digits(0), aligned_digits(1)
    source, gray = torch.from_numpy(load_digits().images).float(), [one.train_x, one.test_x]
    assert one.train_x.shape[1:] == one.test_x.shape[1:] == (1, 8, 8)
    low, high = min(float(x.min()) for x in gray), max(float(x.max()) for x in gray)
    shown = [((x[:, 0] - low) * (16 / (high - low))).round() for x in gray]
    seen = sorted(tuple(image.flatten().int().tolist()) for part in shown for image in part)
    assert seen == sorted(tuple(image.flatten().int().tolist()) for image in source)  # each original once
    assert torch.equal(one.test_y, other.test_y)
    assert not torch.equal(one.train_y, other.train_y)
    assert one.train_y.bincount().tolist() == other.train_y.bincount().tolist()
