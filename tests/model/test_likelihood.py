"""The probabilities of all streams of a toy grammar sum to 1: every code, every length, every way
to infill its spans.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained, Parallel
from mmtok.model.likelihood import LogLikelihood, mixture, score
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.tokenizers.jets import JetGridConfig

GIVEN = Segment("text", codes=np.array([[1], [0]]))
TEXT = Signature("text", (3,), banned=(2,))
TOYS = {  # open-ended: one channel, one with a ban, parallel channels, chained ones, sets
    "plain": (Signature("x", (3,)), None),
    "banned": (Signature("x", (4,), banned=(1,)), None),
    "parallel": (Signature("x", (2, 3)), Parallel()),
    "chained": (Signature("x", (2, 3)), Chained(6)),
    "set": (Signature("x", (3, 2), descending=True), Chained(6)),
    "set_in_parallel": (Signature("x", (2, 3), descending=True), Parallel()),
    "set_of_numbers": (Signature("x", (4,), descending=True), Chained(6)),
    "set_with_a_header": (Signature("x", (2, 2), descending=True, headers=1), Chained(6)),
}


def frames_of(signature):
    return [
        f
        for f in itertools.product(*map(range, signature.levels))
        if len(f) > 1 or f[0] not in signature.banned
    ]


def all_codes(signature, n):
    """Every legal (n, C) table."""
    for rows in itertools.product(frames_of(signature), repeat=n):
        ordered = rows[signature.headers :]
        if not signature.descending or all(a >= b for a, b in zip(ordered, ordered[1:])):
            yield np.array(rows, dtype=int).reshape(n, len(signature.levels))


def lm_of(toy_lm, name):
    signature, head = TOYS[name]
    return toy_lm([TEXT, signature], {"x": head} if head else {}), signature


def mass(lm, segments, given=(GIVEN,)):
    documents = [Document((*given, s), (False,) * len(given) + (True,)) for s in segments]
    return sum(math.exp(-s.total) for s in score(lm, documents))


@pytest.mark.parametrize("name", TOYS)
def test_open_ended_streams_sum_to_one(toy_lm, name):
    """All that end within two frames, and all that go on to a third."""
    lm, signature = lm_of(toy_lm, name)
    closed = [mass(lm, [Segment("x", codes=c) for c in all_codes(signature, n)]) for n in range(3)]
    longer = mass(lm, [Segment("x", codes=c, truncated=True) for c in all_codes(signature, 3)])
    assert min(closed) > 1e-4 and longer > 1e-4
    assert abs(sum(closed) + longer - 1) < 1e-12


@pytest.mark.parametrize("head", [Chained(6), Parallel()])
@pytest.mark.parametrize("trained", [False, True])
def test_the_probabilities_of_all_sets_of_particles_sum_to_one(
    toy_lm, untrained_toy, head, trained
):
    """All multisets of up to three particles on a small grid, each in an order drawn at random, and
    of four as those of at least four.
    """
    grid = JetGridConfig(
        features=("pt_gev", "eta_rel"), bins=(3, 3), low=(0, -1), high=(1, 1), allow_clipping=True
    ).build()
    lm = (toy_lm if trained else untrained_toy)([TEXT, grid.signature], {"jets": head})
    particles = list(itertools.product(range(3), repeat=2))
    rng = np.random.default_rng(0)
    total = 0.0
    for n in range(5):
        tables = [
            np.array(s, int).reshape(n, 2)
            for s in itertools.combinations_with_replacement(particles, n)
        ]
        jets = [grid.decode(Segment("jets", codes=table))[rng.permutation(n)] for table in tables]
        segments = [replace(segment, truncated=n == 4) for segment in grid.encode_batch(jets)]
        assert len({s.codes.tobytes() for s in segments}) == math.comb(8 + n, n), (
            "each set has a list of its own"
        )
        total += mass(lm, segments)
    assert abs(total - 1) < 1e-12


def test_a_fixed_count_sums_to_one(toy_lm):
    lm = toy_lm(
        [
            TEXT,
            Signature("x", (4,), frames=3, banned=(1,)),
            Signature("y", (3, 2), frames=2, descending=True),
        ],
        {"y": Chained(6)},
    )
    for m, n in (("x", 3), ("y", 2)):
        assert (
            abs(
                mass(lm, [Segment(m, codes=c) for c in all_codes(lm.vocabulary.signatures[m], n)])
                - 1
            )
            < 1e-12
        )


def test_two_predicted_segments_sum_to_one_together(toy_lm):
    lm = toy_lm(
        [TEXT, Signature("x", (2,), frames=2), Signature("y", (2, 2), frames=1)], {"y": Parallel()}
    )
    tables = [list(all_codes(lm.vocabulary.signatures[m], n)) for m, n in (("x", 2), ("y", 1))]
    documents = [
        Document((Segment("x", codes=a), Segment("y", codes=b)), (True, True))
        for a, b in itertools.product(*tables)
    ]
    scores = score(lm, documents)
    assert abs(sum(math.exp(-s.total) for s in scores) - 1) < 1e-12
    assert all(s.nats[0] > 0 and s.nats[1] > 0 for s in scores)


def fillings(known, at, sizes, signature):
    """Every table whose visible frames are `known`, with spans of these sizes to infill before
    known frame at[0], at[1] ...
    """
    for filled in all_codes(signature, sum(sizes)):
        pieces = []
        spans = []
        start = 0
        used = 0
        for a, n, b in zip([0, *at], [0, *sizes], [*at, len(known)]):
            piece = filled[used : used + n]
            used += n
            if len(pieces):
                spans.append((start, start + n))
            pieces += [piece, known[a:b]]
            start += n + b - a
        yield Segment("x", codes=np.concatenate(pieces), infill_spans=tuple(spans))


@pytest.mark.parametrize(
    "signature, head",
    [(Signature("x", (3,), frames=5), None), (Signature("x", (2, 2), frames=5), Chained(6))],
)
def test_fillings_of_a_fixed_count_sum_to_one_however_the_spans_share_it(toy_lm, signature, head):
    lm = toy_lm([TEXT, signature], {"x": head} if head else {})
    known = np.ones((2, len(signature.levels)), int)
    for at in ([1], [0, 2], [1, 1, 2]):
        sizes = [s for s in itertools.product(range(4), repeat=len(at)) if sum(s) == 3]
        assert (
            abs(mass(lm, [f for s in sizes for f in fillings(known, at, s, signature)]) - 1) < 1e-12
        ), at


def test_fillings_of_open_spans_sum_to_one(toy_lm):
    """A span closed within one frame or going on to two; then a second one behind each filling of
    the first.
    """
    lm, signature = lm_of(toy_lm, "parallel")
    known = np.ones((2, 2), int)
    vocabulary = lm.vocabulary

    def going_on(sizes):
        """Mass of all streams with at least these frames: the last span's end mark is left out."""
        total = 0.0
        for segment in fillings(known, [0, 1][: len(sizes)], sizes, signature):
            nats = lm(
                pack(
                    vocabulary, [[to_stream(vocabulary, Document((GIVEN, segment), (False, True)))]]
                )
            ).total[0]
            total += math.exp(-nats[:-1].sum().item())
        return total

    at = [0, 1]
    closed = sum(mass(lm, list(fillings(known, [0], (n,), signature))) for n in range(2))
    assert abs(closed + going_on((2,)) - 1) < 1e-12
    # with two spans, sum the second out for each filling of the first: the first alone remains
    for n in range(2):
        inner = sum(
            mass(lm, list(fillings(known, at, (n, k), signature))) for k in range(2)
        ) + going_on((n, 2))
        outer = 0.0
        for segment in fillings(known, at, (n, 0), signature):
            stream = to_stream(vocabulary, Document((GIVEN, segment), (False, True)))
            last_fill = int((stream.ids == vocabulary.fill).nonzero()[0][-1])
            outer += math.exp(-lm(pack(vocabulary, [[stream]])).total[0][:last_fill].sum().item())
        assert abs(inner - outer) < 1e-12 and outer > 1e-4


# ---- what a score says


def test_scores_are_per_segment_and_do_not_depend_on_how_documents_are_batched(lm, corpus):
    one_by_one = [score(lm, [d])[0] for d in corpus]
    for budget in (1, 200, 16_384):
        for d, a, b in zip(corpus, one_by_one, score(lm, corpus, positions_per_batch=budget)):
            for x, y, predicted in zip(a.nats, b.nats, d.predict):
                assert (x is None) == (y is None) == (not predicted)
                assert x is None or abs(x - y) < 1e-10
    for d, s in zip(corpus, one_by_one):
        batch = pack(lm.vocabulary, [[to_stream(lm.vocabulary, d)]])
        assert abs(s.total - lm(batch).total.sum().item()) < 1e-10 and s.kind == "exact"
    assert one_by_one[0].frames == (5, 7, 3, 3, 6)  # of the image only those to infill
    assert one_by_one[2].frames == (0, 4)
    assert score(lm, []) == []


def test_a_segment_is_scored_given_those_before_it_and_no_later_one(lm, segment):
    a = segment("text", 3)
    b = segment("jets", 4)
    c = segment("text", 5)
    both = score(
        lm,
        [
            Document((a, b), (True, True)),
            Document((a, b, c), (True, True, True)),
            Document((c, b), (True, True)),
        ],
    )
    assert (
        abs(both[0].nats[0] - both[1].nats[0]) < 1e-12
        and abs(both[0].nats[1] - both[1].nats[1]) < 1e-12
    )
    assert abs(both[0].nats[1] - both[2].nats[1]) > 1e-3


def test_a_document_without_segments_is_refused_by_its_number(lm, segment):
    with pytest.raises(UserError, match="document 1 of 2.* no segments") as refusal:
        score(lm, [Document((segment("text", 3),), (True,)), Document((), ())])
    assert "\n" not in str(refusal.value)


def test_scoring_leaves_the_model_in_its_mode_whatever_happens(vocabulary, segment):
    torch.manual_seed(0)
    lm = LM(DecoderConfig(TransformerConfig(1, 16, 2, 2, 24, dropout=0.5)), vocabulary).train()
    text = Document((segment("text", 30),), (True,))
    assert score(lm, [text]) == score(lm, [text]) and lm.training
    with pytest.raises(UserError, match="no head"):
        score(lm, [Document((segment("jets", 3),), (True,))])
    assert lm.training
    lm.eval()
    score(lm, [text])
    assert not lm.training


def test_a_mixture_is_the_mean_of_probabilities_segment_by_segment():
    p = np.array([[[0.5, 0.2], [0.1, 0.9]], [[0.3, 0.4], [0.6, 0.1]]])  # member, document, segment
    members = [
        [LogLikelihood((None, *-np.log(row)), (3, 1, 2), kind) for row in rows]
        for rows, kind in zip(p, ("exact", "bound"), strict=True)
    ]
    for d, mixed in enumerate(mixture(members)):
        assert mixed.nats[0] is None and mixed.kind == "bound" and mixed.frames == (3, 1, 2)
        joint = p[:, d].prod(1).mean()
        assert math.exp(-mixed.nats[1]) == pytest.approx(p[:, d, 0].mean())
        assert math.exp(-mixed.total) == pytest.approx(joint)
    same = mixture([members[0], members[0]])
    assert [each.total for each in same] == pytest.approx([each.total for each in members[0]])
