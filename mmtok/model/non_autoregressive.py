"""Drawing segments as a whole: the condition is read once, and a head fills all frames in, or those
that are free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, segment_of
from mmtok.errors import UserError
from mmtok.model.lm import LM, evaluating
from mmtok.model.sampling import ROUNDED, Sampled, Sampling


def draw_whole(
    lm: LM,
    modality: str,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    callback: Callable[[int, Tensor], None] | None = None,
) -> list[Sampled]:
    """Draw the last segment of open documents, all of one modality whose head draws whole segments,
    as one batch.

    A segment may hold frames already: the first of them, or all, with holes as spans (a, b) whose
    frames are drawn anew. With holes as empty spans, a single one takes all frames that are
    missing. watch: is given every step's number and segments (N, T, ·). Raises UserError for a head
    that cannot keep frames, and for several empty holes, as nobody says how long each is.
    """
    signature = lm.vocabulary.signatures[modality]
    if sampling.precision in ROUNDED or sampling.compiled:
        raise UserError(
            f"{modality} is drawn as a whole: its head cannot be compiled or rounded; leave out"
            " compiled and precision"
        )
    places = [_places(p.segments[-1], signature.frames) for p in prompts]
    values = np.zeros(
        (len(prompts), signature.frames, len(signature.levels) or signature.latent_size)
    )
    for row, (prompt, known) in enumerate(zip(prompts, places)):
        values[row, known] = (
            prompt.segments[-1].values
            if len(known) == len(prompt.segments[-1])
            else prompt.segments[-1].values[known]
        )
    free = np.ones(values.shape[:2], bool)
    for row, known in enumerate(places):
        free[row, known] = False
    empty = segment_of(signature)
    asked = [replace(p, segments=(*p.segments[:-1], empty), n_filled=0) for p in prompts]
    streams = (
        [asked]
        if sampling.guidance == 1
        else [
            asked,
            [replace(p, segments=(None,) * (len(p.segments) - 1) + (empty,)) for p in asked],
        ]
    )
    with evaluating(lm):
        hs = [states_at_end(lm, documents) for documents in streams]
        tensor = torch.from_numpy(values).to(
            lm.device, torch.float32 if signature.latent_size else torch.long
        )
        drawn = lm.heads[modality].sample(
            hs, tensor, torch.from_numpy(free).to(lm.device), sampling, generator, callback
        )
    return [Sampled(segment_of(signature, x), "end") for x in drawn.cpu().numpy()]


def states_at_end(lm: LM, documents: Sequence[Document]) -> Tensor:
    """(N, M): the hidden state at the last position of each document's stream."""
    streams = [to_stream(lm.vocabulary, d) for d in documents]
    batch = pack(lm.vocabulary, [[s] for s in streams]).to(lm.device)
    last = torch.tensor([len(s) - 1 for s in streams], device=lm.device)
    return lm.hidden(batch)[torch.arange(len(streams), device=lm.device), last]


def _places(known: Segment, n_frames: int) -> np.ndarray:
    """Where the frames that are to be kept stand among all."""
    empty = [a for a, b in known.holes if a == b]
    if len(empty) > 1 or empty and len(known.holes) > 1:
        raise UserError(
            f"{known.modality}: a hole's frames must be counted where there are several, as spans"
            f" (start, stop); got {known.holes}"
        )
    if empty:
        after = len(known) - empty[0]
        return np.r_[: empty[0], n_frames - after : n_frames]
    drawn = {i for a, b in known.holes for i in range(a, b)}
    return np.array([i for i in range(len(known)) if i not in drawn], int)
