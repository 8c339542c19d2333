"""Strips: a few states of a sampler on its way to a picture, side by side: out of noise, or with ever more of its frames.

Gathered while heads that draw whole segments draw (`Strips.watch`), or told afterwards by samples that were drawn frame by frame; written
beside the samples as steps/NAME.png, and shown in the report. Letters: N samples, T frames, D latent size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmtok.data.images import read_image, write_image
from mmtok.model.lm import LM
from mmtok.model.sampling import Sampled, Sampling
from mmtok.page import Markup, tag, thumbnail
from mmtok.segment import Segment, segment_of

N_TILES, N_STRIPS = 8, 10  # states of a strip, and samples of a call that have one, at most
FOLDER = "steps"
WHITE = 255


class Strips:
    """What a batch's first samples look like after `N_TILES` evenly spaced steps, the last among them."""

    def __init__(self, lm: LM, modality: str, sampling: Sampling):
        self.signature, head = lm.vocabulary.signatures[modality], lm.heads[modality]
        steps_of = lambda part: sampling.steps or part.config.steps or self.signature.frames  # codes in any order: 0 is one at a time
        n_steps = sum(map(steps_of, getattr(head, "stages", [head])))  # a cascade's go on counting
        self.after = set(np.linspace(0, n_steps - 1, N_TILES).round().astype(int).tolist())
        self.states: list[np.ndarray] = []

    def watch(self, step: int, segments: Tensor) -> None:
        """Is told every step's number, from 0, and segments: latents (N, T, D), or codes (N, T, 1) of which hidden ones are K."""
        if step in self.after:
            self.states.append(segments[:N_STRIPS].cpu().numpy())

    def beside(self, drawn: Sequence[Sampled]) -> list[Sampled]:
        """The samples of the batch, the first of them with what they were on the way."""
        ways = (self._seen(i) if self.states else _frame_by_frame(d.segment) for i, d in enumerate(drawn[:N_STRIPS]))
        return [*(replace(d, on_the_way=way) for d, way in zip(drawn, ways)), *drawn[N_STRIPS:]]

    def _seen(self, row: int) -> tuple[tuple[Segment, np.ndarray], ...]:
        """The states that were watched of one sample, and which frames each still hides."""
        made = []
        for state in (state[row] for state in self.states):
            hidden = state[:, 0] == self.signature.levels[0] if self.signature.levels else np.zeros(len(state), bool)
            made.append((segment_of(self.signature, np.where(hidden[:, None], 0, state)), hidden))
        return tuple(made)


def _frame_by_frame(segment: Segment) -> tuple[tuple[Segment, np.ndarray], ...]:
    """A sample that was drawn frame by frame, with ever more of its frames."""
    counts = sorted(set(np.linspace(1, len(segment), N_TILES).round().astype(int).tolist()))
    return tuple((segment, np.arange(len(segment)) >= n) for n in counts)


def strips_of(lm: LM, modality: str, sampling: Sampling) -> Strips | None:
    """To gather strips with, of pictures of a fixed count of frames that one of the heads of diffusion draws; None of all else."""
    return Strips(lm, modality, sampling) if modality == "image" and "image" in lm.heads and lm.vocabulary.signatures["image"].frames else None


def write_strips(folder: Path, stems: Sequence[str], drawn: Sequence[Sampled], tokenizer: Any) -> None:
    """FOLDER/steps/STEM.png for the first sample of every prompt that was watched: its states, decoded, from left to right.

    Strips of samples that these replace go.
    """
    first: dict[str, tuple[str, Sequence[tuple[Segment, np.ndarray]]]] = {}
    for stem, sampled in zip(stems, drawn):
        if sampled.on_the_way:
            first.setdefault(prompt_of(stem), (stem, sampled.on_the_way))
    for stem in {*stems} - {stem for stem, _ in first.values()}:
        (folder / FOLDER / f"{stem}.png").unlink(missing_ok=True)
    for stem, states in first.values():
        (folder / FOLDER).mkdir(exist_ok=True)
        segments, hidden = zip(*states)
        write_image(folder / FOLDER / f"{stem}.png", tiled([*map(blanked, tokenizer.decode_batch(segments), hidden)]))


def blanked(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """A picture, uint8 (Y, X) or (Y, X, 3), of T frames in raster order, square patches or single values, hidden ones (T,) white."""
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
    gap = np.full((len(pictures[0]), max(1, pictures[0].shape[1] // 8), *pictures[0].shape[2:]), WHITE, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], 1)


def prompt_of(stem: str) -> str:
    """A sample's name without its number: seven-003 was asked for by "seven"."""
    return re.sub(r"-\d{3,}$", "", stem)


def shown(samples: Sequence[Path]) -> list[Markup]:
    """The strips that were written beside these samples, under a heading; [] where there are none."""
    there = [p.parent / FOLDER / f"{p.stem}.png" for p in samples]
    strip = lambda p: thumbnail(read_image(p), f"{p.stem} on the way", "walk", N_TILES)
    figures = [tag("figure", strip(p), tag("figcaption", prompt_of(p.stem).replace("_", " "))) for p in there if p.is_file()]
    words = "The picture after evenly spaced steps, from the first on the left to the sample on the right; what is not drawn yet is white."
    return [tag("h3", "On the way"), tag("p", words), tag("div", *figures, cls="walks")] if figures else []
