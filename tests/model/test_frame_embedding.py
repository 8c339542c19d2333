"""Running totals: sums over a segment's frames, the same in a batch and step by step."""

import torch

from mmtok.core.runs import Runs
from mmtok.model.frame_embedding import FrameEmbedding, running_totals


def embedding(n_totals=3):
    torch.manual_seed(0)
    return FrameEmbedding((4, 5), 6, 8, n_totals).double()


def frames(n):
    return torch.stack([torch.arange(n) % 4, torch.arange(n) % 5], 1)


def one_segment(n):
    return Runs.of(torch.zeros(n, dtype=torch.long))


def test_running_totals_are_sums_within_each_segment():
    terms = torch.randn(7, 2, dtype=torch.float64)
    segment = torch.tensor([3, 3, 3, 9, 5, 5, 3])
    expected = torch.stack(
        [
            terms[0],
            terms[:2].sum(0),
            terms[:3].sum(0),
            terms[3],
            terms[4],
            terms[4:6].sum(0),
            terms[6],
        ]
    )
    assert torch.allclose(running_totals(terms, Runs.of(segment)), expected, atol=1e-14)
    assert running_totals(terms[:0], Runs.of(segment[:0])).shape == (0, 2)


def test_another_segment_touches_not_even_the_rounding():
    terms = torch.randn(50, 4)
    segment = torch.tensor([0] * 20 + [1] * 30)
    changed = torch.cat([terms[:20] * 1e6, terms[20:]])
    runs = Runs.of(segment)
    assert torch.equal(running_totals(terms, runs)[20:], running_totals(changed, runs)[20:])


def test_steps_equal_the_batch():
    inner = embedding()
    codes = frames(9)
    whole = inner(codes, None, torch.ones(9, 1, dtype=torch.bool), one_segment(9))
    folded = inner.folded()
    totals = torch.zeros(1, 3, dtype=torch.float64)
    for t in range(9):
        x, totals = folded.step(codes[t : t + 1], totals)
        assert torch.allclose(x[0], whole[t], atol=1e-12)
    assert torch.allclose(totals[0], inner.totals(codes), atol=1e-12)


def test_totals_tell_apart_what_came_before_and_hidden_frames_add_nothing():
    inner = embedding()
    codes = frames(3)
    segment = one_segment(3)
    all_read = torch.ones(3, 1, dtype=torch.bool)
    other = codes.clone()
    other[0] = torch.tensor([3, 4])
    assert not torch.allclose(
        inner(codes, None, all_read, segment)[2], inner(other, None, all_read, segment)[2]
    )
    hidden = torch.tensor([[False], [True], [True]])
    assert torch.equal(inner(codes, None, hidden, segment), inner(other, None, hidden, segment))
    assert (inner(codes, None, hidden, segment)[0] == 0).all()


def test_without_totals_a_frame_is_read_alone():
    inner = embedding(0)
    codes = frames(3)
    x = inner(codes, None, torch.ones(3, 1, dtype=torch.bool), one_segment(3))
    alone, _ = inner.folded().step(codes, torch.zeros(3, 0, dtype=torch.float64))
    assert torch.allclose(x, alone, atol=1e-12) and inner.totals(codes).shape == (0,)
