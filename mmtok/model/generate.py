"""Sampling: continue prompts under the grammar, until their segments end or reach the cap."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature, segment_of
from mmtok.errors import UserError
from mmtok.heads.base import Callback, Context, Head, Known, SetHead, Sizes
from mmtok.heads.sampling import Sampling
from mmtok.model.autoregressive import without_condition
from mmtok.model.captured import make_sampler
from mmtok.model.lm import LM, evaluating
from mmtok.model.sampling import Sampled


def generate(
    lm: LM,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    on_frames: Callable[[np.ndarray, np.ndarray], None] | None = None,
    callback: Callback | None = None,
) -> list[Sampled]:
    """Continue open documents, all to the same modality, as one batch.

    Args:
        lm: The model.
        prompts: Documents with `open_end`; the last segment holds the frames known so far, maybe
            none.
        sampling: The settings.
        generator: On the model's device.
        on_frames: Called after every step with the rows (n,) that got a frame and the frames
            (n, C), for streaming; not by non-autoregressive heads.
        callback: callback(step, x) after each denoising step. x is (N, T, C or D) for
            non-autoregressive heads; else the current frame (N, 1, D), NaN for finished rows.

    Raises:
        UserError: For an input-only modality and for a setting that does not apply.
        ValueError: For prompts that are not open, and for spans that cannot be infilled so.
    """
    if not prompts:
        return []
    modality = check_prompts(lm, prompts, sampling)
    if not lm.autoregressive(modality):
        return draw_whole(lm, modality, prompts, sampling, generator, callback)
    with evaluating(lm), torch.inference_mode():
        sampler = make_sampler(lm, prompts, sampling, generator, callback)
        while len(sampler.rows):
            rows, frames = sampler.step()
            if on_frames is not None and len(rows):
                on_frames(rows, frames)
    return sampler.results()


def stream(
    lm: LM, prompts: Sequence[Document], sampling: Sampling, generator: torch.Generator
) -> Generator[tuple[np.ndarray, np.ndarray], None, list[Sampled]]:
    """`generate` as an iterator: rows (n,) that got a frame and the frames (n, C), step by step.

    It returns the samples. The next step is made when it is asked for. A row that got no frame is
    finished. Frames of non-autoregressive heads come one by one too, once all are drawn. Raises
    ValueError for prompts with spans to infill, whose frames would not come in order.
    """
    if not prompts:
        return []
    modality = check_prompts(lm, prompts, sampling)
    if any(p.target.infill_spans for p in prompts):
        raise ValueError("infilling cannot be streamed")
    if not lm.autoregressive(modality):
        drawn = draw_whole(lm, modality, prompts, sampling, generator)
        known = np.array([len(p.target) for p in prompts])
        lengths = np.array([len(d.segment) for d in drawn])
        for t in range(known.min(), lengths.max()):
            rows = np.flatnonzero((known <= t) & (t < lengths))
            yield rows, np.stack([drawn[row].segment.values[t] for row in rows])
        return drawn
    with evaluating(lm), torch.inference_mode():
        sampler = make_sampler(lm, prompts, sampling, generator)
    try:
        while len(sampler.rows):
            with evaluating(lm), torch.inference_mode():  # but not while the caller works
                rows, frames = sampler.step()
            if len(rows):
                yield rows, segment_of(sampler.signature, frames).values
    finally:  # also where the caller wants no more
        sampler.close()
    return sampler.results()


def infill(
    lm: LM,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> list[Sampled]:
    """Draw the frames of every span to infill of the last segments, in order.

    The spans are empty, (a, a); all prompts have as many of them. The stop reason is "cap" where
    any span reached it. callback: as of `generate`, of one span after another. Raises ValueError
    when prompts differ in their number of spans.
    """
    if prompts and not lm.autoregressive(prompts[0].target.modality):
        return generate(lm, prompts, sampling, generator, callback=callback)
    n_left = {len(p.target.infill_spans) - p.n_filled for p in prompts}
    if len(n_left) != 1 or 0 in n_left:
        raise ValueError(
            "prompts must all have the same number of spans to infill, at least one; got"
            f" {sorted(n_left)}"
        )
    capped = [False] * len(prompts)
    results: list[Sampled] = []
    for _ in range(n_left.pop()):
        results = generate(lm, prompts, sampling, generator, callback=callback)
        capped = [c or r.stop == "cap" for c, r in zip(capped, results, strict=True)]
        prompts = [
            replace(p, segments=(*p.segments[:-1], r.segment), n_filled=p.n_filled + 1)
            for p, r in zip(prompts, results, strict=True)
        ]
    stops = ["cap" if was_capped else "end" for was_capped in capped]
    return [replace(r, stop=stop) for r, stop in zip(results, stops, strict=True)]


def check_prompts(lm: LM, prompts: Sequence[Document], sampling: Sampling) -> str:
    """The modality that all prompts ask for. Raises as `generate`."""
    modalities = {p.target.modality for p in prompts}
    if len(modalities) != 1 or not all(p.open_end for p in prompts):
        raise ValueError("prompts must be open, and their last segments of one modality")
    modality = modalities.pop()
    if modality not in lm.vocabulary.signatures:
        raise UserError(
            f"modality {modality!r} is not in this model, which has"
            f" {', '.join(lm.vocabulary.signatures)}"
        )
    if not lm.vocabulary.signatures[modality].one_channel and lm.head(modality) is None:
        raise UserError(
            f"the model has no head for {modality}: it reads {modality} but cannot make it"
        )
    if lm.autoregressive(modality):
        for p in prompts:
            _check_infill_spans(p.target.infill_spans, p.n_filled)
    lm.validate(modality, sampling)
    return modality


def _check_infill_spans(spans: Sequence[tuple[int, int]], n_filled: int) -> None:
    """Raise ValueError where there are spans to infill, but no empty one is left."""
    if not spans:
        return
    are_empty = all(a == b for a, b in spans[n_filled:])
    if n_filled >= len(spans) or not are_empty:
        raise ValueError(
            f"spans to infill must be empty, and one must be left; got {spans}, {n_filled} of"
            " them filled"
        )


# ---- non-autoregressive heads: the condition is read once, and the head fills in all frames


def draw_whole(
    lm: LM,
    modality: str,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> list[Sampled]:
    """`draw_sets` or `draw_segments`, as the modality's head needs it."""
    draw = draw_segments
    if lm.of_sets(modality):
        draw = draw_sets
    return draw(lm, modality, prompts, sampling, generator, callback)


def draw_sets(
    lm: LM,
    modality: str,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> list[Sampled]:
    """Draw the last segments of open documents as sets, as one batch.

    Of a set that is larger than `Sampling.max_frames` so many elements are kept, whichever: it is
    truncated, as one of more elements than its head counts. Of elements that are given all are
    kept. Raises UserError where frames are to be kept.
    """
    if any(len(p.target) for p in prompts):
        raise UserError(
            f"{modality} is drawn as whole sets: the beginning of one, or frames around a span,"
            " cannot be kept"
        )
    head = cast(SetHead, lm.head(modality))
    with evaluating(lm):
        contexts = [states_of(lm, documents) for documents in _streams(prompts, sampling)]
        hs = [context.last for context in contexts]
        known: Known | None = None
        if lm.vocabulary.signatures[modality].given:
            sizes, known = _given_elements(lm, modality, prompts)
        else:
            sizes = head.sample_sizes(hs, sampling, generator)
        if not head.config.reads_context:
            contexts = []
        sets = head.sample(hs, sampling, generator, known, callback, sizes=sizes, contexts=contexts)
    signature = lm.vocabulary.signatures[modality]
    drawn = []
    for x, n, is_cut in zip(
        sets.cpu().numpy(), sizes.n_frames.tolist(), sizes.truncated.tolist(), strict=True
    ):
        n_kept = n
        if not signature.given:
            n_kept = min(n, sampling.max_frames)
        goes_on = is_cut or n_kept < n
        segment = segment_of(signature, x[:n_kept], truncated=goes_on)
        drawn.append(Sampled(segment, ("end", "cap")[goes_on]))
    return drawn


def _given_elements(lm: LM, modality: str, prompts: Sequence[Document]) -> tuple[Sizes, Known]:
    """How many elements the sets have, and their given numbers: the frames of what is before them.

    Raises UserError where the prompt's last segment does not have such frames.
    """
    signature = lm.vocabulary.signatures[modality]
    parts = []
    for prompt in prompts:
        before = prompt.segments[-2] if len(prompt.segments) > 1 else None
        numbers = None if before is None else before.latents
        if numbers is None or numbers.shape[1] != signature.given:
            raise UserError(
                f"{modality} is drawn for elements that are given: the prompt must end with them,"
                f" as latents of {signature.given} numbers each"
            )
        parts.append(numbers)
    n_frames = torch.tensor([len(numbers) for numbers in parts], device=lm.device)
    values = torch.zeros(len(parts), max(map(len, parts)), signature.latent_size)
    for row, numbers in enumerate(parts):
        values[row, : len(numbers), signature.n_free :] = torch.from_numpy(numbers)
    free = torch.ones(values.shape[:2], dtype=torch.bool)
    sizes = Sizes(n_frames, torch.zeros_like(n_frames, dtype=torch.bool))
    return sizes, Known(values.to(lm.device), free.to(lm.device))


def _streams(prompts: Sequence[Document], sampling: Sampling) -> list[Sequence[Document]]:
    """The prompts, and under guidance the same without their conditions."""
    if sampling.guidance == 1:
        return [prompts]
    return [prompts, [without_condition(p) for p in prompts]]


def draw_segments(
    lm: LM,
    modality: str,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> list[Sampled]:
    """Draw the last segments of open documents by a non-autoregressive head, as one batch.

    A segment may hold frames already: the first ones, or all, with spans (a, b) to infill, whose
    frames are drawn anew. A single span that is empty takes all missing frames. Raises UserError
    for a head that cannot keep frames, and for several empty spans, whose lengths are unknown.
    """
    signature = lm.vocabulary.signatures[modality]
    known = _known_frames([p.target for p in prompts], signature, lm.device)
    empty = segment_of(signature)
    begun = [replace(p, segments=(*p.segments[:-1], empty), n_filled=0) for p in prompts]
    with evaluating(lm):
        hs = [states_at_end(lm, documents) for documents in _streams(begun, sampling)]
        drawn = cast(Head, lm.head(modality)).sample(hs, sampling, generator, known, callback)
    return [Sampled(segment_of(signature, x), "end") for x in drawn.cpu().numpy()]


def states_at_end(lm: LM, documents: Sequence[Document]) -> Tensor:
    """(N, M): the hidden state at the last position of each document's stream."""
    return states_of(lm, documents).last


def states_of(lm: LM, documents: Sequence[Document]) -> Context:
    """The hidden states of each document's stream."""
    streams = [to_stream(lm.vocabulary, d) for d in documents]
    batch = pack(lm.vocabulary, [[s] for s in streams]).to(lm.device)
    states = lm.hidden(batch)
    return Context(states, (batch.document == 0) & states.any(-1))


def _known_frames(segments: Sequence[Segment], signature: Signature, device: torch.device) -> Known:
    """The frames that segments hold already, in their places among all T."""
    n_frames = cast(int, signature.frames)  # non-autoregressive heads fill in a fixed number
    size = len(signature.levels) or signature.latent_size
    values = np.zeros((len(segments), n_frames, size))
    free = np.ones((len(segments), n_frames), dtype=bool)
    for row, segment in enumerate(segments):
        places = _places(segment, n_frames)
        held = segment.values
        if len(places) < len(segment):
            held = held[places]  # frames to infill are held too, but are drawn anew
        values[row, places] = held
        free[row, places] = False
    dtype = torch.long
    if signature.latent_size:
        dtype = torch.float32
    return Known(torch.from_numpy(values).to(device, dtype), torch.from_numpy(free).to(device))


def _places(segment: Segment, n_frames: int) -> np.ndarray:
    """The places of the frames to keep, among all n_frames."""
    empty = [a for a, b in segment.infill_spans if a == b]
    if len(empty) > 1 or empty and len(segment.infill_spans) > 1:
        raise UserError(
            f"{segment.modality}: where there are several spans to infill, each must have the count"
            f" of its frames, (start, stop); got {segment.infill_spans}"
        )
    if empty:
        after = len(segment) - empty[0]
        return np.r_[: empty[0], n_frames - after : n_frames]
    to_infill = {i for a, b in segment.infill_spans for i in range(a, b)}
    return np.array([i for i in range(len(segment)) if i not in to_infill], int)
