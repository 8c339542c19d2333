"""Prompts, and what whatever is drawn must be."""

import numpy as np
import pytest

from mmtok.core.grammar import START, advance, legal_ids, to_document, to_stream
from mmtok.core.segment import Document, Segment


@pytest.fixture
def nothing():
    """nothing(vocabulary, modality) -> a segment without frames."""
    return lambda vocabulary, modality: Segment(
        modality, codes=np.zeros((0, len(vocabulary.signatures[modality].levels)), int)
    )


@pytest.fixture
def prompt():
    """prompt(*given, to=segment) -> the document that the segment goes on in."""
    return lambda *given, to: Document((*given, to), (False,) * len(given) + (True,), open_end=True)


@pytest.fixture
def assert_valid():
    """assert_valid(vocabulary, sampled, given=()): what was drawn after the segments `given` is a
    legal stream.
    """
    return valid


def valid(vocabulary, sampled, given=()):
    """The segment lays out as a stream that the grammar accepts, and comes back out of it."""
    document = Document((*given, sampled.segment), (False,) * len(given) + (True,))
    stream = to_stream(vocabulary, document)
    state = START
    for i, id in enumerate(stream.ids):
        assert not stream.predict[i] or id in legal_ids(vocabulary, state)
        state = advance(vocabulary, state, int(id))
    back = to_document(vocabulary, stream).target
    assert (
        np.array_equal(back.codes, sampled.segment.codes)
        and back.infill_spans == sampled.segment.infill_spans
    )
    assert sampled.stop in ("end", "cap") and sampled.segment.truncated == (
        sampled.stop == "cap" and not sampled.segment.infill_spans
    )
