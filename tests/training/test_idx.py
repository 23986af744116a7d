"""IDX files: read as they are, and refused by name where they are not what they should be."""

import gzip

import numpy as np
import pytest
import torch

from efcn_sparse.training import RelaxConfig, load_data, run_relax
from efcn_sparse.training.data.idx import FASHION_MNIST, load_idx_images, read_idx

SHAPE, CLASSES = (1, 3, 2), 4


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for prefix, count in (("train", 5), ("t10k", 3)):
        images = draw.integers(0, 256, (count, *SHAPE[1:]), np.uint8)
        labels = draw.integers(0, CLASSES, count, np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_numbers_come_back(tmp_path):
    array = np.random.default_rng(1).integers(0, 256, (4, 3, 2), np.uint8)
    for name, content in (("plain.gz", idx(array)), ("zipped", gzip.compress(idx(array)))):  # names say nothing
        (tmp_path / name).write_bytes(content)
        assert torch.equal(read_idx(tmp_path / name), torch.from_numpy(array))


def test_a_folder_is_normalized_on_its_training_images(folder):
    images = load_idx_images(folder, image_shape=SHAPE, classes=CLASSES)
    assert images.train_x.shape == (5, *SHAPE)
    assert images.test_x.shape == (3, *SHAPE)
    assert torch.allclose(images.train_x.mean(), torch.zeros(()), atol=1e-6)
    raw = read_idx(folder / "t10k-images-idx3-ubyte.gz").float()
    train = read_idx(folder / "train-images-idx3-ubyte.gz").float()
    assert torch.allclose(images.test_x[:, 0], (raw - train.mean()) / train.std(), atol=1e-6)


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _swap(folder):
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte"
    images_content = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    labels.write_bytes(images_content)


def _edit(name, change):
    def edit(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "must hold t10k-labels-idx1-ubyte or"),
        (_edit("train-labels-idx1-ubyte", _cut), "train-labels-idx1-ubyte must hold 5 more bytes.* got 4"),
        (_edit("train-images-idx3-ubyte.gz", _cut), "train-images-idx3-ubyte.gz must be a whole gzip file"),
        (_edit("train-labels-idx1-ubyte", lambda data: data + b"\0"), "train-labels-idx1-ubyte must end after"),
        (_edit("train-labels-idx1-ubyte", lambda data: b"PK" + data), "train-labels-idx1-ubyte must be an IDX file"),
        (_edit("train-labels-idx1-ubyte", lambda data: data[:-1] + b"\x04"), r"labels in \[0, 4\), got 4"),
        (_edit("train-labels-idx1-ubyte", lambda data: b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff"), "more bytes"),
        (_swap, r"train-images-idx3-ubyte.gz must hold train images \[N, 3, 2\], got \[5\]"),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").rename(folder / "train-labels-idx1-ubyte"), "must hold"),
    ],
)
def test_what_is_not_right_is_refused_by_name(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_idx_images(folder, image_shape=SHAPE, classes=CLASSES)


def test_training_images_in_place_of_test_images_are_refused(folder):
    for what in ("images-idx3-ubyte.gz", "labels-idx1-ubyte"):
        (folder / f"t10k-{what}").write_bytes((folder / f"train-{what}").read_bytes())
    with pytest.raises(ValueError, match="got the same twice"):
        load_idx_images(folder, image_shape=SHAPE, classes=CLASSES)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_as_debian_packs_it():
    images = load_idx_images(FASHION_MNIST, image_shape=(1, 28, 28), classes=10)
    assert images.train_x.shape == (60_000, 1, 28, 28)
    assert images.test_x.shape == (10_000, 1, 28, 28)
    assert torch.bincount(images.test_y).tolist() == [1000] * 10


def test_the_preset_reads_a_folder_and_says_how_to_get_one(tmp_path):
    draw = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(draw.integers(0, 256, (30, 28, 28), np.uint8)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(draw.integers(0, 10, 30, np.uint8)))
    tiny = dict(seeds=(0,), arms=("cnn", "efcn-full"), cnn_epochs=1, relax_epochs=1, relax_times=(0,))
    config = RelaxConfig.from_preset("fashion-mnist", data=str(tmp_path), **tiny)
    run_dir = run_relax(config, tmp_path / "run", quiet=True)
    assert len((run_dir / "metrics.csv").read_text().splitlines()) == 1 + 2 + 2
    with pytest.raises(
        ValueError, match=r"data must be a folder with the IDX files.*apt install dataset-fashion-mnist"
    ):
        load_data(RelaxConfig.from_preset("fashion-mnist", data=str(tmp_path / "nowhere")))
