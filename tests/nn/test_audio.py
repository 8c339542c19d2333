"""Framing, mel filters, log-mel and the way back: parity with librosa and torch, independence of
the batch, exact lengths.
"""

import numpy as np
import pytest
import torch

from mmtok.nn.audio import (
    MelSpec,
    analysis_window,
    griffin_lim,
    hz_from_mel,
    invert_mel,
    log_mel,
    mel_filters,
    mel_from_hz,
    stoi,
)

CENTRED = MelSpec()
CAUSAL = MelSpec(
    n_fft=1600, window_samples=1600, hop_samples=800, fmin_hz=0.0, fmax_hz=8000.0, causal=True
)
SPECS = [CENTRED, MelSpec(hop_samples=400), CAUSAL]


def vowel(n_samples: int, seed: int = 0) -> torch.Tensor:
    """A gliding harmonic tone with a little noise."""
    t = torch.arange(n_samples) / 16_000
    generator = torch.Generator().manual_seed(seed)
    tone = sum(
        torch.sin(2 * torch.pi * k * (120 + 10 * seed + 20 * t) * t) / k for k in range(1, 20)
    )
    return 0.1 * tone + 0.003 * torch.randn(n_samples, generator=generator)


@pytest.mark.parametrize("spec", SPECS)
def test_filters_equal_librosas(spec):
    librosa = pytest.importorskip("librosa")
    theirs = librosa.filters.mel(
        sr=spec.rate_hz, n_fft=spec.n_fft, n_mels=spec.n_mels, fmin=spec.fmin_hz, fmax=spec.fmax_hz
    )
    assert np.abs(mel_filters(spec).numpy() - theirs.T).max() <= 2**-23 * theirs.max()


def test_mel_scale_inverts():
    hz = np.linspace(0, 8000, 101)
    np.testing.assert_allclose(hz_from_mel(mel_from_hz(hz)), hz, atol=1e-9)
    assert mel_from_hz(np.array(1000.0)) == 15


@pytest.mark.parametrize("n_samples", [513, 4000, 16_001])
def test_log_mel_equals_torch_stft(n_samples):
    x = vowel(n_samples)
    window = torch.hann_window(CENTRED.window_samples)
    sizes = (CENTRED.n_fft, CENTRED.hop_samples, CENTRED.window_samples)
    spectra = torch.stft(x, *sizes, window, center=True, pad_mode="reflect", return_complex=True)
    expected = (spectra.abs().clamp_min(1e-5).T @ mel_filters(CENTRED)).clamp_min(1e-10).log10()
    torch.testing.assert_close(log_mel([x], CENTRED)[0], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_log_mel_does_not_depend_on_the_batch(spec):
    clips = [vowel(n, n) for n in (1, 2, 300, 5000, 12_345, 800, 1600)]
    for clip, together in zip(clips, log_mel(clips, spec)):
        assert together.shape == (spec.n_frames(len(clip)), spec.n_mels)
        assert torch.equal(log_mel([clip], spec)[0], together)


def test_mel_and_sound_in_full_precision_under_autocast():
    x = vowel(4000)
    plain = log_mel([x], CENTRED)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_mel([x], CENTRED)[0], plain)
        under = griffin_lim([invert_mel(10**plain, CENTRED)], [4000], CENTRED, n_iterations=2)[0]
    assert torch.equal(
        under, griffin_lim([invert_mel(10**plain, CENTRED)], [4000], CENTRED, n_iterations=2)[0]
    )


@pytest.mark.parametrize("spec", SPECS)
def test_mel_inversion_gives_the_mel_back(spec):
    mel = log_mel([vowel(8000)], spec)[0]
    misfit = []
    for n_iterations in (100, 1000):
        magnitudes = invert_mel(10**mel, spec, n_iterations)
        assert magnitudes.min() >= 0 and torch.isfinite(magnitudes).all()
        misfit.append(((magnitudes @ mel_filters(spec)).log10() - mel).abs().max())
    assert misfit[0] < 0.06 and misfit[1] < 0.01  # a tenth of a level's step, and on towards none


@pytest.mark.parametrize("spec", SPECS)
def test_griffin_lim_alone_and_in_a_batch(spec):
    lengths = [1, 799, 5000, 12_345]
    magnitudes = [torch.rand(spec.n_frames(n), spec.n_fft // 2 + 1) for n in lengths]
    together = griffin_lim(magnitudes, lengths, spec, n_iterations=4)
    for n, m, clip in zip(lengths, magnitudes, together):
        assert clip.shape == (n,)
        torch.testing.assert_close(
            griffin_lim([m], [n], spec, n_iterations=4)[0],
            clip,
            atol=1e-3 * clip.abs().max().item(),
            rtol=0,
        )


def test_griffin_lim_converges_faster_with_momentum():
    x = vowel(8000)
    spectra = torch.stft(
        x, 1024, 200, 1024, analysis_window(CENTRED), center=True, return_complex=True
    ).T.abs()

    def misfit(momentum):
        y = griffin_lim([spectra], [8000], CENTRED, momentum=momentum)[0]
        again = torch.stft(
            y, 1024, 200, 1024, analysis_window(CENTRED), center=True, return_complex=True
        ).T.abs()
        return ((again - spectra).norm() / spectra.norm()).item()

    fast = misfit(0.99)
    plain = misfit(0.0)
    assert fast < plain < 0.3


def test_griffin_lim_refuses_a_wrong_length():
    with pytest.raises(ValueError, match="frames"):
        griffin_lim([torch.rand(5, 513)], [100], CENTRED)


def test_stoi_of_itself_of_noise_and_of_nothing():
    pytest.importorskip("pystoi")
    x = vowel(16_000).numpy()
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    assert stoi(x, x, 16_000) > 0.999
    assert stoi(x, noise, 16_000) < 0.5
    assert np.isnan(stoi(x[:2000], x[:2000], 16_000))
    with pytest.raises(ValueError, match="equal length"):
        stoi(x, x[1:], 16_000)


@pytest.mark.parametrize(
    "wrong",
    [{"hop_samples": 0}, {"window_samples": 2000}, {"fmax_hz": 9000.0}, {"fmin_hz": 7700.0}],
)
def test_impossible_specs_are_refused(wrong):
    with pytest.raises(ValueError):
        MelSpec(**wrong).check()
