"""Pictures of any size: probabilities over all grids, and what is drawn."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from mmtok.core.rows import in_rows, of_rows
from mmtok.core.segment import Document, Segment, Signature
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
