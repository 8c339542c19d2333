"""Documents in any order are stored as rows of segments, and come back as they were."""

from dataclasses import replace

import numpy as np
import pytest

from mmtok.core.interleaved import (
    INTERLEAVED,
    interleaved_signatures,
    join_segments,
    part_field,
    split_segments,
)
from mmtok.core.segment import Segment
from mmtok.errors import UserError


def joined_parts(row, field):
    return {s.modality: s for name, s in row.items() if name != field}


def test_splitting_inverts_joining(vocabulary, corpus, rng):
    """For the trap document and others: frames, masks, infos, truncation, what is predicted."""
    modalities = list(vocabulary.signatures)
    for document in corpus:
        parts = [
            (replace(s, infill_spans=(), info={"n_samples": i}), p)
            for i, (s, p) in enumerate(zip(document.segments, document.predict, strict=True))
            if s is not None
        ]
        first = parts[0][0]
        if len(first):
            mask = rng.random(len(first)) < 0.5
            mask[0] = False
            parts[0] = (replace(first, predict=mask), parts[0][1])
        row = join_segments("doc", [s for s, _ in parts], [p for _, p in parts], modalities)
        assert set(row) <= set(interleaved_signatures("doc", vocabulary.signatures))
        back = split_segments(row["doc"], joined_parts(row, "doc"), modalities, "row")
        assert len(back) == len(parts)
        for (a, p), (b, q) in zip(parts, back, strict=True):
            assert (a.modality, a.truncated, a.info, p) == (b.modality, b.truncated, b.info, q)
            assert np.array_equal(a.values, b.values) and np.array_equal(a.asked, b.asked)


def test_the_fields_say_which_tokenizers_made_them(vocabulary):
    signatures = interleaved_signatures("doc", vocabulary.signatures)
    assert signatures["doc"].modality == INTERLEAVED
    assert signatures[part_field("doc", "image")].frames is None  # several may follow each other
    other = dict(vocabulary.signatures)
    other["image"] = replace(other["image"], fingerprint="another")
    assert interleaved_signatures("doc", other)["doc"].fingerprint != signatures["doc"].fingerprint


@pytest.mark.parametrize("n, words", [(4, "fewer frames"), (2, "more frames")])
def test_an_order_that_does_not_fit_is_refused(n, words):
    text = Segment("text", codes=np.ones((3, 1), int))
    order = Segment(INTERLEAVED, codes=np.array([[0, n, 1, 0]]))
    with pytest.raises(UserError, match=f"row: has {words} of text"):
        split_segments(order, {"text": text}, ["text"], "row")
