"""Codes in rows: what a stream of them may be, and what it is not."""

import itertools

import numpy as np
import pytest

from mmtok.core.batch import pack, unpack
from mmtok.core.grammar import START, advance, legal_ids, to_document, to_stream
from mmtok.core.rows import in_rows, of_rows, row_layout
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError

MARK = 3
SIGNATURE = Signature("image", (MARK,), rows=True)
TEXT = Signature("text", (4,))


@pytest.fixture
def vocabulary():
    return Vocabulary((TEXT, SIGNATURE))


def picture(rows, columns, rng, **more):
    codes = in_rows(rng.integers(0, MARK, (rows, columns)), MARK)
    return Segment("image", codes=codes[:, None], **more)


def test_rows_are_the_inverse_of_themselves(rng):
    codes = rng.integers(0, MARK, (4, 5))
    assert np.array_equal(of_rows(in_rows(codes, MARK), MARK), codes)
    # a row that was cut off is left out; of a first row that was, all is there
    assert np.array_equal(of_rows(in_rows(codes, MARK)[:-2], MARK), codes[:-1])
    assert np.array_equal(of_rows(in_rows(codes, MARK)[:3], MARK), codes[:1, :3])


@pytest.mark.parametrize("codes", ([MARK], [0, MARK, 1, 1, MARK], [0, 1, MARK, 0, MARK]))
def test_rows_of_unequal_lengths_are_refused(codes, vocabulary):
    with pytest.raises(UserError, match="rows of one length"):
        row_layout(np.array(codes), MARK)
    segment = Segment("image", codes=np.array(codes)[:, None], truncated=True)
    with pytest.raises(UserError, match="rows of one length"):
        to_stream(vocabulary, Document((segment,), (True,)))


def test_a_last_row_without_its_mark_is_refused(vocabulary):
    segment = Segment("image", codes=np.array([0, 1, MARK, 2])[:, None])
    with pytest.raises(UserError, match="1 codes behind its last row mark"):
        to_stream(vocabulary, Document((segment,), (True,)))


def test_a_picture_in_rows_cannot_be_infilled(vocabulary, rng):
    segment = picture(2, 2, rng, infill_spans=((1, 2),))
    with pytest.raises(UserError, match="infilling is not possible"):
        to_stream(vocabulary, Document((segment,), (True,)))


def documents(rng):
    text = Segment("text", codes=np.array([[1], [2]]))
    for rows, columns in itertools.product((1, 2, 3), (1, 2, 4)):
        whole = picture(rows, columns, rng)
        yield Document((text, whole, text), (True, True, True))
        yield Document((whole, whole), (False, True))
        for n in range(1, len(whole) + 1):
            cut = Segment("image", codes=whole.codes[:n], truncated=True)
            yield Document((cut, text), (True, True))


def test_streams_of_rows_are_legal_and_come_back(vocabulary, rng):
    for document in documents(rng):
        stream = to_stream(vocabulary, document)
        state = START
        for i, id in enumerate(stream.ids):
            legal = legal_ids(vocabulary, state)
            if stream.predict[i]:
                assert id in legal and len(legal) > 1
                assert (vocabulary.end(state.modality) in legal) == stream.may_end[i]
            elif state.modality == "image" and document.predict[stream.segment[i]]:
                inside = id in vocabulary.span("image") or id == vocabulary.end("image")
                assert not inside or len(legal) == 1  # certain, so no p is asked for
            state = advance(vocabulary, state, int(id))
        (again,), *_ = unpack(vocabulary, pack(vocabulary, [[stream]]))
        back = to_document(vocabulary, again)
        for a, b in zip(document.segments, back.segments, strict=True):
            assert np.array_equal(a.codes, b.codes) and a.truncated == b.truncated
            assert b.predict is None
        assert back.predict == document.predict


def test_all_streams_that_the_grammar_allows_are_grids(vocabulary):
    """Walks over all pictures of up to six ids: rows of one length, and each exactly once."""
    first = advance(vocabulary, advance(vocabulary, START, vocabulary.document_mark),
                    vocabulary.begin("image"))  # fmt: skip
    end = vocabulary.end("image")
    found = set()
    walks = [((), first)]
    while walks:
        ids, state = walks.pop()
        if state.modality is None:
            found.add(ids)
        elif len(ids) < 7:
            for id in legal_ids(vocabulary, state).tolist():
                walks.append(((*ids, id), advance(vocabulary, state, id)))
    low = vocabulary.span("image")[0]
    wanted = set()
    for rows, columns in itertools.product(range(1, 7), repeat=2):
        if rows * (columns + 1) + 1 > 7:
            continue
        for codes in itertools.product(range(MARK), repeat=rows * columns):
            flat = in_rows(np.array(codes).reshape(rows, columns), MARK)
            ids = [end if code == MARK else code + low for code in flat.tolist()]
            wanted.add((*ids, end))
    assert found == wanted


@pytest.mark.parametrize("columns", [1, 2])
def test_an_axis_of_known_size_leaves_nothing_else_open(columns):
    """All pictures of up to seven ids: rows of so many codes, at least one, whose marks are
    certain.
    """
    known = Vocabulary((TEXT, Signature("image", (MARK,), rows=True, columns=columns)))
    end = known.end("image")
    start = advance(known, START, known.document_mark)
    walks = [((), advance(known, start, known.begin("image")))]
    found = []
    while walks:
        ids, state = walks.pop()
        if state.modality is None:
            found.append(ids)
            continue
        legal = legal_ids(known, state).tolist()
        at_mark = len(ids) % (columns + 1) == columns
        assert (legal == [end]) == at_mark  # nothing but a mark
        assert (end in legal) == (at_mark or len(ids) > 0 and len(ids) % (columns + 1) == 0)
        walks += [((*ids, id), advance(known, state, id)) for id in legal if len(ids) < 7]
    sizes = [rows * columns for rows in range(1, 7) if rows * (columns + 1) + 1 <= 7]
    assert len(found) == len(set(found)) == sum(MARK**n for n in sizes)


def test_streams_with_an_axis_of_known_size_come_back(rng):
    known = Vocabulary((TEXT, Signature("image", (MARK,), rows=True, columns=2)))
    whole = picture(3, 2, rng)
    for n in (*range(1, len(whole)), None):
        codes = whole.codes[:n]
        document = Document((Segment("image", codes=codes, truncated=n is not None),), (True,))
        stream = to_stream(known, document)
        state = START
        for i, id in enumerate(stream.ids):
            legal = legal_ids(known, state)
            inside = state.modality == "image"
            assert stream.predict[i] == (inside and len(legal) > 1)
            if stream.predict[i]:
                assert (known.end("image") in legal) == stream.may_end[i]
            state = advance(known, state, int(id))
        (again,), *_ = unpack(known, pack(known, [[stream]]))
        (back,) = to_document(known, again).segments
        assert np.array_equal(back.codes, codes) and back.predict is None
    with pytest.raises(UserError, match="rows of 2 codes"):
        to_stream(known, Document((picture(2, 3, rng),), (True,)))
    empty = Segment("image", codes=np.zeros((0, 1), int))
    with pytest.raises(UserError, match="has no row"):
        to_stream(known, Document((empty,), (True,)))


def test_fingerprints_of_other_signatures_do_not_know_of_rows():
    assert "rows" not in Signature("image", (7,), frames=9).as_dict()
    assert SIGNATURE.as_dict()["rows"]
    with pytest.raises(ValueError, match="rows are of one-channel codes"):
        Signature("image", (7,), frames=9, rows=True)
    with pytest.raises(ValueError, match="rows are of one-channel codes"):
        Signature("image", (7, 7), rows=True)
    with pytest.raises(ValueError, match="columns are those of rows"):
        Signature("image", (7,), columns=3)
