"""Strips: the states of a trajectory as pictures, side by side, written beside the samples as
steps/NAME.png.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.core.segment import Segment
from mmtok.io.filenames import inside
from mmtok.model.sampling import Sampled
from mmtok.sources.images import write_image

N_FRAMES = 80  # of a spectrogram: the frames shown at most, from the first
RANGE = 3.0  # of a spectrogram: the standard deviations from grey to white
FOLDER = "steps"
WHITE = 255


def write_strips(files: Sequence[Path], drawn: Sequence[Sampled], tokenizer: Any) -> None:
    """The strip of the first sample of every prompt that was watched: its states as pictures, from
    left to right.

    files: of the samples, one for each. Strips of samples that these replace go.
    """
    first: dict[str, tuple[Path, Sequence[tuple[Segment, np.ndarray]]]] = {}
    for file, sampled in zip(files, drawn):
        if sampled.trajectory:
            first.setdefault(prompt_of(file.stem), (strip_of(file), sampled.trajectory))
    for strip in {strip_of(file) for file in files} - {strip for strip, _ in first.values()}:
        strip.unlink(missing_ok=True)
    for strip, states in first.values():
        strip.parent.mkdir(exist_ok=True)
        segments, hidden = zip(*states)
        write_image(strip, tiled([*map(blanked, pictures(segments, tokenizer), hidden)]))


def strip_of(file: Path) -> Path:
    """Where a sample's strip lies: steps/seven-000.png of seven-000.png, steps/seven-000.wav.png of
    seven-000.wav.
    """
    return inside(file.parent, f"{FOLDER}/{file.name.removesuffix('.png')}.png")


def pictures(segments: Sequence[Segment], tokenizer: Any) -> list[np.ndarray]:
    """Segments as uint8 pictures: decoded, or of speech the spectrogram itself, whose latents (T,
    D) are standardised.

    Of a spectrogram the first `N_FRAMES` frames, time to the right and low bands at the bottom,
    grey from -RANGE (0) to RANGE (255).
    """
    if segments[0].modality == "image":
        return tokenizer.decode_batch(segments)
    grey = [(s.latents[:N_FRAMES].T[::-1] / RANGE + 1) / 2 * 255 for s in segments]
    return [x.clip(0, 255).round().astype(np.uint8) for x in grey]


def blanked(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """A picture, uint8 (Y, X) or (Y, X, 3), of T frames in raster order, square patches or single
    values, hidden ones (T,) white.
    """
    if not hidden.any():
        return picture
    shown = picture.copy()
    if len(hidden) == picture.size:  # of colours each value is a frame
        shown[hidden.reshape(picture.shape)] = WHITE
        return shown
    side = round((picture.shape[0] * picture.shape[1] / len(hidden)) ** 0.5)
    grid = hidden.reshape(picture.shape[0] // side, picture.shape[1] // side)
    shown[grid.repeat(side, 0).repeat(side, 1)] = WHITE
    return shown


def tiled(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 pictures of one size as one, from left to right, with white gaps."""
    gap = np.full(
        (len(pictures[0]), max(1, pictures[0].shape[1] // 8), *pictures[0].shape[2:]),
        WHITE,
        np.uint8,
    )
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], 1)


def prompt_of(stem: str) -> str:
    """A sample's name without its number: seven-003 was asked for by "seven"."""
    return re.sub(r"-\d{3,}$", "", stem)


def named_prompt(file: Path) -> str:
    """What a sample was asked for by, as its name says it: gluon_jet-012.npz by "gluon jet"."""
    return prompt_of(file.stem).replace("_", " ")
