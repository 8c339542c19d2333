"""Sampling: continue prompts frame by frame with a cache, under the grammar, until their segments end or reach the cap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmtok.batch import pack
from mmtok.model.lm import LM, evaluating
from mmtok.nn.attention import Cache
from mmtok.segment import BadInput, Document, Segment


@dataclass(frozen=True)
class Sampling:
    """How to draw. Temperature 0 is greedy; top_k 0 and top_p 1 are off; guidance 1 is off.

    guidance   g mixes log p = null + g (given - null), Ho and Salimans 2022 eq. 6 with w = g - 1; needs condition dropout in training
    max_frames the most frames drawn for one open-ended segment (a fixed count is its own cap); reaching it is the stop reason "cap"
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    max_frames: int = 512

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.max_frames < 1:
            raise BadInput(f"sampling needs temperature >= 0, top_k >= 0, 0 < top_p <= 1, max_frames >= 1; got {self}")
        if not (math.isfinite(self.temperature) and math.isfinite(self.guidance)):
            raise BadInput(f"sampling needs a finite temperature and guidance; got {self}")


@dataclass(frozen=True, eq=False)
class Sampled:
    """One drawn segment, the prompt's own frames included, and why it stopped: "end" or "cap".

    The segment's info is empty, so that it decodes with the tokenizer's defaults: what a prompt's info says (a height, a count of
    samples) is true of the prompt's frames alone, and would cut off those drawn.
    """

    segment: Segment
    stop: str


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw one id per row of (n, K) logits; -inf never comes."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    p = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = p.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the id that crosses the threshold stays
        p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def mix_guidance(logits: list[Tensor], guidance: float) -> Tensor:
    """Join the logits of the stream with its condition and of the one without; the first alone when there is one."""
    if len(logits) == 1:
        return logits[0]
    given, null = (x.log_softmax(-1) for x in logits)
    return torch.where(given == float("-inf"), given, null + guidance * (given - null))


def generate(lm: LM, prompts: Sequence[Document], sampling: Sampling, generator: torch.Generator,
             on_frames: Callable[[np.ndarray, np.ndarray], None] | None = None) -> list[Sampled]:
    """Continue open documents, all to the same modality, as one batch.

    prompts: documents with `open_end`; the last segment holds the frames known so far (T0 may be 0).
    generator: on the model's device. on_frames: called after every step with the rows (n,) that got a frame and the
    frames (n, C), for streaming. Raises BadInput for an input-only modality, ValueError for prompts that are not such.
    """
    if not prompts:
        return []
    with evaluating(lm):
        walk = _Walk(lm, prompts, sampling, generator)
        while len(walk.rows):
            rows, frames = walk.step()
            if on_frames is not None and len(rows):
                on_frames(rows, frames)
    return walk.results()


def _check(lm: LM, prompts: Sequence[Document]) -> str:
    """The modality that all prompts ask for."""
    last = [p.segments[-1] if p.open_end and p.segments else None for p in prompts]
    if None in last or len({s.modality for s in last}) != 1:
        raise ValueError("prompts must be open, and their last segments of one modality")
    for p, s in zip(prompts, last):
        if s.holes and not (p.n_filled < len(s.holes) and all(a == b for a, b in s.holes[p.n_filled :])):
            raise ValueError(f"holes to fill must be empty spans, and one must be left; got {s.holes}, {p.n_filled} of them filled")
    modality = last[0].modality
    if modality not in lm.vocabulary.signatures:
        raise BadInput(f"modality {modality!r} is not in this model, which has {', '.join(lm.vocabulary.signatures)}")
    if not lm.vocabulary.signatures[modality].one_channel and modality not in lm.heads:
        raise BadInput(f"the model has no head for {modality}: it reads {modality} but cannot make it")
    return modality


class _Walk:
    """The state of one batch of streams being drawn: n rows; under guidance as many null rows follow them.

    Rows that are done stay along, unheeded, until an eighth of all are: to drop a row costs a copy of the whole cache.
    """

    def __init__(self, lm: LM, prompts: Sequence[Document], sampling: Sampling, generator: torch.Generator):
        self.lm, self.sampling, self.generator, self.prompts = lm, sampling, generator, prompts
        self.modality = _check(lm, prompts)
        self.signature = lm.vocabulary.signatures[self.modality]
        self.one_channel = self.signature.one_channel
        self.n_streams = 1 if sampling.guidance == 1 else 2
        documents = list(prompts)
        if self.n_streams == 2:
            documents += [replace(p, segments=(None,) * (len(p.segments) - 1) + p.segments[-1:]) for p in prompts]
        self._prefill(documents)
        known = [p.segments[-1] for p in prompts]
        integers = lambda x: torch.tensor([int(i) for i in x], device=lm.device)
        self.rows = np.arange(len(prompts))  # the prompt that each row continues
        self.alive = torch.ones(len(prompts), dtype=torch.bool, device=lm.device)
        self.left = integers(-1 if self.signature.frames is None else self.signature.frames - len(s) for s in known)  # -1: open-ended
        self.later_holes = integers(len(s.holes) - p.n_filled > 1 for p, s in zip(prompts, known)).bool()
        self.frames: list[list[np.ndarray]] = [[] for _ in prompts]
        self.stop = ["end"] * len(prompts)
        self.n_steps = 0
        d = self.signature.descending
        top = self.signature.levels[d] - 1 if d is not None else 0
        self.ceiling = None if d is None else integers(s.codes[-1, d] if len(s) else top for s in known)
        inner = None if self.one_channel else lm.frame_in[self.modality]
        self.totals = None if inner is None else torch.stack([inner.totals(torch.as_tensor(s.codes, device=lm.device).long()) for s in known])
        self._keep(self.left != 0)  # where no frame is left to place, the end is certain

    def _prefill(self, documents: Sequence[Document]) -> None:
        """Read all prompts at once; rows are padded on the right, and padded slots are overwritten before they are seen."""
        streams = [self.lm.vocabulary.stream(d) for d in documents]
        batch = pack(self.lm.vocabulary, [[s] for s in streams]).to(self.lm.device)
        lengths = torch.tensor([len(s) for s in streams], device=self.lm.device)
        self.cache = Cache(self.lm.config.trunk.depth)
        position = torch.arange(batch.ids.shape[1], device=self.lm.device).expand_as(batch.ids)
        hidden = self.lm.model.step(self.lm.embed(batch), position, self.cache)
        self.h = hidden[torch.arange(len(streams), device=self.lm.device), lengths - 1]
        self.position = lengths

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw one id, and its frame, for every alive row; returns the prompts' rows that got a frame, and the frames."""
        m, end = self.modality, len(self.lm.vocabulary.span(self.modality))
        mixed = mix_guidance(list(self.lm.id_logits(self.h, m).chunk(self.n_streams)), self.sampling.guidance)
        mixed[:, end] = mixed[:, end].masked_fill((self.left >= 0) & ~self.later_holes, float("-inf"))
        drawn = pick(mixed, self.sampling, self.generator)
        goes_on = (drawn != end) & self.alive
        if self.one_channel:
            values = drawn[:, None]
        else:
            values = self.lm.heads[m].sample(
                list(self.h.chunk(self.n_streams)), lambda x: mix_guidance(x, self.sampling.guidance),
                lambda x: pick(x, self.sampling, self.generator), self.ceiling,
            )
        rows, frames = self.rows[goes_on.cpu().numpy()], values[goes_on].cpu().numpy()
        for r, frame in zip(rows, frames):
            self.frames[r].append(frame)
        self.left = self.left - (self.left > 0).long()
        alive = goes_on & (self.left != 0)
        self.n_steps += 1
        if self.signature.frames is None and self.n_steps == self.sampling.max_frames:
            for r in rows:
                self.stop[r] = "cap"
            alive = torch.zeros_like(alive)
        if self.signature.descending is not None:
            self.ceiling = values[:, self.signature.descending]
        if self._keep(alive):
            values = values[alive]
        if len(self.rows):
            self._read(values.masked_fill(~self.alive[:, None], 0))
        return rows, frames

    def _keep(self, alive: Tensor) -> bool:
        """Note which rows go on; drop the others, and their null rows, once it is worth it. Returns whether rows were dropped."""
        self.alive = alive
        keep = alive.nonzero()[:, 0]
        if len(keep) > 7 / 8 * len(alive):
            return False
        streams = torch.cat([keep + k * len(alive) for k in range(self.n_streams)])
        self.cache.select(streams)
        self.h, self.position, self.rows = self.h[streams], self.position[streams], self.rows[keep.cpu().numpy()]
        self.left, self.later_holes, self.alive = self.left[keep], self.later_holes[keep], alive[keep]
        self.ceiling = None if self.ceiling is None else self.ceiling[keep]
        self.totals = None if self.totals is None else self.totals[keep]
        return True

    def _read(self, values: Tensor) -> None:
        """Feed the frames just drawn (n, C) to both streams."""
        frame_id = self.lm.vocabulary.span(self.modality)[0]
        ids = values[:, 0] + frame_id if self.one_channel else torch.full_like(values[:, 0], frame_id)
        x = self.lm.model.embed_tokens(ids)
        if not self.one_channel:
            frames, self.totals = self.lm.frame_in[self.modality].step(values, self.totals)
            x = x + frames.to(x.dtype)
        x = x.repeat(self.n_streams, 1)
        self.h = self.lm.model.step(x[:, None], self.position[:, None], self.cache)[:, 0]
        self.position = self.position + 1

    def results(self) -> list[Sampled]:
        """One sampled segment per prompt. In a prompt with holes the new frames go into the hole being filled."""
        done = []
        for prompt, frames, stop in zip(self.prompts, self.frames, self.stop):
            known, size = prompt.segments[-1], len(self.signature.levels)
            new = np.array(frames, dtype=np.int64).reshape(-1, size)
            at = known.holes[prompt.n_filled][0] if known.holes else len(known)
            k, n = prompt.n_filled, len(new)
            holes = tuple((a + n * (i > k), b + n * (i >= k)) for i, (a, b) in enumerate(known.holes))
            codes = np.concatenate([known.codes[:at], new, known.codes[at:]])
            done.append(Sampled(Segment(known.modality, codes=codes, truncated=stop == "cap" and not holes, holes=holes), stop))
        return done


def fill_holes(lm: LM, prompts: Sequence[Document], sampling: Sampling, generator: torch.Generator) -> list[Sampled]:
    """Fill every hole of the last segments, in order. Holes given as empty spans (a, a); all prompts have as many of them.

    The stop reason is "cap" where any hole reached it. Raises ValueError when prompts differ in their number of holes.
    """
    open_holes = {len(p.segments[-1].holes) - p.n_filled for p in prompts}
    if len(open_holes) != 1 or 0 in open_holes:
        raise ValueError(f"prompts must all have the same number of holes, at least one; got {sorted(open_holes)}")
    results: list[Sampled] = []
    for _ in range(open_holes.pop()):
        before, results = results, generate(lm, prompts, sampling, generator)
        results = [replace(r, stop="cap") if b.stop == "cap" else r for r, b in zip(results, before or results)]
        prompts = [replace(p, segments=(*p.segments[:-1], r.segment), n_filled=p.n_filled + 1) for p, r in zip(prompts, results)]
    return results
