"""Strips: a few states of a sampler on its way from noise to a picture, side by side.

Gathered while heads that draw whole segments of latents draw (`Strips.watch`), written beside the samples as steps/NAME.png, and shown
in the report. Letters: N samples, T frames, D latent size.
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
        n_steps = sum(sampling.steps or stage.config.steps for stage in getattr(head, "stages", [head]))  # a cascade's go on counting
        self.after = set(np.linspace(0, n_steps - 1, N_TILES).round().astype(int).tolist())
        self.states: list[np.ndarray] = []

    def watch(self, step: int, segments: Tensor) -> None:
        """Is told every step's number, from 0, and segments (N, T, D)."""
        if step in self.after:
            self.states.append(segments[:N_STRIPS].float().cpu().numpy())

    def beside(self, drawn: Sequence[Sampled]) -> list[Sampled]:
        """The samples of the batch, the first of them with what they were on the way."""
        rows = (tuple(segment_of(self.signature, state[i]) for state in self.states) for i in range(min(N_STRIPS, len(drawn))))
        return [*(replace(d, on_the_way=row) for d, row in zip(drawn, rows)), *drawn[N_STRIPS:]]


def strips_of(lm: LM, modality: str, sampling: Sampling) -> Strips | None:
    """To gather strips with, of pictures that a diffusion draws as a whole; None of all else, whose states are no pictures."""
    whole_latents = lm.draws_whole(modality) and bool(lm.vocabulary.signatures[modality].latent_size)
    return Strips(lm, modality, sampling) if modality == "image" and whole_latents else None


def write_strips(folder: Path, stems: Sequence[str], drawn: Sequence[Sampled], tokenizer: Any) -> None:
    """FOLDER/steps/STEM.png for the first sample of every prompt that was watched: its states, decoded, from left to right.

    Strips of samples that these replace go.
    """
    first: dict[str, tuple[str, Sequence[Segment]]] = {}
    for stem, sampled in zip(stems, drawn):
        if sampled.on_the_way:
            first.setdefault(prompt_of(stem), (stem, sampled.on_the_way))
    for stem in {*stems} - {stem for stem, _ in first.values()}:
        (folder / FOLDER / f"{stem}.png").unlink(missing_ok=True)
    for stem, states in first.values():
        (folder / FOLDER).mkdir(exist_ok=True)
        write_image(folder / FOLDER / f"{stem}.png", tiled(tokenizer.decode_batch(states)))


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
    words = "The sampler's state after evenly spaced steps, decoded, from the first on the left to the sample on the right."
    return [tag("h3", "On the way"), tag("p", words), tag("div", *figures, cls="walks")] if figures else []
