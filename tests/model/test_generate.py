import itertools
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mmtok.batch import pack
from mmtok.model.generate import Sampling, draw, fill_holes, generate, mix_guidance, pick
from mmtok.model.heads import Chained, Parallel
from mmtok.model.score import score
from mmtok.segment import BadInput, Document, Segment, Signature
from mmtok.vocabulary import START

MADE = ["text", "speech", "image", "jets", "tiles", "absent"]
WAYS = [
    Sampling(max_frames=12), Sampling(guidance=2.5, max_frames=12),
    Sampling(temperature=0, max_frames=12), Sampling(temperature=0, guidance=3, max_frames=12),
    Sampling(precision="bfloat16", max_frames=12), Sampling(precision="int8", guidance=2, max_frames=12),
    Sampling(top_k=2, max_frames=12), Sampling(top_p=0.5, max_frames=12), Sampling(2.0, 3, 0.9, 0.5, 12), Sampling(max_frames=1),
]


def nothing(vocabulary, modality):
    return Segment(modality, codes=np.zeros((0, len(vocabulary.signatures[modality].levels)), int))


def prompt(*given, to):
    return Document((*given, to), (False,) * len(given) + (True,), open_end=True)


def assert_valid(vocabulary, sampled, given=()):
    """The segment lays out as a stream that the grammar accepts, and comes back out of it."""
    document = Document((*given, sampled.segment), (False,) * len(given) + (True,))
    stream, state = vocabulary.stream(document), START
    for i, id in enumerate(stream.ids):
        assert not stream.predict[i] or id in vocabulary.legal(state)
        state = vocabulary.advance(state, int(id))
    back = vocabulary.document(stream).segments[-1]
    assert np.array_equal(back.codes, sampled.segment.codes) and back.holes == sampled.segment.holes
    assert sampled.stop in ("end", "cap") and sampled.segment.truncated == (sampled.stop == "cap" and not sampled.segment.holes)


@pytest.mark.parametrize("modality", MADE)
@pytest.mark.parametrize("way", WAYS, ids=range(len(WAYS)))
def test_whatever_an_untrained_model_samples_decodes(untrained, lm, vocabulary, segment, modality, way):
    """64 streams at a time, prompts of different lengths, some frames known; near-uniform weights and wild ones."""
    most = vocabulary.signatures[modality].frames or 3
    for model, seed in itertools.product((untrained, lm), range(2)):
        known = [segment(modality, n % (most + 1)) for n in range(64)]
        given = [(segment("text", n % 5), None, segment("jets", n % 3)) for n in range(64)]
        prompts = [prompt(*g, to=k) for g, k in zip(given, known)]
        drawn = generate(model, prompts, way, torch.Generator().manual_seed(seed))
        for g, k, sampled in zip(given, known, drawn):
            assert_valid(vocabulary, sampled, g)
            assert np.array_equal(sampled.segment.codes[: len(k)], k.codes)
            if vocabulary.signatures[modality].frames:
                assert len(sampled.segment) == most and sampled.stop == "end"
            else:
                n_new = len(sampled.segment) - len(k)
                assert n_new <= way.max_frames and (n_new == way.max_frames) == (sampled.stop == "cap")


@pytest.mark.parametrize("modality", ["text", "speech", "image", "tiles"])
def test_filled_holes_decode_and_leave_what_was_known(untrained, lm, vocabulary, segment, modality):
    n_known = {"image": 5, "tiles": 1}.get(modality, 4)
    at = (0, 1, 1, n_known)
    for model, way in itertools.product((untrained, lm), WAYS):
        known = [segment(modality, n_known) for _ in range(16)]
        prompts = [prompt(segment("text", 2), to=replace(k, holes=tuple((a, a) for a in at))) for k in known]
        for p, k, sampled in zip(prompts, known, fill_holes(model, prompts, way, torch.Generator().manual_seed(0))):
            assert_valid(vocabulary, sampled, p.segments[:-1])
            s = sampled.segment
            inside = np.zeros(len(s), bool)
            for a, b in s.holes:
                inside[a:b] = True
            assert np.array_equal(s.codes[~inside], k.codes) and len(s.holes) == 4
            fixed = vocabulary.signatures[modality].frames
            assert sampled.stop == "end" and len(s) == fixed if fixed else True
            if not fixed:
                assert (sampled.stop == "cap") == any(b - a == way.max_frames for a, b in s.holes)


def test_a_prompts_info_does_not_outlive_its_frames(lm, segment, generator):
    known = replace(segment("image", 4), info={"height": 2, "width": 2})
    assert generate(lm, [prompt(to=known)], Sampling(), generator)[0].segment.info == {}
    holed = replace(known, holes=((1, 1),))
    assert fill_holes(lm, [prompt(to=holed)], Sampling(), generator)[0].segment.info == {}


def test_stop_reasons(lm, vocabulary, segment, generator):
    """A cap is told from an end; a fixed count, and a segment already whole, end by themselves and take no cap."""
    drawn = generate(lm, [prompt(to=nothing(vocabulary, "text"))] * 50, Sampling(max_frames=2), generator)
    assert {d.stop for d in drawn} == {"end", "cap"}
    assert all((d.stop == "cap") == (len(d.segment) == 2) == d.segment.truncated for d in drawn)
    seen = []
    prompts = [prompt(to=segment("image", n)) for n in (0, 8, 9)]
    drawn = generate(lm, prompts, Sampling(max_frames=2), generator, lambda rows, frames: seen.append(rows))
    assert [d.stop for d in drawn] == ["end"] * 3 and [len(d.segment) for d in drawn] == [9] * 3
    assert [r.tolist() for r in seen] == [[0, 1], *[[0]] * 8]
    assert generate(lm, [], Sampling(), generator) == []


def test_frames_are_told_as_they_come(lm, vocabulary, generator):
    for way in (Sampling(max_frames=9), Sampling(max_frames=9, guidance=2)):
        prompts, said = [prompt(to=nothing(vocabulary, "jets"))] * 20, [[] for _ in range(20)]
        drawn = generate(lm, prompts, way, generator, lambda rows, frames: [said[r].append(x) for r, x in zip(rows, frames)])
        for r, d in enumerate(drawn):
            assert np.array_equal(np.array(said[r]).reshape(-1, 3), d.segment.codes)


# ---- the same distribution as scoring


def outcomes(signature, cap):
    """Every segment that sampling with this cap can give."""
    frames = [f for f in itertools.product(*map(range, signature.levels)) if len(f) > 1 or f[0] not in signature.banned]
    lengths = [signature.frames] if signature.frames else range(cap + 1)
    for n in lengths:
        for rows in itertools.product(frames, repeat=n):
            d = signature.descending
            if d is None or all(a[d] >= b[d] for a, b in zip(rows, rows[1:])):
                yield Segment("x", codes=np.array(rows, int).reshape(n, len(signature.levels)), truncated=not signature.frames and n == cap)


def assert_as_often_as_scored(drawn, segments, p):
    index = {s.codes.tobytes(): i for i, s in enumerate(segments)}
    counts = np.bincount([index[d.segment.codes.astype(int).tobytes()] for d in drawn], minlength=len(segments))
    assert abs(p.sum() - 1) < 1e-9
    often = p * len(drawn) >= 5  # the rare outcomes share a bin
    join = lambda x: np.append(x[often], x[~often].sum() + 1e-9)
    seen, expected = join(counts), join(p * len(drawn))
    assert often.sum() > 5 and chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize("signature, head", [
    (Signature("x", (4,), banned=(1,)), None), (Signature("x", (4,), frames=3), None), (Signature("x", (3, 2)), Parallel()),
    (Signature("x", (3, 2), descending=0), Chained(6)), (Signature("x", (2, 2), frames=2), Chained(6)),
])
def test_streams_are_sampled_as_often_as_they_are_scored(toy_lm, generator, signature, head):
    lm = toy_lm([Signature("text", (3,)), signature], {"x": head} if head else {})
    text, cap = Segment("text", codes=np.array([[1], [2]])), 2
    segments = list(outcomes(signature, cap))
    p = np.exp([-s.total for s in score(lm, [Document((text, s), (False, True)) for s in segments])])
    drawn = generate(lm, [prompt(text, to=nothing(lm.vocabulary, "x"))] * 4000, Sampling(max_frames=cap), generator)
    assert_as_often_as_scored(drawn, segments, p)


def test_holes_are_filled_as_often_as_they_are_scored(toy_lm, generator):
    lm = toy_lm([Signature("x", (3,), frames=4)])
    known, two = np.array([[1], [2]]), ((1, 1), (2, 2))
    segments = []
    for n in range(3):
        for fill in itertools.product(range(3), repeat=2):
            a, b = np.array(fill[:n], int).reshape(-1, 1), np.array(fill[n:], int).reshape(-1, 1)
            segments.append(Segment("x", codes=np.concatenate([known[:1], a, known[1:], b]), holes=((1, 1 + n), (2 + n, 4))))
    p = np.exp([-s.total for s in score(lm, [Document((s,), (True,)) for s in segments])])
    drawn = fill_holes(lm, [prompt(to=Segment("x", codes=known, holes=two))] * 3000, Sampling(), generator)
    key = lambda s: (s.codes.tobytes(), s.holes)
    counts = {key(s): 0 for s in segments}
    for d in drawn:
        counts[key(d.segment)] += 1
    share = np.array(list(counts.values())) / len(drawn)
    assert abs(p.sum() - 1) < 1e-9
    assert (abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(drawn)) + 1e-9).all()


# ---- guidance


def reference(lm, document, way):
    """Greedy guided decoding with no cache: every step reads both documents anew."""
    null = replace(document, segments=(None,) * (len(document.segments) - 1) + document.segments[-1:])
    m = document.segments[-1].modality
    codes, n_codes = document.segments[-1].codes, len(lm.vocabulary.span(m))
    while True:
        hs = []
        for d in (document, null):
            d = replace(d, segments=(*d.segments[:-1], Segment(m, codes=codes)))
            hs.append(lm.hidden(pack(lm.vocabulary, [[lm.vocabulary.stream(d)]]))[:, -1])
        logits = mix_guidance([lm.id_logits(h, m) for h in hs], way.guidance)
        signature = lm.vocabulary.signatures[m]
        if signature.frames is not None:
            if len(codes) == signature.frames:
                return codes
            logits = logits[:, :-1]
        choice = int(logits.argmax())
        if choice == n_codes or (signature.frames is None and len(codes) == way.max_frames):
            return codes
        frame = torch.tensor([[choice]])
        if not signature.one_channel:
            top = signature.levels[signature.descending or 0] - 1
            ceiling = torch.tensor([codes[-1, signature.descending] if len(codes) else top]) if signature.descending is not None else None
            frame = lm.heads[m].sample(hs, lambda x: mix_guidance(x, way.guidance), lambda x: x.argmax(-1), ceiling)
        codes = np.concatenate([codes, frame.numpy()])


@pytest.mark.parametrize("modality", MADE)
def test_cached_guided_sampling_equals_reading_both_streams_anew(lm, vocabulary, segment, modality):
    """Each stream has its own positions: prompts of different lengths, whose null streams are shorter than themselves."""
    documents = [prompt(segment("text", n), segment("speech", 2), to=nothing(vocabulary, modality)) for n in (1, 6, 3)]
    for g in (1.0, 1.7):
        way = Sampling(temperature=0, guidance=g, max_frames=6)
        for document, drawn in zip(documents, generate(lm, documents, way, torch.Generator())):
            assert np.array_equal(drawn.segment.codes, reference(lm, document, way))


@pytest.mark.parametrize("modality", MADE)
def test_guidance_of_almost_one_draws_what_no_guidance_draws(lm, vocabulary, segment, modality):
    prompts = [prompt(segment("text", n % 4), to=nothing(vocabulary, modality)) for n in range(30)]
    draw = lambda g: generate(lm, prompts, Sampling(guidance=g, max_frames=8), torch.Generator().manual_seed(3))
    a, b, c = draw(1.0), draw(1.0 + 1e-12), draw(3.0)
    assert all(np.array_equal(x.segment.codes, y.segment.codes) and x.stop == y.stop for x, y in zip(a, b))
    assert not all(np.array_equal(x.segment.codes, y.segment.codes) for x, y in zip(a, c))


# ---- drawing one id


def test_pick_keeps_to_what_top_k_top_p_and_the_grammar_leave(generator):
    p = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    logits = p.log().expand(4000, -1)
    drawn = lambda **k: set(pick(logits, Sampling(**k), generator).tolist())
    assert drawn() == {0, 1, 2, 3}
    assert drawn(temperature=0) == drawn(top_k=1) == drawn(top_p=1e-6) == {0}
    assert drawn(top_k=3) == {0, 1, 2} and drawn(top_k=5) == drawn(top_k=50) == {0, 1, 2, 3}
    assert drawn(top_p=0.39) == {0} and drawn(top_p=0.5) == {0, 1} and drawn(top_p=0.71) == {0, 1, 2}


def test_draw_takes_each_as_often_as_it_should_and_the_impossible_never(generator):
    p = torch.tensor([0.0, 1e-3, 0.5, 0.0, 0.3, 0.199, 0.0])
    counts = torch.bincount(draw(p.expand(50_000, -1), generator), minlength=7)
    assert (counts[p == 0] == 0).all() and chisquare(counts[p > 0], (p / p.sum())[p > 0].double() * 50_000).pvalue > 1e-3
    assert draw(torch.tensor([[0.0, 0.0, 1e-30], [0.0, 1e-38, 0.0]]), generator).tolist() == [2, 1]


def test_weights_that_are_no_numbers_are_told(lm, vocabulary, generator):
    lm.model.embed_tokens.weight.data[vocabulary.span("text")[3]] = float("nan")
    for temperature in (1.0, 0.0):
        with pytest.raises(BadInput, match="text"):
            generate(lm, [prompt(to=nothing(vocabulary, "text"))], Sampling(temperature=temperature), generator)


def test_rounded_weights_draw_from_nearly_the_same_distribution(toy_lm, generator):
    """Total variation of the first code, whose distribution is counted, from its exact one."""
    lm = toy_lm([Signature("x", (8,), frames=1)]).float()
    exact = np.exp([-score(lm, [Document((Segment("x", codes=np.array([[k]])),), (True,))])[0].total for k in range(8)])
    for precision in ("full", "bfloat16", "int8"):
        drawn = generate(lm, [prompt(to=nothing(lm.vocabulary, "x"))] * 8000, Sampling(precision=precision), generator)
        share = np.bincount([d.segment.codes[0, 0] for d in drawn], minlength=8) / 8000
        assert np.abs(share - exact).sum() / 2 < 0.03


def test_int8_weights_are_not_compiled():
    with pytest.raises(BadInput, match="cannot be compiled"):
        Sampling(precision="int8", compiled=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_sampling_decodes_and_its_rows_that_are_done_stay_as_they_are(untrained, vocabulary, segment):
    given = [segment("text", n % 3) for n in range(9)]
    for g in (1.0, 2.0):
        prompts = [prompt(x, to=nothing(vocabulary, "jets")) for x in given]
        drawn = generate(untrained, prompts, Sampling(max_frames=9, guidance=g, compiled=True), torch.Generator().manual_seed(0))
        assert len({len(d.segment) for d in drawn}) > 2
        for x, d in zip(given, drawn):
            assert_valid(vocabulary, d, (x,))


def test_temperature_sharpens(generator):
    logits = torch.tensor([0.0, 1.0]).expand(20_000, -1)
    share = pick(logits, Sampling(temperature=0.5), generator).double().mean()
    assert abs(share - 1 / (1 + math.exp(-2))) < 0.01


@pytest.mark.parametrize("wrong", [
    {"temperature": -1}, {"temperature": math.nan}, {"temperature": math.inf}, {"guidance": math.nan}, {"guidance": math.inf},
    {"top_k": -1}, {"precision": "float8"}, {"top_p": 0}, {"top_p": 1.1}, {"top_p": math.nan}, {"max_frames": 0},
])
def test_nonsense_is_refused(wrong):
    with pytest.raises(BadInput, match="sampling needs"):
        Sampling(**wrong)


def test_the_same_seed_draws_the_same(lm, vocabulary):
    prompts = [prompt(to=nothing(vocabulary, "speech"))] * 8
    way = Sampling(max_frames=6)
    draw = lambda seed: [d.segment.codes.tolist() for d in generate(lm, prompts, way, torch.Generator().manual_seed(seed))]
    assert draw(1) == draw(1) != draw(2)


# ---- refusals


def test_what_has_no_head_or_is_not_in_the_vocabulary_cannot_be_made(lm, segment, generator):
    with pytest.raises(BadInput, match="no head for voice"):
        generate(lm, [prompt(to=segment("voice", 0))], Sampling(), generator)
    with pytest.raises(BadInput, match="not in this model"):
        generate(lm, [prompt(to=Segment("smell", codes=np.zeros((0, 1), int)))], Sampling(), generator)


def test_prompts_are_open_and_of_one_modality(lm, vocabulary, segment, generator):
    text, image = nothing(vocabulary, "text"), segment("image", 2)
    holes = replace(image, holes=((0, 1), (2, 2)))
    closed, left_out = Document((text,), (True,)), Document((None,), (False,), open_end=True)
    for wrong in ([closed], [prompt(to=text), prompt(to=image)], [left_out], [prompt(to=holes)], [replace(prompt(to=holes), n_filled=2)]):
        with pytest.raises(ValueError):
            generate(lm, wrong, Sampling(), generator)
    generate(lm, [replace(prompt(to=holes), n_filled=1)], Sampling(), generator)
    two = prompt(to=replace(image, holes=((0, 0), (2, 2))))
    for wrong in ([prompt(to=image)], [two, prompt(to=replace(image, holes=((0, 0),)))]):
        with pytest.raises(ValueError, match="same number of holes"):
            fill_holes(lm, wrong, Sampling(), generator)


def test_dropout_is_off_while_sampling_and_on_again_after(vocabulary, segment):
    from mmtok.model.lm import LM, DecoderConfig
    from mmtok.nn.transformer import TransformerConfig

    torch.manual_seed(0)
    lm = LM(DecoderConfig(TransformerConfig(1, 16, 2, 2, 24, dropout=0.5)), vocabulary).train()
    lm.model.embed_tokens.weight.data *= 20
    p = [prompt(to=nothing(vocabulary, "image"))]
    draw = lambda: generate(lm, p, Sampling(temperature=0), torch.Generator())[0].segment.codes.tolist()
    assert all(draw() == draw() for _ in range(5)) and lm.training
