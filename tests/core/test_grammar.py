import time
from dataclasses import replace

import numpy as np
import pytest

from mmtok.core.grammar import START, advance, legal_ids, to_document, to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError


def same_segment(a, b):
    if a is None or b is None:
        return a is b
    return (
        a.modality == b.modality
        and np.array_equal(a.values, b.values)
        and a.infill_spans == b.infill_spans
        and a.truncated == b.truncated
    )


# ---- the grammar


def test_every_predicted_id_is_legal_and_may_end_says_whether_the_end_is(vocabulary, corpus):
    for document in corpus:
        stream = to_stream(vocabulary, document)
        state = START
        for i, id in enumerate(stream.ids):
            legal = legal_ids(vocabulary, state)
            if stream.predict[i]:
                assert id in legal
                assert (vocabulary.end(state.modality) in legal) == stream.may_end[i]
                assert (
                    len(legal) > 1 or len(vocabulary.span(state.modality)) == 1
                )  # what is certain is not predicted
            state = advance(vocabulary, state, int(id))


def test_what_is_not_predicted_is_given_or_certain(vocabulary, segment):
    """In a fully predicted document without infilling only marks between segments and certain ends
    go without p.
    """
    stream = to_stream(
        vocabulary,
        Document((segment("text", 3), segment("image", 9), segment("tiles", 2)), (True,) * 3),
    )
    given = stream.ids[~stream.predict].tolist()
    begin = vocabulary.begin
    end = vocabulary.end
    assert given == [
        vocabulary.document_mark,
        begin("text"),
        begin("image"),
        end("image"),
        begin("tiles"),
        end("tiles"),
    ]


def test_illegal_ids_are_refused_in_every_state(vocabulary, corpus):
    every = set(range(vocabulary.size))
    states = {}
    for document in corpus:
        state = START
        for id in to_stream(vocabulary, document).ids:
            states[state] = None
            state = advance(vocabulary, state, int(id))
    for state in states:
        inside = state.modality is not None and not state.due
        given = {vocabulary.hole} if inside and not state.filling else set()
        if inside and not state.n_open:  # a truncated segment: the next begins without its end mark
            given |= {vocabulary.null, *map(vocabulary.begin, vocabulary.signatures)}
        legal = set(legal_ids(vocabulary, state).tolist())
        assert legal, state
        for id in every:
            if id in legal | given:
                advance(vocabulary, state, id)
            else:
                with pytest.raises(ValueError, match="cannot follow"):
                    advance(vocabulary, state, id)


def test_banned_codes_and_marks_are_never_legal(vocabulary):
    state = advance(
        vocabulary, advance(vocabulary, START, vocabulary.document_mark), vocabulary.begin("text")
    )
    assert legal_ids(vocabulary, state).tolist() == [1, 2, 3, 5, 6, 7, 8, vocabulary.end("text")]


def test_a_truncated_segment_carries_no_end_mark(vocabulary, segment):
    for m, n in (("text", 4), ("jets", 4), ("image", 4)):
        cut = to_stream(vocabulary, Document((segment(m, n, truncated=True),), (True,)))
        assert vocabulary.end(m) not in cut.ids and cut.predict.sum() == n


def test_a_large_vocabulary_costs_a_long_prompt_no_listing_of_its_ids():
    """Checking an id must not list the ids it is one of: 30,000 ids times 2,000 positions would
    take minutes.
    """
    vocabulary = Vocabulary([Signature("text", (30_000,))])
    stream = to_stream(
        vocabulary, Document((Segment("text", codes=np.arange(2000)[:, None]),), (True,))
    )
    state = START
    start = time.process_time()
    for id in stream.ids:
        state = advance(vocabulary, state, int(id))
    assert time.process_time() - start < 1


# ---- documents to streams and back


def test_document_inverts_stream(vocabulary, corpus):
    for document in corpus:
        back = to_document(vocabulary, to_stream(vocabulary, document))
        assert len(back.segments) == len(document.segments) and all(
            map(same_segment, back.segments, document.segments)
        )
        predictable = [
            p and not (s.truncated and len(s) == 0)
            for s, p in zip(document.segments, document.predict, strict=True)
        ]
        assert list(back.predict) == predictable


def test_a_mask_says_which_frames_are_predicted_and_the_end_goes_with_the_last(
    vocabulary, corpus, rng
):
    """The same stream as without, but for `predict`; and documents come back with their masks."""
    for document in corpus:
        masks = [None if s is None else rng.random(len(s)) < 0.5 for s in document.segments]
        segments = tuple(
            None if s is None else replace(s, predict=mask)
            for s, mask in zip(document.segments, masks, strict=True)
        )
        masked = replace(document, segments=segments)
        plain = to_stream(vocabulary, document)
        stream = to_stream(vocabulary, masked)
        assert np.array_equal(stream.ids, plain.ids)
        for i, (s, mask) in enumerate(zip(document.segments, masks, strict=True)):
            if s is None:
                continue
            here = plain.segment == i
            span = vocabulary.span(s.modality)
            is_frame = here & (plain.ids >= span[0]) & (plain.ids <= span[-1])
            if not s.infill_spans:
                asked = mask & document.predict[i]
                assert np.array_equal(stream.predict[is_frame], asked)
                ends = here & (plain.ids == vocabulary.end(s.modality))
                with_last = bool(mask[-1]) if len(mask) else True
                assert np.array_equal(stream.predict[ends], plain.predict[ends] & with_last)
            n_asked = sum(mask[a:b].sum() for a, b in s.infill_spans or ((0, len(s)),))
            assert stream.predict[is_frame].sum() == n_asked * document.predict[i]
        again = to_stream(vocabulary, to_document(vocabulary, stream))
        assert np.array_equal(again.predict, stream.predict)


def test_a_mask_of_another_length_or_kind_is_refused():
    for mask in (np.ones(2, bool), np.ones(3, int), np.ones((3, 1), bool)):
        with pytest.raises(ValueError, match=r"predict must be \(3,\) bool"):
            Segment("text", codes=np.ones((3, 1), int), predict=mask)


def test_a_prompt_stops_at_its_open_end(vocabulary, segment):
    begin = vocabulary.begin("image")
    hole = vocabulary.hole
    fill = vocabulary.fill
    end = vocabulary.end("image")
    text = segment("text", 2)

    def ids(*a, **k):
        return to_stream(vocabulary, Document(*a, open_end=True, **k)).ids.tolist()

    known = segment("image", 3)
    x = (known.codes[:, 0] + vocabulary.span("image")[0]).tolist()
    assert ids((text, known), (False, True))[-4:] == [begin, *x]
    two = Segment("image", codes=known.codes, infill_spans=((0, 1), (3, 3)))
    assert ids((two,), (True,), n_filled=0)[1:] == [begin, hole, x[1], x[2], hole, end, fill]
    assert ids((two,), (True,), n_filled=1)[1:] == [
        begin,
        hole,
        x[1],
        x[2],
        hole,
        end,
        fill,
        x[0],
        end,
        fill,
    ]


def test_the_ceiling_is_the_frame_before(vocabulary):
    jets = Segment("jets", codes=np.array([[4, 1, 1], [4, 0, 2], [1, 3, 0]]))
    other = Segment("jets", codes=np.array([[5, 0, 0]]))
    stream = to_stream(vocabulary, Document((jets, other), (True, True)))
    top = [5, 3, 2]
    assert stream.ceiling["jets"].tolist() == [top, [4, 1, 1], [4, 0, 2], top]
    for rising, channel in (
        ([[1, 3, 0], [4, 0, 2]], 0),
        ([[4, 0, 2], [4, 1, 1]], 1),
        ([[4, 1, 1], [4, 1, 2]], 2),
    ):
        with pytest.raises(UserError, match=f"channel {channel} rises"):
            to_stream(vocabulary, Document((Segment("jets", codes=np.array(rising)),), (True,)))
    twice = Segment("jets", codes=np.array([[4, 1, 1], [4, 1, 1]]))
    assert len(to_stream(vocabulary, Document((twice,), (True,)))) == 5, (
        "equal frames are a multiset's"
    )


def test_headers_stand_before_the_order():
    vocabulary = Vocabulary([Signature("jets", (6, 4, 3), descending=True, headers=2)])

    def ceiling(codes):
        return (
            to_stream(vocabulary, Document((Segment("jets", codes=np.array(codes)),), (True,)))
            .ceiling["jets"]
            .tolist()
        )

    top = [5, 3, 2]
    assert ceiling([[1, 0, 0], [5, 3, 0], [4, 1, 1], [4, 0, 2]]) == [top, top, top, [4, 1, 1]]
    assert ceiling([[1, 0, 0], [5, 3, 0]]) == [top, top] and ceiling([[1, 0, 0]]) == [top]
    with pytest.raises(UserError, match="channel 2 rises"):
        ceiling([[1, 0, 0], [5, 3, 0], [4, 1, 1], [4, 1, 2]])


@pytest.mark.parametrize(
    "wrong, says",
    [
        (Segment("smell", codes=np.zeros((1, 1), int)), "not in this vocabulary"),
        (Segment("text", codes=np.array([[9]])), "outside its levels"),
        (Segment("text", codes=np.array([[-1]])), "outside its levels"),
        (Segment("text", codes=np.array([[4]])), "banned"),
        (Segment("speech", codes=np.zeros((2, 5), int)), "does not fit"),
        (Segment("voice", codes=np.zeros((2, 3), int)), "does not fit"),
        (Segment("speech", latents=np.zeros((2, 6), np.float32)), "does not fit"),
        (Segment("jets", codes=np.zeros((3, 3), int), infill_spans=((0, 1),)), "infilling"),
        (Segment("image", codes=np.zeros((8, 1), int)), "8 frames"),
        (Segment("image", codes=np.zeros((10, 1), int), truncated=True), "10 frames"),
        (Segment("image", codes=np.zeros((8, 1), int), infill_spans=((0, 2),)), "8 frames"),
    ],
)
def test_segments_that_do_not_fit_are_refused_in_one_line(vocabulary, wrong, says):
    with pytest.raises(UserError, match=says) as refusal:
        to_stream(vocabulary, Document((wrong,), (True,)))
    assert "\n" not in str(refusal.value)
