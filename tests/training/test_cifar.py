"""Images through Hugging Face datasets, from local files of CIFAR's shape; nothing is fetched unasked."""

import io
import re

import numpy as np
import pytest
import torch

import efcn_sparse.training as training

pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")
pil = pytest.importorskip("PIL.Image")

HOW = (
    "pass --data FOLDER with parquet files or with train/<class>/*.png and test/<class>/*.png, "
    "or fetch it from the Hugging Face Hub with --data uoft-cs/cifar10 --download"
)


def noise(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def encoded(pixels):
    buffer = io.BytesIO()
    pil.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path, pixels, labels, image="img", label="label", cut=None):
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    table = {image: [{"bytes": encoded(p)[:cut], "path": None} for p in pixels], label: labels}
    parquet.write_table(pyarrow.table(table), path)


def config(folder, preset="vanilla-cifar10", **changes):
    return training.RelaxConfig.from_preset(preset, data=None if folder is None else str(folder), **changes)


@pytest.fixture
def cifar10(tmp_path):
    pixels, labels = noise(30), [index % 10 for index in range(30)]
    write_parquet(tmp_path / "plain_text" / "train-00000-of-00001.parquet", pixels[:20], labels[:20])
    write_parquet(tmp_path / "plain_text" / "test-00000-of-00001.parquet", pixels[20:], labels[20:])
    return tmp_path, pixels, labels


def test_every_pixel_of_a_parquet_folder_arrives_with_its_label(cifar10):
    folder, pixels, labels = cifar10
    images = training.load_data(config(folder))
    assert images.train_x.shape == (20, 3, 32, 32)
    assert images.train_x.is_contiguous(memory_format=torch.channels_last)
    known = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    train = known[:20]
    deviation, mean = torch.std_mean(train, (0, 2, 3), keepdim=True)
    for x, y, first in ((images.train_x, images.train_y, 0), (images.test_x, images.test_y, 20)):
        expected = ((known - mean) / deviation)[first : first + len(x)]
        distance = (x.flatten(1)[:, None] - expected.flatten(1)[None]).abs().amax(-1)
        assert bool((distance.amin(1) < 1e-4).all())
        source = distance.argmin(1)
        assert sorted(source.tolist()) == list(range(len(x)))
        assert y.tolist() == [labels[first + int(index)] for index in source]


def test_an_image_folder_gives_the_same_kind_of_data(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for klass, name in enumerate(("bird", "cat")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pil.fromarray(noise(1, seed=10 * klass + index)[0]).save(folder / f"{index}.png")
    images = training.load_data(config(tmp_path))
    assert images.train_x.shape == (8, 3, 32, 32)
    assert sorted(images.train_y.tolist()) == [0] * 4 + [1] * 4
    assert sorted(images.test_y.tolist()) == [0, 0, 1, 1]


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_folders_of_classes_may_be_called_as_splits_are(tmp_path):
    pixels = noise(18)
    names = [f"{split}/{name}/{number}.png" for split in ("train", "test") for name in ("apple", "test_tube", "train")
             for number in range(3)]  # fmt: skip
    for name, one in zip(names, pixels, strict=True):
        write_image(tmp_path / "my [train] set" / name, pil.fromarray(one))
    images = training.load_data(config(tmp_path / "my [train] set"))
    assert (len(images.train_x), len(images.test_x)) == (9, 9)
    known = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    deviation, mean = torch.std_mean(known[:9], (0, 2, 3), keepdim=True)
    for x, y, first in ((images.train_x, images.train_y, 0), (images.test_x, images.test_y, 9)):
        source = ((known - mean) / deviation - x[:, None]).abs().amax((2, 3, 4)).argmin(1)
        assert sorted(source.tolist()) == list(range(first, first + 9))
        assert y.tolist() == [(int(index) - first) // 3 for index in source]


def test_images_that_are_not_in_a_class_are_told(tmp_path):
    for name in ("train/apple/0.png", "train/apple/more/1.png", "test/apple/0.png"):
        write_image(tmp_path / name, pil.fromarray(noise(1)[0]))
    message = f"data must hold images as train/<class>/<image>, got {tmp_path / 'train/apple/more/1.png'}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        training.load_data(config(tmp_path))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused(tmp_path, mode):
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    for split in ("train", "test"):
        write_image(tmp_path / split / "apple" / "0.tif", pil.fromarray(noise(1)[0, :, :, 0].astype(kind) * 100))
    message = f"data must hold images of 8 bits a channel, got mode {mode} in {tmp_path / 'train/apple/0.tif'}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        training.load_data(config(tmp_path))


@pytest.mark.parametrize("kept", [20, 2000])  # in the header, in the pixels
def test_an_image_that_cannot_be_read_is_named(tmp_path, kept):
    for split in ("train", "test"):
        write_image(tmp_path / split / "apple" / "0.png", pil.fromarray(noise(1)[0]))
    damaged = tmp_path / "train/apple/0.png"
    damaged.write_bytes(damaged.read_bytes()[:kept])
    with pytest.raises(ValueError, match=re.escape(f"data must hold images that can be read, got {damaged}: ")):
        training.load_data(config(tmp_path))


def test_an_image_of_a_parquet_file_that_cannot_be_read_is_named(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", noise(2), [0, 1], cut=2000)
    with pytest.raises(ValueError, match=r"^data must hold images that can be read, got image 0 of train: "):
        training.load_data(config(tmp_path))


@pytest.mark.parametrize("folder", ["latest", "contest-2026", "pretrained", "plain[1]"])
def test_a_split_is_a_word_of_a_parquet_files_name(tmp_path, folder):
    for index, split in enumerate(("train", "test")):
        write_parquet(tmp_path / folder / f"x_{split}-0.parquet", noise(2 + index), [0, 1, 1][: 2 + index])
    images = training.load_data(config(tmp_path))
    assert (len(images.train_x), len(images.test_x)) == (2, 3)


def test_a_parquet_file_of_two_splits_is_refused(tmp_path):
    for name in ("train.parquet", "test.parquet", "test/train-0.parquet"):
        write_parquet(tmp_path / name, noise(2), [0, 1])
    message = f"data must hold parquet files of one split each, got {tmp_path / 'test/train-0.parquet'}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}, named both train and test$"):
        training.load_data(config(tmp_path))


def test_cifar100_takes_the_fine_labels(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", noise(3), [0, 50, 99], image="image", label="fine_label")
    images = training.load_data(config(tmp_path, "alexnet-cifar100"))
    assert sorted(images.train_y.tolist()) == [0, 50, 99]


def test_one_epoch_of_the_protocol_on_a_parquet_folder(cifar10, tmp_path):
    small = config(
        cifar10[0], arms=("cnn", "elcn"), cnn_epochs=1, relax_epochs=1, relax_times=(1,), batch_size=10, threads=1
    )
    run_dir = training.run_relax(small, tmp_path / "run", quiet=True)
    lines = (run_dir / "metrics.csv").read_text().splitlines()
    keys = [",".join(line.split(",")[:4]) for line in lines[1:]]
    assert keys == ["cnn,0,,0", "cnn,0,,1", "cnn,0,,2", "elcn,0,1,1", "elcn,0,1,2"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, f"data must be given for uoft-cs/cifar10: {HOW}"),
        ("uoft-cs/cifar10", f"data must be a folder unless --download is given, got 'uoft-cs/cifar10': {HOW}"),
    ],
)
def test_without_data_the_message_says_how_to_get_them_and_nothing_is_fetched(data, message, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("something was fetched"))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        training.run_relax(config(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hub_name_is_fetched_when_asked_for(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **_):
        asked.append(name)
        column = [{"bytes": encoded(pixels), "path": None} for pixels in noise(3)]
        table = datasets.Dataset.from_dict({"img": column, "label": [0, 1, 2]})
        return {"train": table, "test": table}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(training.load_data(config("uoft-cs/cifar10"), download=True).train_x) == 3
    assert asked == ["uoft-cs/cifar10"]


def folder_with(tmp_path, **arguments):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", **{"pixels": noise(2), "labels": [0, 1], **arguments})
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(pixels=noise(2, side=28)), "data must hold 32x32 images, got 28x28 in image 0 of train"),
        (dict(labels=[0, 10]), "data must have labels in [0, 10), got 0 to 10"),
        (dict(image="photo"), "data must have a column 'img' or 'image', got photo, label"),
        (dict(label="kind"), "data must have a column 'label', got img, kind"),
        (dict(labels=["a", "b"]), "data must have integers in the column 'label', got <U1"),
    ],
)
def test_other_data_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        training.load_data(config(folder_with(tmp_path, **arguments)))


def test_a_missing_split_is_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", noise(2), [0, 1])
    message = "data must hold parquet files for train and test, got none with 'test' in its name"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        training.load_data(config(tmp_path))


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"got {tmp_path} without train: pass --data FOLDER")):
        training.load_data(config(tmp_path))


def test_digits_take_no_data():
    with pytest.raises(ValueError, match=re.escape("data must be left out for the preset digits, got 'x'")):
        training.load_data(training.RelaxConfig.from_preset("digits", data="x"))
