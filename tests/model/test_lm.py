import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.batch import InputMask, pack
from mmtok.core.grammar import START, advance, legal_ids, to_stream
from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained
from mmtok.model.frame_embedding import FrameEmbedding
from mmtok.model.lm import LM, DecoderConfig
from mmtok.model.position_nll import loss_sums
from mmtok.nn import cross_entropy as crossentropy
from mmtok.nn.kv_cache import KVCacheDecoder


def batch_of(vocabulary, *rows):
    return pack(vocabulary, [[to_stream(vocabulary, d) for d in row] for row in rows])


def test_packed_equals_alone(lm, vocabulary, corpus):
    """Rows, neighbours and padding change nothing about a document's nats."""
    alone = [lm(batch_of(vocabulary, [d])).total[0] for d in corpus]
    streams = [to_stream(vocabulary, d) for d in corpus]
    order = [[0, 3], [1, 2, 4], [7, 6, 5]]
    packed = lm(pack(vocabulary, [[streams[i] for i in row] for row in order], 160)).total
    for r, row in enumerate(order):
        at = 0
        for i in row:
            assert torch.allclose(
                packed[r, at : at + len(streams[i])], alone[i], rtol=0, atol=1e-12
            ), i
            at += len(streams[i])
        assert not packed[r, at:].any()


def test_nats_are_positive_where_predicted_and_zero_elsewhere(lm, vocabulary, corpus):
    batch = batch_of(vocabulary, *[[d] for d in corpus])
    nats = lm(batch)
    assert nats.ids.dtype == torch.float64
    assert (
        not nats.total[~batch.predict].any()
        and nats.total.isfinite().all()
        and (nats.total >= 0).all()
    )
    is_frame = sum((batch.ids == vocabulary.span(m)[0]) for m in lm.heads).bool() & batch.predict
    assert (nats.frames > 0).equal(is_frame)


def test_a_later_id_changes_no_earlier_output_bit_for_bit(lm, vocabulary, trap):
    batch = batch_of(vocabulary, [trap])
    before = lm.hidden(batch)
    for t in (3, 10, 25, batch.ids.shape[1] - 1):
        inputs = batch.inputs.clone()
        inputs[0, t] = vocabulary.mask
        after = lm.hidden(replace(batch, inputs=inputs))
        assert torch.equal(before[:, :t], after[:, :t]) and not torch.equal(
            before[:, t], after[:, t]
        )


@pytest.mark.parametrize("modality", ["speech", "jets"])
def test_a_later_channel_value_changes_no_earlier_output_bit_for_bit(
    lm, vocabulary, trap, modality
):
    """Every channel of a frame is read by every later position, by its own frame's nats, and by
    nothing before it.
    """
    batch = batch_of(vocabulary, [trap])
    at = (batch.ids[0] == vocabulary.span(modality)[0]).nonzero()[:, 0]
    before = lm.hidden(batch)
    nats = lm(batch).total
    for n in (1, len(at) - 1):
        for c, k in enumerate(vocabulary.signatures[modality].levels):
            codes = batch.channels[modality].clone()
            if codes[n, c]:
                codes[n, c] -= 1
            else:
                codes[n, c] = min(1, k - 1)
            # With this ceiling any value is legal.
            highest = torch.tensor(vocabulary.signatures["jets"].levels) - 1
            same = replace(batch, ceiling={"jets": highest.expand_as(batch.ceiling["jets"])})
            other = replace(same, channels=batch.channels | {modality: codes})
            after = lm.hidden(other)
            t = at[n]
            assert (
                torch.equal(before[:, :t], after[:, :t])
                and (before[:, t:] != after[:, t:]).any(-1).all()
            )
            assert (
                torch.equal(lm(same).total[:, :t], lm(other).total[:, :t])
                and lm(same).total[0, t] != lm(other).total[0, t]
            )
    assert nats.isfinite().all()


def test_latents_are_read_and_missing_ones_touch_their_weights(lm, vocabulary, corpus):
    batch = batch_of(vocabulary, [corpus[4]])
    other = replace(batch, latents={"voice": batch.latents["voice"] + 1})
    first = int((batch.ids[0] == vocabulary.span("voice")[0]).nonzero()[0, 0])
    a = lm.hidden(batch)
    b = lm.hidden(other)
    assert torch.equal(a[:, :first], b[:, :first]) and (a[:, first:] != b[:, first:]).any(-1).all()


def test_every_value_of_every_channel_and_its_mask_has_its_own_embedding():
    inner = FrameEmbedding((2, 3), 4, 8)
    inner.table.weight.data = torch.arange(7.0)[:, None].expand(7, 4).clone()
    inner.project = torch.nn.Identity()
    kept = torch.ones(3, 1, dtype=torch.bool)
    segment = torch.zeros(3, dtype=torch.long)

    def read(codes, mask=None):
        return inner(codes, mask, kept, segment)[:, [0, 4]].int().tolist()  # one number per channel

    codes = torch.tensor([[0, 0], [1, 1], [0, 2]])
    assert read(codes) == [[0, 3], [1, 4], [0, 5]]
    assert read(codes, torch.tensor([[True, False], [False, True], [True, True]])) == [
        [2, 3],
        [1, 6],
        [2, 6],
    ]


def test_cached_equals_uncached_over_embedded_frames(lm, vocabulary, corpus):
    batch = batch_of(vocabulary, *[[d] for d in corpus])
    whole = lm.hidden(batch)
    x = lm.embed(batch)
    reader = KVCacheDecoder(lm.model)
    with torch.no_grad():
        parts = [reader.forward(x[:, t : t + 1]) for t in range(x.shape[1])]
    inside = batch.document == 0
    assert torch.allclose(torch.cat(parts, 1)[inside], whole[inside], rtol=0, atol=1e-10)


# ---- the loss


def legal_nats(vocabulary, document):
    """log of the number of things that could stand at each predicted position, by walking the
    grammar.
    """
    stream = to_stream(vocabulary, document)
    state = START
    found = []
    used = {m: 0 for m in vocabulary.signatures}
    for i, id in enumerate(stream.ids):
        nats = math.log(len(legal_ids(vocabulary, state))) if stream.predict[i] else 0.0
        for m, signature in vocabulary.signatures.items():
            if len(vocabulary.span(m)) == 1 and id == vocabulary.span(m)[0]:
                n = used[m]
                used[m] = used[m] + 1
                highest = (
                    stream.ceiling[m][n] if signature.descending else np.array(signature.levels) - 1
                )
                n_frames = 1 + int(np.ravel_multi_index(highest, signature.levels))
                nats += math.log(n_frames) if stream.predict[i] and signature.levels else 0.0
        found.append(nats)
        state = advance(vocabulary, state, int(id))
    return torch.tensor(found, dtype=torch.float64)


def test_an_untrained_loss_is_the_log_of_the_number_of_legal_ids(untrained, vocabulary, corpus):
    wanted = [legal_nats(vocabulary, d) for d in corpus]
    total = sum(w.sum() for w in wanted)
    as_born = sum(untrained(batch_of(vocabulary, [d])).total.sum() for d in corpus)
    assert abs(as_born / total - 1) < 0.02
    torch.nn.init.zeros_(untrained.model.embed_tokens.weight)
    for document, w in zip(corpus, wanted):
        assert torch.allclose(
            untrained.double()(batch_of(vocabulary, [document])).total[0], w, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("scoring", [False, True])
def test_a_vocabulary_too_large_for_a_table_of_logits_has_the_same_nats_and_gradients(
    lm, vocabulary, corpus, monkeypatch, scoring
):
    """Also banned codes, ends that cannot come, modalities that are absent."""
    batch = batch_of(vocabulary, *[[d] for d in corpus])
    found = []
    for whole in (10**9, 0):
        monkeypatch.setattr(crossentropy, "MAX_SAVED_LOGITS", {"cpu": whole})
        monkeypatch.setattr(crossentropy, "CHUNK_LOGITS", {"cpu": 5 * 300})
        with torch.set_grad_enabled(not scoring):
            nats = lm(batch, 0 if scoring else None).total
        if not scoring:
            lm.zero_grad()
            nats.sum().backward()
        found.append((nats.detach(), {name: p.grad for name, p in lm.named_parameters()}))
    (one, gradients), (other, others) = found
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert scoring or all(
        torch.allclose(x, others[name], rtol=1e-9, atol=1e-9) for name, x in gradients.items()
    )


def test_every_parameter_gets_a_gradient(lm, vocabulary, corpus):
    batch = batch_of(vocabulary, *[[d] for d in corpus])
    loss, _ = loss_sums(lm(batch), batch, vocabulary, {})
    loss.backward()
    assert [
        name
        for name, p in lm.named_parameters()
        if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()
    ] == []


def test_a_batch_that_lacks_a_modality_still_gives_every_parameter_a_gradient(
    lm, vocabulary, segment
):
    batch = batch_of(vocabulary, [Document((segment("text", 3),), (True,))])
    loss, parts = loss_sums(lm(batch), batch, vocabulary, {})
    loss.backward()
    assert [name for name, p in lm.named_parameters() if p.grad is None] == []
    away = [
        p.grad.any()
        for name, p in lm.named_parameters()
        if name.startswith(("heads.", "frame_in.", "latent_in."))
    ]
    assert not any(away) and len(away) > 10
    assert parts["jets"] == (0, 0) and parts["text"][1] == 4


def test_loss_weighs_modalities_and_the_root_of_their_channels(lm, vocabulary, trap):
    batch = batch_of(vocabulary, [trap])
    nats = lm(batch)
    i = vocabulary.index["speech"]
    here = batch.predict & (batch.modality == i)
    wanted = (nats.ids[here].sum() + nats.frames[here].sum() / 6**0.5) * 0.5
    only_speech = {m: 0.5 if m == "speech" else 0.0 for m in vocabulary.signatures}
    total, parts = loss_sums(nats, batch, vocabulary, only_speech)
    assert torch.allclose(total, wanted) and parts["speech"][1] == 8
    assert torch.allclose(parts["speech"][0], nats.total[here].sum())
    assert torch.allclose(sum(p[0] for p in parts.values()), nats.total.sum())


# ---- input_mask


def test_corruption_masks_what_is_read_and_never_what_is_asked(lm, vocabulary, segment):
    """Masking a position leaves its own target and every earlier nats alone, and hides its value
    from later ones.
    """
    document = Document((segment("text", 4), segment("jets", 5)), (True, True))
    stream = to_stream(vocabulary, document)
    jets = (stream.ids == vocabulary.span("jets")[0]).nonzero()[0]
    for t, ids, hidden in ((2, True, False), (jets[1], True, False), (jets[1], False, True)):
        id_mask = np.zeros(len(stream), bool)
        channel_mask = np.zeros((5, 3), bool)
        id_mask[t] = ids
        channel_mask[1] = hidden
        dirty = pack(
            vocabulary, [[stream]], input_masks=[[InputMask(id_mask, {"jets": channel_mask})]]
        )
        a = lm(pack(vocabulary, [[stream]])).total[0]
        b = lm(dirty).total[0]
        assert (
            torch.equal(a[: t + 1], b[: t + 1])
            and (a[t + 1 :] != b[t + 1 :])[stream.predict[t + 1 :]].all()
        )
        codes = dirty.channels["jets"]
        other = dirty.ids.clone()
        if t in jets:  # the value that is masked cannot be told from another
            changed = codes.clone()
            changed[1] = 0
            assert torch.equal(
                lm.hidden(dirty), lm.hidden(replace(dirty, channels={"jets": changed}))
            )
        else:
            other[0, t] = 1
            assert torch.equal(lm.hidden(dirty), lm.hidden(replace(dirty, ids=other)))


def test_hidden_latents_cannot_be_told_from_others_and_read_as_zero(lm, vocabulary, segment):
    stream = to_stream(
        vocabulary, Document((segment("voice", 4), segment("text", 3)), (False, True))
    )
    hidden = np.zeros((4, 3), bool)
    hidden[:, 1] = True  # a band
    dirty = pack(
        vocabulary,
        [[stream]],
        input_masks=[[InputMask(np.zeros(len(stream), bool), {"voice": hidden})]],
    )
    clean = pack(vocabulary, [[stream]])
    changed = clean.latents["voice"].clone()
    zero = clean.latents["voice"].clone()
    changed[:, 1] = 7.0
    zero[:, 1] = 0.0
    assert not torch.equal(lm.hidden(dirty), lm.hidden(clean)) and torch.equal(
        dirty.latents["voice"], clean.latents["voice"]
    )
    assert torch.equal(lm.hidden(dirty), lm.hidden(replace(dirty, latents={"voice": changed})))
    assert torch.equal(lm.hidden(dirty), lm.hidden(replace(clean, latents={"voice": zero})))


# ---- refusals


def test_frames_of_an_input_only_modality_cannot_be_asked_for(lm, vocabulary, segment):
    asked = batch_of(vocabulary, [Document((segment("voice", 2),), (True,))])
    with pytest.raises(UserError, match="no head"):
        lm(asked)


def test_heads_belong_to_many_channel_modalities_of_the_vocabulary(vocabulary):
    for m in ("text", "smell", "voice"):
        with pytest.raises(UserError, match=m):
            LM(DecoderConfig(heads={m: Chained()}), vocabulary)
