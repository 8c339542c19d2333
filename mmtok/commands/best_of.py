"""The best of several samples of a prompt, by the run's own likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.io.terminal import print_status
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run


def draw_best(
    run: Run, prompts: Sequence[Document], sampling: Sampling, seed: int, best_of: int
) -> list[Sampled]:
    """One sample per prompt: of `best_of` draws the one with the least nats per frame.

    The nats are those of the sample given its prompt, its end mark included; per frame, as their
    sum would choose the shortest: of four spoken sentences, which a recogniser read with 0.28 word
    errors on average, the sum left 0.32, nats per frame 0.28. A sample that ended comes before one
    that was cut at the cap, and any before one without a frame.

    Raises UserError for less than one draw.
    """
    if best_of < 1:
        raise UserError(f"sample: --best-of is {best_of}; it must be at least 1")
    if best_of == 1:
        return run.draw(prompts, sampling, seed)
    several = [prompt for prompt in prompts for _ in range(best_of)]
    drawn = run.draw(several, sampling, seed)
    documents = [closed(prompt, found) for prompt, found in zip(several, drawn, strict=True)]
    scores = run.score_documents(documents, group_size=best_of)
    ranks = [
        (not len(found.segment), found.stop == "cap", nats_per_frame(score.nats[-1], found))
        for found, score in zip(drawn, scores, strict=True)
    ]
    best = []
    for start in range(0, len(drawn), best_of):
        best.append(min(range(start, start + best_of), key=ranks.__getitem__))
    mean = np.mean([rank[2] for rank in ranks])
    chosen = np.mean([ranks[i][2] for i in best])
    print_status(
        f"best of {best_of} by likelihood: {chosen:.4g} nats per frame, {mean:.4g} on average"
    )
    return [drawn[i] for i in best]


def closed(prompt: Document, found: Sampled) -> Document:
    """The document of a prompt with its sample, to be scored.

    A sample that was cut at the cap is truncated: its end is not scored.
    """
    segment = replace(found.segment, truncated=found.stop == "cap")
    return replace(prompt, segments=(*prompt.segments[:-1], segment), open_end=False)


def nats_per_frame(nats: float | None, found: Sampled) -> float:
    """Nats of a sample over its frames and its end."""
    assert nats is not None, "the sample's segment is predicted"
    return nats / (len(found.segment) + (found.stop != "cap"))
