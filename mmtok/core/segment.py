"""The values that rooms exchange: what a tokenizer makes, what a vocabulary lays out, what a model
reads.

The legend of letters, for the whole package: B rows, L stream positions, T frames, C channels, K
levels, D latent size, M model width, H heads, P particles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from mmtok.errors import UserError

MOST_LEVELS = 2**31  # of a channel: codes are 32-bit numbers
MOST_CHANNELS = 2**16
MOST_FRAMES = 2**40  # of a segment


@dataclass(frozen=True)
class Signature:
    """All that a vocabulary and a model know of a tokenizer.

    modality     its name, e.g. "speech"
    levels       sizes of the channels, (16,) * 80; () when the frames are latents
    latent_size  D; 0 when the frames are codes
    frames       a fixed count of frames (a 4x4 grid: 16), or None: the segment runs until its end
                 mark
    fingerprint  of the tokenizer's own file
    banned       one-channel codes that never occur in data (a text model's own unknown, start and
                 stop pieces)
    descending   the frames are a set, written in falling lexicographic order of their channels
                 (jets: pt, then eta, then phi): the grammar allows no other list of them, so p of
                 the list is p of the set (of a multiset: equal frames may follow each other)
    headers      so many first frames stand before that order (a jet's totals)
    cells        latents only: they are the centres of so many even cells of the axis -1 to 1, so
                 the data is discrete; 0: continuous
    """

    modality: str
    levels: tuple[int, ...] = ()
    latent_size: int = 0
    frames: int | None = None
    fingerprint: str = ""
    banned: tuple[int, ...] = ()
    descending: bool = False
    headers: int = 0
    cells: int = 0

    def __post_init__(self):
        if bool(self.levels) == bool(self.latent_size):
            raise ValueError(
                f"signature of {self.modality!r}: exactly one of levels and latent_size must be set"
            )
        if self.banned and len(self.levels) != 1:
            raise ValueError(
                f"signature of {self.modality!r}: only one-channel codes can be banned"
            )
        self._check_sizes()
        if self.cells < 0 or self.cells and not self.latent_size:
            raise ValueError(
                f"signature of {self.modality!r}: cells are a count, and of latents only"
            )
        if not isinstance(self.descending, bool) or self.descending and not self.levels:
            raise ValueError(
                f"signature of {self.modality!r}: descending is true or false, and true of codes"
                " only"
            )
        if self.headers < 0 or self.headers and not self.descending:
            raise ValueError(
                f"signature of {self.modality!r}: headers are a count of frames before a descending"
                " order"
            )

    def _check_sizes(self) -> None:
        """Raise UserError for numbers that no tokenizer has: they come from files too."""
        ranges = {
            "levels": (1, MOST_LEVELS, self.levels),
            "latent_size": (0, MOST_CHANNELS, (self.latent_size,)),
            "frames": (0, MOST_FRAMES, () if self.frames is None else (self.frames,)),
            "cells": (0, MOST_LEVELS, (self.cells,)),
            "banned": (0, max(self.levels, default=1) - 1, self.banned),
            "the number of channels": (0, MOST_CHANNELS, (len(self.levels),)),
        }
        for name, (least, most, values) in ranges.items():
            wrong = [value for value in values if not least <= value <= most]
            if wrong:
                raise UserError(
                    f"signature of {self.modality!r}: {name} is {wrong[0]}; it must be from {least}"
                    f" to {most}"
                )

    @property
    def one_channel(self) -> bool:
        """Whether a frame is a single id of the stream (else its values travel beside the stream,
        as those of a set always do).
        """
        return len(self.levels) == 1 and not self.descending

    def ceilings(self, frames: np.ndarray) -> np.ndarray:
        """The highest frame that the order allows at each place of frames (T, C), and behind them:
        (T + 1, C).
        """
        found = np.tile(np.array(self.levels) - 1, (len(frames) + 1, 1))
        found[self.headers + 1 :] = frames[self.headers :]
        return found

    def as_dict(self) -> dict:
        """JSON-able fields."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Segment:
    """One signal as frames.

    Exactly one of `codes` (T, C) integers and `latents` (T, D) float32 is set.

    info       what decoding needs beyond the frames (n_samples, rate_hz, height, width, jet axis);
               scalars only
    truncated  frames were cut off at a cap: the segment does not end here, so it carries no end
               mark
    holes      spans [start, stop) of frames that the stream gives last, after a hole mark in their
               place
    """

    modality: str
    codes: np.ndarray | None = None
    latents: np.ndarray | None = None
    info: Mapping = field(default_factory=dict)
    truncated: bool = False
    holes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if (self.codes is None) == (self.latents is None):
            raise ValueError(
                f"segment of {self.modality!r}: exactly one of codes and latents must be set"
            )
        if self.values.ndim != 2:
            raise ValueError(
                f"segment of {self.modality!r}: frames must be (T, C), got shape"
                f" {self.values.shape}"
            )
        if self.holes:
            self._check_holes()

    def _check_holes(self) -> None:
        edges = [edge for hole in self.holes for edge in hole]
        if (
            edges != sorted(edges)
            or any(a > b for a, b in self.holes)
            or (edges and not 0 <= edges[0] <= edges[-1] <= len(self))
        ):
            raise ValueError(
                f"segment of {self.modality!r}: holes {self.holes} are not ordered spans within"
                f" {len(self)} frames"
            )
        if self.truncated:
            raise ValueError(f"segment of {self.modality!r}: a truncated segment cannot have holes")

    @property
    def values(self) -> np.ndarray:
        """The frames, whichever kind they are: (T, C) or (T, D)."""
        return self.codes if self.codes is not None else self.latents

    def __len__(self) -> int:
        return len(self.values)


def segment_of(signature: Signature, values: np.ndarray | None = None, **more: object) -> Segment:
    """A segment of this signature's kind with these frames, codes (T, C) or latents (T, D); None:
    without any.
    """
    if values is None:
        values = np.zeros((0, len(signature.levels) or signature.latent_size))
    kind, dtype = ("latents", np.float32) if signature.latent_size else ("codes", np.int64)
    return Segment(signature.modality, **{kind: values.astype(dtype)}, **more)


@dataclass(frozen=True, eq=False)
class Document:
    """Segments in the order of a task, and which of them the task predicts.

    A `None` among the segments is a condition left out: the stream carries the null mark in its
    place. The last segment may be open (`open_end`), which makes the document a prompt: its stream
    stops after the frames known so far, or, in a segment with holes, after the fill mark of the
    first hole that is not among the `n_filled` given ones.
    """

    segments: tuple[Segment | None, ...]
    predict: tuple[bool, ...]
    open_end: bool = False
    n_filled: int = 0

    def __post_init__(self):
        if len(self.segments) != len(self.predict):
            raise ValueError(
                f"document: {len(self.segments)} segments but {len(self.predict)} predict flags"
            )
        if any(p and s is None for s, p in zip(self.segments, self.predict)):
            raise ValueError("document: a condition left out cannot be predicted")
