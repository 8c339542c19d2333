"""The number of frames of a set: probabilities that sum to 1, and samples that follow them."""

import math

import pytest
import torch

from mmtok.errors import UserError
from mmtok.heads.base import Sizes
from mmtok.heads.sampling import Sampling
from mmtok.heads.set_sizes import SetSizes

MOST = 5


def counts(shake=True):
    torch.manual_seed(0)
    sizes = SetSizes(8, MOST, "cloud")
    if shake:
        torch.nn.init.normal_(sizes.out.weight, std=0.3)
    return sizes.eval()


def test_before_training_all_counts_are_alike():
    n = torch.arange(MOST + 1)
    found = counts(shake=False).log_prob(torch.randn(MOST + 1, 8), Sizes(n, n < 0))
    torch.testing.assert_close(found, torch.full_like(found, -math.log(MOST + 2)))


def test_counts_and_more_sum_to_one():
    sizes = counts()
    h = torch.randn(1, 8).expand(MOST + 2, -1)
    n = torch.tensor([*range(MOST + 1), MOST])
    more = torch.arange(MOST + 2) == MOST + 1
    p = sizes.log_prob(h, Sizes(n, more)).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-6) and (p > 0).all()


def test_a_set_that_was_cut_has_any_larger_number():
    sizes = counts()
    h = torch.randn(1, 8)
    cut = sizes.log_prob(h, Sizes(torch.tensor([2]), torch.tensor([True]))).exp()
    p = sizes.logits(h).softmax(1)[0]
    assert float(cut) == pytest.approx(float(p[3:].sum()), abs=1e-6)


def test_sets_are_cut_where_the_head_stops_counting():
    sizes = counts()
    cut = torch.tensor([False, True])
    sizes.check_training(Sizes(torch.tensor([2, MOST]), cut))
    sizes.check_training(Sizes(torch.tensor([2, 3]), torch.zeros(2, dtype=torch.bool)))
    sizes.check_training(Sizes(torch.tensor([], dtype=torch.long), cut[:0]))
    with pytest.raises(UserError, match="cut at 3 frames, but its head counts to 5.*frames to 3"):
        sizes.check_training(Sizes(torch.tensor([2, 3]), cut))
    with pytest.raises(UserError, match="a set of 6 frames, but its head counts to 5"):
        sizes.check_training(Sizes(torch.tensor([2, 6]), cut))


def test_samples_follow_their_probabilities():
    sizes = counts()
    h = torch.randn(1, 8).expand(20_000, -1)
    drawn = sizes.sample([h], Sampling(), torch.Generator().manual_seed(0))
    seen = torch.bincount(drawn.n_frames + drawn.truncated, minlength=MOST + 2) / len(h)
    right = sizes.logits(h[:1]).softmax(1)[0]
    assert (seen - right).abs().max() < 4 * 0.5 / math.sqrt(len(h))
    assert int(drawn.n_frames.max()) == MOST and bool(drawn.truncated.any())
    greedy = sizes.sample([h[:1]], Sampling(temperature=0), torch.Generator())
    assert int(greedy.n_frames + greedy.truncated) == int(right.argmax())


def test_logits_that_are_no_numbers_are_refused():
    sizes = counts()
    sizes.out.bias.data.fill_(math.nan)
    with pytest.raises(UserError, match="cloud are not numbers"):
        sizes.sample([torch.zeros(3, 8)], Sampling(), torch.Generator().manual_seed(0))


def test_probabilities_under_autocast_are_those_of_float32():
    sizes = counts()
    h = torch.randn(6, 8).bfloat16()
    given = Sizes(torch.arange(6), torch.zeros(6, dtype=torch.bool))
    with torch.autocast("cpu", torch.bfloat16):
        found = sizes.log_prob(h, given)
    assert torch.equal(found, sizes.log_prob(h.float(), given))
