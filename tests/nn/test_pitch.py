"""Pitch is found in pulse trains with noise; bins and Hz are inverses."""

import pytest
import torch

from mmtok.nn.audio import MelSpec
from mmtok.nn.harmonic import PulseTrain
from mmtok.nn.pitch import (
    HIGHEST_HZ,
    LOWEST_HZ,
    N_BINS,
    bins_of,
    hz_of,
    pitch_loss,
    pitch_of,
    track_pitch,
)


def pulses(f0):
    return PulseTrain(torch.zeros(1, dtype=torch.float64), MelSpec()).push(f0[None])[0]


def noise(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("f0_hz", [70.0, 113.0, 187.3, 251.0, 440.0])
def test_the_pitch_of_noisy_pulses(f0_hz):
    sound = 0.1 * pulses(torch.full((81,), f0_hz))
    sound = sound + 0.3 * sound.std() * noise(len(sound))
    found = track_pitch(sound, 16_000, 200)
    assert len(found) == 81
    inner = found[4:-4]  # whose windows are whole
    assert (inner > 0).all()
    assert ((inner / f0_hz).log().abs() < 0.01).all()


def test_a_gliding_pitch():
    f0 = torch.linspace(5, 5.7, 121).exp()
    found = track_pitch(0.1 * pulses(f0), 16_000, 200)
    assert ((found / f0).log().abs()[6:-6] < 0.01).all()


def test_noise_and_silence_are_unvoiced():
    assert (track_pitch(0.1 * noise(16_000), 16_000, 200) > 0).float().mean() < 0.02
    assert not (track_pitch(torch.zeros(16_000), 16_000, 200) > 0).any()


def test_voicing_changes_where_pulses_begin_and_end():
    f0 = torch.zeros(160)
    f0[40:100] = 140.0
    sound = 0.1 * pulses(f0) + 0.005 * noise(159 * 200)
    found = track_pitch(sound, 16_000, 200)
    wrong = ((found > 0) != (f0 > 0)).nonzero().flatten()
    assert all(min(abs(int(t) - 40), abs(int(t) - 100)) <= 4 for t in wrong)


@pytest.mark.parametrize("rate_hz, hop", [(8_000, 100), (22_050, 256), (24_000, 300)])
def test_other_rates(rate_hz, hop):
    spec = MelSpec(rate_hz=rate_hz, hop_samples=hop, fmax_hz=3_800)
    sound = PulseTrain(torch.zeros(1, dtype=torch.float64), spec).push(torch.full((1, 60), 120.0))
    found = track_pitch(0.1 * sound[0], rate_hz, hop)
    assert ((found[6:-6] / 120).log().abs() < 0.01).all()


@pytest.mark.parametrize("n", [1, 199, 200, 5_000])
def test_as_many_frames_as_a_spectrogram_has(n):
    assert len(track_pitch(0.1 * noise(n), 16_000, 200)) == MelSpec().n_frames(n)


def test_bins_and_hz_are_inverses():
    f0 = torch.tensor([LOWEST_HZ, 100.0, 333.0, HIGHEST_HZ])
    assert torch.allclose(hz_of(bins_of(f0)), f0, rtol=1e-4)
    assert torch.allclose(bins_of(f0)[[0, -1]], torch.tensor([0.0, N_BINS - 1]), atol=1e-3)


def test_logits_that_fit_best_say_the_pitch():
    f0 = torch.tensor([0.0, 75.0, 120.0, 310.0])
    logits = torch.zeros(4, N_BINS + 1, requires_grad=True)
    for _ in range(200):
        (slope,) = torch.autograd.grad(sum(pitch_loss(logits, f0)), logits)
        logits = (logits - 5 * slope).detach().requires_grad_()
    found = pitch_of(logits)
    assert found[0] == 0
    assert torch.allclose(found[1:], f0[1:], rtol=0.003)
