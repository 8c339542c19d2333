import json

import pytest

from mmtok.core.segment import Signature
from mmtok.core.vocabulary import MAX_MODALITIES, N_CONTROLS, Vocabulary
from mmtok.errors import UserError
from mmtok.io.serialize import from_plain


def test_text_keeps_its_ids_and_spans_tile_the_space(vocabulary):
    assert vocabulary.span("text") == range(9)
    assert (vocabulary.pad, vocabulary.document_mark, vocabulary.mask) == (9, 10, 14)
    spans = [vocabulary.span(m) for m in vocabulary.signatures if m != "text"]
    assert spans[0][0] == 9 + N_CONTROLS and spans[-1][-1] == vocabulary.size - 1
    assert all(a[-1] + 1 == b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert [len(s) for s in spans] == [1, 7, 1, 1, 1, 1]
    marks = [f(m) for m in vocabulary.signatures for f in (vocabulary.begin, vocabulary.end)]
    assert (
        len(set(marks)) == len(marks)
        and min(marks) > vocabulary.mask
        and max(marks) < 9 + N_CONTROLS
    )


def test_without_text_the_controls_come_first():
    layout = Vocabulary(
        [Signature("image", (4,)), Signature("text", (3, 3))]
    )  # a text of two channels has no span of ids
    assert (
        layout.pad == 0 and layout.span("image")[0] == N_CONTROLS and len(layout.span("text")) == 1
    )


def test_repeated_or_too_many_modalities_are_refused():
    with pytest.raises(ValueError, match="share"):
        Vocabulary([Signature("a", (2,)), Signature("a", (3,))])
    Vocabulary([Signature(f"m{i}", (2,)) for i in range(MAX_MODALITIES)])
    with pytest.raises(ValueError, match="room"):
        Vocabulary([Signature(f"m{i}", (2,)) for i in range(MAX_MODALITIES + 1)])


def test_the_fingerprint_tells_vocabularies_apart_and_names_both_sides():
    signatures = [Signature("text", (9,)), Signature("image", (4,))]
    others = [
        signatures[::-1],
        signatures[:1],
        [Signature("text", (9,), fingerprint="x"), signatures[1]],
        [Signature("text", (9,), banned=(1,)), signatures[1]],
        [signatures[0], Signature("image", (5,))],
        [signatures[0], Signature("image", (4,), frames=3)],
    ]
    prints = [Vocabulary(s).fingerprint for s in (signatures, *others)]
    assert len(set(prints)) == len(prints)
    with pytest.raises(UserError, match=f"tokens.parquet.*{prints[1]}.*{prints[0]}"):
        Vocabulary(signatures).check(prints[1], "tokens.parquet")


def test_a_vocabulary_is_made_again_from_its_json(vocabulary):
    stored = json.loads(json.dumps(vocabulary.as_dict()))
    signatures = [from_plain(s, Signature, "signatures") for s in stored["signatures"]]
    assert (
        type(vocabulary)(signatures).fingerprint == vocabulary.fingerprint == stored["fingerprint"]
    )


def test_a_fingerprint_stays_what_it_is():
    """Runs and token files carry it: whoever changes what it is made of makes them unreadable, and
    should know.
    """
    assert Vocabulary([Signature("text", (9,))]).fingerprint == "59f010fcd9c4"
    assert (
        Vocabulary([Signature("image", latent_size=4)]).fingerprint
        != Vocabulary([Signature("image", latent_size=4, cells=17)]).fingerprint
    )
