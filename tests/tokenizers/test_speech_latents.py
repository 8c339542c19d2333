"""Log-mel latents: standardised over the training clips, the spectrogram exact to rounding, sound
no worse than from rounded levels.
"""

import numpy as np
import pytest
import torch

from mmtok.cli import main
from mmtok.core.segment import Segment
from mmtok.data.speech_preparation import read_sound
from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.sources.sound_files import write_sound
from mmtok.tokenizers import load
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMel, LogMelConfig
from mmtok.tokenizers.vocoders import GriffinLimConfig

PRESETS = [LogMelConfig.dmel_80hz(), LogMelConfig.dmel_40hz()]


def noise(n, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def vowels(n=24_000):
    """Something like speech that needs no engine: a voice of changing pitch, its harmonics loud
    around three moving formants.
    """
    t = np.arange(n) / 16_000
    phase = 2 * np.pi * np.cumsum(110 + 20 * np.sin(2 * np.pi * 1.3 * t)) / 16_000
    formants = [
        (f + d * np.sin(2 * np.pi * r * t), w)
        for f, d, r, w in ((500, 250, 2.1, 90), (1500, 500, 1.7, 120), (2500, 200, 2.9, 160))
    ]

    def tone(k):
        return (
            np.sin(k * phase)
            / k
            * sum(np.exp(-(((110 * k - f) / w) ** 2) / 2) for f, w in formants)
        )

    sound = sum(map(tone, range(1, 40))) * (0.6 + 0.4 * np.sin(2 * np.pi * 3.7 * t))
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


CLIPS = [noise(5000 + 900 * i, i, 0.02 * (1 + i)) for i in range(6)] + [vowels()]


@pytest.fixture(scope="module", params=PRESETS, ids=["80 Hz", "40 Hz"])
def tokenizer(request):
    return request.param.fit(CLIPS)


def test_latents_are_standardised_over_the_training_clips(tokenizer):
    latents = np.concatenate([s.latents for s in tokenizer.encode_batch(CLIPS)]).astype(np.float64)
    assert latents.shape[1] == 80 == tokenizer.signature.latent_size
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(latents.var(0), 1, atol=1e-5)
    figures = tokenizer.fidelity(CLIPS)
    assert (
        figures["spread_least"] == pytest.approx(1) == figures["spread_most"]
        and tokenizer.fidelity([]) == {}
    )


def test_more_clips_than_are_read_at_once_count_alike(tokenizer):
    many = tokenizer.config.fit(CLIPS * 20)
    torch.testing.assert_close(many.bands.shift, tokenizer.bands.shift)
    torch.testing.assert_close(many.bands.scale, tokenizer.bands.scale)


def test_the_spectrogram_comes_back(tokenizer):
    clips = [torch.from_numpy(clip) for clip in CLIPS]
    for segment, mel in zip(
        tokenizer.encode_batch(CLIPS), log_mel(clips, tokenizer.config.mel), strict=True
    ):
        torch.testing.assert_close(tokenizer.log_mel(segment), mel, atol=1e-5, rtol=0)


def test_batch_equals_single(tokenizer):
    mixed = [*CLIPS, noise(1), noise(7), noise(511, 1)]
    together = tokenizer.encode_batch(mixed)
    for clip, segment in zip(mixed, together, strict=True):
        alone = tokenizer.encode(clip)
        assert (
            np.array_equal(alone.latents, segment.latents) and segment.latents.dtype == np.float32
        )
        assert alone.info == segment.info == {"n_samples": len(clip), "rate_hz": 16_000}
        assert len(segment) == tokenizer.config.mel.n_frames(len(clip))
    for segment, sound in zip(together[-4:], tokenizer.decode_batch(together[-4:]), strict=False):
        np.testing.assert_allclose(tokenizer.decode(segment), sound, atol=2e-3)


@pytest.mark.parametrize("n", [1, 199, 200, 201, 799, 801, 5000])
def test_decoding_gives_the_length_back(tokenizer, n):
    sound = tokenizer.decode(tokenizer.encode(noise(n)))
    assert sound.shape == (n,) and sound.dtype == np.float32 and np.isfinite(sound).all()


def test_sampled_latents_decode(tokenizer, rng):
    for n_frames in (0, 1, 2, 9):
        for scale in (1, 1e4, 1e30):
            latents = (scale * rng.normal(size=(n_frames, 80))).astype(np.float32)
            sound = tokenizer.decode(Segment("speech", latents=latents))
            assert np.isfinite(sound).all() and np.abs(sound).max(initial=0) <= 1
            assert len(sound) == tokenizer.config.mel.n_samples(n_frames)
    whole = tokenizer.encode(noise(8000))
    cut = Segment("speech", latents=whole.latents[:7], info=whole.info, truncated=True)
    assert len(tokenizer.encode(tokenizer.decode(cut))) == 7


def test_sound_is_no_worse_than_from_rounded_levels(tokenizer):
    pytest.importorskip("pystoi")
    from mmtok.nn.audio import stoi

    clip = vowels(40_000)
    levels = DMelConfig(mel=tokenizer.config.mel).build()
    ours, rounded = (stoi(clip, t.decode(t.encode(clip)), 16_000) for t in (tokenizer, levels))
    assert ours >= rounded and ours == pytest.approx(tokenizer.fidelity([clip])["stoi"])


@pytest.mark.slow
def test_speech_is_no_worse_than_from_rounded_levels():
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("pystoi")
    from mmtok.nn.resample import resample
    from mmtok.sources.espeak import RATE_HZ, Espeak
    from mmtok.sources.speech import VOICES

    engine = Espeak()
    clips = [
        resample(engine.say("three one four one five nine", v) / np.float32(32768), RATE_HZ, 16_000)
        for v in VOICES[:6]
    ]
    for ours, rounded in zip(
        PRESETS, (DMelConfig.dmel_80hz(), DMelConfig.dmel_40hz()), strict=True
    ):
        assert ours.fit(clips).fidelity(clips)["stoi"] >= rounded.build().fidelity(clips)["stoi"]


def test_silent_bands_stay_silent():
    """A band that never varies is not divided by nothing, and decodes to what it was."""
    tokenizer = LogMelConfig().fit([np.zeros(4000, np.float32)] * 2)
    segment = tokenizer.encode(np.zeros(1000, np.float32))
    assert np.abs(segment.latents).max() < 1e-5 and np.abs(tokenizer.decode(segment)).max() < 1e-3


def test_save_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "speech")
    again = load(tmp_path / "speech")
    assert (
        isinstance(again, LogMel)
        and again.config == tokenizer.config
        and again.signature == tokenizer.signature
    )
    assert np.array_equal(again.encode(CLIPS[0]).latents, tokenizer.encode(CLIPS[0]).latents)
    assert np.array_equal(
        again.decode(again.encode(CLIPS[0])), tokenizer.decode(tokenizer.encode(CLIPS[0]))
    )


def test_token_files_hold_latents(tokenizer, tmp_path, capsys):
    """The verbs with --tokenizer FOLDER: clips of the same lengths come back."""
    tokenizer.save(tmp_path / "t")
    write_sound(tmp_path / "a.wav", CLIPS[0])
    words = ["--tokenizer", str(tmp_path / "t")]
    assert (
        main(
            [
                "tokenize",
                "speech",
                str(tmp_path / "a.wav"),
                "-o",
                str(tmp_path / "t.parquet"),
                *words,
                "--check",
            ]
        )
        == 0
    )
    assert (
        main(["detokenize", str(tmp_path / "t.parquet"), "-o", str(tmp_path / "again"), *words])
        == 0
    )
    (path,) = (tmp_path / "again").glob("*.wav")
    assert len(read_sound(path, 16_000)) == len(CLIPS[0])
    capsys.readouterr()
    assert main(["show", str(tmp_path / "t.parquet")]) == 0 == main(["show", str(tmp_path / "t")])
    assert capsys.readouterr().out.count("80 floats a frame") == 2


def test_fingerprint_tells_latents_apart_but_not_vocoders():
    def fitted(config, clips=CLIPS):
        return config.fit(clips).signature.fingerprint

    assert len({fitted(PRESETS[0]), fitted(PRESETS[1]), fitted(PRESETS[0], CLIPS[:3])}) == 3
    assert fitted(LogMelConfig(vocoder=GriffinLimConfig(n_iterations=8))) == fitted(PRESETS[0])


def test_other_spectrograms(tmp_path):
    tokenizer = LogMelConfig(mel=MelSpec(rate_hz=8000, n_mels=40, fmax_hz=4000.0)).fit(CLIPS)
    assert tokenizer.encode(CLIPS[0]).latents.shape[1] == 40
    tokenizer.save(tmp_path)
    assert load(tmp_path).signature == tokenizer.signature


# ---- bad input


@pytest.mark.parametrize(
    "signal, complaint",
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((2, 100), np.float32), "mono"),
        (np.zeros(100, np.int16), "32768"),
        (np.array([0.0, np.nan, 0.0]), "sample 1 is NaN"),
    ],
)
def test_bad_signals_are_refused(tokenizer, signal, complaint):
    for take in (tokenizer.encode, lambda clip: tokenizer.config.fit([clip])):
        with pytest.raises(UserError, match=complaint):
            take(signal)


def test_wrong_segments_are_refused(tokenizer):
    broken = np.zeros((3, 80), np.float32)
    broken[2, 5] = np.inf
    for wrong, says in (
        ({"latents": np.zeros((3, 79), np.float32)}, "expected latents of shape \\(T, 80\\)"),
        ({"latents": broken}, "frame 2"),
        ({"codes": np.zeros((3, 80), int)}, "got codes"),
        ({"latents": np.zeros((3, 80), np.float32), "info": {"rate_hz": 8000}}, "at 8000 Hz"),
    ):
        with pytest.raises(UserError, match=says):
            tokenizer.decode(Segment("speech", **wrong))


def test_what_cannot_be_made_or_opened_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no clips"):
        tokenizer.config.fit([])
    with pytest.raises(UserError, match="LogMelConfig"):
        LogMelConfig(mel=MelSpec(hop_samples=0))
    tokenizer.save(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="weights"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"kind": "LogMel", "colour": 3}')
    with pytest.raises(UserError, match="LogMelConfig has no field 'colour'"):
        load(tmp_path)
