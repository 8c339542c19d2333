"""Sampling and scoring with several processes, as in `torchrun ... -m mmtok sample`.

Rank 0 does all that a single process does: it reads, decides, writes and prints. What it asks of
the decoder is shared: the other ranks wait for it, do their part and send that back.

A part is what one process would have done at once, a batch of prompts or of documents. So results
do not depend on the number of processes, to the last bit, with one exception. In one process, the
second batch of a call of `draw` goes on with the random numbers where the first one stopped, which
is not known beforehand. Here each batch has a seed of its own, made from the call's seed and the
batch's number. Those samples differ, but are from the same distribution.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.io.progress import Progress
from mmtok.model.likelihood import LogLikelihood
from mmtok.model.lm import LM
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run, open_run
from mmtok.train.distributed import Processes, init_distributed

T = TypeVar("T")
LOST = "another process is gone or does not answer; nothing is wrong with the run, ask again"


def run_on_all_ranks(
    folder: Path,
    recipe_file: Path | None,
    work: Callable[[Run], T],
    device: str | None = None,
    step: int | None = None,
) -> T | None:
    """Open a run and call `work` with it, sharing the decoder's work among torchrun's processes.

    Returns the result on rank 0, None on the others. If something goes wrong on any rank, rank 0
    raises it, and the others leave with SystemExit(2).

    Args:
        folder: of the run.
        recipe_file: as for `open_run`.
        work: called on rank 0 only.
        device: of the decoder, by name, as `resolve_device` takes it.
        step: of the checkpoint whose weights are used, as in `Run`; all ranks use rank 0's.
    """
    with init_distributed(LOST, device) as processes:

        def open_step(step: int | None) -> Run:
            return open_run(folder, recipe_file, processes.device, step)

        if processes.world_size == 1:
            return work(open_step(step))
        if not processes.is_rank0:
            _serve(open_step, processes)
            return None
        try:
            result = work(SharedRun(open_step(step), processes))
        except Exception:
            _broadcast(processes, Leave(2))
            raise
        _broadcast(processes, Leave(0))
        return result


@dataclass(frozen=True)
class Leave:
    """Message at the end: the exit code, 0 if all went well."""

    code: int


@dataclass(frozen=True)
class Draw:
    """Message: the arguments of `Run.draw`, of which each rank takes some batches."""

    prompts: Sequence[Document]
    sampling: Sampling
    seed: int
    batch: int

    def part(self, run: SharedRun, done: Callable[[int], None]) -> dict[int, Sampled]:
        """This rank's samples by the number of their prompt."""
        samples: dict[int, Sampled] = {}
        n_batches = -(-len(self.prompts) // self.batch)
        for k in range(run.processes.rank, n_batches, run.processes.world_size):
            start = k * self.batch
            prompts = self.prompts[start : start + self.batch]
            with redirect_stderr(io.StringIO()):  # the progress of all ranks is shown elsewhere
                some = Run.draw(run, prompts, self.sampling, seed_of(self.seed, k), self.batch)
            if k > 0:  # only a call's first samples have trajectories
                some = [replace(sample, trajectory=()) for sample in some]
            samples |= enumerate(some, start)
            done(len(some))
        return samples


@dataclass(frozen=True)
class ScoreDocuments:
    """Message: the documents to score, and whether by the untrained decoder."""

    documents: Sequence[Document]
    untrained: bool

    def part(self, run: SharedRun, done: Callable[[int], None]) -> dict[int, LogLikelihood]:
        """This rank's scores by the number of their document."""
        lm = run.untrained_lm if self.untrained else None
        rank = run.processes.rank
        world_size = run.processes.world_size
        scores = run.score_part(self.documents, rank, world_size, lm)
        done(len(scores))
        return scores


class SharedRun(Run):
    """A run whose `draw` and `score_documents`, called on rank 0, are shared by all ranks."""

    def __init__(self, run: Run, processes: Processes) -> None:
        super().__init__(run.folder, run.recipe, run.device, run.step)
        self.processes = processes

    def note(self, line: str) -> None:
        """Print a note on rank 0."""
        if self.processes.is_rank0:
            super().note(line)

    @cached_property
    def untrained_lm(self) -> LM:
        """The decoder that `untrained` makes, kept."""
        return self.untrained()

    def draw(
        self, prompts: Sequence[Document], sampling: Sampling, seed: int, batch: int = 256
    ) -> list[Sampled]:
        """As `Run.draw`, each batch on one of the ranks."""
        if len(prompts) <= batch:
            return super().draw(prompts, sampling, seed, batch)
        label = f"draw {prompts[0].target.modality}"
        return self._shared(Draw(prompts, sampling, seed, batch), len(prompts), label, "samples")

    def score_documents(
        self,
        documents: Sequence[Document],
        lm: LM | None = None,
        group_size: int | None = None,
    ) -> list[LogLikelihood]:
        """As `Run.score_documents`; shared for the trained and the untrained decoder."""
        untrained = lm is not None and lm is not self.lm
        can_share = lm is None or lm is self.lm or _same(lm, self.untrained_lm)
        if not documents or group_size is not None or not can_share or self.mixture is not None:
            return super().score_documents(documents, lm, group_size)
        message = ScoreDocuments(documents, untrained)
        return self._shared(message, len(documents), "score", "documents")

    def _shared(self, message: Draw | ScoreDocuments, n: int, label: str, unit: str) -> list:
        """The results of all ranks, in order.

        Raises what went wrong on any of them.
        """
        # training may have made another checkpoint meanwhile: all ranks use this one
        step = None if self._checkpoint is None else self.trained["step"]
        _broadcast(self.processes, message, step)
        label = f"{label} ({self.processes.world_size} processes)"
        results: dict[int, Any] = {}
        with Progress(label, n, unit) as progress:
            for part in _gather(self.processes, lambda: message.part(self, progress.advance)):
                results |= part
            progress.advance(n - progress.done)
        return [results[i] for i in sorted(results)]


def _same(a: LM, b: LM) -> bool:
    """Whether two decoders have the same weights on the same devices."""
    of_a = a.state_dict()
    of_b = b.state_dict()
    return of_a.keys() == of_b.keys() and all(
        x.device == of_b[k].device and torch.equal(x, of_b[k]) for k, x in of_a.items()
    )


def seed_of(seed: int, k: int) -> int:
    """The seed of batch number k; the first one's is the call's own."""
    if k == 0:
        return seed
    return int(np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0] >> 1)


# ---- messages between the processes


def _broadcast(
    processes: Processes, message: Draw | ScoreDocuments | Leave, step: int | None = None
) -> None:
    """Send a message, and the step of the weights to use, from rank 0 to the others."""
    dist.broadcast_object_list([message, step], 0, group=processes.wait_group)


def _serve(open_step: Callable[[int | None], Run], processes: Processes) -> None:
    """Do this rank's part of whatever rank 0 sends, until it sends Leave."""

    @cache
    def shared_run(step: int | None) -> SharedRun:
        return SharedRun(open_step(step), processes)

    def part(message: Draw | ScoreDocuments, step: int | None) -> dict[int, Any]:
        return message.part(shared_run(step), lambda n: None)

    while True:
        received: list[Any] = [None, None]
        dist.broadcast_object_list(received, 0, group=processes.wait_group)
        message, step = received
        if isinstance(message, Leave):
            if message.code:
                raise SystemExit(message.code)
            return
        _gather(processes, partial(part, message, step))


def _gather(processes: Processes, part: Callable[[], dict[int, Any]]) -> list[dict[int, Any]]:
    """The parts of all ranks, on rank 0; [] on the others.

    What went wrong on any rank is raised on rank 0, its own error first.
    """
    mine: dict[int, Any] = {}
    own_error: Exception | None = None
    problem: tuple[bool, str] | None = None  # (whether it is a UserError, its text)
    try:
        mine = part()
    except UserError as error:
        own_error = error
        problem = True, str(error)
    except Exception as error:
        own_error = error
        problem = False, repr(error)
    received: list[Any] = [None] * processes.world_size
    target = received if processes.is_rank0 else None
    dist.gather_object((mine, problem), target, 0, group=processes.wait_group)
    if not processes.is_rank0:
        return []
    if own_error is not None:
        raise own_error
    for rank, (_, problem) in enumerate(received):
        if problem is not None:
            is_user_error, text = problem
            if is_user_error:
                raise UserError(text)
            raise RuntimeError(f"in process {rank}: {text}")
    return [found for found, _ in received]
