"""The predicted places of sets in a batch, by segments: which frames make up which set.

Letters: P predicted places of one modality, F of them frames, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmtok.core.batch import Places, Runs


@dataclass(frozen=True, eq=False)
class SetPlaces:
    """The predicted places of sets, taken apart into S segments; see `Signature.unordered`.

    Attributes:
        number: (P,) which segment each predicted place belongs to, counted from 0.
        first: (S,) which of the predicted places is the first of each segment.
        n_frames: (S,) frames of each segment.
        n_places: (S,) its predicted places: the frames, and the end mark where there is one.
        frame_number: (F,) which segment each predicted frame belongs to.
        frame_place: (F,) the place of each predicted frame in its segment.
        longest: frames of the largest set.
        are_whole: each stands behind its begin mark, and all of its frames are predicted.
    """

    number: Tensor
    first: Tensor
    n_frames: Tensor
    n_places: Tensor
    frame_number: Tensor
    frame_place: Tensor
    longest: int
    are_whole: bool

    @property
    def truncated(self) -> Tensor:
        """(S,) bool: there is no end mark, as the set has more elements."""
        return self.n_places == self.n_frames


def set_places(ids: Tensor, begin: int, places: Places, segments: Runs) -> SetPlaces:
    """Take the predicted places of a modality apart.

    ids: the batch's, flattened; begin: the modality's begin mark; segments (P,): of the predicted
    places.
    """
    predicted = places.predicted
    first = (segments.place == 0).nonzero()[:, 0]
    number = segments.number[places.framed]
    n_frames = torch.bincount(number, minlength=segments.n)
    behind_begin = ids[predicted[first] - 1] == begin
    # a gap, as of a frame that is not asked for, moves the places behind it
    unbroken = predicted - predicted[first][segments.number] == segments.place
    whole = places.runs.number[places.values].unique()
    n_whole = torch.bincount(places.runs.number, minlength=places.runs.n)[whole].sum()
    return SetPlaces(
        number=segments.number,
        first=first,
        n_frames=n_frames,
        n_places=torch.bincount(segments.number, minlength=segments.n),
        frame_number=number,
        frame_place=segments.place[places.framed],
        longest=max(n_frames.tolist(), default=0),
        are_whole=bool(behind_begin.all() and unbroken.all() and n_whole == len(number)),
    )
