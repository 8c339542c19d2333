"""A task of fixed order and the same data as interleaved documents: equal batches, bit for bit."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mmtok.core.grammar import to_document
from mmtok.core.interleaved import interleaved_signatures, join_segments
from mmtok.core.segment import Document
from mmtok.data.loader import Loader
from mmtok.data.tasks import InputMasking, Task
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.errors import UserError
from mmtok.model.likelihood import score
from mmtok.model.position_nll import loss_sums

MODALITY = {"caption": "text", "speech": "speech", "jets": "jets"}


@pytest.fixture
def two_files(tmp_path, vocabulary, segment, rng):
    """The same 40 examples: with three fields, and as documents of these in this order."""
    rows = [
        {
            "caption": segment("text", rng.integers(1, 5)),
            "speech": segment("speech", rng.integers(1, 8), truncated=bool(rng.integers(2))),
            "jets": segment("jets", rng.integers(0, 6)),
        }
        for _ in range(40)
    ]
    signatures = {f: vocabulary.signatures[m] for f, m in MODALITY.items()}
    write_tokens(tmp_path / "fixed.parquet", signatures, rows)
    modalities = list(vocabulary.signatures)
    documents = [
        join_segments("doc", list(row.values()), (False, True, True), modalities) for row in rows
    ]
    signatures = interleaved_signatures("doc", vocabulary.signatures)
    write_tokens(tmp_path / "doc.parquet", signatures, documents)
    # all fields of documents are mapped or in memory alike
    return (
        read_tokens(tmp_path / "fixed.parquet"),
        read_tokens(tmp_path / "doc.parquet", signatures, map_from=0),
    )


FIXED = Task(("caption",), ("speech", "jets"))
ANY_ORDER = Task((), ("doc",))


def tensors(batch):
    named = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "index"}
    inner = {(k, m): x for k, v in named.items() if isinstance(v, dict) for m, x in v.items()}
    return {k: v for k, v in named.items() if isinstance(v, torch.Tensor)} | inner


def test_batches_losses_and_scores_are_equal(two_files, vocabulary, lm):
    fixed, doc = (
        Loader([file], (task,), vocabulary, {}, 3, 40, 7)
        for file, task in zip(two_files, (FIXED, ANY_ORDER), strict=True)
    )
    for step in range(20):
        a = tensors(fixed.batch(step))
        b = tensors(doc.batch(step))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        losses = [
            loss_sums(lm(loader.batch(step)), loader.batch(step), vocabulary, {})[0].item()
            for loader in (fixed, doc)
        ]
        assert losses[0] == losses[1]
    documents = [
        [
            Document(tuple(s for s, _ in parts), (False, *(True,) * (len(parts) - 1)))
            for parts in ([p for f in task.fields for p in file.segments(f, i)] for i in range(9))
        ]
        for file, task in zip(two_files, (FIXED, ANY_ORDER), strict=True)
    ]
    assert score(lm, documents[0]) == score(lm, documents[1])


def test_the_trap_document_comes_through(tmp_path, vocabulary, trap, lm):
    """Text, speech, an image with a span to infill, text, jets: packed, with its predict flags."""
    whole = tuple(replace(s, infill_spans=()) for s in trap.segments)
    predict = (True, False, True, False, True)
    rows = [join_segments("doc", whole, predict, list(vocabulary.signatures))] * 3
    signatures = interleaved_signatures("doc", vocabulary.signatures)
    write_tokens(tmp_path / "t.parquet", signatures, rows)
    file = read_tokens(tmp_path / "t.parquet", signatures)
    loader = Loader([file], (ANY_ORDER,), vocabulary, {}, 2, 100, 0)
    stream, _ = loader._document(loader.items(0)[0][0], 0)
    back = to_document(vocabulary, stream)
    assert back.predict == predict
    assert all(
        np.array_equal(a.values, b.values) for a, b in zip(back.segments, whole, strict=True)
    )
    assert loader.pools[0].lengths.tolist() == [len(stream)] * 3
    assert torch.isfinite(lm(loader.batch(0)).total).all()


def test_the_last_segment_is_infilled_where_that_is_possible(tmp_path, vocabulary, segment):
    """Not in jets, whose frames are ordered; and not where the last segment is only read."""
    rows = [
        join_segments(
            "doc", (segment("jets", 3), last), (True, predicted), list(vocabulary.signatures)
        )
        for last, predicted in (
            (segment("speech", 6), True),
            (segment("jets", 4), True),
            (segment("text", 5), False),
        )
    ]
    signatures = interleaved_signatures("doc", vocabulary.signatures)
    write_tokens(tmp_path / "t.parquet", signatures, rows)
    file = read_tokens(tmp_path / "t.parquet", signatures)
    masking = {"doc": InputMasking(drop_prob=0.5)}
    loader = Loader([file], (replace(ANY_ORDER, infill=1.0),), vocabulary, masking, 2, 60, 0)
    seen = {}
    for step in range(8):
        for row in loader.items(step):
            for item in row:
                stream, _ = loader._document(item, step)
                assert len(stream) <= loader.pools[0].lengths[item.row]
                spans = to_document(vocabulary, stream).segments[-1].infill_spans
                seen.setdefault(item.row, set()).add(bool(spans))
    assert seen == {0: {True}, 1: {False}, 2: {False}}


def test_a_document_longer_than_a_row_and_a_cap_on_frames_are_refused(two_files, vocabulary):
    with pytest.raises(UserError, match="'doc' of .* frames takes .* positions"):
        Loader(two_files[1:], (ANY_ORDER,), vocabulary, {}, 2, 8, 0)
    task = replace(ANY_ORDER, max_target_frames=3)
    with pytest.raises(UserError, match="'doc', which is interleaved"):
        Loader(two_files[1:], (task,), vocabulary, {}, 2, 80, 0)
