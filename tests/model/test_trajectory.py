"""Strips end at the sample, count the steps that are taken, and change nothing that is drawn."""

import numpy as np
import pytest
import torch

from mmtok.commands.sample import write_samples
from mmtok.commands.trajectories import blanked, trajectory_path
from mmtok.core.segment import Document, Segment, Signature, segment_of
from mmtok.data.image_preparation import read_image
from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import Euler
from mmtok.heads.categorical import Chained
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate, infill
from mmtok.model.lm import DecoderConfig
from mmtok.model.trajectory import N_RECORDED, N_STATES, trajectory_recorder
from mmtok.nn.audio import MelSpec
from mmtok.nn.denoisers import TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.report.samples import trajectories
from mmtok.report.speech import TRAJECTORY_REMARK
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run, open_run
from mmtok.sources.speech import SpeechFolder
from mmtok.tokenizers.images import Pixels, PixelsConfig
from mmtok.tokenizers.speech_latents import (
    PICTURE_FRAMES,
    Bands,
    LogMel,
    LogMelConfig,
    spectrograms,
)
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

STEPS = 5
BANDS = 6
SEED = 11  # a seed by which the first clip does not end at once
MEL = LogMelConfig(MelSpec(hop_samples=400, n_mels=BANDS))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A run of continuous speech with random weights: before training frames would not move."""
    head = FrameDiffusion(sampler=Euler(), network=TokenMLPConfig(1, 8), steps=STEPS)
    trunk = TransformerConfig(depth=1, width=16, n_heads=2, n_kv_heads=2, feed_forward=24)
    recipe = Recipe(
        name="spoken",
        sources=(SpeechFolder("sounds"),),
        tokenizers={"text": BytesConfig(), "speech": MEL},
        tasks=(Task(("caption",), ("speech",)),),
        model=DecoderConfig(trunk=trunk, heads={"speech": head}),
        train=TrainConfig(steps=1),
    )
    run = Run(tmp_path_factory.mktemp("spoken"), recipe)
    run.tokenizers = {"text": BytesConfig().build(), "speech": LogMel(MEL, Bands(BANDS))}
    run.lm = run.untrained(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for parameter in run.lm.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return run


def frames(n):
    return np.random.default_rng(n).normal(size=(n, BANDS)).astype(np.float32)


def speech(run, n=1, known=0, spans=()):
    """n prompts for speech, some frames of it given."""
    said = Segment("speech", latents=frames(known), infill_spans=spans)
    return [run.prompt([run.tokenizers["text"].encode("low")], "speech", said)] * n


def picture(run, n=1, **known):
    return [
        run.prompt(
            [run.tokenizers["text"].encode("dark")],
            "image",
            Segment("image", **known) if known else None,
        )
    ] * n


def same(a, b):
    np.testing.assert_array_equal(a.values, b.values)


# ---- what is gathered


@pytest.mark.parametrize("name", ["pixels", "cascade", "frames", "codes", "speech"])
def test_what_is_drawn_is_the_same_with_a_callback_as_without(latent_run, spoken, name):
    if name == "speech":
        run = spoken
        prompts = speech(run, 12)
    else:
        run = open_run(latent_run(name))
        prompts = picture(run, 12)
    sampling = Sampling(max_frames=6)
    plain = generate(run.lm, prompts, sampling, torch.Generator().manual_seed(3))
    watched = run.draw(prompts, sampling, 3)
    for a, b in zip(plain, watched, strict=True):
        same(a.segment, b.segment)
        assert a.stop == b.stop
    assert any(d.trajectory for d in watched) and not any(
        d.trajectory for d in watched[N_RECORDED:]
    )
    for ways in (d.trajectory for d in watched if d.trajectory):
        assert (
            len(ways) == {"pixels": 8, "cascade": 5, "frames": 4, "codes": 8, "speech": STEPS}[name]
        )


def test_frames_end_at_the_sample_whoever_else_has_ended(spoken):
    drawn = spoken.draw(speech(spoken, 40, known=1), Sampling(max_frames=6), 0)
    assert len({len(d.segment) for d in drawn[:N_RECORDED]}) > 2
    for d in drawn[:N_RECORDED]:
        assert len(d.trajectory) == (
            STEPS if len(d.segment) > 1 else 0
        )  # of a clip that ended at once nothing was drawn
        for state, hidden in d.trajectory:
            assert state.values.shape == d.segment.values.shape and not hidden.any()
            np.testing.assert_array_equal(state.values[:1], frames(1))
        if d.trajectory:
            same(d.trajectory[-1][0], d.segment)
            assert not np.isclose(d.trajectory[0][0].values[1:], d.segment.values[1:]).all(1).any()


def test_a_state_shows_every_frame_after_as_many_steps_of_its_own(spoken, monkeypatch):
    head = spoken.lm.heads["speech"]
    walks = []
    draw = type(head).draw

    def noted(self, hs, shape, sampling, generator, callback):
        walks.append([])

        def both(step, x):
            walks[-1].append(x[0].numpy().copy())
            callback(step, x)

        return draw(self, hs, shape, sampling, generator, both)

    monkeypatch.setattr(type(head), "draw", noted)
    (d,) = spoken.draw(speech(spoken), Sampling(max_frames=6, steps=20), SEED)
    assert len(d.segment) > 1 and len(d.trajectory) == N_STATES
    for step, (state, _) in zip(np.linspace(0, 19, N_STATES).round().astype(int), d.trajectory):
        np.testing.assert_array_equal(
            state.values, np.float32([walk[step] for walk in walks[: len(d.segment)]])
        )


@pytest.mark.parametrize("spans", [((2, 2),), ((0, 0), (3, 3), (4, 4))])
def test_infilled_frames_walk_in_their_place(spoken, spans):
    prompts = speech(spoken, 8, known=4, spans=spans)
    sampling = Sampling(max_frames=3)
    plain = infill(spoken.lm, prompts, sampling, torch.Generator().manual_seed(0))
    drawn = spoken.draw(prompts, sampling, 0)
    assert any(d.trajectory for d in drawn)
    for a, d in zip(plain, drawn, strict=True):
        same(a.segment, d.segment)
        new = np.concatenate([np.arange(*span) for span in d.segment.infill_spans])
        assert bool(d.trajectory) == bool(len(new))
        for state, _ in d.trajectory:
            np.testing.assert_array_equal(np.delete(state.values, new, 0), frames(4))
        if d.trajectory:
            same(d.trajectory[-1][0], d.segment)


@pytest.mark.parametrize(
    "known, steps, n_tiles",
    [
        ({"codes": np.ones((8, 1), int)}, 0, 8),
        ({"codes": np.ones((13, 1), int)}, 0, 3),
        ({"codes": np.ones((8, 1), int)}, 2, 2),
        ({"codes": np.ones((16, 1), int), "infill_spans": ((0, 3), (8, 12))}, 0, 7),
        ({"codes": np.ones((7, 1), int), "infill_spans": ((3, 3),)}, 0, 8),
    ],
)
def test_of_codes_as_many_steps_count_as_are_taken(latent_run, known, steps, n_tiles):
    run = open_run(latent_run("codes"))
    for d in run.draw(picture(run, 2, **known), Sampling(steps=steps), 0):
        assert len(d.trajectory) == n_tiles and not d.trajectory[-1][1].any()
        same(d.trajectory[-1][0], d.segment)
        n_hidden = [hidden.sum() for _, hidden in d.trajectory]
        assert n_hidden == sorted(n_hidden, reverse=True) and (
            steps or len(set(n_hidden)) == n_tiles
        )


def test_latents_that_a_prompt_gives_stay(latent_run):
    run = open_run(latent_run("frames"))
    given = np.ones((2, 3), np.float32)
    (d,) = run.draw(picture(run, latents=given), Sampling(), 0)
    assert len(d.trajectory) == 4 and all(
        (state.values[:2] == given).all() for state, _ in d.trajectory
    )
    same(d.trajectory[-1][0], d.segment)


def test_only_the_first_batch_is_watched(spoken, latent_run):
    run = open_run(latent_run("codes"))
    assert [len(d.trajectory) for d in run.draw(picture(run, 5), Sampling(), 0, batch=2)] == [
        8,
        8,
        0,
        0,
        0,
    ]
    assert not any(
        d.trajectory for d in spoken.draw(speech(spoken, 6), Sampling(max_frames=3), 0, batch=2)[2:]
    )


def test_what_is_drawn_in_one_go_has_no_strips(toy_lm):
    lm = toy_lm(
        (Signature("image", (3, 2), frames=2), Signature("text", (5,))), {"image": Chained(8)}
    )
    for signature in lm.vocabulary.signatures.values():
        assert (
            trajectory_recorder(
                lm, [Document((segment_of(signature),), (True,), open_end=True)], Sampling()
            )
            is None
        )


# ---- what is written and shown


def test_spectrograms_lie_beside_speech_and_pictures_of_the_same_name(spoken, tmp_path):
    drawn = spoken.draw(speech(spoken, 2, known=2), Sampling(max_frames=6), SEED)
    (tmp_path / "steps").mkdir()
    for name in ("low-000.png", "low-001.wav.png"):
        (tmp_path / "steps" / name).touch()
    paths = write_samples(spoken, tmp_path, ["low-000", "low-001"], drawn)
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == [
        "low-000.png",
        "low-000.wav.png",
    ]  # that of the picture stays
    strip = read_image(trajectory_path(paths[0]))
    n = len(drawn[0].segment)
    gap = max(1, n // 8)
    assert n > 2 and strip.shape == (BANDS, STEPS * (n + gap) - gap)
    bands = np.clip((drawn[0].segment.latents.T + 3) / 6 * 255, 0, 255)[
        ::-1
    ]  # low ones at the bottom
    np.testing.assert_allclose(strip[:, -n:], bands, atol=0.51)
    said = "".join(trajectories(paths, TRAJECTORY_REMARK))
    assert (
        said.count("<img") == 1
        and 'alt="trajectory of low-000"' in said
        and f"first {PICTURE_FRAMES} frames" in said
    )


def test_a_spectrogram_shows_the_first_frames_on_one_scale():
    values = np.linspace(-4, 4, 2 * (PICTURE_FRAMES + 7)).reshape(-1, 2)
    (tile,) = spectrograms([Segment("speech", latents=values)])
    assert tile.shape == (2, PICTURE_FRAMES) and tile[1, 0] == tile[0, 0] == 0
    (tile,) = spectrograms([Segment("speech", latents=np.array([[-3.0, 0.0], [3.0, 9.0]]))])
    np.testing.assert_array_equal(tile, [[128, 255], [0, 255]])


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_values_of_pixels_are_white(channels):
    """The frames of pixels are values, colours apart: those shown are the picture's, the others
    255.
    """
    tokenizer = Pixels(PixelsConfig(4, 2, channels, 256))
    picture = np.arange(8 * channels, dtype=np.uint8).reshape(
        (4, 2, 3) if channels == 3 else (4, 2)
    )
    hidden = np.random.default_rng(0).random(8 * channels) < 0.5
    codes = tokenizer.encode(picture).codes[:, 0]
    assert np.array_equal(blanked(picture, hidden).ravel(), np.where(hidden, 255, codes))


@pytest.mark.parametrize("colours", [(), (3,)])
def test_hidden_patches_are_white(colours):
    picture = np.zeros((4, 6, *colours), np.uint8)
    shown = blanked(picture, np.arange(6) >= 4)  # 2 x 3 patches of 2 x 2
    assert not shown[:2].any() and not shown[2:, :2].any() and (shown[2:, 2:] == 255).all()
