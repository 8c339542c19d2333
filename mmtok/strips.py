"""Strips: a few states of a sampler on its way to a sample, side by side: out of noise, or with ever more of its codes.

Gathered while heads draw in steps (`Strips.watch`): pictures, and spectrograms of continuous speech. Written beside the samples as
steps/NAME.png, and shown in the report. Letters: N samples, T frames, D latent size.
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
from mmtok.names import inside
from mmtok.page import Markup, tag, thumbnail
from mmtok.segment import Document, Segment, segment_of

N_TILES, N_STRIPS = 8, 10  # states of a strip, and samples of a call that have one, at most
N_FRAMES, RANGE = 80, 3.0  # of a spectrogram: the frames shown at most, from the first, and the standard deviations from grey to white
FOLDER = "steps"
WHITE = 255
OF_SOUND = (f"Of sound: the first {N_FRAMES} frames of the spectrogram, low bands at the bottom, each from {-RANGE:g} (black) to {RANGE:g} "
            "(white) of its standard deviations from the mean.")


class Strips:
    """What a batch's first samples look like after `N_TILES` evenly spaced steps, the last among them.

    Of frames that are drawn one after another, each in steps of its own, a state shows all frames after as many steps, though each was
    drawn when those before it were finished. Frames that a prompt gave are shown as they are.
    """

    def __init__(self, lm: LM, prompts: Sequence[Document], sampling: Sampling):
        known = [p.segments[-1] for p in prompts]
        self.signature, head = lm.vocabulary.signatures[known[0].modality], lm.heads[known[0].modality]
        # codes in any order: 0 is one at a time
        steps_of = lambda part: sampling.steps or part.config.steps or max(_n_missing(s, self.signature.frames) for s in known)
        n_steps = sum(map(steps_of, getattr(head, "stages", [head])))  # a cascade's go on counting
        after = np.linspace(0, n_steps - 1, N_TILES).round().astype(int).tolist() if n_steps else []
        self.states: dict[int, list[np.ndarray]] = {step: [] for step in after}
        self.n = min(len(prompts), N_STRIPS)

    def watch(self, step: int, frames: Tensor) -> None:
        """Is told every step's number, from 0, and the frames (N, t, .) after it: all of a segment, or the next, as `generate` tells.

        Of latents NaN where a sample gets no frame any more; of codes K where they are still hidden.
        """
        if step in self.states:
            self.states[step].append(frames[: self.n].cpu().numpy().copy())  # a view would keep the whole batch

    def beside(self, drawn: Sequence[Sampled]) -> list[Sampled]:
        """The samples of the batch, the first of them with what they were on the way."""
        return [*(replace(d, on_the_way=self._seen(i, d.segment)) for i, d in enumerate(drawn[: self.n])), *drawn[self.n :]]

    def _seen(self, row: int, segment: Segment) -> tuple[tuple[Segment, np.ndarray], ...]:
        """The states of one sample, and which frames each still hides; none of a sample of which nothing was drawn."""
        made = []
        for parts in filter(None, self.states.values()):
            frames = np.concatenate([part[row] for part in parts])
            frames = frames[~np.isnan(frames).any(1)]
            if not len(frames):
                return ()
            spans = segment.holes or ((0, len(segment)),)  # holes are filled in their order, all else goes on at the end
            drawn = np.concatenate([np.arange(a, b) for a, b in spans])[-len(frames) :]
            values, hidden = segment.values.copy(), np.zeros(len(segment), bool)
            hidden[drawn] = frames[:, 0] == self.signature.levels[0] if self.signature.levels else False
            values[drawn] = np.where(hidden[drawn, None], 0, frames)
            made.append((segment_of(self.signature, values), hidden))
        return tuple(made)


def _n_missing(known: Segment, n_frames: int) -> int:
    """How many of a segment's frames are to be drawn: those in its holes, or those that it does not have."""
    return sum(b - a for a, b in known.holes) or n_frames - len(known)


def strips_of(lm: LM, prompts: Sequence[Document], sampling: Sampling) -> Strips | None:
    """To gather strips of these prompts with: where heads draw pictures, or spectrograms of speech, in steps; None of all else."""
    modality = prompts[0].segments[-1].modality
    if modality not in ("image", "speech") or modality not in lm.heads:
        return None
    in_steps = bool(lm.vocabulary.signatures[modality].latent_size) or modality == "image" and lm.draws_whole(modality)
    return Strips(lm, prompts, sampling) if in_steps else None


def write_strips(files: Sequence[Path], drawn: Sequence[Sampled], tokenizer: Any) -> None:
    """The strip of the first sample of every prompt that was watched: its states as pictures, from left to right.

    files: of the samples, one for each. Strips of samples that these replace go.
    """
    first: dict[str, tuple[Path, Sequence[tuple[Segment, np.ndarray]]]] = {}
    for file, sampled in zip(files, drawn):
        if sampled.on_the_way:
            first.setdefault(prompt_of(file.stem), (strip_of(file), sampled.on_the_way))
    for strip in {strip_of(file) for file in files} - {strip for strip, _ in first.values()}:
        strip.unlink(missing_ok=True)
    for strip, states in first.values():
        strip.parent.mkdir(exist_ok=True)
        segments, hidden = zip(*states)
        write_image(strip, tiled([*map(blanked, pictures(segments, tokenizer), hidden)]))


def strip_of(file: Path) -> Path:
    """Where a sample's strip lies: steps/seven-000.png of seven-000.png, steps/seven-000.wav.png of seven-000.wav."""
    return inside(file.parent, f"{FOLDER}/{file.name.removesuffix('.png')}.png")


def pictures(segments: Sequence[Segment], tokenizer: Any) -> list[np.ndarray]:
    """Segments as uint8 pictures: decoded, or of speech the spectrogram itself, whose latents (T, D) are standardised.

    Of a spectrogram the first `N_FRAMES` frames, time to the right and low bands at the bottom, grey from -RANGE (0) to RANGE (255).
    """
    if segments[0].modality == "image":
        return tokenizer.decode_batch(segments)
    grey = [(s.latents[:N_FRAMES].T[::-1] / RANGE + 1) / 2 * 255 for s in segments]
    return [x.clip(0, 255).round().astype(np.uint8) for x in grey]


def blanked(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """A picture, uint8 (Y, X) or (Y, X, 3), of T frames in raster order, square patches or single values, hidden ones (T,) white."""
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
    gap = np.full((len(pictures[0]), max(1, pictures[0].shape[1] // 8), *pictures[0].shape[2:]), WHITE, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], 1)


def prompt_of(stem: str) -> str:
    """A sample's name without its number: seven-003 was asked for by "seven"."""
    return re.sub(r"-\d{3,}$", "", stem)


def named_prompt(file: Path) -> str:
    """What a sample was asked for by, as its name says it: gluon_jet-012.npz by "gluon jet"."""
    return prompt_of(file.stem).replace("_", " ")


def shown(samples: Sequence[Path], more: str = "") -> list[Markup]:
    """The strips that were written beside these samples, under a heading; [] where there are none. more: is said of them too."""
    there = [p for p in samples if strip_of(p).is_file()]
    strip = lambda p: thumbnail(read_image(strip_of(p)), f"{p.stem} on the way", "walk", N_TILES)
    figures = [tag("figure", strip(p), tag("figcaption", named_prompt(p))) for p in there]
    words = ("After evenly spaced steps, from the first on the left to the sample on the right. Codes that are not drawn yet are white; "
             "frames that were drawn one after another are all shown after as many steps of their own. " + more)
    return [tag("h3", "On the way"), tag("p", words), tag("div", *figures, cls="walks")] if figures else []
