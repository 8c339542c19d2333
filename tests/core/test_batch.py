import time
from dataclasses import fields

import numpy as np
import pytest
import torch

from mmtok.core.batch import FULL, InputMask, pack, plan_rows, rows_of, unpack, with_index
from mmtok.core.grammar import to_document, to_stream


def rows_of_streams(vocabulary, corpus):
    s = [to_stream(vocabulary, d) for d in corpus]
    return [[s[0], s[3]], [s[1]], [s[4], s[2], s[5]], [s[6], s[7], s[0]]]


def fields_of(batch):
    """The fields that `pack` fills."""
    return [f for f in fields(batch) if f.name not in ("index", "group", "field")]


def assert_same_stream(a, b):
    for name in ("ids", "segment", "modality", "predict", "may_end"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for x, y in ((a.values, b.values), (a.ceiling, b.ceiling)):

        def full(z):
            # a modality without frames leaves no trace in a batch
            return {m: v for m, v in z.items() if len(v)}

        x = full(x)
        y = full(y)
        assert x.keys() == y.keys() and all(np.array_equal(x[m], y[m]) for m in x)


@pytest.mark.parametrize("seq_len", [None, 200])
def test_unpack_inverts_pack(vocabulary, corpus, seq_len):
    rows = rows_of_streams(vocabulary, corpus)
    batch = pack(vocabulary, rows, seq_len)
    assert batch.ids.shape[1] == (seq_len or max(sum(map(len, row)) for row in rows))
    back = unpack(vocabulary, batch)
    assert [len(r) for r in back] == [len(r) for r in rows]
    for row, again in zip(rows, back, strict=True):
        for a, b in zip(row, again, strict=True):
            assert_same_stream(a, b)


def test_what_comes_out_is_the_document_that_went_in(vocabulary, trap):
    stream = unpack(vocabulary, pack(vocabulary, [[to_stream(vocabulary, trap)]]))[0][0]
    for a, b in zip(trap.segments, to_document(vocabulary, stream).segments, strict=True):
        assert np.array_equal(a.values, b.values) and a.infill_spans == b.infill_spans


def test_documents_begin_with_their_mark_at_position_zero_and_padding_is_nobodys(
    vocabulary, corpus
):
    batch = pack(vocabulary, rows_of_streams(vocabulary, corpus), 200)
    first = batch.position.eq(0) & batch.document.ge(0)
    assert (batch.ids[first] == vocabulary.document_mark).all() and first.sum() == 9
    assert (batch.ids.eq(vocabulary.document_mark) == first).all()
    padding = batch.document == -1
    assert (
        (batch.ids[padding] == vocabulary.pad).all()
        and not batch.predict[padding].any()
        and (batch.modality[padding] == -1).all()
    )
    assert not batch.predict[first].any()


def test_channels_come_in_the_order_of_their_frame_ids(vocabulary, corpus):
    batch = pack(vocabulary, rows_of_streams(vocabulary, corpus))
    for m, x in (batch.channels | batch.latents).items():
        assert len(x) == (batch.ids == vocabulary.span(m)[0]).sum()
    assert (
        batch.ids.dtype == batch.channels["speech"].dtype == torch.int64
        and batch.latents["voice"].dtype == torch.float32
    )


def test_corruption_changes_only_what_the_model_reads(vocabulary, corpus, rng):
    rows = rows_of_streams(vocabulary, corpus)

    def damage(s):
        return InputMask(
            rng.random(len(s)) < 0.5, {m: rng.random(x.shape) < 0.5 for m, x in s.values.items()}
        )

    input_masks = [[None if i % 2 else damage(s) for i, s in enumerate(row)] for row in rows]
    clean = pack(vocabulary, rows)
    dirty = pack(vocabulary, rows, input_masks=input_masks)
    for f in fields_of(clean):
        a = getattr(clean, f.name)
        b = getattr(dirty, f.name)
        if f.name not in ("inputs", "channel_mask"):
            assert (
                all(torch.equal(a[m], b[m]) for m in a)
                if isinstance(a, dict)
                else torch.equal(a, b)
            ), f.name
    differs = clean.inputs != dirty.inputs
    assert (
        differs.any()
        and (dirty.inputs[differs] == vocabulary.mask).all()
        and torch.equal(clean.inputs, clean.ids)
    )
    for m in ("jets", "voice"):
        wanted = np.concatenate(
            [c.channels[m] for row in input_masks for c in row if c is not None and m in c.channels]
        )
        assert dirty.channel_mask[m].sum() == wanted.sum() > 0
    assert not any(x.any() for x in clean.channel_mask.values())
    for row, again in zip(rows, unpack(vocabulary, dirty), strict=True):
        for a, b in zip(row, again, strict=True):
            assert_same_stream(a, b)


def test_rows_are_planned_within_their_length_each_document_once(rng):
    lengths = rng.integers(1, 100, 300).tolist()
    rows = plan_rows(lengths, 128)
    assert sorted(i for row in rows for i in row) == list(range(300))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 128
    assert len(rows) <= 1.25 * sum(lengths) / 128
    assert rows == plan_rows(lengths, 128)
    assert plan_rows([], 10) == []
    with pytest.raises(ValueError, match="does not fit"):
        plan_rows([3, 11], 10)


def first_fit(lengths, seq_len):
    """The plan by its definition: every document, longest first, looks at every row that does not
    count as full.
    """
    rows = []
    room = []
    full = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        r = next((r for r in range(full, len(rows)) if room[r] >= lengths[i]), len(rows))
        if r == len(rows):
            rows.append([])
            room.append(seq_len)
        rows[r].append(i)
        room[r] -= lengths[i]
        while full < len(rows) and room[full] < FULL:
            full += 1
    return rows


@pytest.mark.parametrize("seq_len", [3, 8, 9, 64, 1000])
def test_rows_are_planned_by_first_fit(rng, seq_len):
    for n in (0, 1, 2, 3, 17, 64, 65, 500):
        for shortest, longest in (
            (1, seq_len),
            (1, max(1, seq_len // 9)),
            (seq_len // 3 + 1, seq_len),
            (seq_len, seq_len),
        ):
            lengths = rng.integers(shortest, longest + 1, n).tolist()
            assert plan_rows(lengths, seq_len) == first_fit(lengths, seq_len)


def test_many_documents_are_planned_in_little_more_time_than_few(rng):
    """40,000 documents in 20,000 rows: looking at every row for every document would take many
    seconds.
    """
    lengths = rng.integers(1, 1001, 40_000).tolist()
    start = time.process_time()
    plan_rows(lengths, 1024)
    assert time.process_time() - start < 1.5


def test_some_rows_of_a_batch_are_the_batch_of_those_rows(vocabulary, corpus):
    rows = rows_of_streams(vocabulary, corpus)
    for here in (slice(0, 1), slice(1, 3), slice(3, None), slice(1, None, 2)):
        part = rows_of(pack(vocabulary, rows, 200), vocabulary, here)
        alone = pack(vocabulary, rows[here], 200)
        for f in fields_of(alone):
            a = getattr(part, f.name)
            b = getattr(alone, f.name)
            if isinstance(b, dict):  # a modality that these rows lack may stay as no rows
                assert all(torch.equal(a[m], b[m]) for m in b) and all(
                    len(a[m]) == 0 for m in a.keys() - b.keys()
                ), f.name
            else:
                assert torch.equal(a, b), f.name


def test_a_batch_moves_with_all_it_carries(vocabulary, corpus):
    moved = pack(vocabulary, rows_of_streams(vocabulary, corpus)).to("meta")
    for f in fields_of(moved):
        x = getattr(moved, f.name)
        assert all(v.is_meta for v in (x.values() if isinstance(x, dict) else [x])), f.name


# ---- the index, made on the host


def test_the_index_says_where_things_are(vocabulary, corpus):
    batch = with_index(pack(vocabulary, rows_of_streams(vocabulary, corpus), 200), vocabulary)
    ids = batch.ids.flatten()
    predict = batch.predict.flatten()
    for i, (m, places) in enumerate(batch.index.places.items()):
        asked = predict & (batch.modality.flatten() == i)
        assert places.predicted.tolist() == asked.nonzero()[:, 0].tolist()
        frame = vocabulary.span(m)[0]
        values = batch.channels.get(m, batch.latents.get(m))
        if values is not None:
            assert len(places.frames) == len(values)
        assert (ids[places.frames] == frame).all()
        assert (ids[places.predicted[places.framed]] == frame).all()
        # the rows of values that are predicted are those of the predicted frames
        assert torch.equal(places.frames[places.values], places.predicted[places.framed])
        number = list(zip(*(x.flatten()[places.frames].tolist() for x in segment_names(batch))))
        assert places.runs.n == len(set(number))
        for k in range(places.runs.n):
            mine = (places.runs.number == k).nonzero()[:, 0]
            assert len({number[j] for j in mine.tolist()}) == 1
            assert places.runs.place[mine].tolist() == list(range(len(mine)))
            assert len(mine) <= places.runs.longest
    assert with_index(batch, vocabulary) is batch


def segment_names(batch):
    """(row, document, segment) of each position."""
    row = torch.arange(len(batch.ids))[:, None].expand_as(batch.ids)
    return row, batch.document, batch.segment


def test_document_ends_are_those_of_documents_and_padding(vocabulary, corpus):
    batch = pack(vocabulary, rows_of_streams(vocabulary, corpus), 200)
    ends = with_index(batch, vocabulary).index.document_ends
    assert ends.dtype == torch.int32 and len(ends) % 64 == 0
    assert ends[0] == 0 and ends[-1] == batch.ids.numel() and (ends.diff() >= 0).all()
    names = torch.stack([x.flatten() for x in segment_names(batch)[:2]], 1)
    changes = (names[1:] != names[:-1]).any(1).nonzero()[:, 0] + 1
    assert ends.unique().tolist() == [0, *changes.tolist(), batch.ids.numel()]


def test_rows_of_one_document_are_known_to_be(vocabulary, corpus):
    streams = [to_stream(vocabulary, d) for d in corpus]
    alone = with_index(pack(vocabulary, [[s] for s in streams]), vocabulary)
    together = with_index(pack(vocabulary, [streams]), vocabulary)
    assert alone.index.one_per_row and not together.index.one_per_row


def test_the_index_is_of_all_rows_and_moves_with_the_batch(vocabulary, corpus):
    batch = with_index(pack(vocabulary, rows_of_streams(vocabulary, corpus), 200), vocabulary)
    assert rows_of(batch, vocabulary, slice(0, 2)).index is None
    moved = batch.to("meta")
    assert moved.index.document_ends.is_meta
    assert all(places.predicted.is_meta for places in moved.index.places.values())
    assert all(places.runs.number.is_meta for places in moved.index.places.values())
