"""A voice's vector: one frame, the same at any level, near for one speaker, far for another."""

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.nn.resample import resample
from mmtok.sources.sentence_grammar import sentences
from mmtok.sources.sentences import Spoken, spoken
from mmtok.tokenizers import load
from mmtok.tokenizers.voices import VoiceConfig, pitch_statistics, statistics

RATE_HZ = 16_000


VOICES = ("en-us", "en-us+f2", "en-gb-scotland+m3", "en-us+m7")
N_LEARNED = 9  # clips of each voice


@pytest.fixture(scope="module")
def clips():
    """Voice -> 12 clips of different sentences."""
    texts = sentences(np.random.default_rng(0), "sentence", set())
    said = [Spoken(next(texts), voice, 1.0, 0) for voice in VOICES for _ in range(12)]
    found, rates = spoken(said)
    sounds = [
        resample(clip.astype(np.float32) / 32768, rate, RATE_HZ)
        for clip, rate in zip(found, rates, strict=True)
    ]
    return [sounds[i : i + 12] for i in range(0, len(sounds), 12)]


@pytest.fixture(scope="module")
def voice(clips):
    return VoiceConfig(size=8).fit([clip for of_one in clips for clip in of_one[:N_LEARNED]])


def test_new_clips_are_nearest_to_the_mean_of_their_voice(voice, clips):
    rows = np.array([[s.latents[0] for s in voice.encode_batch(of_one)] for of_one in clips])
    means = rows[:, :N_LEARNED].mean(1)
    distances = np.linalg.norm(rows[:, N_LEARNED:, None] - means, axis=-1)
    right = distances.argmin(-1) == np.arange(len(VOICES))[:, None]
    assert right.mean() > 0.9


def test_numbers_are_standardised_and_uncorrelated(voice, clips):
    learned = [clip for of_one in clips for clip in of_one[:N_LEARNED]]
    rows = np.concatenate([s.latents for s in voice.encode_batch(learned)]).astype(float)
    assert np.allclose(rows.mean(0), 0, atol=1e-3)
    assert np.allclose(rows.T @ rows / len(rows), np.eye(8), atol=1e-2)


def test_the_level_changes_nothing_and_batches_are_as_single_calls(voice, clips):
    clip = clips[1][11]
    segment = voice.encode(clip)
    assert segment.modality == "voice" and segment.latents.shape == (1, 8)
    assert np.allclose(voice.encode(clip * np.float32(0.25)).latents, segment.latents, atol=1e-2)
    both = voice.encode_batch([clips[0][11], clip])
    assert np.array_equal(both[1].latents, segment.latents)


def test_what_is_saved_opens_as_the_same(voice, clips, tmp_path):
    voice.save(tmp_path)
    again = load(tmp_path)
    assert again.signature == voice.signature == again.config.load(tmp_path).signature
    assert np.array_equal(again.encode(clips[0][0]).latents, voice.encode(clips[0][0]).latents)
    assert voice.config.is_input_only
    with pytest.raises(UserError, match="cannot be made into sound"):
        again.decode(again.encode(clips[0][0]))


@pytest.mark.parametrize("pitch_hz", [80.0, 123.0, 220.0, 350.0])
def test_the_pitch_of_a_buzz_is_found(pitch_hz):
    t = np.arange(RATE_HZ) / RATE_HZ
    clip = sum(np.sin(2 * np.pi * k * pitch_hz * t) / k for k in range(1, 8)).astype(np.float32)
    octaves, _, voiced = pitch_statistics(torch.from_numpy(0.1 * clip), RATE_HZ).tolist()
    assert abs(octaves - np.log2(pitch_hz / 100)) < 0.05 and voiced > 0.9


@pytest.mark.parametrize("n", [1, 100, 1000])
def test_any_clip_has_finite_statistics(n):
    for clip in (np.zeros(n, np.float32), np.full(n, 0.5, np.float32)):
        assert torch.isfinite(statistics([clip], MelSpec())).all()


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="size is 164; it must be 1 to 163"):
        VoiceConfig(size=164)
    with pytest.raises(UserError, match="no clips"):
        VoiceConfig().fit([])
