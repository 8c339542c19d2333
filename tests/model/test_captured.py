"""Steps of drawing with all state on the device: the draws of the plain sampler."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model import captured
from mmtok.model import generate as generate_room
from mmtok.model.autoregressive import AutoregressiveSampler
from mmtok.model.captured import CapturedSampler
from mmtok.model.lm import LM, DecoderConfig, evaluating
from mmtok.nn.transformer import TransformerConfig

TRUNK = TransformerConfig(depth=2, width=32, n_heads=4, n_kv_heads=2, feed_forward=48)
VOCABULARY = Vocabulary(
    [
        Signature("text", (11,)),
        Signature("image", (9,), frames=6),
        Signature("speech", (5,) * 3),
        Signature("jets", (6, 4), descending=True),
    ]
)


def make_lm(trunk=TRUNK):
    """A decoder whose draws are far from uniform, so that a wrong state shows."""
    torch.manual_seed(0)
    heads = {"speech": Parallel(), "jets": Chained(hidden=8)}
    made = LM(DecoderConfig(trunk, heads, totals={"jets": 2}), VOCABULARY)
    for name, p in made.named_parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
        elif "norm" in name or name.endswith("_proj.bias"):
            torch.nn.init.uniform_(p, 0.3, 1.5)
    return made


@pytest.fixture(scope="module")
def lm():
    return make_lm()


def prompts(modality, lengths):
    rng = np.random.default_rng(0)
    text = Segment("text", codes=rng.integers(0, 11, (4, 1)))
    levels = VOCABULARY.signatures[modality].levels
    made = []
    for k, n in enumerate(lengths):
        codes = np.stack([np.sort(rng.integers(0, size, n))[::-1] for size in levels], 1)
        segments = (Segment(modality, codes=codes),)
        if k % 2:
            segments = (text, *segments)
        predict = (False,) * (len(segments) - 1) + (True,)
        made.append(Document(segments, predict, open_end=True))
    return made


def drawn(kind, lm, given, sampling):
    generator = torch.Generator().manual_seed(3)
    with evaluating(lm), torch.inference_mode():
        sampler = kind(lm, given, sampling, generator)
        while len(sampler.rows):
            sampler.step()
    return sampler.results()


class Staying(AutoregressiveSampler):
    """The plain sampler, whose rows stay to the end: each draws its own random numbers."""

    def _keep(self, alive):
        self.alive = alive


@pytest.mark.parametrize("modality", ["text", "image", "speech", "jets"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_frames=21, precision="float32"),
        Sampling(max_frames=9, temperature=0.7, guidance=1.5, precision="float32"),
        Sampling(max_frames=30, top_k=3, top_p=0.9, precision="float32"),
    ],
)
def test_the_draws_are_those_of_the_plain_sampler(lm, modality, sampling):
    given = prompts(modality, [0, 2, 3, 1])
    plain = drawn(Staying, lm, given, sampling)
    made = drawn(CapturedSampler, lm, given, sampling)
    for a, b in zip(plain, made, strict=True):
        assert a.stop == b.stop and np.array_equal(a.segment.codes, b.segment.codes)
    assert any(len(x.segment) for x in made)


@pytest.mark.parametrize(
    "switches",
    [
        {"qkv_bias": True},
        {"qk_norm": "head", "head_dim": 12},
        {"qk_norm": "all_heads", "norms": "after"},
        {"activation": "gelu_tanh", "scale_embedding": True},
    ],
)
def test_the_draws_are_those_of_the_plain_sampler_for_other_families_of_trunks(switches):
    lm = make_lm(replace(TRUNK, **switches))
    sampling = Sampling(max_frames=15, precision="float32")
    given = prompts("text", [0, 2, 3, 1])
    plain = drawn(Staying, lm, given, sampling)
    made = drawn(CapturedSampler, lm, given, sampling)
    assert [x.segment.codes.tolist() for x in plain] == [x.segment.codes.tolist() for x in made]


def test_a_step_is_kept_while_sizes_and_weights_are_equal(lm):
    sampling = Sampling(max_frames=5, precision="float32")
    given = prompts("text", [1, 2])
    first = drawn(CapturedSampler, lm, given, sampling)
    step = captured._kept[lm][1]
    again = drawn(CapturedSampler, lm, given, sampling)
    assert captured._kept[lm][1] is step
    assert [x.segment.codes.tolist() for x in first] == [x.segment.codes.tolist() for x in again]
    before = lm.model.norm.weight.detach().clone()
    with torch.no_grad():
        lm.model.norm.weight.mul_(torch.linspace(0, 3, 32))
    changed = drawn(CapturedSampler, lm, given, sampling)
    plain = drawn(Staying, lm, given, sampling)
    with torch.no_grad():
        lm.model.norm.weight.copy_(before)
    assert captured._kept[lm][1] is not step
    assert [x.segment.codes.tolist() for x in changed] == [x.segment.codes.tolist() for x in plain]


def test_two_streams_that_are_drawn_by_turns_keep_apart(lm):
    sampling = Sampling(max_frames=12, precision="float32")
    asked = [prompts("text", [1, 2]), prompts("text", [3, 4])]
    alone = [drawn(Staying, lm, given, sampling) for given in asked]
    with evaluating(lm), torch.inference_mode():
        samplers = [
            CapturedSampler(lm, given, sampling, torch.Generator().manual_seed(3))
            for given in asked
        ]
        while any(len(sampler.rows) for sampler in samplers):
            for sampler in samplers:
                if len(sampler.rows):
                    sampler.step()
    for expected, sampler in zip(alone, samplers, strict=True):
        for a, b in zip(expected, sampler.results(), strict=True):
            assert np.array_equal(a.segment.codes, b.segment.codes)


def test_norms_of_queries_that_changed_are_read_anew():
    lm = make_lm(replace(TRUNK, qk_norm="head", head_dim=12))
    sampling = Sampling(max_frames=15, precision="float32")
    given = prompts("text", [1, 2])
    drawn(CapturedSampler, lm, given, sampling)
    with torch.no_grad():
        for block in lm.model.blocks():
            block.self_attn.q_norm.weight.mul_(torch.linspace(-3, 3, 12))
    plain = drawn(Staying, lm, given, sampling)
    made = drawn(CapturedSampler, lm, given, sampling)
    assert [x.segment.codes.tolist() for x in made] == [x.segment.codes.tolist() for x in plain]


def test_a_kept_step_holds_on_to_the_weights_that_it_reads():
    """A graph reads them where they were, so a model that moved must not free them."""
    lm = make_lm()
    sampling = Sampling(max_frames=5, precision="float32")
    drawn(CapturedSampler, lm, prompts("text", [1, 2]), sampling)
    step = captured._kept[lm][1]
    before = [x.data_ptr() for x in step.read]
    for p in lm.parameters():
        p.data = p.data.clone()
    assert [x.data_ptr() for x in step.read] == before
    with torch.no_grad():
        lm.model.embed_tokens.weight[:, 0] += 1
    drawn(CapturedSampler, lm, prompts("text", [1, 2]), sampling)
    assert captured._kept[lm][1] is not step


def test_no_more_positions_are_drawn_than_the_trunk_attends_to():
    lm = make_lm(replace(TRUNK, sliding_window=10))
    sampling = Sampling(max_frames=40, precision="float32")
    for kind in (Staying, CapturedSampler):
        with pytest.raises(UserError, match="11 positions are more than the 10"):
            drawn(kind, lm, prompts("text", [1, 2]), sampling)


@pytest.mark.parametrize("kind", [AutoregressiveSampler, CapturedSampler])
@pytest.mark.parametrize("modality", ["text", "speech", "jets"])
def test_logits_that_are_no_numbers_are_refused(kind, modality):
    lm = make_lm()
    with torch.no_grad():
        lm.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=f"{modality} logits are not numbers"):
        drawn(kind, lm, prompts(modality, [2, 3]), Sampling(max_frames=9, precision="float32"))


def test_a_stream_that_is_closed_early_moves_the_generator_on_and_keeps_its_step(lm, monkeypatch):
    monkeypatch.setattr(generate_room, "make_sampler", CapturedSampler)
    sampling = Sampling(max_frames=40, precision="float32")
    given = prompts("speech", [0, 2])
    generator = torch.Generator().manual_seed(3)
    firsts = []
    for _ in range(3):
        drawing = generate_room.stream(lm, given, sampling, generator)
        firsts.append(next(drawing)[1].tolist())
        drawing.close()
        firsts.append(captured._kept[lm][1])
    assert firsts[0] != firsts[2] != firsts[4] != firsts[0]
    assert firsts[1] is firsts[3] is firsts[5]
