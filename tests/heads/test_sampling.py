"""Drawing one id: temperature, top-k and top-p, and settings that cannot be."""

import math

import pytest
import torch
from scipy.stats import chisquare

from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling, draw, pick


def test_pick_keeps_to_what_top_k_top_p_and_the_grammar_leave(generator):
    p = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    logits = p.log().expand(4000, -1)

    def drawn(**k):
        return set(pick(logits, Sampling(**k), generator).tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(temperature=0) == drawn(top_k=1) == drawn(top_p=1e-6) == {0}
    assert drawn(top_k=3) == {0, 1, 2} and drawn(top_k=5) == drawn(top_k=50) == {0, 1, 2, 3}
    assert (
        drawn(top_p=0.39) == {0} and drawn(top_p=0.5) == {0, 1} and drawn(top_p=0.71) == {0, 1, 2}
    )


def test_draw_takes_each_as_often_as_it_should_and_the_impossible_never(generator):
    p = torch.tensor([0.0, 1e-3, 0.5, 0.0, 0.3, 0.199, 0.0])
    counts = torch.bincount(draw(p.expand(50_000, -1), generator), minlength=7)
    assert (counts[p == 0] == 0).all() and chisquare(
        counts[p > 0], (p / p.sum())[p > 0].double() * 50_000
    ).pvalue > 1e-3
    assert draw(torch.tensor([[0.0, 0.0, 1e-30], [0.0, 1e-38, 0.0]]), generator).tolist() == [2, 1]


def test_temperature_sharpens(generator):
    logits = torch.tensor([0.0, 1.0]).expand(20_000, -1)
    share = pick(logits, Sampling(temperature=0.5), generator).double().mean()
    assert abs(share - 1 / (1 + math.exp(-2))) < 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"guidance": math.nan},
        {"guidance": math.inf},
        {"top_k": -1},
        {"precision": "float8"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"max_frames": 0},
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(
        UserError, match=f"^sampling: {next(iter(wrong))} is .*; it must be [^()]*$"
    ):
        Sampling(**wrong)
