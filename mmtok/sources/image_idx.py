"""MNIST's files as a corpus of pictures, with the splits that are published."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.remembered import Remembered
from mmtok.sources.base import Chunk, Example, Picture
from mmtok.sources.captions import caption_of
from mmtok.sources.idx import read_idx
from mmtok.sources.image_files import DIGIT_NAMES
from mmtok.sources.leaks import Content
from mmtok.sources.pictures import Pictures, Place, ReadSettings, item_chunks
from mmtok.sources.rows import hash_of

# train-images-idx3-ubyte.gz; some mirrors have a dot before idx, EMNIST a prefix
IMAGES = re.compile(r"(.*?)(train|t10k|test)-images[-.]idx3-ubyte(\.gz|\.xz)?", re.IGNORECASE)
PACKED = (".gz", ".xz")
TRANSPOSED = re.compile(r"emnist-.*images", re.IGNORECASE)  # Cohen et al. 2017 stored columns first
Item = tuple[Path, Path, int, str]  # images, labels, which, caption


def image_files(place: Place) -> list[Path]:
    """The files of images; of one that lies there packed too, as torchvision leaves it, the plain.

    They may lie in a folder below, such as MNIST/raw.
    """
    files = [path for path in place.companions if IMAGES.fullmatch(path.name)]
    plain = {path for path in files if path.suffix.lower() not in PACKED}
    return [path for path in files if path in plain or path.with_suffix("") not in plain]


class IdxPictures(Pictures):
    """The images of MNIST's files, by split.

    Raises UserError for damaged files, and for labels without a name.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]], names: Sequence[str]) -> None:
        self._files = files
        self._captions: list[str] = []
        self._file_of: list[int] = []
        self._starts: list[int] = []
        self._sizes: list[int] = []
        for k, (images, labels) in enumerate(files):
            self._starts.append(len(self._captions))
            shape = loaded(images).shape
            numbers = loaded(labels)
            if len(shape) != 3 or numbers.ndim != 1 or shape[0] != len(numbers):
                raise UserError(
                    f"{images}: images are {shape} and labels {numbers.shape}; expected (N, Y, X)"
                    " and (N,)"
                )
            known = {
                number: caption_of(str(number), names, str(labels))
                for number in np.unique(numbers).tolist()
            }
            self._captions += [known[number] for number in numbers.tolist()]
            self._file_of += [k] * len(numbers)
            self._sizes.append(shape[1] * shape[2])
        parts = [self.parts(start)[0] for start in self._starts]
        if "train" in parts and len(set(parts)) == 2:
            self.published = ("train", next(part for part in parts if part != "train"))

    def __len__(self) -> int:
        return len(self._captions)

    def name(self, i: int) -> str:
        """File and number."""
        k = self._file_of[i]
        return f"{self._files[k][0]}: image {i - self._starts[k]}"

    def pixels(self, i: int) -> int:
        """As the file says."""
        return self._sizes[self._file_of[i]]

    def parts(self, i: int) -> tuple[str, ...]:
        """train, and t10k or test."""
        return (part_of(self._files[self._file_of[i]][0]),)

    def content(self, i: int) -> Content:
        """Its pixels."""
        images, _, k, _ = self._item(i)
        return hash_of(loaded(images)[k].tobytes())

    def chunks(self, chosen: Sequence[int]) -> Iterator[Chunk]:
        """An example for each image."""
        return item_chunks((self._item(i) for i in chosen), read_item, name_of, images_of)

    def _item(self, i: int) -> Item:
        k = self._file_of[i]
        images, labels = self._files[k]
        return images, labels, i - self._starts[k], self._captions[i]


def part_of(path: Path) -> str:
    """The split that a file of images is of, as its name says."""
    match = IMAGES.fullmatch(path.name)
    return match[2].lower() if match else ""


def images_of(item: Item) -> Path:
    """The file of an image."""
    return item[0]


def name_of(item: Item) -> str:
    """File and number."""
    return f"{item[0]}: image {item[2]}"


def read_item(item: Item) -> Example:
    """The example of an image."""
    images, _, i, caption = item
    picture = Picture(loaded(images)[i], name_of(item))
    return Example({"caption": caption, "image": picture}, picture.name)


def loaded(path: Path) -> np.ndarray:
    """The array in a file, EMNIST's images upright, kept while the file does not change."""
    try:
        return _arrays(path, lambda: _load(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


_arrays: Remembered[np.ndarray] = Remembered(4)


def _load(path: Path) -> np.ndarray:
    values = read_idx(path)
    if TRANSPOSED.match(path.name) and values.ndim == 3:
        values = np.ascontiguousarray(values.transpose(0, 2, 1))
    return values


def read_idx_images(place: Place, settings: ReadSettings) -> IdxPictures:
    """The images of MNIST's files in a folder; without names their classes are digits, as is said.

    Raises UserError where files are missing, or there are several sets of them.
    """
    images = image_files(place)
    if not images:
        raise UserError(f"{place.shown}: has no train-images-idx3-ubyte, plain, .gz or .xz")
    parts = [part_of(path) for path in images]
    if len(set(parts)) < len(parts):
        raise UserError(
            f"{place.folder}: several sets of images, {listed([place.inside(i) for i in images])};"
            " put one into a folder of its own, and name that"
        )
    if not settings.names:
        warnings.warn(
            f"{images[0].parent}: its classes are called {DIGIT_NAMES[0]} to {DIGIT_NAMES[-1]}; for"
            " other things than digits, give --names",
            stacklevel=5,
        )
    if TRANSPOSED.match(images[0].name):
        warnings.warn(
            f"{images[0]}: EMNIST stores its images transposed; they are turned upright",
            stacklevel=5,
        )
    files = [(path, _labels_of(path)) for path in sorted(images, key=_train_first)]
    return IdxPictures(files, settings.names or DIGIT_NAMES)


def _train_first(path: Path) -> tuple[bool, str]:
    return part_of(path) != "train", path.name


def _labels_of(images: Path) -> Path:
    """The file of the labels. Raises UserError where it is not there."""
    name = re.sub("images([-.])idx3", r"labels\1idx1", images.name, flags=re.IGNORECASE)
    stem = re.sub(r"\.(gz|xz)$", "", name)
    for suffix in (name.removeprefix(stem), "", ".gz", ".xz"):
        file = images.with_name(stem + suffix)
        if file.is_file():
            return file
    raise UserError(f"{images.with_name(stem)}: no such file, plain, .gz or .xz; it has the labels")
