"""Labelled pictures in MNIST's file format: MNIST, Fashion-MNIST, Kuzushiji-MNIST, EMNIST."""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.walk import folder_at
from mmtok.sources.base import Source
from mmtok.sources.image_files import DIGIT_NAMES

OPENERS: dict[str, Callable] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
PREFIXES = {"train": "train", "heldout": "t10k"}
MOST_AXES = 4
UINT8 = 0x08  # the format's code of the type


def read_idx(path: Path) -> np.ndarray:
    """An array of uint8 from a file of MNIST's format, plain or packed by gzip or xz.

    The format: two zero bytes, a type, the count of axes, sizes as big-endian 32 bits, values.

    Raises UserError, naming the file, for one that is missing, damaged, or of another type.
    """
    path = Path(path)
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            shape = _shape(path, file.read(4), file)
            n_values = math.prod(shape)
            memory_budget.check(2 * n_values, path)
            data = file.read(n_values + 1)  # one more: there must be none
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read, it may be truncated: {reason_of(error)}"
        ) from None
    if len(data) != n_values:
        there = f"{4 + 4 * len(shape) + len(data):,} bytes"
        if len(data) > n_values:
            there += " or more"
        raise UserError(
            f"{path}: its header says {' x '.join(map(str, shape))}, but {there} are there"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, head: bytes, file: BinaryIO) -> tuple[int, ...]:
    """The sizes of the axes, from the first four bytes, `head`, and those that follow them."""
    if len(head) < 4 or head[:2] != b"\0\0":
        raise UserError(f"{path}: not a file of MNIST's format")
    if head[2] != UINT8:
        raise UserError(f"{path}: values of type 0x{head[2]:02x}; only bytes (0x08) are read")
    axes = head[3]
    sizes = file.read(4 * axes)
    if not 1 <= axes <= MOST_AXES or len(sizes) < 4 * axes:
        raise UserError(
            f"{path}: its header says {axes} axes, of which {len(sizes) // 4} are there; 1 to"
            f" {MOST_AXES} are read"
        )
    return struct.unpack(f">{axes}I", sizes)


@dataclass(frozen=True)
class IdxImages(Source):
    """A folder with MNIST's four files: examples {"caption": name of the label, "image": image}.

    The files are train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, which are
    held out; plain, .gz or .xz. Images are grey, uint8.

    Attributes:
        path: of the folder.
        names: captions of the labels 0, 1, ...
    """

    path: str = ""
    names: tuple[str, ...] = DIGIT_NAMES

    @property
    def fields(self) -> dict[str, str]:
        """An image and the name of its label."""
        return {"caption": "text", "image": "image"}

    def check(self) -> None:
        """Raise UserError where one of the files is missing."""
        for split in PREFIXES:
            self._file(split, "images-idx3")
            self._file(split, "labels-idx1")

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, Y, X) uint8 and labels (N,) of a split.

        Raises UserError for damaged files and for labels without a name.
        """
        self.check_split(split)
        images = read_idx(self._file(split, "images-idx3"))
        labels = read_idx(self._file(split, "labels-idx1"))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(
                f"{self.path}: {split} images are {images.shape} and labels {labels.shape};"
                " expected (N, Y, X) and (N,)"
            )
        if len(labels) and labels.max() >= len(self.names):
            raise UserError(
                f"{self.path}: label {labels.max()} has no name; names are {', '.join(self.names)}"
            )
        return images, labels

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """The images of a split, in the order of the files."""
        for image, label in zip(*self.load(split), strict=True):
            yield {"caption": self.names[label], "image": image}

    def _file(self, split: str, what: str) -> Path:
        """The file of a split's images or labels, packed or not."""
        folder = folder_at(self.path, "IdxImages", "MNIST's four files")
        name = f"{PREFIXES[split]}-{what}-ubyte"
        for suffix in OPENERS:
            file = folder / f"{name}{suffix}"
            if file.is_file():
                return file
        packed = " or ".join(suffix for suffix in OPENERS if suffix)
        raise UserError(f"{folder / name}: no such file, nor one packed as {packed}")
