"""Autoregressive sampling: frame after frame with a cache, under the grammar."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, segment_of
from mmtok.errors import UserError
from mmtok.heads.base import Callback, Head
from mmtok.heads.sampling import RowGenerators, Sampling, mix_guidance, pick
from mmtok.model.frame_decoder import FrameDecoder, weight_precision
from mmtok.model.frame_embedding import FrameEmbedding
from mmtok.model.lm import LM
from mmtok.model.rows import RowsDrawn
from mmtok.model.sampling import Sampled
from mmtok.nn.inference_linear import WeightPrecision
from mmtok.nn.kv_cache import KVCacheDecoder


class AutoregressiveSampler:
    """The state of one batch of streams being drawn: N rows, and under guidance N null rows.

    Bookkeeping is on the host, in numpy, so that a step waits for the device once. Finished rows
    stay in the batch, ignored, until an eighth of all are finished: dropping rows copies the whole
    cache.

    Attributes:
        rows: (N,) the prompt that each row continues.
        alive: (N,) bool: which rows go on.
        left: (N,) how many frames are still to come; -1: open-ended.
        n_drawn: (N,) how many frames were drawn.
        endless: (N,) bool: the end is certain, so it is not drawn.
        in_rows: of codes in rows.
        ceiling: (N, C) the highest legal next frame, where frames are a set in falling order.
        totals: (N, n_totals) running totals of the frames before; n_totals is 0 for most
            modalities.
    """

    def __init__(
        self,
        lm: LM,
        prompts: Sequence[Document],
        sampling: Sampling,
        generator: torch.Generator | RowGenerators,
        callback: Callback | None = None,
        prepared: AutoregressiveSampler | None = None,
        n_expected: int = 0,
    ):
        """Read the prompts.

        n_expected: how many there may be later, for which weights are laid out.
        prepared: another one of the same model, modality and settings, whose weights are taken as
        they are laid out there.
        """
        self.lm = lm
        self.prompts = list(prompts)
        self.sampling = sampling
        self.generator = generator
        self.callback = callback
        known = [p.target for p in prompts]
        self.modality = known[0].modality
        self.signature = lm.vocabulary.signatures[self.modality]
        self.n_streams = 1
        documents = list(prompts)
        if sampling.guidance != 1:
            self.n_streams = 2
            documents += [without_condition(p) for p in prompts]
        self.precision: WeightPrecision = "float32"
        if not self.signature.latent_size:
            self.precision = weight_precision(sampling.precision, lm.model.norm.weight)
        n_rows = max(len(documents), self.n_streams * n_expected)
        if prepared is None:
            self.decoder = FrameDecoder(lm, self.modality, self.precision, n_rows)
        else:
            self.decoder = prepared.decoder
        self._prefill(documents, prepared, n_rows)
        self.rows = np.arange(len(prompts))
        self.n_drawn = np.zeros(len(prompts), int)
        self.n_known = np.array([len(s) for s in known])
        self.left = np.full(len(known), -1)
        if self.signature.frames is not None:
            self.left = self.signature.frames - self.n_known
        more_to_infill = [
            len(s.infill_spans) - p.n_filled > 1 for p, s in zip(prompts, known, strict=True)
        ]
        self.endless = (self.left >= 0) & ~np.array(more_to_infill)
        # per step the prompts that got a frame, and the frames
        self.drawn: list[tuple[np.ndarray, np.ndarray]] = []
        # of the last frame, the state (N, D) after each denoising step
        self.states: list[Tensor] = []
        self.stop = ["end"] * len(prompts)
        self._begin(known)
        self._keep(self.left != 0)

    def _begin(self, known: Sequence[Segment]) -> None:
        """What the next frames depend on beside the states, after the frames that are known."""
        self.ceiling: Tensor | None = None
        if self.signature.descending:
            ceilings = [self.signature.ceilings(s.values)[-1] for s in known]
            self.ceiling = torch.from_numpy(np.stack(ceilings)).to(self.lm.device)
        self.totals = torch.zeros(len(known), 0, device=self.lm.device)
        if self.modality in self.lm.frame_in:
            frame_in = cast(FrameEmbedding, self.lm.frame_in[self.modality])
            codes = [torch.as_tensor(s.values, device=self.lm.device).long() for s in known]
            self.totals = torch.stack([frame_in.totals(x) for x in codes])
        self.in_rows: RowsDrawn | None = None
        if self.signature.rows:
            codes_known = [s.values[:, 0] for s in known]
            size = (self.sampling.n_rows, self.sampling.n_columns)
            mark = self.signature.levels[0]
            self.in_rows = RowsDrawn(codes_known, mark, *size, self.signature.columns)

    def _prefill(
        self, documents: Sequence[Document], prepared: AutoregressiveSampler | None, n_rows: int
    ) -> None:
        """Read all prompts at once, aligned at their ends: shorter ones start later."""
        streams = [to_stream(self.lm.vocabulary, d) for d in documents]
        batch = pack(self.lm.vocabulary, [[s] for s in streams]).to(self.lm.device)
        lengths = torch.tensor([len(s) for s in streams], device=self.lm.device)
        if self.lm.encoders:
            condensed = self.lm.condensed(batch)
            x = condensed.x
            lengths = condensed.length - (len(batch.ids[0]) - lengths)  # padding is not left out
        else:
            x = self.lm.embed(batch)
        length = x.shape[1]
        start = length - lengths
        source = (torch.arange(length, device=x.device) - start[:, None]).clamp(min=0)
        row = torch.arange(len(x), device=x.device)[:, None]
        size = None
        if self.sampling.compiled:
            size = length + (self.signature.frames or self.sampling.max_frames)
        if prepared is None:
            self.trunk = KVCacheDecoder(self.lm.model, self.precision, start, n_rows, size)
        else:
            self.trunk = prepared.trunk.emptied(start)
        self.h = self.trunk.forward(x[row, source])[:, -1]

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw one id, and its frame, for every row that is alive.

        Returns the prompts (n,) that got a frame, and the frames (n, C).
        """
        goes_on, values, frames = self._draw()
        rows = self.rows[goes_on]
        frames = frames[goes_on]
        self.drawn.append((rows, frames))
        if self.callback is not None and self.states and len(rows):
            for step, frames_then in enumerate(self._states_by_prompt(rows, goes_on)):
                self.callback(step, frames_then)
        self.left = self.left - (self.left > 0)
        self.n_drawn = self.n_drawn + 1
        alive = goes_on & (self.left != 0)
        if self.signature.frames is None:
            at_cap = goes_on & (self.n_drawn == self.sampling.max_frames)
            for r in self.rows[at_cap]:
                self.stop[r] = "cap"
            alive &= ~at_cap
        if self.ceiling is not None:
            self.ceiling = self._next_ceiling(values)
        if not alive.any():
            self._finish()
            return rows, frames
        kept = self._keep(alive)
        if kept is not None:
            values = values[kept]
        self._read(values)
        return rows, frames

    def _draw(self) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Which rows go on (N,), and the frames (N, C), on the device and on the host.

        Frames of rows that do not go on are meaningless.
        """
        end = len(self.lm.vocabulary.span(self.modality))
        sampling = self.sampling
        logits = mix_guidance(
            self.decoder.id_logits(self.h).chunk(self.n_streams), sampling.guidance
        )
        if self.endless.all():
            logits = logits[:, :end]
        elif self.endless.any():
            endless = torch.from_numpy(self.endless).to(logits.device)
            logits[:, end].masked_fill_(endless, float("-inf"))
        if self.in_rows is not None:
            logits = self.in_rows.legal(logits)
        ids = pick(logits, sampling, self.numbers)[:, None]
        values = ids
        both = ids  # ids and frames in one copy, so that the device is waited for once
        if self.decoder.head is not None:
            values = self._draw_frames(self.decoder.head)
            if self.signature.latent_size:
                ids = ids.double()
            both = torch.cat([ids, values], 1)
        on_host = both.cpu().numpy()
        self._check_drawn(on_host, logits.shape[1])
        is_end = on_host[:, 0] == end
        if self.in_rows is not None:
            is_end = self.in_rows.ended(is_end)
        goes_on = ~is_end & self.alive
        return goes_on, values, on_host[:, -values.shape[1] :]

    def _check_drawn(self, on_host: np.ndarray, n_ids: int) -> None:
        """Raise UserError for ids or codes (N, 1 + C) that are none: of logits that are NaN."""
        limits = [n_ids]
        if self.decoder.head is not None and not self.signature.latent_size:
            limits += self.signature.levels
        if (on_host[:, : len(limits)] >= limits).any():
            raise UserError(
                f"the model's {self.modality} logits are not numbers: its weights have overflowed;"
                " train with a lower learning rate"
            )

    def _draw_frames(self, head: Head) -> Tensor:
        """Frames (N, C) or (N, D) by the head; keeps the states after its steps."""
        self.states = []
        callback: Callback | None = None
        if self.callback is not None:
            callback = self._record
        hs = self.h.chunk(self.n_streams)
        values = head.sample(
            hs, self.sampling, self.numbers, callback=callback, ceiling=self.ceiling
        )
        if self.signature.latent_size:
            return values.to(self.h.dtype)
        return values

    def _record(self, step: int, x: Tensor) -> None:
        self.states.append(x)

    def _next_ceiling(self, values: Tensor) -> Tensor:
        """The frames just drawn (N, C), without a bound in rows whose order begins later."""
        before = self.n_known[self.rows] + self.n_drawn <= self.signature.headers
        if not before.any():
            return values
        highest = torch.tensor(self.signature.levels, device=values.device) - 1
        return torch.where(torch.from_numpy(before).to(values.device)[:, None], highest, values)

    def _states_by_prompt(self, rows: np.ndarray, goes_on: np.ndarray) -> Tensor:
        """The states of the frame just drawn, for `callback`: (steps, N, 1, D).

        NaN for prompts that got no frame, which is known only once the frame is drawn.
        """
        states = torch.stack(self.states)  # (steps, N, D)
        shape = (len(states), len(self.prompts), 1, states.shape[-1])
        by_prompt = states.new_full(shape, float("nan"))
        to = torch.from_numpy(rows).to(states.device)
        source = torch.from_numpy(goes_on).to(states.device)
        by_prompt[:, to, 0] = states[:, source]
        return by_prompt

    def _keep(self, alive: np.ndarray) -> Tensor | None:
        """Note which rows go on; drop the others, and their null rows, once it is worth it.

        Returns the rows kept if any were dropped.
        """
        self.alive = alive
        kept = alive.nonzero()[0]
        few_finished = len(kept) > 7 / 8 * len(alive)
        one_size = self.trunk.compiled is not None  # of a compiled step
        if few_finished or one_size and len(kept):
            return None
        self.rows = self.rows[kept]
        self.left = self.left[kept]
        self.n_drawn = self.n_drawn[kept]
        self.endless = self.endless[kept]
        self.alive = alive[kept]
        if self.in_rows is not None:
            self.in_rows.keep(kept)
        if isinstance(self.generator, RowGenerators):
            self.generator = self.generator.select(kept.tolist())
        on_device = torch.from_numpy(kept).to(self.h.device)
        streams = torch.cat([on_device + k * len(alive) for k in range(self.n_streams)])
        self.trunk.select(streams)
        self.h = self.h[streams]
        if self.ceiling is not None:
            self.ceiling = self.ceiling[on_device]
        self.totals = self.totals[on_device]
        return on_device

    def _read(self, values: Tensor) -> None:
        """Read the frames just drawn (N, C) in both streams."""
        if not self.alive.all():
            finished = torch.from_numpy(~self.alive).to(values.device)
            values = values.masked_fill(finished[:, None], 0)
        x, self.totals = self.decoder.embed(values, self.totals)
        if self.n_streams > 1:
            x = x.repeat(self.n_streams, 1)
        self.h = self.trunk.forward(x[:, None])[:, 0]

    @property
    def numbers(self) -> torch.Generator:
        """What heads draw from: to them generators by row are as good as one."""
        return cast(torch.Generator, self.generator)

    def drop(self, prompts: Collection[int]) -> None:
        """Draw no more for these prompts."""
        alive = self.alive & ~np.isin(self.rows, list(prompts))
        if alive.any():
            self._keep(alive)
        else:
            self._finish()

    @property
    def running(self) -> set[int]:
        """The prompts that go on."""
        if not len(self.rows):
            return set()
        return set(self.rows[self.alive].tolist())

    def join(self, other: AutoregressiveSampler) -> None:
        """Draw the rows of another sampler too, of the same model, modality and settings.

        Both have generators by row, and no compiled step.
        """
        both = (self, other)
        n_streams = self.n_streams
        hs = [part.h.chunk(n_streams) for part in both]
        self.h = torch.cat([h for of_stream in zip(*hs, strict=True) for h in of_stream])
        n = len(self.alive)
        m = len(other.alive)
        self.trunk.join(other.trunk)
        if n_streams > 1:  # the streams of one sampler lie behind those of the other
            here, there = torch.arange(n_streams * (n + m)).split([n_streams * n, n_streams * m])
            pairs = zip(here.chunk(n_streams), there.chunk(n_streams), strict=True)
            order = torch.cat([rows for pair in pairs for rows in pair])
            self.trunk.select(order.to(self.h.device))
        self.rows = np.concatenate([self.rows, other.rows + len(self.prompts)])
        self.prompts += other.prompts
        self.stop += other.stop
        for name in ("n_known", "left", "n_drawn", "endless", "alive"):
            setattr(self, name, np.concatenate([getattr(part, name) for part in both]))
        self.totals = torch.cat([part.totals for part in both])
        if self.ceiling is not None and other.ceiling is not None:
            self.ceiling = torch.cat([self.ceiling, other.ceiling])
        if self.in_rows is not None and other.in_rows is not None:
            self.in_rows.join(other.in_rows)
        generators = [cast(RowGenerators, part.generator).generators for part in both]
        self.generator = RowGenerators([g for some in generators for g in some])

    def forget(self) -> list[int]:
        """Forget the prompts that have no row any more, and all that was drawn.

        Returns which prompts stay, by their numbers till now; they are numbered anew from 0.
        """
        kept: list[int] = self.rows.tolist()
        self.prompts = [self.prompts[i] for i in kept]
        self.stop = [self.stop[i] for i in kept]
        self.n_known = self.n_known[kept]
        self.rows = np.arange(len(kept))
        self.drawn = []
        return kept

    def close(self) -> None:
        """Draw no more, also where rows would go on."""
        if len(self.rows):
            self._finish()

    def _finish(self) -> None:
        """No row goes on."""
        self.rows = self.rows[:0]

    def results(self) -> list[Sampled]:
        """One sampled segment per prompt; new frames go into the next span to infill, if any."""
        return list(map(self.result, self.prompts, self._frames(), self.stop))

    def result(self, prompt: Document, new: np.ndarray, stop: str) -> Sampled:
        """The sampled segment of a prompt that got the frames `new` (T, C)."""
        known = prompt.target
        k = prompt.n_filled
        at = len(known)
        if known.infill_spans:
            at = known.infill_spans[k][0]
        # the span itself grows at its end, those behind it move
        spans = tuple(
            (a + len(new) * (i > k), b + len(new) * (i >= k))
            for i, (a, b) in enumerate(known.infill_spans)
        )
        values = np.concatenate([known.values[:at], new, known.values[at:]])
        truncated = stop == "cap" and not spans
        segment = segment_of(self.signature, values, truncated=truncated, infill_spans=spans)
        return Sampled(segment, stop)

    def _frames(self) -> list[np.ndarray]:
        """Per prompt the frames drawn for it (T, C)."""
        nothing = (np.zeros(0, np.int64), segment_of(self.signature).values)
        rows, frames = (np.concatenate(x) for x in zip(nothing, *self.drawn, strict=True))
        counts = np.bincount(rows, minlength=len(self.prompts))
        return np.split(frames[rows.argsort(kind="stable")], counts.cumsum()[:-1])


def without_condition(prompt: Document) -> Document:
    """The prompt with the null mark in place of its conditions."""
    nulls = (None,) * (len(prompt.segments) - 1)
    return replace(prompt, segments=nulls + prompt.segments[-1:])
