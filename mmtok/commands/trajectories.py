"""The states of a trajectory as pictures in a row, written as steps/NAME.png."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.core.segment import Segment
from mmtok.io.filenames import inside
from mmtok.model.sampling import Sampled
from mmtok.sources.image_files import write_image

FOLDER = "steps"
WHITE = 255


def write_trajectories(files: Sequence[Path], samples: Sequence[Sampled], tokenizer: Any) -> None:
    """Write the trajectory of each prompt's first sample, if it has one, from left to right.

    `files` are the samples' own, one for each. Pictures of earlier samples of these names
    are removed.
    """
    first: dict[str, tuple[Path, Sequence[tuple[Segment, np.ndarray]]]] = {}
    for file, sample in zip(files, samples, strict=True):
        if sample.trajectory:
            first.setdefault(prompt_of(file.stem), (trajectory_path(file), sample.trajectory))
    paths = {trajectory_path(file) for file in files}
    for path in paths - {path for path, _ in first.values()}:
        path.unlink(missing_ok=True)
    for path, states in first.values():
        path.parent.mkdir(exist_ok=True)
        shown = tokenizer.pictures([segment for segment, _ in states])
        hidden = [mask for _, mask in states]
        write_image(path, tiled(list(map(blanked, shown, hidden))))


def trajectory_path(file: Path) -> Path:
    """A sample's trajectory: steps/seven-000.png, or steps/seven-000.wav.png for seven-000.wav."""
    return inside(file.parent, f"{FOLDER}/{file.name.removesuffix('.png')}.png")


def blanked(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """A picture with its hidden frames white.

    Args:
        picture: uint8 (Y, X) or (Y, X, 3), of T frames row by row; each is a square patch, or one
            value of a colour.
        hidden: bool (T,).
    """
    if not hidden.any():
        return picture
    shown = picture.copy()
    if len(hidden) == picture.size:  # each value of a colour is a frame
        shown[hidden.reshape(picture.shape)] = WHITE
        return shown
    side = round((picture.shape[0] * picture.shape[1] / len(hidden)) ** 0.5)
    grid = hidden.reshape(picture.shape[0] // side, picture.shape[1] // side)
    shown[grid.repeat(side, 0).repeat(side, 1)] = WHITE
    return shown


def tiled(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 pictures of one size as one, from left to right, with white gaps."""
    height, width, *colours = pictures[0].shape
    gap = np.full((height, max(1, width // 8), *colours), WHITE, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], 1)


def prompt_of(stem: str) -> str:
    """A sample's name without its number: the prompt of seven-003 is "seven"."""
    return re.sub(r"-\d{3,}$", "", stem)


def named_prompt(file: Path) -> str:
    """The prompt as a sample's name has it: "gluon jet" of gluon_jet-012.npz."""
    return prompt_of(file.stem).replace("_", " ")
