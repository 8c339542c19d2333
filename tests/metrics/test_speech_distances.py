"""Distances of sounds: right values of white noise, identity, monotony, silence and short clips."""

import importlib
import math
import sys

import numpy as np
import pytest
from scipy.signal import lfilter

from mmtok.errors import UserError
from mmtok.metrics import speech_distances
from mmtok.metrics.speech_distances import (
    estoi,
    log_mel_distance,
    log_spectral_distance,
    mel_cepstral_distortion,
    multi_resolution_stft,
    pesq,
    stoi,
)
from mmtok.nn.resample import resample

SPECTRAL = (mel_cepstral_distortion, log_mel_distance, log_spectral_distance)


@pytest.fixture(scope="module")
def sentence():
    """A sentence at 16 kHz, with the falling spectrum of recorded speech; espeak's is flat."""
    pytest.importorskip("espeakng_loader")
    from mmtok.sources.espeak import Espeak, set_level

    text = (
        "she had your dark suit in greasy wash water all year, and the quick brown fox jumps over"
        " the lazy dog"
    )
    said = resample(Espeak().say(text, "en-us+f3"), 22_050, 16_000)
    return set_level(lfilter([1], [1, -0.6], said).astype(np.float32))


def noisy(clip, snr_db):
    """White noise, its power that of the clip less snr_db."""
    noise = np.random.default_rng(0).standard_normal(len(clip)) * clip.std()
    return (clip + noise * 10 ** (-snr_db / 20)).astype(np.float32)


@pytest.mark.parametrize(
    "snr_db, values", [(20, (0.983, 0.925)), (10, (0.912, 0.744)), (0, (0.728, 0.482))]
)
def test_intelligibility_in_white_noise(sentence, snr_db, values):
    pytest.importorskip("pystoi")
    degraded = noisy(sentence, snr_db)
    assert stoi(sentence, degraded, 16_000) == pytest.approx(values[0], abs=0.04)
    assert estoi(sentence, degraded, 16_000) == pytest.approx(values[1], abs=0.05)


@pytest.mark.parametrize("snr_db, value", [(20, 1.442), (10, 1.065), (0, 1.022)])
def test_quality_in_white_noise(sentence, snr_db, value):
    pytest.importorskip("pesq")
    degraded = noisy(sentence, snr_db)
    assert pesq(sentence, degraded, 16_000) == pytest.approx(value, abs=0.15)
    assert 1 < pesq(sentence, degraded, 16_000, "nb") < 3


def test_a_sound_is_no_distance_from_itself(sentence):
    for distance in SPECTRAL:
        assert distance(sentence, sentence, 16_000) == 0
    assert multi_resolution_stft(sentence, sentence, 16_000) == (0, 0)
    if importlib.util.find_spec("pystoi"):
        assert stoi(sentence, sentence, 16_000) == pytest.approx(1)
        assert estoi(sentence, sentence, 16_000) == pytest.approx(1)
    if importlib.util.find_spec("pesq"):
        assert pesq(sentence, sentence, 16_000) == pytest.approx(4.644, abs=1e-3)
        assert pesq(sentence, sentence, 16_000, "nb") == pytest.approx(4.549, abs=1e-3)


def test_more_noise_is_farther(sentence):
    for distance in (*SPECTRAL, lambda *a: sum(multi_resolution_stft(*a))):
        values = [distance(sentence, noisy(sentence, snr), 16_000) for snr in (30, 20, 10, 0)]
        assert values == sorted(values) and values[0] > 0


def test_loudness_is_no_cepstral_distortion_but_as_many_db_of_the_others():
    clip = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    quieter = (clip / 2).astype(np.float32)
    assert mel_cepstral_distortion(clip, quieter, 16_000) < 1e-3
    assert log_mel_distance(clip, quieter, 16_000) == pytest.approx(6.02, abs=0.01)
    assert log_spectral_distance(clip, quieter, 16_000) == pytest.approx(6.02, abs=0.05)
    convergence, log_difference = multi_resolution_stft(clip, quieter, 16_000)
    assert convergence == pytest.approx(0.5) and log_difference == pytest.approx(math.log(2))


def test_cepstral_distortion_is_the_formula_on_cosines():
    # an envelope that differs by a cosine of A dB: one coefficient, of root mean square A / sqrt 2
    bands = (np.arange(80) + 0.5) / 80
    ripple_db = 3 * np.cos(4 * np.pi * bands)
    cepstra = ripple_db @ speech_distances._cosines(80).numpy()
    assert cepstra == pytest.approx([0, 0, 0, 3] + [0] * 9, abs=1e-5)
    c = cepstra * math.log(10) / 20  # of natural log magnitudes
    formula = 10 / math.log(10) * math.sqrt(2 * (c**2).sum())
    assert (
        formula == pytest.approx(3 / math.sqrt(2)) == pytest.approx(np.sqrt((cepstra**2 / 2).sum()))
    )


def test_silence_and_short_clips_are_no_number_but_no_crash(sentence):
    silence = np.zeros(16_000, np.float32)
    measures = [*SPECTRAL, lambda *a: multi_resolution_stft(*a)[0]]
    if importlib.util.find_spec("pystoi"):
        measures += [stoi, estoi]
    if importlib.util.find_spec("pesq"):
        measures += [pesq]
        assert math.isnan(pesq(sentence[:2000], sentence[:2000], 16_000))
        assert math.isnan(pesq(sentence, np.zeros_like(sentence), 16_000))
    for measure in measures:
        assert math.isnan(measure(silence, silence, 16_000))
        assert math.isnan(measure(silence[:1], silence[:1], 16_000))
        measure(sentence[4000:4001], sentence[4000:4001], 16_000)
        if measure is not pesq:
            measure(sentence[:16_000], silence, 16_000)


def test_pairs_of_other_shapes_are_refused(sentence):
    for measure in (*SPECTRAL, stoi, multi_resolution_stft, pesq):
        with pytest.raises(UserError, match="equal length"):
            measure(sentence, sentence[1:], 16_000)


def test_what_is_not_installed_is_said_in_one_line(sentence, monkeypatch):
    speech_distances._pesq_module.cache_clear()
    monkeypatch.setitem(sys.modules, "pystoi", None)
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(UserError, match=r"mmtok\[eval\]"):
        stoi(sentence, sentence, 16_000)
    with pytest.raises(UserError, match="pip install pesq"):
        pesq(sentence, sentence, 16_000)


def test_pesq_refuses_a_band_that_is_none(sentence):
    with pytest.raises(UserError, match="wb or nb"):
        pesq(sentence, sentence, 16_000, "fb")
