"""The trap document through every room: text, speech, an image with a span to infill, text again,
jets; modalities absent.
"""

import numpy as np
import torch

from mmtok.core.batch import pack, unpack
from mmtok.core.grammar import START, advance, to_document, to_stream
from mmtok.core.segment import Document, Segment
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate, infill
from mmtok.model.likelihood import score
from mmtok.model.position_nll import loss_sums


def assert_same(a, b):
    assert a.predict == b.predict and len(a.segments) == len(b.segments)
    for x, y in zip(a.segments, b.segments, strict=True):
        assert (
            x.modality == y.modality
            and np.array_equal(x.codes, y.codes)
            and x.infill_spans == y.infill_spans
            and x.truncated == y.truncated
        )


def test_the_trap_document_goes_through_every_room_and_comes_back(vocabulary, lm, trap):
    assert [s.modality for s in trap.segments] == [
        "text",
        "speech",
        "image",
        "text",
        "jets",
    ] and trap.segments[2].infill_spans

    stream = to_stream(vocabulary, trap)
    state = START
    for id in stream.ids:
        state = advance(vocabulary, state, int(id))
    assert state.modality is None and not state.due

    batch = pack(vocabulary, [[stream]])
    nats = lm(batch)
    loss, parts = loss_sums(nats, batch, vocabulary, {})
    loss.backward()
    assert loss.isfinite() and parts["absent"] == (0, 0)
    # frames and, where the length is open, an end: 5 + 1 and 3 + 1 letters, 7 + 1 of speech, the 3
    # of the infilled span, 6 + 1 particles
    assert {m: n for m, (_, n) in parts.items() if n} == {
        "text": 10,
        "speech": 8,
        "image": 3,
        "jets": 7,
    }

    scored = score(lm, [trap])[0]
    assert torch.allclose(
        nats.total.sum(), torch.tensor(scored.total, dtype=torch.float64)
    ) and all(n > 0 for n in scored.nats)

    assert_same(to_document(vocabulary, unpack(vocabulary, batch)[0][0]), trap)


def test_every_segment_of_the_trap_document_can_be_drawn_anew(vocabulary, lm, trap, generator):
    """In its place, given those before it: the span infilled, the others from nothing; the whole is
    scored again.
    """
    drawn = []
    for i, known in enumerate(trap.segments):
        before = tuple(drawn)
        if known.infill_spans:
            ((a, b),) = known.infill_spans
            rest = Segment(
                known.modality, codes=np.delete(known.codes, range(a, b), 0), infill_spans=((a, a),)
            )
            prompt = Document((*before, rest), (False,) * i + (True,), open_end=True)
            drawn.append(infill(lm, [prompt], Sampling(), generator)[0].segment)
            assert drawn[-1].infill_spans == ((a, b),) and np.array_equal(
                np.delete(drawn[-1].codes, range(a, b), 0), rest.codes
            )
        else:
            prompt = Document(
                (*before, Segment(known.modality, codes=known.codes[:0])),
                (False,) * i + (True,),
                open_end=True,
            )
            drawn.append(generate(lm, [prompt], Sampling(max_frames=8), generator)[0].segment)
    again = Document(tuple(drawn), (True,) * 5)
    assert all(n is not None and np.isfinite(n) for n in score(lm, [again])[0].nats)
    assert_same(to_document(vocabulary, to_stream(vocabulary, again)), again)
