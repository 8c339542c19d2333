"""Streams are sampled as often as they are scored: counted against the sum over all that can be."""

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare

from mmtok.core.segment import Document, Segment, Signature
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate, infill
from mmtok.model.likelihood import score


def outcomes(signature, cap):
    """Every segment that sampling with this cap can give."""
    frames = [
        f
        for f in itertools.product(*map(range, signature.levels))
        if len(f) > 1 or f[0] not in signature.banned
    ]
    lengths = [signature.frames] if signature.frames else range(cap + 1)
    for n in lengths:
        for rows in itertools.product(frames, repeat=n):
            ordered = rows[signature.headers :]
            if not signature.descending or all(a >= b for a, b in zip(ordered, ordered[1:])):
                yield Segment(
                    "x",
                    codes=np.array(rows, int).reshape(n, len(signature.levels)),
                    truncated=not signature.frames and n == cap,
                )


def assert_as_often_as_scored(drawn, segments, p):
    index = {s.codes.tobytes(): i for i, s in enumerate(segments)}
    counts = np.bincount(
        [index[d.segment.codes.astype(int).tobytes()] for d in drawn], minlength=len(segments)
    )
    assert abs(p.sum() - 1) < 1e-9
    often = p * len(drawn) >= 5  # the rare outcomes share a bin

    def join(x):
        return np.append(x[often], x[~often].sum() + 1e-9)

    seen = join(counts)
    expected = join(p * len(drawn))
    assert often.sum() > 5 and chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    "signature, head",
    [
        (Signature("x", (4,), banned=(1,)), None),
        (Signature("x", (4,), frames=3), None),
        (Signature("x", (3, 2)), Parallel()),
        (Signature("x", (3, 2), descending=True), Chained(6)),
        (Signature("x", (2, 2), descending=True, headers=1), Parallel()),
        (Signature("x", (4,), descending=True), Chained(6)),
        (Signature("x", (2, 2), frames=2), Chained(6)),
    ],
)
def test_streams_are_sampled_as_often_as_they_are_scored(
    toy_lm, generator, signature, head, nothing, prompt
):
    lm = toy_lm([Signature("text", (3,)), signature], {"x": head} if head else {})
    text = Segment("text", codes=np.array([[1], [2]]))
    cap = 2
    segments = list(outcomes(signature, cap))
    p = np.exp(
        [-s.total for s in score(lm, [Document((text, s), (False, True)) for s in segments])]
    )
    drawn = generate(
        lm,
        [prompt(text, to=nothing(lm.vocabulary, "x"))] * 4000,
        Sampling(max_frames=cap),
        generator,
    )
    assert_as_often_as_scored(drawn, segments, p)


def test_spans_are_infilled_as_often_as_they_are_scored(toy_lm, generator, prompt):
    lm = toy_lm([Signature("x", (3,), frames=4)])
    known = np.array([[1], [2]])
    two = ((1, 1), (2, 2))
    segments = []
    for n in range(3):
        for fill in itertools.product(range(3), repeat=2):
            a = np.array(fill[:n], int).reshape(-1, 1)
            b = np.array(fill[n:], int).reshape(-1, 1)
            segments.append(
                Segment(
                    "x",
                    codes=np.concatenate([known[:1], a, known[1:], b]),
                    infill_spans=((1, 1 + n), (2 + n, 4)),
                )
            )
    p = np.exp([-s.total for s in score(lm, [Document((s,), (True,)) for s in segments])])
    drawn = infill(
        lm, [prompt(to=Segment("x", codes=known, infill_spans=two))] * 3000, Sampling(), generator
    )

    def key(s):
        return (s.codes.tobytes(), s.infill_spans)

    counts = {key(s): 0 for s in segments}
    for d in drawn:
        counts[key(d.segment)] += 1
    share = np.array(list(counts.values())) / len(drawn)
    assert abs(p.sum() - 1) < 1e-9
    assert (abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(drawn)) + 1e-9).all()


def test_rounded_weights_draw_from_nearly_the_same_distribution(toy_lm, generator, nothing, prompt):
    """Total variation of the first code, whose distribution is counted, from its exact one."""
    lm = toy_lm([Signature("x", (8,), frames=1)]).float()
    exact = np.exp(
        [
            -score(lm, [Document((Segment("x", codes=np.array([[k]])),), (True,))])[0].total
            for k in range(8)
        ]
    )
    for precision in ("float32", "bf16", "int8"):
        drawn = generate(
            lm,
            [prompt(to=nothing(lm.vocabulary, "x"))] * 8000,
            Sampling(precision=precision),
            generator,
        )
        share = np.bincount([d.segment.codes[0, 0] for d in drawn], minlength=8) / 8000
        assert np.abs(share - exact).sum() / 2 < 0.03
