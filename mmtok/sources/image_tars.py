"""Pictures with captions in tars, as webdataset and img2dataset write them."""

from __future__ import annotations

import io
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.io.tars import Span, TarIndex, read_span
from mmtok.sources.base import Chunk, Example
from mmtok.sources.image_files import PICTURES, decode_image, size_of
from mmtok.sources.leaks import Content, FilePart, numbered_by_content
from mmtok.sources.pictures import Pictures, Place, ReadSettings, item_chunks
from mmtok.sources.screen import Tolerance
from mmtok.sources.tar_samples import Caption, Tars, tars_of

HEADER_BYTES = 2**14  # of a picture, that mostly hold its size
N_KNOWN = 4  # corpora whose equal pictures are remembered


class Sample(NamedTuple):
    """What is needed to read a picture and its caption."""

    path: Path
    key: str
    suffix: str
    picture: Span
    text: Span
    caption: Caption

    @property
    def name(self) -> str:
        """The picture, as messages call it."""
        return f"{self.path}: {self.key}.{self.suffix}"


def tar_of(sample: Sample) -> Path:
    """The tar of a sample."""
    return sample.path


def name_of(sample: Sample) -> str:
    """The picture of a sample, as messages call it."""
    return sample.name


def read_sample(sample: Sample) -> Example:
    """The example of a sample. Raises UserError where its members cannot be read."""
    where = f"{sample.path}: {sample.key}.{sample.caption.suffix}"
    caption = sample.caption.text(read_span(sample.path, sample.text, where), where)
    content = read_span(sample.path, sample.picture, sample.name)
    picture = decode_image(io.BytesIO(content), sample.name)
    return Example({"caption": caption, "image": picture}, sample.name)


_sizes: WeakKeyDictionary[TarIndex, np.ndarray] = WeakKeyDictionary()  # in pixels; 0: not known


class TarPictures(Pictures):
    """The samples of tars that have a picture and a caption.

    Attributes:
        sizes: bytes of each picture.
    """

    def __init__(
        self, folder: Path, tars: Sequence[TarIndex], suffixes: Sequence[str], caption: Caption
    ) -> None:
        self._tars = tars
        self._suffixes = suffixes
        self._caption = caption
        self._parts = [(tar.path.relative_to(folder).as_posix(),) for tar in tars]
        self._tar_of = array("l")
        self._sample_of = array("q")
        self._suffix_of = array("b")
        self.sizes = array("q")
        with Tally("samples") as tally:
            for t, tar in enumerate(tars):
                self._add(t, tar, tally)

    def _add(self, t: int, tar: TarIndex, tally: Tally) -> None:
        tally.count(len(tar))
        which = np.full(len(tar), -1)
        sizes = np.full(len(tar), -1)
        for s, suffix in enumerate(self._suffixes):
            having = tar.having(suffix)
            twice = np.flatnonzero(having & (which >= 0))
            if len(twice):
                first = f"{tar.path}: {tar.key(int(twice[0]))}"
                a = self._suffixes[which[twice[0]]]
                raise UserError(
                    f"{first}: has two pictures, {a} and {suffix}; say which: --columns image={a}"
                    f" or image={suffix}"
                )
            which[having] = s
            sizes[having] = tar.sizes(suffix)[having]
        has_text = tar.having(self._caption.suffix)
        for missing, what in [
            (which < 0, "left out: they have no picture"),
            ((which >= 0) & ~has_text, f"left out: they have no {self._caption.suffix}"),
        ]:
            if missing.any():
                first = tar.key(int(np.argmax(missing)))
                tally.add(what, f"{tar.path}: {first}", int(missing.sum()))
        usable = np.flatnonzero((which >= 0) & has_text)
        self._tar_of.extend([t] * len(usable))
        self._sample_of.extend(usable.tolist())
        self._suffix_of.extend(which[usable].tolist())
        self.sizes.extend(sizes[usable].tolist())

    def __len__(self) -> int:
        return len(self._sample_of)

    def _sample(self, i: int) -> Sample:
        tar = self._tars[self._tar_of[i]]
        k = self._sample_of[i]
        suffix = self._suffixes[self._suffix_of[i]]
        picture = tar.span(k, suffix)
        text = tar.span(k, self._caption.suffix)
        assert picture is not None and text is not None  # only such samples are kept
        return Sample(tar.path, tar.key(k), suffix, picture, text, self._caption)

    def name(self, i: int) -> str:
        """Tar and member."""
        return self._sample(i).name

    def pixels(self, i: int) -> int:
        """From its header, which is looked at once."""
        tar = self._tars[self._tar_of[i]]
        k = self._sample_of[i]
        if tar not in _sizes:
            _sizes[tar] = np.zeros(len(tar), np.int64)
        if not _sizes[tar][k]:
            _sizes[tar][k] = _pixels(self._sample(i))
        return int(_sizes[tar][k])

    def parts(self, i: int) -> tuple[str, ...]:
        """Its tar."""
        return self._parts[self._tar_of[i]]

    def content(self, i: int) -> Content:
        """A part of its tar."""
        sample = self._sample(i)
        return FilePart(str(sample.path), sample.picture.offset, sample.picture.size)

    def groups(self) -> np.ndarray | None:
        """Samples of one picture, which has several captions; None where all pictures differ."""
        numbers = _numbered(self)
        n_equal = int((numbers != np.arange(len(self))).sum())
        if not n_equal:
            return None
        first = int(np.argmax(numbers != np.arange(len(self))))
        with Tally("pictures") as tally:
            tally.count(len(self))
            tally.add("equal to another one, and kept in its split", self.name(first), n_equal)
        return numbers

    def key(self) -> tuple[Hashable, ...]:
        """What its samples depend on; an index is made anew where its tar has changed."""
        return (*self._tars, *self._suffixes, self._caption.suffix)

    def chunks(self, chosen: Sequence[int]) -> Iterator[Chunk]:
        """An example for each sample."""
        return item_chunks((self._sample(i) for i in chosen), read_sample, name_of, tar_of)


_known: OrderedDict[Hashable, np.ndarray] = OrderedDict()  # of the last corpora


def _numbered(pictures: TarPictures) -> np.ndarray:
    """(N,) the first sample with an equal picture; those of one size are read for this, once."""
    key = pictures.key()
    if key not in _known:
        numbers = np.arange(len(pictures))
        _, which, counts = np.unique(pictures.sizes, return_inverse=True, return_counts=True)
        alike = np.flatnonzero(counts[which] > 1)
        contents = [pictures.content(i) for i in alike.tolist()]
        numbers[alike] = alike[numbered_by_content(contents)]
        _known[key] = numbers
        while len(_known) > N_KNOWN:
            _known.popitem(last=False)
    return _known[key]


def _pixels(sample: Sample) -> int:
    """The size of a sample's picture. Raises UserError for one that is broken."""
    if not sample.picture.size:
        raise UserError(f"{sample.name}: the picture is empty")
    head = read_span(sample.path, sample.picture, sample.name, HEADER_BYTES)
    try:
        height, width = size_of(io.BytesIO(head), sample.name)
    except UserError:
        if sample.picture.size <= HEADER_BYTES:
            raise
        whole = read_span(sample.path, sample.picture, sample.name)
        height, width = size_of(io.BytesIO(whole), sample.name)
    return height * width


def read_tars(place: Place, settings: ReadSettings, tolerance: Tolerance) -> TarPictures:
    """The pictures in tars.

    Raises UserError where they hold no pictures or no captions, and where too many are broken.
    """
    tars = Tars(tars_of(place.companions), tolerance, place.shown)
    known = [suffix.lstrip(".") for suffix in PICTURES]
    suffixes = tars.suffixes("image", known, settings.columns)
    caption = tars.caption(settings.columns, settings.names)
    return TarPictures(place.folder, tars.indices, suffixes, caption)
