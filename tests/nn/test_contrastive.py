"""Pooling: each document by itself, of norm 1. Losses: the papers' formulas on pairs."""

import torch
from torch.nn import functional as F

from mmtok.nn.contrastive import AttentionPool, ContrastiveLoss, segment_softmax


def unit(n, size=5):
    return F.normalize(torch.randn(n, size, dtype=torch.float64), dim=-1)


def test_segment_softmax_is_softmax_of_each_segment(generator):
    x = torch.randn(7, 3, dtype=torch.float64, generator=generator) * 20
    segment = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    found = segment_softmax(x, segment, 3)
    for k in range(3):
        assert torch.allclose(found[segment == k], x[segment == k].softmax(0), atol=1e-12)


def test_pooled_documents_do_not_see_each_other_and_have_norm_one(generator):
    pool = AttentionPool(8, 6, 2).double()
    x = torch.randn(7, 8, dtype=torch.float64, generator=generator)
    document = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    together = pool(x, document, 3)
    assert together.shape == (3, 6)
    assert torch.allclose(together.norm(dim=1), torch.ones(3, dtype=together.dtype))
    for k in range(3):
        mine = x[document == k]
        alone = pool(mine, torch.zeros(len(mine), dtype=torch.long), 1)
        assert torch.allclose(together[k], alone[0], atol=1e-6)


def test_siglip_of_pairs_is_the_papers_sum():
    torch.manual_seed(0)
    n = 4
    x = unit(n)
    y = unit(n)
    loss = ContrastiveLoss("siglip").double()
    group = torch.arange(n).repeat(2)
    field = torch.arange(2).repeat_interleave(n)
    found = loss(torch.cat([x, y]), group, field).mean()
    z = 2 * torch.eye(n) - 1
    logits = 10 * x @ y.T - 10
    assert torch.allclose(found, -F.logsigmoid(z * logits).sum() / n, atol=1e-6)


def test_clip_of_pairs_is_the_papers_mean_of_two_cross_entropies():
    torch.manual_seed(0)
    n = 4
    x = unit(n)
    y = unit(n)
    loss = ContrastiveLoss("clip").double()
    found = loss(torch.cat([x, y]), torch.arange(n).repeat(2), torch.arange(2).repeat_interleave(n))
    logits = x @ y.T / 0.07
    right = torch.arange(n)
    wanted = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert torch.allclose(found.mean(), wanted, atol=1e-5)


def test_vectors_without_a_partner_and_of_one_field_cost_clip_nothing():
    torch.manual_seed(0)
    loss = ContrastiveLoss("clip").double()
    x = unit(3)
    assert loss(x, torch.arange(3), torch.zeros(3, dtype=torch.long)).tolist() == [0, 0, 0]
    found = loss(x, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert found[2] == 0 and found[0] > 0


def test_several_partners_share_clips_probability():
    torch.manual_seed(0)
    loss = ContrastiveLoss("clip").double()
    x = unit(1)
    same = torch.cat([x, x, x])
    found = loss(same, torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 1]))
    assert torch.allclose(found[0], torch.tensor(2.0).log().double(), atol=1e-6)
