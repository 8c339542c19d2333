"""Moments of a set so far: exact sums, the same in a batch and step by step."""

import math

import pytest
import torch

from mmtok.model.frames import FrameEmbedding, Moments, running_totals
from mmtok.segment import BadInput, Signature

JETS = Signature("jets", (4, 5, 3), descending=0, values=((1.0, 2.0, 4.0, 8.0), (-0.2, -0.1, 0.0, 0.1, 0.2), (-0.3, 0.0, 0.3)))


def embedding(moments=True):
    torch.manual_seed(0)
    return FrameEmbedding(JETS, 6, 8, moments).double()


def frames(n):
    return torch.stack([(7 * torch.arange(n)) % k for k in JETS.levels], 1)


def kept(n):
    return torch.ones(n, 1, dtype=torch.bool)


def test_running_totals_are_sums_within_each_segment():
    terms, segment = torch.randn(7, 2, dtype=torch.float64), torch.tensor([3, 3, 3, 9, 5, 5, 3])
    expected = torch.stack([terms[0], terms[:2].sum(0), terms[:3].sum(0), terms[3], terms[4], terms[4:6].sum(0), terms[6]])
    assert torch.allclose(running_totals(terms, segment), expected, atol=1e-14)
    assert running_totals(terms[:0], segment[:0]).shape == (0, 2)


def test_another_segment_touches_not_even_the_rounding():
    terms, segment = torch.randn(50, 4), torch.tensor([0] * 20 + [1] * 30)
    changed = torch.cat([terms[:20] * 1e6, terms[20:]])
    assert torch.equal(running_totals(terms, segment)[20:], running_totals(changed, segment)[20:])


def test_features_of_two_particles_by_hand():
    inner = Moments(JETS, 8).double()
    codes = torch.tensor([[3, 4, 1], [3, 0, 1]])  # 8 GeV at eta 0.2 and 8 GeV at eta -0.2, both at phi 0
    features = inner._features(inner.terms(codes).sum(0, keepdim=True))[0].tolist()
    log_weight, eta, phi, log_spread_eta, correlation, log_spread_phi, log_mass = features
    assert (log_weight, eta, phi, correlation) == pytest.approx((math.log(16), 0, 0, 0), abs=1e-6)
    assert math.exp(log_spread_eta) == pytest.approx(0.2, rel=1e-6) and math.exp(log_spread_phi) == pytest.approx(1e-3)
    assert math.exp(log_mass) == pytest.approx(16 * 0.2, rel=1e-4)  # m^2 = 2 pt1 pt2 (cosh 0.4 - 1), about (pt1 + pt2)^2 0.2^2


def test_steps_equal_the_batch():
    inner, codes = embedding(), frames(9)
    whole = inner(codes, None, kept(9), torch.zeros(9, dtype=torch.long))
    totals = inner.totals(codes[:0])[None]
    for t in range(9):
        x, totals = inner.step(codes[t : t + 1], totals)
        assert torch.allclose(x[0], whole[t], atol=1e-12)
    assert torch.allclose(totals[0], inner.totals(codes), atol=1e-12)


def test_moments_tell_apart_what_came_before_and_hidden_frames_add_nothing():
    inner, codes, segment = embedding(), frames(3), torch.zeros(3, dtype=torch.long)
    other = codes.clone()
    other[0] = torch.tensor([3, 4, 2])
    assert not torch.allclose(inner(codes, None, kept(3), segment)[2], inner(other, None, kept(3), segment)[2])
    hidden = torch.tensor([[False], [True], [True]])
    assert torch.equal(inner(codes, None, hidden, segment), inner(other, None, hidden, segment))
    assert (inner(codes, None, hidden, segment)[0] == 0).all()
    some = torch.tensor([[False, True, False], [False] * 3, [False] * 3])  # one coordinate hidden: the frame is in no sum
    same_but_hidden = codes.clone()
    same_but_hidden[0, 1] = 4
    assert torch.equal(inner(codes, some, kept(3), segment), inner(same_but_hidden, some, kept(3), segment))


def test_without_moments_a_frame_is_read_alone():
    inner, codes = embedding(False), frames(3)
    x = inner(codes, None, kept(3), torch.zeros(3, dtype=torch.long))
    alone, _ = inner.step(codes, torch.zeros(3, 0, dtype=torch.float64))
    assert torch.equal(x, alone) and inner.totals(codes).shape == (0,)


def test_moments_need_values_to_sum():
    with pytest.raises(BadInput, match="ordering channel"):
        FrameEmbedding(Signature("jets", (4, 5), descending=0), 6, 8, True)
