"""dMel: parity with the two public front ends, exact quantisation, independence of batch and of
pieces, length-exact decoding.
"""

from itertools import cycle
from time import process_time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.io.serialize import CommandLineText, from_plain
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.nn.resample import resample
from mmtok.run.recipe import PackageTokenizers
from mmtok.tokenizers import PRESETS as ALL
from mmtok.tokenizers import load
from mmtok.tokenizers.speech import DMel, DMelConfig

NAMES = [name for name, (modality, _) in ALL.items() if modality == "speech"]
PRESETS = [getattr(DMelConfig, name)() for name in DMelConfig.presets]
CAUSAL = [config for config in PRESETS if config.mel.causal]


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Eight clips by eight voices of espeak-ng."""
    pytest.importorskip("espeakng_loader")
    from mmtok.sources.espeak import RATE_HZ, Espeak
    from mmtok.sources.speech import VOICES

    engine = Espeak()
    words = (
        "three one four one five nine",
        "two six five three five eight",
        "nine seven nine three two three",
        "eight four six two six four",
    )
    return [
        resample(engine.say(words[i % 4], voice) / np.float32(32768), RATE_HZ, 16_000)
        for i, voice in enumerate(VOICES[:8])
    ]


def noise(n: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


@pytest.mark.parametrize("config, stride_ms", [(PRESETS[0], 12.5), (PRESETS[1], 25)])
def test_parity_with_the_authors_package(config, stride_ms, clips):
    peer = pytest.importorskip("dmel")
    theirs = peer.DiscretizedLogMelFbank(peer.LogMelFbank(frame_stride_ms=stride_ms), n_bits=4)
    for clip in [*clips, noise(16_000), noise(515, 1), np.zeros(2000, np.float32)]:
        with torch.no_grad():
            expected = theirs(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))[0][
                0, 1:-1
            ].numpy()  # without bos and eos
        assert np.array_equal(config.build().encode(clip).codes, expected)


def test_parity_with_inklings_front_end(clips):
    inkling = pytest.importorskip(
        "transformers.models.inkling.feature_extraction_inkling",
        reason="this transformers has no Inkling",
    )
    extractor = inkling.InklingFeatureExtractor()
    levels = torch.linspace(-7, 2, 16, dtype=torch.float64).float()
    for clip in [*clips, noise(16_000), noise(3, 1)]:
        mel = torch.as_tensor(
            extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_features"]
        )[0]
        expected = (mel.clamp(-7, 2)[..., None] - levels).abs().argmin(-1).numpy()
        assert np.array_equal(DMelConfig.inkling_20hz().build().encode(clip).codes, expected)


@pytest.mark.parametrize("n_bits", range(1, 17))
def test_levels_end_exactly_and_requantise_to_themselves(n_bits):
    config = DMelConfig(n_levels=2**n_bits)
    tokenizer = config.build()
    assert (config.levels[0], config.levels[-1], len(config.levels)) == (-7, 2, 2**n_bits)
    codes = np.arange(2**n_bits).repeat(80).reshape(-1, 80)
    mel = tokenizer.log_mel(Segment("speech", codes=codes))
    assert mel.max() == 2 and mel.min() == -7
    assert np.array_equal(tokenizer.quantise(mel), codes)


@pytest.mark.parametrize("n_levels, tolerance", [(8, 0.05), (16, 0.03), (64, 0.03), (256, 0.03)])
def test_quantisation_error_of_speech_is_that_of_even_steps(n_levels, tolerance, clips):
    config = DMelConfig(n_levels=n_levels)
    tokenizer = config.build()
    step = 9 / (n_levels - 1)
    mels = torch.cat(log_mel([torch.from_numpy(clip) for clip in clips], config.mel)).clamp(-7, 2)
    error = tokenizer.log_mel(Segment("speech", codes=tokenizer.quantise(mels))) - mels
    assert error.abs().max() <= step / 2 + 1e-6
    assert error.square().mean().item() == pytest.approx(step**2 / 12, rel=tolerance)


def test_quantisation_error_is_at_most_half_a_step_and_uniform():
    tokenizer = DMelConfig().build()
    mel = torch.rand(5000, 80, dtype=torch.float64).mul(9).sub(7).float()
    error = tokenizer.log_mel(Segment("speech", codes=tokenizer.quantise(mel))) - mel
    assert error.abs().max() <= 0.3 + 1e-6
    assert error.square().mean().item() == pytest.approx(0.6**2 / 12, rel=0.03)
    outside = tokenizer.quantise(torch.tensor([[-20.0] * 80, [5.0] * 80]))
    assert (outside[0] == 0).all() and (outside[1] == 15).all()


def test_bitrates():
    assert [config.kbps for config in PRESETS] == [25.6, 12.8, 12.8, 6.4]


@pytest.mark.parametrize("config", PRESETS)
def test_entropy_of_the_codes_is_below_their_bits(config, clips):
    """Zero order, channel by channel: what a packed file would need at least."""
    codes = np.concatenate([s.codes for s in config.build().encode_batch(clips)])
    entropy = 0.0
    for channel in codes.T:
        p = np.bincount(channel, minlength=16) / len(channel)
        entropy -= (p[p > 0] * np.log2(p[p > 0])).sum()
    share = entropy * config.mel.rate_hz / config.mel.hop_samples / 1000 / config.kbps
    assert 0.4 < share < 0.7


@pytest.mark.slow
def test_a_minute_is_encoded_a_hundred_times_as_fast_as_it_is_spoken():
    tokenizer = DMelConfig().build()
    clip = noise(60 * 16_000)
    times_s = []
    for _ in range(5):
        start = process_time()
        tokenizer.encode(clip)
        times_s.append(process_time() - start)
    assert 60 / min(times_s) >= 100


def test_gain_of_one_step_shifts_every_unclipped_code_by_one(clips):
    tokenizer = DMelConfig().build()
    quiet = [0.2 * clip for clip in clips]
    before = np.concatenate([s.codes for s in tokenizer.encode_batch(quiet)])
    after = np.concatenate(
        [s.codes for s in tokenizer.encode_batch([clip * np.float32(10**0.6) for clip in quiet])]
    )
    inside = (before > 3) & (before < 15)  # above the floor of the magnitudes
    assert np.mean(after[inside] == before[inside] + 1) >= 0.999


@pytest.mark.parametrize("config", PRESETS)
def test_batch_equals_single(config, clips):
    tokenizer = config.build()
    mixed = [*clips, noise(1), noise(7), noise(511, 1), noise(16_384, 2)]
    together = tokenizer.encode_batch(mixed)
    for clip, segment in zip(mixed, together, strict=True):
        alone = tokenizer.encode(clip)
        assert np.array_equal(alone.codes, segment.codes) and alone.info == segment.info == {
            "n_samples": len(clip),
            "rate_hz": 16_000,
        }
        assert len(segment) == config.mel.n_frames(len(clip))
    for segment, sound in zip(together[6:], tokenizer.decode_batch(together[6:]), strict=False):
        np.testing.assert_allclose(tokenizer.decode(segment), sound, atol=2e-3)


def streamed(tokenizer, clip, sizes):
    """Codes of a clip that comes in pieces of these sizes, over and over."""
    stream = tokenizer.stream()
    codes = []
    at = 0
    for size in cycle(sizes):
        if at >= len(clip):
            return np.concatenate([*codes, stream.finish()])
        codes.append(stream.push(clip[at : at + size]))
        at += size


@pytest.mark.parametrize("config", CAUSAL)
@pytest.mark.parametrize("sizes", [[160], [200], [3200], [12_345], [1, 7, 333]])
def test_streamed_equals_whole(config, sizes, clips):
    tokenizer = config.build()
    clip = clips[0][:20_001]
    assert np.array_equal(streamed(tokenizer, clip, sizes), tokenizer.encode(clip).codes)


@pytest.mark.parametrize("config", CAUSAL)
@given(n=st.integers(1, 3000), sizes=st.lists(st.integers(1, 900), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_streamed_equals_whole_however_it_is_cut(config, n, sizes):
    tokenizer = config.build()
    assert np.array_equal(streamed(tokenizer, noise(n), sizes), tokenizer.encode(noise(n)).codes)


def test_centred_spectrogram_refuses_to_stream():
    with pytest.raises(UserError, match="dmel_40hz_causal or inkling_20hz"):
        DMelConfig().build().stream()


def test_a_causal_frame_has_no_later_sample():
    clip = noise(4000)
    for config in CAUSAL:
        for n in (400, 800, 2400):
            alone = config.build().encode(clip[:n]).codes[: n // config.mel.hop_samples]
            assert np.array_equal(config.build().encode(clip).codes[: len(alone)], alone)


@pytest.mark.parametrize("config", PRESETS)
@pytest.mark.parametrize("n", [1, 199, 200, 201, 799, 801, 5000])
def test_decoding_gives_the_length_back(config, n):
    tokenizer = config.build()
    sound = tokenizer.decode(tokenizer.encode(noise(n)))
    assert sound.shape == (n,) and sound.dtype == np.float32 and np.isfinite(sound).all()


@pytest.mark.parametrize("config", PRESETS)
def test_sampled_codes_decode(config):
    tokenizer = config.build()
    rng = np.random.default_rng(0)
    for n_frames in (0, 1, 2, 9):
        sound = tokenizer.decode(Segment("speech", codes=rng.integers(0, 16, (n_frames, 80))))
        assert np.isfinite(sound).all() and np.abs(sound).max(initial=0) <= 1
        assert len(tokenizer.encode(sound)) == n_frames if n_frames else len(sound) == 0
    loudest = tokenizer.decode(Segment("speech", codes=np.full((5, 80), 15, np.uint8)))
    assert np.abs(loudest).max() == pytest.approx(1)


def test_decoding_is_deterministic_and_leaves_the_random_state_alone():
    tokenizer = DMelConfig().build()
    segment = tokenizer.encode(noise(4000))
    state = torch.get_rng_state()
    assert np.array_equal(tokenizer.decode(segment), tokenizer.decode(segment))
    assert torch.equal(torch.get_rng_state(), state)


def test_truncated_segment_decodes_to_what_is_there():
    tokenizer = DMelConfig().build()
    whole = tokenizer.encode(noise(8000))
    cut = Segment("speech", codes=whole.codes[:10], info=whole.info, truncated=True)
    assert len(tokenizer.encode(tokenizer.decode(cut))) == 10


@pytest.mark.parametrize("config, bar, worst", [(PRESETS[0], 0.88, 0.85), (PRESETS[1], 0.82, 0.78)])
def test_intelligibility_of_the_round_trip(config, bar, worst, clips):
    pytest.importorskip("pystoi")
    from mmtok.nn.audio import stoi

    tokenizer = config.build()
    scores = [
        stoi(clip, sound, 16_000)
        for clip, sound in zip(
            clips, tokenizer.decode_batch(tokenizer.encode_batch(clips)), strict=True
        )
    ]
    assert np.mean(scores) >= bar and min(scores) >= worst
    figures = tokenizer.fidelity(clips)
    assert (
        figures["stoi"] >= bar and figures["clipped_share"] == 0 and figures["kbps"] == config.kbps
    )


def test_fidelity_of_short_clips_and_of_silence():
    pytest.importorskip("pystoi")
    tokenizer = DMelConfig().build()
    assert 0 < tokenizer.fidelity([noise(3000, i) for i in range(20)])["stoi"] < 1
    assert set(tokenizer.fidelity([np.zeros(1000, np.float32)])) == {
        "stoi",
        "clipped_share",
        "kbps",
    }


@pytest.mark.parametrize(
    "signal, complaint",
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((2, 100), np.float32), "mono"),
        (np.zeros(100, np.int16), "32768"),
        (np.full(100, 3000.0), "32768"),
        (np.array([0.0, np.nan, 0.0]), "sample 1 is NaN"),
        (np.array([0.0, 0.0, np.inf]), "sample 2 is NaN or infinite"),
    ],
)
def test_bad_signals_are_refused(signal, complaint):
    with pytest.raises(UserError, match=complaint):
        DMelConfig().build().encode(signal)


@pytest.mark.parametrize(
    "segment",
    [
        Segment("speech", codes=np.zeros((3, 79), int)),
        Segment("speech", codes=np.full((3, 80), 16)),  # pad, bos and eos of the package dmel
        Segment("speech", codes=np.full((3, 80), 17)),
        Segment("speech", codes=np.full((3, 80), 18)),
        Segment("speech", codes=np.full((3, 80), -1)),
        Segment("speech", latents=np.zeros((3, 80), np.float32)),
        Segment("speech", codes=np.zeros((3, 80), int), info={"rate_hz": 8000}),
    ],
)
def test_codes_of_another_tokenizer_are_refused(segment):
    with pytest.raises(UserError):
        DMelConfig().build().decode(segment)


@pytest.mark.parametrize(
    "config",
    [*PRESETS, DMelConfig(mel=MelSpec(rate_hz=8000, n_mels=40, fmax_hz=4000.0), n_levels=32)],
)
def test_save_load(config, tmp_path):
    tokenizer = config.build()
    tokenizer.save(tmp_path / "speech")
    again = DMel.load(tmp_path / "speech")
    assert again.config == config and again.signature == tokenizer.signature
    assert again.signature.levels == (config.n_levels,) * config.mel.n_mels
    assert np.array_equal(again.encode(noise(3000)).codes, tokenizer.encode(noise(3000)).codes)


def test_fingerprint_tells_codes_apart_but_not_vocoders(tmp_path):
    from mmtok.tokenizers.vocoders import GriffinLimConfig

    assert len({config.build().signature.fingerprint for config in PRESETS}) == 4
    assert (
        DMelConfig(vocoder=GriffinLimConfig(n_iterations=8)).build().signature
        == DMelConfig().build().signature
    )
    (tmp_path / "tokenizer.json").write_text('{"kind": "DMel", "mel": {"n_fft": 512}, "colour": 3}')
    with pytest.raises(UserError):
        DMel.load(tmp_path)


def test_impossible_settings_are_refused():
    for wrong in (
        {"mel": MelSpec(hop_samples=0)},
        {"n_levels": 1},
        {"low": 3.0},
        {"high": float("nan")},
    ):
        with pytest.raises(UserError, match="DMelConfig"):
            DMelConfig(**wrong)


def test_presets_go_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [name.replace("-", "_") for name in NAMES] == list(DMelConfig.presets)
    for name, config in zip(NAMES, PRESETS, strict=True):
        assert load(name).config == config
        assert from_plain(CommandLineText(name), PackageTokenizers, "speech") == config
        assert from_plain(name.replace("-", "_"), PackageTokenizers, "speech") == config
    with pytest.raises(UserError, match="a preset: dmel-80hz, .* got 'dmel-50hz'"):
        from_plain("dmel-50hz", PackageTokenizers, "speech")
    with pytest.raises(UserError, match="dmel-50hz is not a tokenizer folder.* a preset"):
        load("dmel-50hz")
    DMelConfig.inkling_20hz().build().save(tmp_path / "dmel-80hz")  # a folder of that name is it
    assert load("dmel-80hz").config == DMelConfig.inkling_20hz()
