"""Signals of any modality as points: a few numbers each, by which two sets are compared.

Every function takes signals and returns the names of the features, with their units, and an array
(n, d) in float64. Letters: n signals, d features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmtok.metrics.jets import OBSERVABLES
from mmtok.metrics.substructure import substructure

Points = tuple[tuple[str, ...], np.ndarray]

FRAME_S = 0.025  # of a sound's short spectra
HOP_S = 0.010
SILENT_DB = -60.0  # below the loudest frame
FLOOR = 1e-10  # of a power, so that silence has a logarithm
ROLLOFF = 0.85  # share of the power below the roll-off frequency
GREY = (0.299, 0.587, 0.114)  # brightness of red, green and blue: ITU-R BT.601
LEAST_D2 = 1e-3  # of jets of fewer than three particles
JET_UNITS = {"mass": " [GeV]", "pt": " [GeV]", "girth": " [rad]"}


def text_features(texts: Sequence[str]) -> Points:
    """Lengths, kinds of characters, and how much words and characters repeat."""
    rows = [_text_row(text) for text in texts]
    return _points(rows)


def _text_row(text: str) -> dict[str, float]:
    words = text.split()
    n = max(len(text), 1)
    n_words = max(len(words), 1)
    return {
        "characters": len(text),
        "words": len(words),
        "characters per word": sum(map(len, words)) / n_words,
        "share of letters": sum(map(str.isalpha, text)) / n,
        "share of capitals": sum(map(str.isupper, text)) / n,
        "share of digits": sum(map(str.isdigit, text)) / n,
        "share of blanks": sum(map(str.isspace, text)) / n,
        "share of other characters": sum(not (c.isalnum() or c.isspace()) for c in text) / n,
        "share of different words": len(set(words)) / n_words,
        "entropy of characters [bits]": _entropy(Counter(text)),
    }


def _entropy(counts: Mapping[Any, int]) -> float:
    """Entropy in bits of counts of values; 0 of none."""
    n = np.array(list(counts.values()), np.float64)
    if not len(n):
        return 0.0
    p = n / n.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0  # no -0.0


def sound_features(sounds: Sequence[tuple[np.ndarray, int]]) -> Points:
    """Duration, level and spectrum of clips: samples (N,) or (N, channels), and their rate in Hz.

    Channels are averaged.
    """
    rows = [_sound_row(samples, rate_hz) for samples, rate_hz in sounds]
    return _points(rows)


def _sound_row(samples: np.ndarray, rate_hz: int) -> dict[str, float]:
    x = np.asarray(samples, np.float64)
    if x.ndim == 2:
        x = x.mean(1)
    size = max(int(FRAME_S * rate_hz), 2)
    hop = max(int(HOP_S * rate_hz), 1)
    padded = np.pad(x, (0, max(size - len(x), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)))  # (T, bins)
    hz = np.fft.rfftfreq(size, 1 / rate_hz)
    levels = 10 * np.log10(np.square(frames).mean(1) + FLOOR)
    spectrum = power.sum(0) + FLOOR / len(hz)
    share = spectrum / spectrum.sum()
    centroid = share @ hz
    crossings = np.count_nonzero(np.diff(np.signbit(padded)))
    return {
        "duration [s]": len(x) / rate_hz,
        "level [dB]": 10 * np.log10(np.square(padded).mean() + FLOOR),
        "peak [dB]": 20 * np.log10(np.abs(padded).max() + FLOOR**0.5),
        "spread of levels [dB]": levels.std(),
        "share of silent frames": (levels < levels.max() + SILENT_DB).mean(),
        "zero crossings [1/s]": crossings * rate_hz / len(padded),
        "spectral centroid [Hz]": centroid,
        "spectral width [Hz]": np.sqrt(share @ np.square(hz - centroid)),
        "roll-off of 85 % [Hz]": hz[np.searchsorted(np.cumsum(share), ROLLOFF)],
        "spectral flatness [dB]": 10 * (np.log10(spectrum).mean() - np.log10(spectrum.mean())),
    }


def image_features(images: Sequence[np.ndarray]) -> Points:
    """Size, brightness, colour, sharpness: of uint8 (Y, X) or (Y, X, channels).

    Two channels are grey and opacity, four are colours and opacity; opacity is left out.
    """
    rows = [_image_row(image) for image in images]
    return _points(rows)


def _image_row(image: np.ndarray) -> dict[str, float]:
    x = np.asarray(image, np.float64) / 255
    if x.ndim == 3 and x.shape[2] in (2, 4):
        x = x[:, :, :-1]
    if x.ndim == 2 or x.shape[2] == 1:
        x = np.repeat(x.reshape(*x.shape[:2], 1), 3, axis=2)
    grey = x @ np.array(GREY)
    red, green, blue = x.reshape(-1, 3).mean(0)
    counts = np.bincount(np.rint(grey.ravel() * 255).astype(int))
    return {
        "height [pixels]": x.shape[0],
        "width [pixels]": x.shape[1],
        "brightness": grey.mean(),
        "contrast": grey.std(),
        "red less green": red - green,
        "blue less green": blue - green,
        "colourfulness": np.ptp(x, axis=2).mean(),
        "vertical steps": _mean_step(grey),
        "horizontal steps": _mean_step(grey.T),
        "entropy of brightness [bits]": _entropy(dict(enumerate(counts[counts > 0]))),
    }


def _mean_step(grey: np.ndarray) -> float:
    """Mean absolute difference of neighbouring rows; 0 of one row."""
    return float(np.abs(np.diff(grey, axis=0)).sum() / max((len(grey) - 1) * grey.shape[1], 1))


def jet_features(jets: Sequence[np.ndarray]) -> Points:
    """Observables and substructure of jets (P, F), massless: pt_gev, eta, phi come first.

    The energy correlation ratio is its logarithm, as it spans decades.
    """
    values = {name: observable(jets) for name, observable in OBSERVABLES.items()}
    values |= substructure(jets)
    values["log d2"] = np.log10(np.maximum(values.pop("d2"), LEAST_D2))
    names = tuple(name + JET_UNITS.get(name, "") for name in values)
    columns = list(values.values())
    return names, np.stack(columns, 1).astype(np.float64)


def code_features(frames: Sequence[np.ndarray]) -> Points:
    """Numbers of frames, and means, spreads and entropies of the channels, of arrays (T, C).

    Codes are integers, and have an entropy; latents are floats, and have none.
    """
    rows = [_code_row(x) for x in frames]
    return _points(rows)


def _code_row(x: np.ndarray) -> dict[str, float]:
    row: dict[str, float] = {"frames": len(x)}
    filled = x
    if not len(x):
        filled = np.zeros((1, x.shape[1]), x.dtype)
    means = filled.mean(0)
    spreads = filled.std(0)
    for c in range(x.shape[1]):
        row[f"mean of channel {c}"] = means[c]
        row[f"spread of channel {c}"] = spreads[c]
        if np.issubdtype(x.dtype, np.integer):
            row[f"entropy of channel {c} [bits]"] = _entropy(Counter(x[:, c].tolist()))
    return row


def _points(rows: Sequence[Mapping[str, float]]) -> Points:
    names = tuple(rows[0])
    return names, np.array([[row[name] for name in names] for row in rows], np.float64)


# modality -> its features
FEATURES: dict[str, Callable[[Sequence[Any]], Points]] = {
    "text": text_features,
    "speech": sound_features,
    "image": image_features,
    "jets": jet_features,
}
