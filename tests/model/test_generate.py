"""Sampling: whatever is drawn decodes, keeps what was known, and says how it stopped; what cannot
be drawn is refused.
"""

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Document, Segment
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate, infill

MADE = ["text", "speech", "image", "jets", "tiles", "absent"]
WAYS = [
    Sampling(max_frames=12),
    Sampling(guidance=2.5, max_frames=12),
    Sampling(temperature=0, max_frames=12),
    Sampling(temperature=0, guidance=3, max_frames=12),
    Sampling(precision="bf16", max_frames=12),
    Sampling(precision="int8", guidance=2, max_frames=12),
    Sampling(top_k=2, max_frames=12),
    Sampling(top_p=0.5, max_frames=12),
    Sampling(2.0, 3, 0.9, 0.5, 12),
    Sampling(max_frames=1),
]


@pytest.mark.parametrize("modality", MADE)
@pytest.mark.parametrize("way", WAYS, ids=range(len(WAYS)))
def test_whatever_an_untrained_model_samples_decodes(
    untrained, lm, vocabulary, segment, modality, way, prompt, assert_valid
):
    """64 streams at a time, prompts of different lengths, some frames known; near-uniform weights
    and wild ones.
    """
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
                assert n_new <= way.max_frames and (n_new == way.max_frames) == (
                    sampled.stop == "cap"
                )


@pytest.mark.parametrize("modality", ["text", "speech", "image", "tiles"])
def test_infilled_spans_decode_and_leave_what_was_known(
    untrained, lm, vocabulary, segment, modality, prompt, assert_valid
):
    n_known = {"image": 5, "tiles": 1}.get(modality, 4)
    at = (0, 1, 1, n_known)
    for model, way in itertools.product((untrained, lm), WAYS):
        known = [segment(modality, n_known) for _ in range(16)]
        prompts = [
            prompt(segment("text", 2), to=replace(k, infill_spans=tuple((a, a) for a in at)))
            for k in known
        ]
        for p, k, sampled in zip(
            prompts, known, infill(model, prompts, way, torch.Generator().manual_seed(0))
        ):
            assert_valid(vocabulary, sampled, p.segments[:-1])
            s = sampled.segment
            inside = np.zeros(len(s), bool)
            for a, b in s.infill_spans:
                inside[a:b] = True
            assert np.array_equal(s.codes[~inside], k.codes) and len(s.infill_spans) == 4
            fixed = vocabulary.signatures[modality].frames
            if fixed:
                assert sampled.stop == "end" and len(s) == fixed
            else:
                assert (sampled.stop == "cap") == any(
                    b - a == way.max_frames for a, b in s.infill_spans
                )


def test_a_prompts_info_does_not_outlive_its_frames(lm, segment, generator, prompt):
    known = replace(segment("image", 4), info={"height": 2, "width": 2})
    assert generate(lm, [prompt(to=known)], Sampling(), generator)[0].segment.info == {}
    holed = replace(known, infill_spans=((1, 1),))
    assert infill(lm, [prompt(to=holed)], Sampling(), generator)[0].segment.info == {}


def test_stop_reasons(lm, vocabulary, segment, generator, nothing, prompt):
    """A cap is told from an end; a fixed count, and a segment already whole, end by themselves and
    take no cap.
    """
    drawn = generate(
        lm, [prompt(to=nothing(vocabulary, "text"))] * 50, Sampling(max_frames=2), generator
    )
    assert {d.stop for d in drawn} == {"end", "cap"}
    assert all((d.stop == "cap") == (len(d.segment) == 2) == d.segment.truncated for d in drawn)
    seen = []
    prompts = [prompt(to=segment("image", n)) for n in (0, 8, 9)]
    drawn = generate(
        lm, prompts, Sampling(max_frames=2), generator, lambda rows, frames: seen.append(rows)
    )
    assert [d.stop for d in drawn] == ["end"] * 3 and [len(d.segment) for d in drawn] == [9] * 3
    assert [r.tolist() for r in seen] == [[0, 1], *[[0]] * 8]
    assert generate(lm, [], Sampling(), generator) == []


def test_frames_are_told_as_they_come(lm, vocabulary, generator, nothing, prompt):
    for way in (Sampling(max_frames=9), Sampling(max_frames=9, guidance=2)):
        prompts = [prompt(to=nothing(vocabulary, "jets"))] * 20
        said = [[] for _ in range(20)]
        drawn = generate(
            lm,
            prompts,
            way,
            generator,
            lambda rows, frames: [said[r].append(x) for r, x in zip(rows, frames)],
        )
        for r, d in enumerate(drawn):
            assert np.array_equal(np.array(said[r]).reshape(-1, 3), d.segment.codes)


def test_weights_that_are_no_numbers_are_told(lm, vocabulary, generator, nothing, prompt):
    lm.model.embed_tokens.weight.data[vocabulary.span("text")[3]] = float("nan")
    for temperature in (1.0, 0.0):
        with pytest.raises(UserError, match="text"):
            generate(
                lm,
                [prompt(to=nothing(vocabulary, "text"))],
                Sampling(temperature=temperature),
                generator,
            )


def test_int8_weights_are_not_compiled():
    with pytest.raises(UserError, match="cannot be compiled"):
        Sampling(precision="int8", compiled=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_sampling_decodes_and_rows_that_are_done_stay_as_they_are(
    untrained, vocabulary, segment, nothing, prompt, assert_valid
):
    given = [segment("text", n % 3) for n in range(9)]
    for g in (1.0, 2.0):
        prompts = [prompt(x, to=nothing(vocabulary, "jets")) for x in given]
        drawn = generate(
            untrained,
            prompts,
            Sampling(max_frames=9, guidance=g, compiled=True),
            torch.Generator().manual_seed(0),
        )
        assert len({len(d.segment) for d in drawn}) > 2
        for x, d in zip(given, drawn):
            assert_valid(vocabulary, d, (x,))


def test_the_same_seed_draws_the_same(lm, vocabulary, nothing, prompt):
    prompts = [prompt(to=nothing(vocabulary, "speech"))] * 8
    way = Sampling(max_frames=6)

    def draw(seed):
        return [
            d.segment.codes.tolist()
            for d in generate(lm, prompts, way, torch.Generator().manual_seed(seed))
        ]

    assert draw(1) == draw(1) != draw(2)


# ---- refusals


def test_what_has_no_head_or_is_not_in_the_vocabulary_cannot_be_made(
    lm, segment, generator, prompt
):
    with pytest.raises(UserError, match="no head for voice"):
        generate(lm, [prompt(to=segment("voice", 0))], Sampling(), generator)
    with pytest.raises(UserError, match="not in this model"):
        generate(
            lm, [prompt(to=Segment("smell", codes=np.zeros((0, 1), int)))], Sampling(), generator
        )


def test_prompts_are_open_and_of_one_modality(lm, vocabulary, segment, generator, nothing, prompt):
    text = nothing(vocabulary, "text")
    image = segment("image", 2)
    partly = replace(image, infill_spans=((0, 1), (2, 2)))
    closed = Document((text,), (True,))
    left_out = Document((None,), (False,), open_end=True)
    for wrong in (
        [closed],
        [prompt(to=text), prompt(to=image)],
        [left_out],
        [prompt(to=partly)],
        [replace(prompt(to=partly), n_filled=2)],
    ):
        with pytest.raises(ValueError):
            generate(lm, wrong, Sampling(), generator)
    generate(lm, [replace(prompt(to=partly), n_filled=1)], Sampling(), generator)
    two = prompt(to=replace(image, infill_spans=((0, 0), (2, 2))))
    for wrong in ([prompt(to=image)], [two, prompt(to=replace(image, infill_spans=((0, 0),)))]):
        with pytest.raises(ValueError, match="same number of spans to infill"):
            infill(lm, wrong, Sampling(), generator)


def test_dropout_is_off_while_sampling_and_on_again_after(vocabulary, segment, nothing, prompt):
    from mmtok.model.lm import LM, DecoderConfig
    from mmtok.nn.transformer import TransformerConfig

    torch.manual_seed(0)
    lm = LM(DecoderConfig(TransformerConfig(1, 16, 2, 2, 24, dropout=0.5)), vocabulary).train()
    lm.model.embed_tokens.weight.data *= 20
    p = [prompt(to=nothing(vocabulary, "image"))]

    def draw():
        return generate(lm, p, Sampling(temperature=0), torch.Generator())[0].segment.codes.tolist()

    assert all(draw() == draw() for _ in range(5)) and lm.training
