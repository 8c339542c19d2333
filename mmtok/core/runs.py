"""Runs of places of a batch: the segments of frames, and which frames make up which set.

Letters: P predicted places of one modality, F of them frames, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Runs:
    """Frames in stream order, taken apart into their segments.

    Attributes:
        number: (N,) which segment each frame belongs to, counted from 0.
        place: (N,) the place of each frame in its segment.
        n: how many segments there are.
        longest: frames of the longest one.
    """

    number: Tensor
    place: Tensor
    n: int
    longest: int

    @classmethod
    def of(cls, segment: Tensor) -> Runs:
        """Of numbers (N,) that change from one segment to the next."""
        _, number, lengths = segment.unique_consecutive(return_inverse=True, return_counts=True)
        starts = lengths.cumsum(0) - lengths
        place = torch.arange(len(segment), device=segment.device) - starts[number]
        return cls(number, place, len(lengths), max(lengths.tolist(), default=0))


@dataclass(frozen=True, eq=False)
class SetPlaces:
    """The predicted places of sets, taken apart into S segments; see `Signature.unordered`.

    Attributes:
        number: (P,) which segment each predicted place belongs to, counted from 0.
        first: (S,) which of the predicted places is the first of each segment.
        n_before: (S,) positions of its document before each segment's first frame or end mark.
        n_frames: (S,) frames of each segment.
        n_places: (S,) its predicted places: the frames, and the end mark where there is one.
        frame_number: (F,) which segment each predicted frame belongs to.
        frame_place: (F,) the place of each predicted frame in its segment.
        longest: frames of the largest set.
        longest_before: the most positions before one.
        are_whole: each stands behind its begin mark, and all of its frames are predicted.
    """

    number: Tensor
    first: Tensor
    n_before: Tensor
    n_frames: Tensor
    n_places: Tensor
    frame_number: Tensor
    frame_place: Tensor
    longest: int
    longest_before: int
    are_whole: bool

    @property
    def truncated(self) -> Tensor:
        """(S,) bool: there is no end mark, as the set has more elements."""
        return self.n_places == self.n_frames


def set_places(
    predicted: Tensor,
    framed: Tensor,
    segments: Runs,
    position: Tensor,
    behind_begin: Tensor,
    n_whole: int,
) -> SetPlaces:
    """Take the predicted places of a modality apart.

    Args:
        predicted: (P,) places in the flattened batch.
        framed: (F,) which of them are frames.
        segments: of the predicted places.
        position: (P,) of the predicted places in their documents.
        behind_begin: (P,) bool: the place before it is a begin mark.
        n_whole: all frames of the segments of which some are predicted.
    """
    first = (segments.place == 0).nonzero()[:, 0]
    number = segments.number[framed]
    n_frames = torch.bincount(number, minlength=segments.n)
    # a gap, as of a frame that is not asked for, moves the places behind it
    unbroken = predicted - predicted[first][segments.number] == segments.place
    return SetPlaces(
        number=segments.number,
        first=first,
        n_before=position[first],
        n_frames=n_frames,
        n_places=torch.bincount(segments.number, minlength=segments.n),
        frame_number=number,
        frame_place=segments.place[framed],
        longest=max(n_frames.tolist(), default=0),
        longest_before=max(position[first].tolist(), default=0),
        are_whole=bool(behind_begin[first].all() and unbroken.all()) and n_whole == len(number),
    )
