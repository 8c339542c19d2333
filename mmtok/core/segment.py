"""The values that rooms exchange: signatures, segments, documents.

The legend of letters, for the whole package: B rows, L stream positions, T frames, C channels, K
levels, D latent size, M model width, H heads, P particles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mmtok.errors import UserError

MOST_LEVELS = 2**31  # of a channel: codes are 32-bit numbers
MOST_CHANNELS = 2**16
MOST_FRAMES = 2**40  # of a segment


@dataclass(frozen=True)
class Signature:
    """All that a vocabulary and a model know of a tokenizer.

    Attributes:
        modality: its name, e.g. "speech".
        levels: number of codes of each channel, (16,) * 80; () when the frames are latents.
        latent_size: D; 0 when the frames are codes.
        frames: fixed number of frames (a 4x4 grid: 16), or None: a segment runs until its end mark.
        fingerprint: of the tokenizer's own file.
        banned: one-channel codes that never occur in data (a text model's own unknown, start and
            stop pieces).
        descending: the frames are a set, written in falling lexicographic order of their channels
            (jets: pt, then eta, then phi). The grammar allows no other order, so p of the list is p
            of the set; equal frames may follow each other, so it is a multiset.
        headers: number of first frames that stand outside that order (a jet's totals).
        cells: of latents that are discrete: each is the centre of one of so many equal cells of the
            axis from -1 to 1; 0: continuous.
        rows: the codes of a segment stand in rows of one length, each closed by a row mark, the
            code `levels[0]`. The grammar allows nothing else.
        columns: of codes in rows, how many a row has: an axis of known size, as the patches of a
            video's pictures; 0: the first row says it.
        scales: of latents that are standardised quantities: what each was divided by, in the
            caller's unit, so that densities can be said in that unit; (): latents as they are.
        counts: the latents are log(1 + n) of counts n, so that p is a probability.
        unordered: the frames are latents of a set, in whatever order: a head of sets gives the
            density of the set, which all orders share.
        given: of unordered frames, how many of each element's numbers, its last ones, are known
            before the set is drawn: a head of sets conditions on them. They are the frames of the
            segment before it, one for each element.
        graph: of the given numbers the last ones are a row of U with U U^T the Laplacian of a graph
            of the elements, one column per eigenvector: signs and order of columns mean nothing.
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
    rows: bool = False
    scales: tuple[float, ...] = ()
    counts: bool = False
    unordered: bool = False
    columns: int = 0
    given: int = 0
    graph: int = 0

    def __post_init__(self) -> None:
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
        if self.rows and (not self.one_channel or self.frames is not None):
            raise ValueError(
                f"signature of {self.modality!r}: rows are of one-channel codes, of any number"
            )
        if self.columns and not self.rows:
            raise ValueError(f"signature of {self.modality!r}: columns are those of rows")
        self._check_quantities()
        if self.headers < 0 or self.headers and not self.descending:
            raise ValueError(
                f"signature of {self.modality!r}: headers are a count of frames before a descending"
                " order"
            )

    def _check_quantities(self) -> None:
        """Raise UserError for scales and counts that no latents have."""
        are_scales = len(self.scales) == self.latent_size
        are_scales = are_scales and all(0 < scale < math.inf for scale in self.scales)
        if self.scales and not are_scales:
            raise UserError(
                f"signature of {self.modality!r}: scales are one for each latent, above 0 and"
                " finite"
            )
        if self.counts and (not self.latent_size or self.cells or self.scales):
            raise UserError(
                f"signature of {self.modality!r}: counts are latents without cells and scales"
            )
        if self.unordered and (not self.latent_size or self.frames is not None):
            raise UserError(
                f"signature of {self.modality!r}: unordered frames are latents, of any number"
            )
        if not 0 <= self.given < max(1, self.latent_size) or self.given and not self.unordered:
            raise UserError(
                f"signature of {self.modality!r}: given are some of the numbers of unordered frames"
            )
        if not 0 <= self.graph <= self.given:
            raise UserError(f"signature of {self.modality!r}: graph is a part of what is given")

    def _check_sizes(self) -> None:
        """Raise UserError for numbers that no tokenizer has: they come from files too."""
        ranges = {
            "levels": (1, MOST_LEVELS, self.levels),
            "latent_size": (0, MOST_CHANNELS, (self.latent_size,)),
            "frames": (0, MOST_FRAMES, () if self.frames is None else (self.frames,)),
            "cells": (0, MOST_LEVELS, (self.cells,)),
            "columns": (0, MOST_FRAMES, (self.columns,)),
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
        """Whether a frame is a single id of the stream.

        Otherwise its values are kept apart from the ids, as those of a set always are.
        """
        return len(self.levels) == 1 and not self.descending

    @property
    def n_free(self) -> int:
        """Of D numbers of a frame of latents, those that are not given."""
        return self.latent_size - self.given

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values of each channel of a segment's codes, with the row mark where there are rows."""
        return tuple(n + self.rows for n in self.levels)

    @property
    def bits_per_frame(self) -> float:
        """log2 of the number of different frames; 0 for continuous latents."""
        if not self.latent_size:
            return sum(map(math.log2, self.levels))
        if self.cells:
            return self.latent_size * math.log2(self.cells)
        return 0.0

    def ceilings(self, frames: np.ndarray) -> np.ndarray:
        """The highest legal frame at each place of frames (T, C) and after them: (T + 1, C)."""
        ceilings = np.tile(np.array(self.levels) - 1, (len(frames) + 1, 1))
        ceilings[self.headers + 1 :] = frames[self.headers :]
        return ceilings

    def as_dict(self) -> dict:
        """JSON-able fields."""
        fields = asdict(self)
        for name in ("rows", "scales", "counts", "unordered", "columns", "given", "graph"):
            if not fields[name]:  # a fingerprint does not change by what is not used
                del fields[name]
        return fields


@dataclass(frozen=True, eq=False)
class Segment:
    """One signal as frames.

    Exactly one of `codes` (T, C) integers and `latents` (T, D) float32 is set.

    Attributes:
        info: what decoding needs beyond the frames (n_samples, rate_hz, height, width, jet axis);
            scalars only.
        truncated: frames were cut off at a cap: the signal goes on, so there is no end mark.
        infill_spans: spans [start, stop) of frames to infill: the stream gives them last, with a
            HOLE mark in their place.
        predict: (T,) bool: of which frames p is asked for, where the document asks for this
            segment (a chat: the assistant's turns); None: of all. The end mark goes with the last
            frame.
    """

    modality: str
    codes: np.ndarray | None = None
    latents: np.ndarray | None = None
    info: Mapping = field(default_factory=dict)
    truncated: bool = False
    infill_spans: tuple[tuple[int, int], ...] = ()
    predict: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.codes is None) == (self.latents is None):
            raise ValueError(
                f"segment of {self.modality!r}: exactly one of codes and latents must be set"
            )
        if self.values.ndim != 2:
            raise ValueError(
                f"segment of {self.modality!r}: frames must be (T, C), got shape"
                f" {self.values.shape}"
            )
        if self.infill_spans:
            self._check_infill_spans()
        mask = self.predict
        if mask is not None and (mask.dtype != bool or mask.shape != (len(self),)):
            raise ValueError(
                f"segment of {self.modality!r}: predict must be ({len(self)},) bool, got"
                f" {mask.shape} {mask.dtype}"
            )

    def _check_infill_spans(self) -> None:
        edges = [edge for span in self.infill_spans for edge in span]
        if edges != sorted(edges) or edges[0] < 0 or edges[-1] > len(self):
            raise ValueError(
                f"segment of {self.modality!r}: infill_spans {self.infill_spans} are not ordered"
                f" spans within {len(self)} frames"
            )
        if self.truncated:
            raise ValueError(
                f"segment of {self.modality!r}: a truncated segment cannot have spans to infill"
            )

    @property
    def values(self) -> np.ndarray:
        """The frames, of either kind: codes (T, C) or latents (T, D)."""
        if self.codes is not None:
            return self.codes
        assert self.latents is not None
        return self.latents

    @property
    def asked(self) -> np.ndarray:
        """(T,) bool: `predict`, with None written out."""
        if self.predict is None:
            return np.ones(len(self), bool)
        return self.predict

    def __len__(self) -> int:
        return len(self.values)


def segment_of(signature: Signature, values: np.ndarray | None = None, **more: Any) -> Segment:
    """A segment of these frames, codes (T, C) or latents (T, D) as the signature says.

    None: a segment without frames. more: further fields of `Segment`.
    """
    if values is None:
        values = np.zeros((0, len(signature.levels) or signature.latent_size))
    if signature.latent_size:
        return Segment(signature.modality, latents=values.astype(np.float32), **more)
    return Segment(signature.modality, codes=values.astype(np.int64), **more)


@dataclass(frozen=True, eq=False)
class Document:
    """Segments in the order of a task, and which of them the task predicts.

    Attributes:
        segments: None stands for a condition that is left out: the stream has the null mark there.
        predict: of each segment, whether p of its frames is asked for; `Segment.predict` says of
            which of them.
        open_end: the last segment is not finished, so the document is a prompt: its stream stops
            after the frames known so far or, where there are spans to infill, after the FILL mark
            of the first that is still empty.
        n_filled: of an open segment, the number of spans to infill whose frames are known.
    """

    segments: tuple[Segment | None, ...]
    predict: tuple[bool, ...]
    open_end: bool = False
    n_filled: int = 0

    def __post_init__(self) -> None:
        if len(self.segments) != len(self.predict):
            raise ValueError(
                f"document: {len(self.segments)} segments but {len(self.predict)} predict flags"
            )
        if any(p and s is None for s, p in zip(self.segments, self.predict, strict=True)):
            raise ValueError("document: a condition left out cannot be predicted")

    @property
    def target(self) -> Segment:
        """The last segment: of a prompt the one to continue.

        Raises ValueError where there is none, or where it is a condition left out.
        """
        if not self.segments or self.segments[-1] is None:
            raise ValueError("document: it has no last segment")
        return self.segments[-1]
