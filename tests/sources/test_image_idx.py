"""MNIST's files as a layout: the published splits, the names of classes; faults are said."""

import gzip

import numpy as np
import pytest

from mmtok.sources.images import ImageFolder
from tests.sources.test_idx import idx
from tests.sources.test_image_layouts import examples, refused, silently, write_picture


@pytest.fixture
def folder(tmp_path):
    for split, n in (("train", 5), ("t10k", 3)):
        images = np.repeat(np.arange(n, dtype=np.uint8), 12).reshape(n, 4, 3) + 10 * n
        name = tmp_path / f"{split}-images-idx3-ubyte.gz"
        name.write_bytes(gzip.compress(idx(images)))
        labels = np.arange(n, dtype=np.uint8) % 2
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_published_splits_and_names(folder):
    with (
        pytest.warns(UserWarning, match="read as idx .t10k-images-idx3-ubyte.gz and 1 more."),
        pytest.warns(UserWarning, match="called zero to nine; .* give --names"),
    ):
        held = examples(ImageFolder(str(folder)), "heldout")
    assert held == [("zero", 30), ("one", 31), ("zero", 32)]
    source = ImageFolder(str(folder), names=("bag", "coat"))
    names = ("bag", "coat")
    assert silently(source, "train") == [(names[i % 2], 50 + i) for i in range(5)]
    refused(ImageFolder(str(folder), names=("bag",)), "the class 1 has no name; names has 1")


def test_dotted_names_and_other_sets(folder):
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(silently(ImageFolder(str(folder)))) == 8
    images = next(folder.glob("train-images*"))
    (folder / f"emnist-{images.name}").write_bytes(images.read_bytes())
    refused(ImageFolder(str(folder)), "several sets of images, ")


def test_images_of_emnist_are_turned_upright(tmp_path):
    stored = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    for split in ("train", "test"):
        name = tmp_path / f"emnist-letters-{split}-images-idx3-ubyte"
        name.write_bytes(idx(stored))
        labels = tmp_path / f"emnist-letters-{split}-labels-idx1-ubyte"
        labels.write_bytes(idx(np.array([0, 1], np.uint8)))
    source = ImageFolder(str(tmp_path), names=("a", "b"))
    with pytest.warns(UserWarning, match="stores its images transposed; they are turned upright"):
        found = [e["image"].pixels for e in source.listing("train").examples()]
    assert np.array_equal(found, stored.transpose(0, 2, 1))


def test_as_torchvision_leaves_them(folder):
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in folder.glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.rename(raw / packed.name)
    for labels in folder.glob("*-ubyte"):
        labels.rename(raw / labels.name)
    for place in (folder / "data", raw):
        assert silently(ImageFolder(str(place)), "heldout") == [
            ("zero", 30), ("one", 31), ("zero", 32)
        ]  # fmt: skip


def test_faults_are_named(folder):
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(4, np.uint8)))
    refused(ImageFolder(str(folder)), r"images are \(5, 4, 3\) and labels \(4,\)")
    labels.unlink()
    refused(ImageFolder(str(folder)), "train-labels-idx1-ubyte: no such file, plain, .gz or .xz")
    for i in range(2):
        write_picture(folder / f"{i}.png", i)
    refused(
        ImageFolder(str(folder)), "as idx, or as the 2 pictures .* --layout idx or --layout folder"
    )
