"""Which predicted places of a batch make up which set."""

import numpy as np
import pytest

from mmtok.core.batch import pack, with_index
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary

CLOUD = Signature("cloud", latent_size=1, unordered=True)
VOCABULARY = Vocabulary([Signature("text", (3,)), CLOUD])
TEXT = Segment("text", codes=np.array([[1]]))


def cloud(n, **more):
    return Segment("cloud", latents=np.ones((n, 1), np.float32), **more)


def places_of(*rows, vocabulary=VOCABULARY):
    streams = [[to_stream(vocabulary, d) for d in row] for row in rows]
    return with_index(pack(vocabulary, streams), vocabulary).index.places["cloud"]


def scored(*segments):
    return Document(segments, tuple(s.modality == "cloud" for s in segments))


def test_sets_are_told_apart_within_rows_and_documents():
    first = scored(TEXT, cloud(2), cloud(0))
    second = scored(cloud(3, truncated=True))
    third = scored(cloud(1))
    places = places_of([first, second], [third])
    sets = places.sets
    assert sets.n_frames.tolist() == [2, 0, 3, 1]
    assert sets.n_places.tolist() == [3, 1, 3, 2]
    assert sets.truncated.tolist() == [False, False, True, False]
    assert sets.number.tolist() == [0] * 3 + [1] + [2] * 3 + [3] * 2
    assert sets.first.tolist() == [0, 3, 4, 7]
    assert sets.frame_number.tolist() == [0, 0, 2, 2, 2, 3]
    assert sets.frame_place.tolist() == [0, 1, 0, 1, 2, 0]
    assert sets.longest == 3 and sets.are_whole
    # the mark of the document, the text with its marks, and the begin mark
    assert sets.n_before.tolist() == [5, 9, 2, 2] and sets.longest_before == 9


def test_a_set_that_is_only_a_condition_is_none_of_them():
    given = Document((cloud(4), cloud(2)), (False, True))
    sets = places_of([given]).sets
    assert sets.n_frames.tolist() == [2] and sets.are_whole


@pytest.mark.parametrize(
    "part",
    [
        cloud(3, predict=np.array([True, True, False])),
        cloud(3, predict=np.array([False, True, True])),
        cloud(3, predict=np.array([True, False, True])),
        cloud(3, infill_spans=((1, 2),)),
        cloud(3, infill_spans=((3, 3),)),
    ],
)
def test_parts_of_sets_are_not_whole(part):
    assert not places_of([scored(part)]).sets.are_whole


def test_lists_have_none():
    ordered = Vocabulary([Signature("cloud", latent_size=1)])
    assert places_of([scored(cloud(2))], vocabulary=ordered).sets is None


def test_a_batch_without_sets_has_empty_ones():
    sets = places_of([Document((TEXT,), (True,))]).sets
    assert sets.are_whole and not len(sets.first) and sets.longest == 0
