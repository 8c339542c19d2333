"""Trajectories: a few states between noise and a sample, recorded while a head draws in steps.

Letters: N samples, T frames,
D latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from torch import Tensor

from mmtok.core.segment import Document, Segment, segment_of
from mmtok.heads.base import Head
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import LM
from mmtok.model.sampling import Sampled

N_STATES = 8  # of a trajectory, evenly spaced
N_RECORDED = 10  # samples of a call that have one, at most
State = tuple[Segment, np.ndarray]
"""A segment, and which of its frames (T,) are still masked."""


class TrajectoryRecorder:
    """The states of a batch's first samples after `N_STATES` evenly spaced steps and the last.

    Where frames are drawn one after another, each in steps of its own, a state shows all frames
    after as many steps, though each was drawn when those before it were finished. Frames of the
    prompt are shown as they are.
    """

    def __init__(self, lm: LM, prompts: Sequence[Document], sampling: Sampling):
        known = [p.target for p in prompts]
        modality = known[0].modality
        self.signature = lm.vocabulary.signatures[modality]
        n_missing = max(_n_missing(s, self.signature.frames) for s in known)
        n_steps = cast(Head, lm.head(modality)).n_steps(sampling, n_missing)
        after: list[int] = []
        if n_steps:
            after = np.linspace(0, n_steps - 1, N_STATES).round().astype(int).tolist()
        self.states: dict[int, list[np.ndarray]] = {step: [] for step in after}
        self.n = min(len(prompts), N_RECORDED)

    def callback(self, step: int, frames: Tensor) -> None:
        """Record the frames (N, t, C or D) after a step, as `generate` passes them.

        t is all frames of a segment, or the next one. Latents are NaN where a sample gets no frame
        any more; codes are K where they are still masked.
        """
        if step in self.states:
            # a copy, as a view would keep the whole batch in memory
            self.states[step].append(frames[: self.n].cpu().numpy().copy())

    def attach(self, drawn: Sequence[Sampled]) -> list[Sampled]:
        """The samples of the batch, the first of them with their trajectories."""
        first = [
            replace(d, trajectory=self._trajectory(i, d.segment))
            for i, d in enumerate(drawn[: self.n])
        ]
        return [*first, *drawn[self.n :]]

    def _trajectory(self, row: int, segment: Segment) -> tuple[State, ...]:
        """The states of one sample; none of a sample that got no new frames."""
        found = []
        for parts in self.states.values():
            if not parts:
                continue
            frames = np.concatenate([part[row] for part in parts])
            frames = frames[~np.isnan(frames).any(1)]
            if not len(frames):
                return ()
            found.append(self._state(segment, frames))
        return tuple(found)

    def _state(self, segment: Segment, frames: np.ndarray) -> State:
        """The sample with its new frames (n, C or D) as they were."""
        # spans are infilled in order, all else continues at the end
        spans = segment.infill_spans or ((0, len(segment)),)
        new = np.concatenate([np.arange(a, b) for a, b in spans])[-len(frames) :]
        masked = np.zeros(len(segment), bool)
        if self.signature.levels:
            masked[new] = frames[:, 0] == self.signature.levels[0]
        values = segment.values.copy()
        values[new] = np.where(masked[new, None], 0, frames)
        return segment_of(self.signature, values), masked


def _n_missing(known: Segment, n_frames: int | None) -> int:
    """How many frames of a segment are to be drawn: those to infill, else those missing.

    0 where the number is open.
    """
    n_to_infill = sum(b - a for a, b in known.infill_spans)
    if n_to_infill or n_frames is None:
        return n_to_infill
    return n_frames - len(known)


def trajectory_recorder(
    lm: LM, prompts: Sequence[Document], sampling: Sampling
) -> TrajectoryRecorder | None:
    """A recorder for these prompts, where a head draws in steps."""
    modality = prompts[0].target.modality
    head = lm.head(modality)
    if head is None or not head.n_steps(sampling, 1):
        return None
    return TrajectoryRecorder(lm, prompts, sampling)
