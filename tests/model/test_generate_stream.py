"""Frames streamed are the frames drawn, and whoever takes them finds torch and the model as they
were.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate, stream
from mmtok.nn.denoisers import DiTConfig, TokenMLPConfig

WAYS = [
    Sampling(max_frames=9),
    Sampling(max_frames=9, guidance=2.0),
    Sampling(temperature=0, max_frames=9),
    Sampling(max_frames=1),
]


def taken(steps, prompts):
    """What each row got, its known frames included, and what the iterator returns."""
    frames = [list(p.target.values) for p in prompts]
    while True:
        try:
            rows, values = next(steps)
        except StopIteration as end:
            return frames, end.value
        assert len(rows) == len(values) > 0
        for row, frame in zip(rows, values):
            frames[row].append(frame)


def same(lm, prompts, way):
    """Streamed equals drawn, frame by frame, stop by stop."""
    drawn = generate(lm, prompts, way, torch.Generator().manual_seed(3))
    frames, sampled = taken(stream(lm, prompts, way, torch.Generator().manual_seed(3)), prompts)
    assert [d.stop for d in sampled] == [d.stop for d in drawn]
    for row, a, b in zip(frames, sampled, drawn):
        assert (
            np.array_equal(a.segment.values, b.segment.values)
            and a.segment.truncated == b.segment.truncated
        )
        assert np.array_equal(np.array(row).reshape(b.segment.values.shape), b.segment.values)
    return True


@pytest.mark.parametrize("way", WAYS, ids=range(len(WAYS)))
@pytest.mark.parametrize("modality", ["text", "speech", "image", "jets"])
def test_streamed_is_drawn(lm, vocabulary, segment, prompt, modality, way):
    prompts = [prompt(segment("text", n % 3), to=segment(modality, n % 4)) for n in range(20)]
    assert same(lm, prompts, way)


def test_latents_and_what_is_drawn_whole_are_streamed_too(toy_lm, prompt):
    text = Signature("text", (5,))
    voice = Signature("voice", latent_size=3)
    image = Signature("image", (4,), frames=4)
    heads = {
        "voice": FrameDiffusion(network=TokenMLPConfig(1, 8), steps=4),
        "image": MaskedDiffusion(DiTConfig(1, 8, 2)),
    }
    lm = toy_lm((text, voice, image), heads)
    given = [Segment("text", codes=np.full((n, 1), n)) for n in range(3)]
    assert same(
        lm,
        [prompt(g, to=Segment("voice", latents=np.zeros((0, 3), np.float32))) for g in given],
        Sampling(max_frames=5),
    )
    known = [Segment("image", codes=np.full((n, 1), 3)) for n in (0, 2, 4)]
    assert same(lm, [prompt(g, to=k) for g, k in zip(given, known)], Sampling())


def test_between_frames_the_world_is_as_it_was(lm, vocabulary, nothing, prompt):
    lm.train()
    steps = stream(
        lm, [prompt(to=nothing(vocabulary, "image"))], Sampling(), torch.Generator().manual_seed(0)
    )
    for _ in range(3):
        next(steps)
        assert lm.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    steps.close()
    assert lm.training


def test_a_step_is_made_when_it_is_asked_for(lm, vocabulary, nothing, prompt, monkeypatch):
    from mmtok.model.autoregressive import AutoregressiveSampler

    made = []
    monkeypatch.setattr(
        AutoregressiveSampler,
        "step",
        lambda self, step=AutoregressiveSampler.step: made.append(1) or step(self),
    )
    steps = stream(
        lm, [prompt(to=nothing(vocabulary, "image"))], Sampling(), torch.Generator().manual_seed(0)
    )
    for n in (1, 2, 3):
        next(steps)
        assert len(made) == n


def test_what_cannot_be_streamed_is_refused(lm, segment, generator, prompt):
    with pytest.raises(ValueError, match="infilling cannot be streamed"):
        next(
            stream(
                lm,
                [prompt(to=replace(segment("image", 4), infill_spans=((1, 1),)))],
                Sampling(),
                generator,
            )
        )
    with pytest.raises(UserError, match="no head for voice"):
        next(stream(lm, [prompt(to=segment("voice", 0))], Sampling(), generator))
    assert list(stream(lm, [], Sampling(), generator)) == []
