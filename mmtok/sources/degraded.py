"""Pictures beside what a blur, a loss of resolution, a hole or noise leaves of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from mmtok.errors import UserError
from mmtok.io.serialize import Kinds
from mmtok.sources.base import Altered, Chunk, Listing, Source, Unusable
from mmtok.sources.handwritten import HandwrittenDigits
from mmtok.sources.hub import HubTable
from mmtok.sources.idx import IdxImages
from mmtok.sources.images import ImageFolder, ScannedDigits, noisy

PictureSources = ScannedDigits | HandwrittenDigits | ImageFolder | IdxImages | HubTable
DEGRADED = "degraded"  # the field
GREY = 128  # of a hole


class Degradation(ABC):
    """What happens to a picture, uint8 (Y, X) or (Y, X, 3): a frozen dataclass of settings."""

    @abstractmethod
    def apply(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What is left of a picture, in its size."""

    def shown(self, degraded: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """What a viewer shows of a degraded picture: the baseline of a restoration.

        mean: of pictures that are whole, in grey values.
        """
        return degraded


@dataclass(frozen=True)
class Blur(Degradation):
    """A Gaussian blur; at the edges only pixels that are there count.

    Attributes:
        sigma: standard deviation in pixels.
    """

    sigma: float = 1.5

    def __post_init__(self) -> None:
        _check_positive(self, "sigma")

    def apply(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The same for every draw."""
        rows = self._weights(picture.shape[0])
        columns = self._weights(picture.shape[1])
        found = np.einsum("yi,xj,ij...->yx...", rows, columns, picture, optimize=True)
        return np.round(found).astype(np.uint8)

    def _weights(self, n: int) -> np.ndarray:
        """(n, n): what each pixel of a line counts for each, of sum 1 for each."""
        distances = np.subtract.outer(np.arange(n), np.arange(n))
        weights = np.exp(-np.square(distances / self.sigma) / 2)
        return weights / weights.sum(1, keepdims=True)


@dataclass(frozen=True)
class Downsample(Degradation):
    """A small copy of a picture, which is scaled up again; both bicubic.

    A small picture as a prompt is scaled up likewise.

    Attributes:
        factor: how much shorter its sides are.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise UserError(f"Downsample: factor is {self.factor}; it must be at least 2")

    def apply(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The same for every draw."""
        height, width = picture.shape[:2]
        small = (max(1, round(width / self.factor)), max(1, round(height / self.factor)))
        reduced = Image.fromarray(picture).resize(small, Image.Resampling.BICUBIC)
        return np.array(reduced.resize((width, height), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Hole(Degradation):
    """A grey rectangle in the picture's proportions, anywhere in it.

    Attributes:
        share: of the area.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"Hole: share is {self.share}; it must be between 0 and 1")

    def apply(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """At another place for every draw."""
        height, width = self._sides(picture)
        top = rng.integers(picture.shape[0] - height + 1)
        left = rng.integers(picture.shape[1] - width + 1)
        covered = picture.copy()
        covered[top : top + height, left : left + width] = GREY
        return covered

    def shown(self, degraded: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The mean in the hole."""
        filled = degraded.copy()
        hole = self.mask(degraded)
        filled[hole] = np.round(mean[hole]).astype(np.uint8)
        return filled

    def mask(self, degraded: np.ndarray) -> np.ndarray:
        """Where the hole is, or may be: (Y, X) bool, of all grey rectangles of its size."""
        grey = degraded == GREY
        if grey.ndim == 3:
            grey = grey.all(2)
        sides = self._sides(degraded)
        whole = np.lib.stride_tricks.sliding_window_view(grey, sides).all((2, 3))
        found = np.zeros(grey.shape, bool)
        for top, left in np.argwhere(whole):
            found[top : top + sides[0], left : left + sides[1]] = True
        return found

    def _sides(self, picture: np.ndarray) -> tuple[int, int]:
        """Its height and width in pixels."""
        height, width = picture.shape[:2]
        scale = math.sqrt(self.share)
        return max(1, round(scale * height)), max(1, round(scale * width))


@dataclass(frozen=True)
class Noise(Degradation):
    """Gaussian noise, cut to 0..255.

    Attributes:
        sigma: standard deviation in grey values.
    """

    sigma: float = 40.0

    def __post_init__(self) -> None:
        _check_positive(self, "sigma")

    def apply(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Other noise for every draw."""
        return noisy(picture, self.sigma, rng)


def _check_positive(degradation: Any, name: str) -> None:
    """Raise UserError for a setting that is not above 0, or not finite."""
    value = getattr(degradation, name)
    if not 0 < value < math.inf:
        raise UserError(
            f"{type(degradation).__name__}: {name} is {value}; it must be above 0, and finite"
        )


def degrade(
    picture: np.ndarray, degradations: Sequence[Degradation], seed: Sequence[int]
) -> np.ndarray:
    """A picture, uint8 (Y, X) or (Y, X, 3), after one degradation and then the next."""
    rng = np.random.default_rng(seed)
    for degradation in degradations:
        picture = degradation.apply(picture, rng)
    return picture


@dataclass(frozen=True)
class DegradedChunk:
    """A chunk of pictures, each with what is left of it.

    Attributes:
        chunk: of the pictures.
        source: says how they are degraded.
        copies: of each.
        seed: of the first one's draws, with one more number for each.
    """

    chunk: Chunk
    source: Degraded
    copies: int
    seed: tuple[int, ...]

    @property
    def files(self) -> Sequence[str | Path]:
        """That the pictures are read from."""
        return getattr(self.chunk, "files", ())

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The examples, those of one picture after another."""
        for i, example in enumerate(self.chunk.read()):
            if isinstance(example, Unusable):
                yield example
                continue
            for k in range(self.copies):
                yield self._degraded(example, (*self.seed, i, k))

    def _degraded(self, example: dict[str, Any], seed: tuple[int, ...]) -> dict[str, Any]:
        """The example with one draw; as it is where it has no picture."""
        if self.source.field not in example:
            return example
        change = partial(degrade, degradations=self.source.degradations, seed=seed)
        made = copy(example)  # an `Example` keeps its name
        made[DEGRADED] = Altered(example[self.source.field], change)
        return made


@dataclass(frozen=True)
class Degraded(Source):
    """The examples of a source of pictures, with one more field: "degraded".

    A task ("degraded",) -> ("image",) learns to restore pictures: deblurring, super-resolution,
    inpainting and denoising, each by its degradation, and several one after another as a camera has
    them. Pictures are degraded in the size that the tokenizer takes. In "train" a picture comes
    `copies` times, with other draws of noise and holes; in "heldout" once.

    Attributes:
        source: of the pictures.
        degradations: what happens to them, in this order; a hole comes last.
        field: the one that has the pictures.
        copies: per training picture.
        seed: of the draws.
    """

    source: Annotated[Source, Kinds(PictureSources)] = ScannedDigits()
    degradations: tuple[Blur | Downsample | Hole | Noise, ...] = (Downsample(),)
    field: str = "image"
    copies: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.copies < 1 or not self.degradations:
            raise UserError(
                f"Degraded: copies is {self.copies}, and degradations are"
                f" {len(self.degradations)}; at least one of each is needed"
            )
        if any(isinstance(degradation, Hole) for degradation in self.degradations[:-1]):
            raise UserError("Degraded: a Hole must be the last of the degradations: put it there")
        fields = self.source.fields
        if fields.get(self.field) != "image" or DEGRADED in fields:
            raise UserError(
                f"Degraded: {type(self.source).__name__} has the fields {', '.join(fields)}; field"
                f" must name one of pictures among them, and none may be called {DEGRADED}"
            )

    @property
    def fields(self) -> Mapping[str, str]:
        """Those of the source, and "degraded"."""
        return {**self.source.fields, DEGRADED: "image"}

    @property
    def gives(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """As the source says."""
        return self.source.gives

    @property
    def splits(self) -> tuple[str, ...]:
        """The source's."""
        return self.source.splits

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The examples of a split, the draws of one picture after another."""
        self.check_split(split)
        yield from self.listing(split, cache).examples()

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The source's chunks, each degraded where it is read."""
        self.check_split(split)
        listed = self.source.listing(split, cache)
        copies = self._copies(split)
        seed = (self.seed, self.splits.index(split))
        chunks = (
            DegradedChunk(chunk, self, copies, (*seed, i)) for i, chunk in enumerate(listed.chunks)
        )
        n = None
        if listed.n is not None:
            n = copies * listed.n
        return Listing(chunks, listed.faults, n)

    def check(self) -> None:
        """The source's."""
        self.source.check()

    def count(self, split: str, cache: Path) -> int | None:
        """The source's, times the copies."""
        self.check_split(split)
        n = self.source.count(split, cache)
        if n is None:
            return None
        return n * self._copies(split)

    def clean(self) -> Degraded:
        """Each picture once, not augmented by its source; itself where that is so."""
        clean = self.source.clean()
        if clean is self.source and self.copies == 1:
            return self
        return replace(self, source=clean, copies=1)

    def reading(self, modality: str, path: Path) -> Mapping[str, Any]:
        """As the source reads other files."""
        return self.source.reading(modality, path)

    def description(self, cache: Path | None = None) -> str:
        """The source's."""
        return self.source.description(cache)

    def found(self) -> str:
        """What the source finds."""
        return self.source.found()

    def _copies(self, split: str) -> int:
        if split == "train":
            return self.copies
        return 1


def shown_of(
    degraded: np.ndarray, degradations: Sequence[Degradation], mean: np.ndarray
) -> np.ndarray:
    """What a viewer shows of a degraded picture, see `Degradation.shown`."""
    for degradation in degradations:
        degraded = degradation.shown(degraded, mean)
    return degraded
