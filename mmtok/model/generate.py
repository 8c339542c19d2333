"""Sampling: continue prompts frame by frame with a cache, under the grammar, until their segments end or reach the cap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmtok.batch import pack
from mmtok.model.lm import LM
from mmtok.nn.attention import Cache
from mmtok.segment import BadInput, Document, Segment
from mmtok.vocabulary import START, State


@dataclass(frozen=True)
class Sampling:
    """How to draw. Temperature 0 is greedy; top_k 0 and top_p 1 are off; guidance 1 is off.

    guidance   g mixes log p = null + g (given - null), Ho and Salimans 2022 eq. 6 with w = g - 1; needs condition dropout in training
    max_frames the cap of one segment; reaching it is reported as the stop reason "cap"
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    max_frames: int = 512

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.max_frames < 1:
            raise BadInput(f"sampling needs temperature >= 0, top_k >= 0, 0 < top_p <= 1, max_frames >= 1; got {self}")


@dataclass(frozen=True, eq=False)
class Sampled:
    """One drawn segment, the prompt's own frames included, and why it stopped: "end" or "cap"."""

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


@torch.no_grad()
def generate(lm: LM, prompts: Sequence[Document], sampling: Sampling, generator: torch.Generator,
             on_frames: Callable[[np.ndarray, np.ndarray], None] | None = None) -> list[Sampled]:
    """Continue open documents, all to the same modality, as one batch.

    prompts: documents with `open_end`; the last segment holds the frames known so far (T0 may be 0).
    on_frames: called after every step with the rows (n,) that got a frame and the frames (n, C), for streaming.
    Raises BadInput for an input-only modality.
    """
    walk = _Walk(lm, prompts, sampling, generator)
    while len(walk.rows):
        rows, frames = walk.step()
        if on_frames is not None and len(rows):
            on_frames(rows, frames)
    return walk.results()


class _Walk:
    """The state of one batch of streams being drawn: n alive rows; under guidance as many null rows follow them."""

    def __init__(self, lm: LM, prompts: Sequence[Document], sampling: Sampling, generator: torch.Generator):
        self.lm, self.sampling, self.generator, self.prompts = lm, sampling, generator, prompts
        kinds = {p.segments[-1].modality for p in prompts}
        if len(kinds) != 1 or not all(p.open_end for p in prompts):
            raise ValueError(f"prompts must be open and of one modality, got {sorted(kinds)}")
        self.modality = kinds.pop()
        self.signature = lm.vocabulary.signatures[self.modality]
        self.one_channel = self.signature.one_channel
        if not self.one_channel and self.modality not in lm.heads:
            raise BadInput(f"the model has no head for {self.modality}: it reads {self.modality} but cannot make it")
        self.n_streams = 1 if sampling.guidance == 1 else 2
        documents = list(prompts)
        if self.n_streams == 2:
            documents += [replace(p, segments=(None,) * (len(p.segments) - 1) + p.segments[-1:]) for p in prompts]
        self._prefill(documents)
        n = len(prompts)
        self.rows = np.arange(n)  # the prompt that each alive row continues
        states = [self._state(d) for d in documents[:n]]
        self.left = torch.tensor([-1 if s.left is None else s.left for s in states])  # -1: open-ended
        self.later_holes = torch.tensor([s.holes > 1 for s in states])
        self.frames: list[list[np.ndarray]] = [[] for _ in prompts]
        self.stop = ["cap"] * n
        self.n_steps = 0
        d = self.signature.descending
        if d is not None:
            top = self.signature.levels[d] - 1
            last = [p.segments[-1].codes[-1, d] if len(p.segments[-1]) else top for p in prompts]
            self.ceiling = torch.tensor(np.array(last), dtype=torch.long)

    def _state(self, document: Document) -> State:
        state = START
        for id in self.lm.vocabulary.stream(document).ids:
            state = self.lm.vocabulary.advance(state, int(id))
        return state

    def _prefill(self, documents: Sequence[Document]) -> None:
        """Read all prompts at once; rows are padded on the right, and padded slots are overwritten before they are seen."""
        streams = [self.lm.vocabulary.stream(d) for d in documents]
        batch = pack(self.lm.vocabulary, [[s] for s in streams])
        lengths = torch.tensor([len(s) for s in streams])
        self.cache = Cache(self.lm.config.trunk.depth)
        position = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
        hidden = self.lm.model.step(self.lm.embed(batch), position, self.cache)
        self.h = hidden[torch.arange(len(streams)), lengths - 1]
        self.position = lengths

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw one id, and its frame, for every alive row; returns the prompts' rows that got a frame, and the frames."""
        vocabulary, m, n = self.lm.vocabulary, self.modality, len(self.rows)
        span, end = vocabulary.span(m), len(vocabulary.span(m))
        mixed = mix_guidance(list(self.lm.id_logits(self.h, m).chunk(self.n_streams)), self.sampling.guidance)
        may_end = (self.left <= 0) | self.later_holes
        mixed[:, end] = mixed[:, end].masked_fill(~may_end, float("-inf"))
        mixed[:, :end] = mixed[:, :end].masked_fill((self.left == 0)[:, None], float("-inf"))
        drawn = pick(mixed, self.sampling, self.generator)
        goes_on = drawn != end
        if self.one_channel:
            values = drawn[:, None]
        else:
            ceiling = self.ceiling if self.signature.descending is not None else None
            values = self.lm.heads[m].sample(
                list(self.h.chunk(self.n_streams)), lambda x: mix_guidance(x, self.sampling.guidance),
                lambda x: pick(x, self.sampling, self.generator), ceiling,
            )
        self.n_steps += 1
        rows, frames = self.rows[goes_on.numpy()], values[goes_on].numpy()
        for r, frame in zip(rows, frames):
            self.frames[r].append(frame)
        for r in self.rows[~goes_on.numpy()]:
            self.stop[r] = "end"
        alive = goes_on if self.n_steps < self.sampling.max_frames else torch.zeros_like(goes_on)
        self._read(span, values, alive)
        return rows, frames

    def _read(self, span: range, values: Tensor, alive: Tensor) -> None:
        """Drop rows that ended, then feed the drawn frames of the others."""
        if not alive.all():
            keep = alive.nonzero()[:, 0]
            n = len(alive)
            streams = torch.cat([keep + k * n for k in range(self.n_streams)])
            self.cache.select(streams)
            self.position, self.rows = self.position[streams], self.rows[keep.numpy()]
            self.left, self.later_holes, values = self.left[keep], self.later_holes[keep], values[keep]
            if not len(keep):
                return
        if self.signature.descending is not None:
            self.ceiling = values[:, self.signature.descending]
        self.left = torch.where(self.left > 0, self.left - 1, self.left)
        values = values.repeat(self.n_streams, 1)
        ids = values[:, 0] + span[0] if self.one_channel else torch.full((len(values),), span[0])
        x = self.lm.model.embed_tokens(ids)
        if not self.one_channel:
            x = x + self.lm.frame_in[self.modality](values).to(x.dtype)
        self.h = self.lm.model.step(x[:, None], self.position[:, None], self.cache)[:, 0]
        self.position = self.position + 1

    def results(self) -> list[Sampled]:
        """One sampled segment per prompt. In a prompt with holes the new frames go into the hole being filled."""
        done = []
        for prompt, frames, stop in zip(self.prompts, self.frames, self.stop):
            known, size = prompt.segments[-1], len(self.signature.levels)
            new = np.array(frames, dtype=np.int64).reshape(-1, size)
            at = known.holes[prompt.n_filled][0] if known.holes else len(known)
            holes = tuple((a + len(new) * (k > prompt.n_filled), b + len(new) * (k >= prompt.n_filled)) for k, (a, b) in enumerate(known.holes))
            codes = np.concatenate([known.codes[:at], new, known.codes[at:]])
            truncated = stop == "cap" and not (self.signature.frames is not None and len(codes) == self.signature.frames)
            done.append(Sampled(Segment(known.modality, codes=codes, truncated=truncated and not holes, holes=holes), stop))
        return done


def fill_holes(lm: LM, prompts: Sequence[Document], sampling: Sampling, generator: torch.Generator) -> list[Sampled]:
    """Fill every hole of the last segments, in order. Holes given as empty spans (a, a); all prompts have as many of them."""
    results: list[Sampled] = []
    for n in range(len(prompts[0].segments[-1].holes)):
        results = generate(lm, prompts, sampling, generator)
        prompts = [replace(p, segments=(*p.segments[:-1], r.segment), n_filled=n + 1) for p, r in zip(prompts, results)]
    return results
