"""Vectors of documents: of one size and norm, whatever the length and the packing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained, Parallel
from mmtok.model.embed import embed
from mmtok.model.embedder import EmbeddingConfig, n_vectors
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig

TRUNK = TransformerConfig(depth=2, width=16, n_heads=4, n_kv_heads=2, feed_forward=24)
HEADS = {"speech": Parallel(), "jets": Chained(8)}


def embedder(vocabulary, **fields):
    torch.manual_seed(0)
    config = DecoderConfig(TRUNK, HEADS, 4, embedding=EmbeddingConfig(6, 2, **fields))
    return LM(config, vocabulary).double().eval()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_vector_depends_on_its_segment_alone(vocabulary, segment, bidirectional):
    lm = embedder(vocabulary, bidirectional=bidirectional)
    segments = [segment("text", 5), segment("speech", 40), segment("jets", 3), segment("text", 1)]
    together = embed(lm, segments)
    assert together.shape == (4, 6)
    assert np.allclose(np.linalg.norm(together, axis=1), 1)
    for one, vector in zip(segments, together, strict=True):
        assert np.allclose(embed(lm, [one])[0], vector, atol=1e-6)
    assert np.allclose(embed(lm, segments, positions_per_batch=1), together, atol=1e-6)


def test_bidirectional_documents_see_their_future_and_others_stay_causal(vocabulary, segment):
    lm = embedder(vocabulary, bidirectional=True)
    document = Document((segment("text", 6),), (True,))
    batch = pack(vocabulary, [[to_stream(vocabulary, document)]])
    changed = batch.ids.clone()
    changed[0, 5] = vocabulary.span("text")[1]
    other = replace(batch, ids=changed, inputs=changed)
    assert not torch.equal(changed, batch.ids)
    assert torch.equal(lm.hidden(batch)[:, :5], lm.hidden(other)[:, :5])
    group = torch.zeros_like(batch.ids)
    first = lm.hidden(replace(batch, group=group))
    second = lm.hidden(replace(other, group=group))
    assert not torch.allclose(first[:, :5], second[:, :5])


def test_every_parameter_of_the_pooling_learns(vocabulary, segment):
    lm = embedder(vocabulary).train()
    streams = [
        to_stream(vocabulary, Document((segment("text", n),), (False,))) for n in (3, 5, 3, 2)
    ]
    batch = pack(vocabulary, [streams])
    batch = replace(batch, group=batch.document // 2, field=batch.document % 2)
    assert n_vectors(batch) == 4
    nll = lm(batch)
    nll.contrast.backward()
    for name, p in lm.embedding.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert lm.model.layers[0].self_attn.v_proj.weight.grad.abs().sum() > 0


def test_a_batch_without_vectors_still_gives_gradients(vocabulary, segment):
    lm = embedder(vocabulary).train()
    batch = pack(vocabulary, [[to_stream(vocabulary, Document((segment("text", 3),), (True,)))]])
    nll = lm(batch)
    assert nll.contrast == 0 and n_vectors(batch) == 0
    (nll.contrast + nll.total.sum()).backward()
    assert all(p.grad is not None for p in lm.embedding.parameters())


def test_likelihoods_do_not_change_with_the_embedding(vocabulary, corpus):
    from mmtok.model.likelihood import score

    torch.manual_seed(0)
    plain = LM(DecoderConfig(TRUNK, HEADS, 4), vocabulary).double().eval()
    lm = embedder(vocabulary, bidirectional=True)
    lm.load_state_dict(plain.state_dict(), strict=False)
    texts = [d for d in corpus if all(s is None or s.modality == "text" for s in d.segments)]
    assert score(lm, texts) == score(plain, texts)


def test_what_cannot_be_is_one_line(vocabulary, lm, segment):
    with pytest.raises(UserError, match="makes no vectors"):
        embed(lm, [segment("text", 3)])
    with pytest.raises(UserError, match="must divide the trunk's width, 16"):
        LM(DecoderConfig(TRUNK, embedding=EmbeddingConfig(6, 5)), vocabulary)
    for fields in ({"size": 0}, {"loss": "triplet"}, {"loss_weight": 0.0}):
        with pytest.raises(UserError, match=next(iter(fields))):
            EmbeddingConfig(**fields)
