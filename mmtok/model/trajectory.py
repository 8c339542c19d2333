"""Trajectories: a few states of a sampler on its way to a sample, gathered while heads draw in
steps.

Pictures, and spectrograms of continuous speech. Letters: N samples, T frames, D latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from mmtok.core.segment import Document, Segment, segment_of
from mmtok.model.lm import LM
from mmtok.model.sampling import Sampled, Sampling

N_TILES = 8  # states of a trajectory, evenly spaced
N_STRIPS = 10  # samples of a call that have one, at most


class Strips:
    """What a batch's first samples look like after `N_TILES` evenly spaced steps, the last among
    them.

    Of frames that are drawn one after another, each in steps of its own, a state shows all frames
    after as many steps, though each was drawn when those before it were finished. Frames that a
    prompt gave are shown as they are.
    """

    def __init__(self, lm: LM, prompts: Sequence[Document], sampling: Sampling):
        known = [p.segments[-1] for p in prompts]
        self.signature, head = (
            lm.vocabulary.signatures[known[0].modality],
            lm.heads[known[0].modality],
        )
        # codes in any order: 0 is one at a time
        steps_of = lambda part: (
            sampling.steps
            or part.config.steps
            or max(_n_missing(s, self.signature.frames) for s in known)
        )
        n_steps = sum(map(steps_of, getattr(head, "stages", [head])))  # a cascade's go on counting
        after = np.linspace(0, n_steps - 1, N_TILES).round().astype(int).tolist() if n_steps else []
        self.states: dict[int, list[np.ndarray]] = {step: [] for step in after}
        self.n = min(len(prompts), N_STRIPS)

    def callback(self, step: int, frames: Tensor) -> None:
        """Is told every step's number, from 0, and the frames (N, t, .) after it: all of a segment,
        or the next, as `generate` tells.

        Of latents NaN where a sample gets no frame any more; of codes K where they are still
        hidden.
        """
        if step in self.states:
            self.states[step].append(
                frames[: self.n].cpu().numpy().copy()
            )  # a view would keep the whole batch

    def beside(self, drawn: Sequence[Sampled]) -> list[Sampled]:
        """The samples of the batch, the first of them with what they were on the way."""
        return [
            *(
                replace(d, trajectory=self._seen(i, d.segment))
                for i, d in enumerate(drawn[: self.n])
            ),
            *drawn[self.n :],
        ]

    def _seen(self, row: int, segment: Segment) -> tuple[tuple[Segment, np.ndarray], ...]:
        """The states of one sample, and which frames each still hides; none of a sample of which
        nothing was drawn.
        """
        made = []
        for parts in filter(None, self.states.values()):
            frames = np.concatenate([part[row] for part in parts])
            frames = frames[~np.isnan(frames).any(1)]
            if not len(frames):
                return ()
            spans = segment.holes or (
                (0, len(segment)),
            )  # holes are filled in their order, all else goes on at the end
            drawn = np.concatenate([np.arange(a, b) for a, b in spans])[-len(frames) :]
            values, hidden = segment.values.copy(), np.zeros(len(segment), bool)
            hidden[drawn] = (
                frames[:, 0] == self.signature.levels[0] if self.signature.levels else False
            )
            values[drawn] = np.where(hidden[drawn, None], 0, frames)
            made.append((segment_of(self.signature, values), hidden))
        return tuple(made)


def _n_missing(known: Segment, n_frames: int) -> int:
    """How many of a segment's frames are to be drawn: those in its holes, or those that it does not
    have.
    """
    return sum(b - a for a, b in known.holes) or n_frames - len(known)


def strips_of(lm: LM, prompts: Sequence[Document], sampling: Sampling) -> Strips | None:
    """To gather strips of these prompts with: where heads draw pictures, or spectrograms of speech,
    in steps; None of all else.
    """
    modality = prompts[0].segments[-1].modality
    if modality not in ("image", "speech") or modality not in lm.heads:
        return None
    in_steps = (
        bool(lm.vocabulary.signatures[modality].latent_size)
        or modality == "image"
        and lm.draws_whole(modality)
    )
    return Strips(lm, prompts, sampling) if in_steps else None
