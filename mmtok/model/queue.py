"""A queue of prompts that are drawn together: new ones join while others go on.

A batch that is drawn as a whole waits for its longest row. Here a row that ends makes room for the
next prompt at once (Yu et al. 2022, "Orca", section 3.1: scheduling at the level of iterations).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, segment_of
from mmtok.errors import UserError
from mmtok.heads.sampling import RowGenerators, Sampling
from mmtok.model.autoregressive import AutoregressiveSampler
from mmtok.model.generate import check_prompts
from mmtok.model.lm import LM, evaluating
from mmtok.model.sampling import Sampled


@dataclass(frozen=True, eq=False)
class QueueStep:
    """What one step of a queue gave.

    Attributes:
        tickets: (n,) of the prompts that got a frame.
        frames: (n, C) or (n, D), their frames.
        finished: ticket -> the whole sample, of the prompts that ended.
    """

    tickets: list[int]
    frames: np.ndarray
    finished: dict[int, Sampled]


@dataclass(eq=False)
class Drawing:
    """A prompt of the queue, and what was drawn for it."""

    ticket: int
    prompt: Document
    seed: int
    frames: list[np.ndarray]
    is_told: bool = False  # that it ended


class DrawQueue:
    """Prompts of one modality, drawn by an autoregressive model with one group of settings.

        queue = run.queue("speech", rows=16)
        first = queue.put(run.prompt([words], "speech"), seed=1)
        for ticket, sample in queue.drain():
            ...

    Each prompt has a seed of its own, so its sample is what `generate` draws for it alone, whatever
    runs beside it: random numbers are those of its row, and logits are equal but for the rounding
    of a product of other size. Weights are laid out once, at the first prompt: make a new queue
    when the model has learned. `put` and `cancel` may be called from any thread, `step` from one.

    Attributes:
        rows: how many prompts are drawn at once, at most.
    """

    def __init__(self, lm: LM, modality: str, sampling: Sampling, rows: int = 64):
        """Raises UserError for heads that draw all frames or rows at once, and compiled steps."""
        if modality not in lm.vocabulary.signatures:
            raise UserError(
                f"modality {modality!r} is not in this model, which has"
                f" {', '.join(lm.vocabulary.signatures)}"
            )
        if not lm.autoregressive(modality):
            raise UserError(
                f"{modality} is drawn as a whole, not frame by frame: draw it in batches"
            )
        head = lm.head(modality)
        if head is not None and not head.draws_by_row:
            raise UserError(
                f"{modality}: its head draws all rows from one source of random numbers, which a"
                " queue has for each row: draw it in batches"
            )
        if sampling.compiled:
            raise UserError("a compiled step has a fixed number of rows: a queue cannot use it")
        if rows < 1:
            raise UserError(f"a queue needs at least 1 row, got {rows}")
        self.lm = lm
        self.modality = modality
        self.sampling = sampling
        self.rows = rows
        self._numbers = count()
        self._waiting: deque[Drawing] = deque()
        self._drawing: list[Drawing] = []  # by the number of the sampler's prompt
        self._cancelled: set[int] = set()
        self._sampler: AutoregressiveSampler | None = None

    def __len__(self) -> int:
        """How many prompts wait or are being drawn."""
        return len(self._waiting) + self.n_running

    @property
    def n_running(self) -> int:
        """How many prompts are being drawn."""
        if self._sampler is None:
            return 0
        return len(self._sampler.running)

    def put(self, prompt: Document, seed: int = 0) -> int:
        """Add an open document; returns its ticket.

        Raises as `generate`, at once: what is wrong with one prompt does not stop the others.
        """
        if check_prompts(self.lm, [prompt], self.sampling) != self.modality:
            raise UserError(
                f"this queue draws {self.modality}, not {prompt.target.modality}: make another"
            )
        self.lm.config.trunk.check_length(len(to_stream(self.lm.vocabulary, prompt)))
        ticket = next(self._numbers)
        self._waiting.append(Drawing(ticket, prompt, seed, []))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Draw no more for this ticket, from the next step on; it gets no sample."""
        self._cancelled.add(ticket)

    def step(self) -> QueueStep:
        """Admit who waits, and draw a frame of every row."""
        with evaluating(self.lm), torch.inference_mode():
            self._drop_cancelled()
            self._admit()
            tickets: list[int] = []
            frames = segment_of(self.lm.vocabulary.signatures[self.modality]).values
            sampler = self._sampler
            if sampler is None:
                return QueueStep(tickets, frames, {})
            if sampler.running:
                rows, frames = sampler.step()
                for row, frame in zip(rows, frames, strict=True):
                    self._drawing[row].frames.append(frame)
                    tickets.append(self._drawing[row].ticket)
            finished = self._finished(sampler)
            self._drawing = [self._drawing[i] for i in sampler.forget()]
        return QueueStep(tickets, frames, finished)

    def drain(self) -> Iterator[tuple[int, Sampled]]:
        """Draw until nothing is left: (ticket, sample), as they end."""
        while len(self):
            yield from self.step().finished.items()

    def _drop_cancelled(self) -> None:
        """Forget those who want no sample any more."""
        cancelled = set(self._cancelled)
        known = {x.ticket for x in (*list(self._waiting), *self._drawing)}
        self._cancelled -= cancelled - known  # who has the sample, or was never there
        gone = [i for i, x in enumerate(self._drawing) if x.ticket in self._cancelled]
        if self._sampler is not None and gone:
            self._sampler.drop(gone)
            for i in gone:
                self._drawing[i].is_told = True
                self._cancelled.discard(self._drawing[i].ticket)

    def _admit(self) -> None:
        """Read prompts that wait, for which there is room."""
        new: list[Drawing] = []
        while self._waiting and len(new) < self.rows - self.n_running:
            first = self._waiting.popleft()
            if first.ticket in self._cancelled:
                self._cancelled.discard(first.ticket)
            else:
                new.append(first)
        if not new:
            return
        try:
            sampler = self._read(new)
        except BaseException:
            self._waiting.extendleft(reversed(new))
            raise
        running = self._sampler
        if running is not None and running.running:
            running.join(sampler)
            self._drawing += new
        else:
            self._sampler = sampler
            self._drawing = new

    def _read(self, new: Sequence[Drawing]) -> AutoregressiveSampler:
        """A sampler that has read these prompts."""
        generators = [torch.Generator(self.lm.device).manual_seed(x.seed) for x in new]
        prompts = [x.prompt for x in new]
        return AutoregressiveSampler(
            self.lm,
            prompts,
            self.sampling,
            RowGenerators(generators),
            prepared=self._sampler,
            n_expected=self.rows,
        )

    def _finished(self, sampler: AutoregressiveSampler) -> dict[int, Sampled]:
        """The samples of prompts that ended in the last step."""
        running = sampler.running
        nothing = segment_of(sampler.signature).values
        found = {}
        for i, (drawing, stop) in enumerate(zip(self._drawing, sampler.stop, strict=True)):
            if i in running or drawing.is_told:
                continue
            drawing.is_told = True
            new = np.concatenate([nothing, *(frame[None] for frame in drawing.frames)])
            found[drawing.ticket] = sampler.result(drawing.prompt, new, stop)
        return found
