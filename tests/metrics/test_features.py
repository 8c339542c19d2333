"""Features of signals whose values are known."""

import numpy as np
import pytest

from mmtok.metrics.features import (
    code_features,
    image_features,
    jet_features,
    sound_features,
    text_features,
)


def as_dict(points):
    names, values = points
    assert values.shape == (1, len(names))
    return dict(zip(names, values[0], strict=True))


def test_texts():
    found = as_dict(text_features(["Ab ab 12!"]))
    assert found["characters"] == 9 and found["words"] == 3
    assert found["characters per word"] == pytest.approx(7 / 3)
    assert found["share of capitals"] == pytest.approx(1 / 9)
    assert found["share of digits"] == found["share of blanks"] == pytest.approx(2 / 9)
    assert found["share of different words"] == 1
    assert as_dict(text_features(["aabb"]))["entropy of characters [bits]"] == 1
    assert np.isfinite(text_features([""])[1]).all()


def test_sounds():
    rate_hz = 8000
    time_s = np.arange(rate_hz) / rate_hz
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time_s)
    found = as_dict(sound_features([(np.stack((tone, tone), 1), rate_hz)]))
    assert found["duration [s]"] == 1
    assert found["level [dB]"] == pytest.approx(20 * np.log10(0.5 / 2**0.5), abs=0.01)
    assert found["peak [dB]"] == pytest.approx(20 * np.log10(0.5), abs=0.01)
    assert found["spectral centroid [Hz]"] == pytest.approx(1000, abs=5)
    assert found["zero crossings [1/s]"] == pytest.approx(2000, abs=5)
    noise = np.random.default_rng(0).normal(size=rate_hz) * 0.1
    flat = as_dict(sound_features([(noise, rate_hz)]))
    assert flat["spectral flatness [dB]"] > found["spectral flatness [dB]"] + 20
    assert flat["roll-off of 85 % [Hz]"] == pytest.approx(0.85 * 4000, rel=0.05)
    assert np.isfinite(sound_features([(np.zeros(3), rate_hz), (np.zeros(0), rate_hz)])[1]).all()


def test_images():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = 255
    found = as_dict(image_features([image]))
    assert (found["height [pixels]"], found["width [pixels]"]) == (4, 6)
    assert found["brightness"] == pytest.approx(0.5) and found["contrast"] == pytest.approx(0.5)
    assert found["vertical steps"] == pytest.approx(0)
    assert found["horizontal steps"] == pytest.approx(1 / 5)
    assert found["entropy of brightness [bits]"] == pytest.approx(1)
    assert as_dict(image_features([image[:, :, 0]])) == pytest.approx(found)  # grey
    red = np.zeros((2, 2, 4), np.uint8)
    red[:, :, 0] = 255
    assert as_dict(image_features([red]))["red less green"] == 1  # opacity is left out
    assert np.isfinite(image_features([np.zeros((1, 1), np.uint8)])[1]).all()


def test_jets_have_their_observables():
    names, values = jet_features([np.array([[10.0, 0.1, 0.2]]), np.zeros((0, 3))])
    assert names[0] == "mass [GeV]" and values.shape == (2, len(names))
    assert np.isfinite(values).all()


def test_codes_and_latents():
    found = as_dict(code_features([np.array([[0, 5], [1, 5]])]))
    assert found["frames"] == 2 and found["mean of channel 1"] == 5
    assert found["entropy of channel 0 [bits]"] == 1
    assert found["entropy of channel 1 [bits]"] == 0
    assert set(as_dict(code_features([np.array([[0.5]])]))) == {
        "frames",
        "mean of channel 0",
        "spread of channel 0",
    }
    assert np.isfinite(code_features([np.zeros((0, 2), int)])[1]).all()
