"""Laws of MNIST's file format: read as written, packed or not; what is damaged is named."""

import gzip
import lzma
import struct

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.idx import IdxImages, read_idx

PACKED = {"": lambda data: data, ".gz": gzip.compress, ".xz": lzma.compress}


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    return (
        bytes((0, 0, kind, values.ndim))
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, n, packing in (("train", 5, ".xz"), ("t10k", 3, ".gz")):
        images = rng.integers(0, 256, (n, 4, 3), np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 2
        (tmp_path / f"{split}-images-idx3-ubyte{packing}").write_bytes(PACKED[packing](idx(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (0, 28, 28)])
def test_what_was_written_is_read(tmp_path, suffix, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (tmp_path / f"a{suffix}").write_bytes(PACKED[suffix](idx(values)))
    assert (
        np.array_equal(read_idx(tmp_path / f"a{suffix}"), values)
        and read_idx(tmp_path / f"a{suffix}").shape == shape
    )


def test_examples_carry_their_labels_names(folder):
    source = IdxImages(str(folder), ("bag", "coat"))
    images, labels = source.load("train")
    train = list(source.examples("train"))
    assert (
        [e["caption"] for e in train]
        == [("bag", "coat")[k] for k in labels]
        == ["bag", "coat", "bag", "coat", "bag"]
    )
    assert all(np.array_equal(e["image"], image) for e, image in zip(train, images))
    assert len(list(source.examples("heldout"))) == 3


@pytest.mark.parametrize(
    "data, said",
    [
        (b"\0\0", "not a file of MNIST's format"),
        (b"PK\3\4" + b"\0" * 20, "not a file of MNIST's format"),
        (idx(np.zeros(4, np.uint8), kind=0x0D), "type 0x0d"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "header says 2 x 3, but 17 bytes"),
        (b"\0\0\x08\x03\0\0", "header says 3 axes, of which 0 are there"),
    ],
)
def test_damaged_files_are_named(tmp_path, data, said):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_idx(tmp_path / "a")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_truncated_packings_are_named(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(PACKED[suffix](idx(np.arange(200, dtype=np.uint8)))[:-20])
    with pytest.raises(UserError, match=f"a{suffix}: cannot be read"):
        read_idx(tmp_path / f"a{suffix}")


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no path given"):
        IdxImages().check()
    with pytest.raises(UserError, match="no such folder"):
        IdxImages(str(tmp_path / "missing")).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such file, nor one packed as .gz or .xz"):
        IdxImages(str(tmp_path / "empty")).check()
    with pytest.raises(UserError, match="label 1 has no name; names are bag"):
        IdxImages(str(folder), ("bag",)).load("train")
    with pytest.raises(UserError, match="no split 'test'"):
        IdxImages(str(folder)).load("test")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(UserError, match=r"train images are \(5, 4, 3\) and labels \(4,\)"):
        IdxImages(str(folder)).load("train")
