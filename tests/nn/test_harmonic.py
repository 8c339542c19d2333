"""Sources: pulses at their pitch, the same in pieces; envelopes; loudness."""

import pytest
import torch

from mmtok.nn.audio import MelSpec, log_mel
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.nn.harmonic import (
    HIGHEST_HARMONIC,
    HarmonicVocoder,
    HarmonicVocoderStream,
    Noise,
    PulseTrain,
    SourceStream,
    band_lines,
    n_source_samples,
    source_spectra,
)

SPEC = MelSpec()


def start(n=1):
    return torch.zeros(n, dtype=torch.float64)


def mixed_pitch():
    f0 = torch.full((40,), 150.0)
    f0[:3] = 0
    f0[10:14] = 0
    f0[14:] = torch.linspace(90, 260, 26)
    f0[30:33] = 0
    return f0


def test_pulses_are_harmonics_of_one_loudness_below_their_limit():
    sound = PulseTrain(start(), SPEC).push(torch.full((1, 81), 100.0))[0]
    spectrum = torch.fft.rfft(sound.double()).abs() / len(sound) * 2  # 1 Hz apart
    at_harmonics = spectrum[100:8000:100].clone()
    highest = int(HIGHEST_HARMONIC * 160)
    assert torch.allclose(at_harmonics[: highest - 1], at_harmonics[:1], rtol=1e-3)
    assert (at_harmonics[highest:] < 1e-3 * at_harmonics[0]).all()
    spectrum[100:8000:100] = 0
    assert spectrum.max() < 1e-3 * at_harmonics[0]


@pytest.mark.parametrize("hz", [80.0, 400.0])
def test_the_power_of_pulses_does_not_depend_on_their_pitch(hz):
    sound = PulseTrain(start(), SPEC).push(torch.full((1, 81), hz))[0]
    assert sound.square().mean() == pytest.approx(2 * HIGHEST_HARMONIC, rel=0.1)


def test_unvoiced_frames_are_silent():
    sound = PulseTrain(start(), SPEC).push(mixed_pitch()[None])[0]
    assert not sound[: 2 * 200].any() and not sound[10 * 200 : 13 * 200].any()
    assert sound[3 * 200 : 9 * 200].abs().max() > 1


@pytest.mark.parametrize("piece", [1, 3, 17])
def test_pieces_of_sources_are_the_whole(piece):
    whole = SourceStream(SPEC, 5)
    expected = torch.cat([whole.push(mixed_pitch()), whole.finish()], 1)
    stream = SourceStream(SPEC, 5)
    parts = [stream.push(p) for p in mixed_pitch().split(piece)]
    found = torch.cat([*parts, stream.finish()], 1)
    assert found.shape == expected.shape == (2, 40, 513)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_sources_of_a_batch_are_those_alone():
    a = mixed_pitch()
    b = a.flip(0)
    together = PulseTrain(start(2), SPEC).push(torch.stack([a, b]))
    for row, own in zip(together, (a, b)):
        assert torch.allclose(row, PulseTrain(start(), SPEC).push(own[None])[0], atol=1e-6)


def test_noise_is_a_function_of_seed_and_place():
    whole = Noise(3).next(10_000)
    noise = Noise(3)
    assert torch.equal(torch.cat([noise.next(n) for n in (1, 4_095, 4_097, 1_807)]), whole)
    assert not torch.equal(Noise(4).next(100), whole[:100])
    assert abs(whole.mean()) < 0.05 and abs(whole.std() - 1) < 0.05


def test_envelopes_are_lines_between_bands():
    lines = band_lines(SPEC)
    assert torch.allclose(lines.sum(0), torch.ones(513))
    assert (lines >= 0).all() and ((lines > 0).sum(0) <= 2).all()
    # bands narrower than a frequency bin have no middle of their own
    assert band_lines(MelSpec(n_fft=512, window_samples=400, n_mels=200)).isfinite().all()


def test_an_untrained_one_is_about_as_loud_as_its_spectrogram():
    torch.manual_seed(0)
    network = HarmonicVocoder(SPEC, ConvNeXtConfig(width=16, depth=1)).requires_grad_(False)
    sound = 0.1 * torch.randn(16_000)
    mel = log_mel([sound], SPEC)[0]
    stream = HarmonicVocoderStream(network, 0)
    made = torch.cat([stream.push(mel), stream.finish(16_000)])
    assert made.std() == pytest.approx(float(sound.std()), rel=0.5)


def test_flattened_noise_has_the_loudness_of_its_frame_in_every_band():
    vocoder = HarmonicVocoder(SPEC, ConvNeXtConfig(8, 1))
    n = n_source_samples(SPEC, 200)
    noise = source_spectra(Noise(0).next(n), SPEC)
    before = (noise.abs() @ vocoder.bands).log()
    after = (vocoder.flattened(noise).abs() @ vocoder.bands).log()
    assert before.std(0).mean() > 0.25
    assert after.std(0).mean() < 0.1
    assert after.mean().abs() < 0.05
    # a frame of silence stays what it is
    assert vocoder.flattened(torch.zeros(1, SPEC.n_fft // 2 + 1)).abs().max() == 0
