"""Sound in blocks: as long as the whole clip's, as intelligible, and never further behind its
frames than it says.
"""

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, log_mel, stoi
from mmtok.nn.resample import resample
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.streaming import SoundStream
from mmtok.tokenizers.vocoders import GriffinLimConfig

GRIFFIN_LIM = GriffinLimConfig()
PRESETS = [
    DMelConfig(vocoder=GRIFFIN_LIM),
    DMelConfig(mel=MelSpec(hop_samples=400), vocoder=GRIFFIN_LIM),
    DMelConfig.dmel_40hz_causal(),
    DMelConfig.inkling_20hz(),
    DMelConfig(mel=MelSpec(hop_samples=800)),
]


def chirp(seconds: float, level: float = 0.3) -> np.ndarray:
    """Three gliding tones with a swell of four a second, and some noise: something of each that
    speech has.
    """
    t = np.arange(int(16_000 * seconds)) / 16_000
    tones = sum(
        np.sin(2 * np.pi * (f * t + 60 * np.sin(3 * t))) / k
        for k, f in enumerate((180, 700, 2300), 1)
    )
    swell = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)
    return (
        level * swell * (tones / 2 + 0.05 * np.random.default_rng(0).standard_normal(len(t)))
    ).astype(np.float32)


def streamed(tokenizer, values, pieces=1):
    stream = SoundStream(tokenizer)
    return np.concatenate(
        [stream.push(values[a : a + pieces]) for a in range(0, len(values), pieces)]
        + [stream.finish()]
    )


@pytest.mark.parametrize("config", PRESETS)
@pytest.mark.parametrize("n_frames", [0, 1, 2, 5, 6, 7, 12, 41])
def test_as_many_samples_as_the_whole_clip(config, n_frames):
    tokenizer = config.build()
    codes = np.random.default_rng(0).integers(0, 9, (n_frames, 80))
    assert len(streamed(tokenizer, codes)) == len(tokenizer.decode(Segment("speech", codes=codes)))


@pytest.mark.parametrize("config", PRESETS)
def test_sound_is_never_further_behind_than_it_says(config):
    tokenizer = config.build()
    n = 0
    stream = SoundStream(tokenizer)
    hop_s = config.mel.hop_samples / 16_000
    for k, frame in enumerate(tokenizer.encode(chirp(1.5)).codes, 1):
        n += len(stream.push(frame[None]))
        assert k * hop_s - n / 16_000 <= stream.delay_s + 1e-9
    assert n > 0 and stream.delay_s < 0.25


def test_the_pieces_in_which_frames_come_change_nothing():
    tokenizer = PRESETS[1].build()
    codes = tokenizer.encode(chirp(1.0)).codes
    alone = streamed(tokenizer, codes)
    assert all(np.array_equal(streamed(tokenizer, codes, pieces), alone) for pieces in (3, 100))


@pytest.mark.parametrize("config, least", [(PRESETS[0], 0.94), (PRESETS[1], 0.9)])
def test_streamed_and_whole_are_alike_in_magnitude_also_at_the_seams(config, least):
    """The share of the spectrum's energy that comes back; a click at a seam would fill the frames
    about it with what is not there.
    """
    tokenizer = config.build()
    clip = chirp(2.0)
    segment = tokenizer.encode(clip)
    wanted = 10 ** tokenizer.log_mel(segment).numpy()

    def share(x):
        return (
            1
            - np.square(10 ** log_mel([torch.from_numpy(x)], config.mel)[0].numpy() - wanted).sum()
            / np.square(wanted).sum()
        )

    sound = streamed(tokenizer, segment.codes)
    whole = tokenizer.decode(Segment("speech", codes=segment.codes))
    assert share(sound) > min(least, share(whole) - 0.03)


def test_where_sound_is_too_loud_the_gain_falls():
    tokenizer = PRESETS[1].build()
    sound = streamed(tokenizer, tokenizer.encode(chirp(1.5, 4.0)).codes)
    assert np.abs(sound).max() <= 1 and np.mean(np.abs(sound) == 1) < 0.01


def test_latents_are_streamed_too():
    tokenizer = LogMelConfig.dmel_40hz().fit([chirp(1.0)])
    latents = tokenizer.encode(chirp(1.0)).latents
    assert len(streamed(tokenizer, latents)) == len(
        tokenizer.decode(Segment("speech", latents=latents))
    )


def test_what_makes_no_sound_of_a_spectrogram_is_refused():
    with pytest.raises(UserError, match="object gives no sound before its last frame"):
        SoundStream(object())
    with pytest.raises(UserError, match="codes of shape"):
        SoundStream(PRESETS[0].build()).push(np.zeros((1, 79), int))


@pytest.mark.parametrize("config, least", [(PRESETS[0], 0.96), (PRESETS[1], 0.93)])
def test_streamed_speech_is_as_intelligible_as_the_whole_clip(config, least):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("pystoi")
    from mmtok.sources.espeak import RATE_HZ, Espeak

    clip = resample(
        Espeak().say("three one four one five nine", "en-us") / np.float32(32768), RATE_HZ, 16_000
    )
    tokenizer = config.build()
    codes = tokenizer.encode(clip).codes
    whole = tokenizer.decode(Segment("speech", codes=codes))
    sound = streamed(tokenizer, codes)
    assert stoi(whole, sound, 16_000) > least
    n = min(len(clip), len(sound))
    assert stoi(clip[:n], sound[:n], 16_000) > stoi(clip[:n], whole[:n], 16_000) - 0.03
