"""Pictures of any size: probabilities over all grids, and what is drawn."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from mmtok.core.rows import in_rows, of_rows
from mmtok.core.segment import Document, Segment, Signature
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate
from mmtok.model.likelihood import last_nats, score

MARK = 2
SIGNATURE = Signature("image", (MARK,), rows=True)


@pytest.fixture
def lm(toy_lm):
    return toy_lm((SIGNATURE,))


def picture(codes, **more):
    return Segment("image", codes=in_rows(np.array(codes), MARK)[:, None], **more)


def beginning(codes=()):
    known = Segment("image", codes=np.array(codes, int).reshape(-1, 1))
    return Document((known,), (True,), open_end=True)


def grids(rows, columns):
    for codes in itertools.product(range(MARK), repeat=rows * columns):
        yield np.array(codes).reshape(rows, columns)


def nats(lm, segments):
    return np.array([s.total for s in score(lm, [Document((s,), (True,)) for s in segments])])


def test_pictures_of_one_row_and_what_is_longer_sum_to_one(lm):
    """P of all pictures of up to two columns and one row, and of all beginnings of the others."""
    whole = [picture(grid) for columns in (1, 2) for grid in grids(1, columns)]
    cut = []
    for columns in (1, 2):  # one code of a second row
        for grid in grids(1, columns):
            codes = [*picture(grid).codes[:, 0]]
            cut += [[*codes, code] for code in range(MARK)]
    cut += [grid[0].tolist() for grid in grids(1, 3)]  # three columns or more
    others = [Segment("image", codes=np.array(c)[:, None], truncated=True) for c in cut]
    assert np.isclose(np.exp(-nats(lm, whole + others)).sum(), 1, rtol=0, atol=1e-12)


def test_the_marks_of_later_rows_are_certain(lm):
    per_frame = last_nats(lm, [Document((picture([[0, 1], [1, 1], [0, 0]]),), (True,))])[0]
    assert len(per_frame) == 10
    assert per_frame[2] > 0 and per_frame[5] == per_frame[8] == 0
    assert (np.delete(per_frame, [5, 8]) > 0).all()


def test_pictures_are_drawn_as_often_as_scored(lm, generator):
    n = 4000
    drawn = generate(lm, [beginning()] * n, Sampling(max_frames=9), generator)
    counts = Counter(tuple(s.segment.codes[:, 0]) for s in drawn if s.stop == "end")
    shown = [picture(grid) for columns in (1, 2) for grid in grids(1, columns)]
    for segment, p in zip(shown, np.exp(-nats(lm, shown)), strict=True):
        seen = counts[tuple(segment.codes[:, 0])]
        assert abs(seen - n * p) < 5 * (n * p) ** 0.5 + 1
    for sampled in drawn:  # also those that were cut are rows of one length
        assert of_rows(sampled.segment.codes[:, 0], MARK).size
        assert sampled.segment.truncated == (sampled.stop == "cap")


def test_a_beginning_fixes_the_width(lm, generator, assert_valid):
    known = [0, 1, 1, MARK, 0]
    drawn = generate(lm, [beginning(known)] * 50, Sampling(max_frames=40), generator)
    for sampled in drawn:
        assert sampled.segment.codes[:5, 0].tolist() == known
        assert of_rows(sampled.segment.codes[:, 0], MARK).shape[1] == 3
        assert_valid(lm.vocabulary, sampled)


def test_greedy_drawing_agrees_with_the_scores(lm):
    drawn = generate(
        lm, [beginning()] * 2, Sampling(temperature=0.0, max_frames=12), torch.Generator()
    )
    codes = drawn[0].segment.codes[:, 0].tolist()
    for n in range(1, len(codes)):
        if codes[n] == MARK:
            continue
        tries = [[*codes[:n], code] for code in range(MARK)]
        found = nats(
            lm, [Segment("image", codes=np.array(c)[:, None], truncated=True) for c in tries]
        )
        assert found.argmin() == codes[n]


@pytest.mark.parametrize(("rows", "columns"), [(3, 2), (0, 4), (2, 0), (1, 1)])
def test_a_size_that_is_asked_for_is_drawn(lm, generator, assert_valid, rows, columns):
    sampling = Sampling(max_frames=60, n_rows=rows, n_columns=columns)
    drawn = generate(lm, [beginning()] * 40, sampling, generator)
    for sampled in drawn:
        assert_valid(lm.vocabulary, sampled)
        if sampled.stop == "cap":
            continue
        made = of_rows(sampled.segment.codes[:, 0], MARK).shape
        assert made == (rows or made[0], columns or made[1])
    if rows and columns:
        assert {sampled.stop for sampled in drawn} == {"end"}


def test_of_a_size_codes_are_drawn_as_the_model_has_them_given_it(lm, generator):
    """P of the codes given the size's marks: of 1 x 1 pictures the first code's, renormalised."""
    shown = [picture(grid) for grid in grids(1, 1)]
    first = [Segment("image", codes=s.codes[:1], truncated=True) for s in shown]
    p = np.exp(-nats(lm, first))
    drawn = generate(lm, [beginning()] * 4000, Sampling(n_rows=1, n_columns=1), generator)
    counts = np.bincount([s.segment.codes[0, 0] for s in drawn], minlength=MARK)
    assert np.isclose(p.sum(), 1)
    assert (np.abs(counts - 4000 * p) < 5 * (4000 * p) ** 0.5).all()


def test_a_size_that_cannot_be_is_refused(lm, toy_lm, generator):
    with pytest.raises(UserError, match="3 rows of 4 columns take 16 frames"):
        Sampling(n_rows=3, n_columns=4, max_frames=15)
    with pytest.raises(UserError, match="rows is -1"):
        Sampling(n_rows=-1)
    known = [0, 1, 1, MARK, 0]
    with pytest.raises(UserError, match="the beginning has 3 columns, but 2 are asked for"):
        generate(lm, [beginning(known)], Sampling(n_columns=2), generator)
    with pytest.raises(UserError, match="the beginning has 1 rows, of 1 that are asked for"):
        generate(lm, [beginning(known)], Sampling(n_rows=1), generator)
    fixed = toy_lm((Signature("image", (MARK,), frames=4),))
    with pytest.raises(UserError, match="takes one size only; leave out columns"):
        generate(fixed, [beginning()], Sampling(n_columns=2), generator)
