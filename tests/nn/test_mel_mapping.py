"""One spectrogram as another: the identity, straight lines in time and over bands, white noise."""

import numpy as np
import torch

from mmtok.nn.audio import MelSpec, log_mel
from mmtok.nn.mel_mapping import MelMapping, band_middles_hz, first_middle

OURS = MelSpec()
CAUSAL = MelSpec(n_fft=1600, window_samples=1600, hop_samples=800, fmin_hz=0.0, causal=True)
THEIRS = MelSpec(22050, 1024, 1024, 256, 80, 0.0, 8000.0)


def test_the_same_spectrogram_stays():
    mel = torch.randn(9, 80)
    assert torch.allclose(MelMapping(OURS, OURS)(mel, 9), mel, atol=1e-5)
    # and after its last frame it is the last one
    assert torch.allclose(MelMapping(OURS, OURS)(mel, 11)[9:], mel[-1:].expand(2, -1), atol=1e-5)


def test_a_frame_lies_between_those_around_its_middle():
    for of in (OURS, CAUSAL):
        mapping = MelMapping(of, THEIRS, to_first=128.0)
        seconds = (first_middle(of) + torch.arange(80.0) * of.hop_samples) / of.rate_hz
        mapped = mapping(seconds[:, None].expand(-1, 80), 60) - mapping.gains
        middles = (128 + torch.arange(60.0) * 256) / 22050
        assert torch.allclose(mapped, middles.clamp_min(seconds[0])[:, None], atol=1e-5)


def test_a_band_lies_between_those_around_its_middle():
    mapping = MelMapping(OURS, THEIRS)
    own = torch.from_numpy(band_middles_hz(OURS)).float()
    wanted = torch.from_numpy(band_middles_hz(THEIRS)).float().clamp(own[0], own[-1])
    assert torch.allclose(mapping(own.expand(3, -1), 1)[0] - mapping.gains, wanted, rtol=1e-4)


def test_white_noise_is_as_loud():
    """Of one power per Hz, so that samples at a higher rate are larger."""
    rng = np.random.default_rng(0)
    means = []
    for spec in (OURS, THEIRS):
        noise = 0.1 * np.sqrt(spec.rate_hz) * rng.standard_normal(8 * spec.rate_hz) / 100
        means.append(log_mel([torch.from_numpy(noise.astype(np.float32))], spec)[0].mean(0))
    mapped = MelMapping(OURS, THEIRS)(means[0][None], 1)[0]
    inside = band_middles_hz(THEIRS) > 150
    assert (mapped - means[1])[inside].abs().max() < 0.05
    assert (mapped - means[1])[inside].mean().abs() < 0.01
