"""Several processes that answer one question: `torchrun --nproc-per-node N -m mmtok sample`, or
`score`, or `evaluate`.

The first does all that one process does: it reads, judges, writes and prints. What it asks the
decoder is shared: the others wait to be told of it, do their part and hand that back. A part is
what one process would have done in one go, a batch of prompts or of documents, so that results do
not depend on the number of processes, to the last bit. With one exception: beyond its first `batch`
prompts a call of `draw` in one process goes on with the random numbers where the batch before
stopped, which nobody knows before; here each of these batches has a seed of its own, made from the
call's and the batch's number. Those draws are others, from the same distribution.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.io.progress import Progress
from mmtok.model.likelihood import LogLikelihood
from mmtok.model.lm import LM
from mmtok.model.sampling import Sampled, Sampling
from mmtok.run.run import Run, open_run
from mmtok.train.distributed import Processes, init_distributed

T = TypeVar("T")
LOST = "another process is gone or does not answer; nothing is wrong with the run, ask again"


def together(
    folder: Path,
    recipe_file: Path | None,
    ask: Callable[[Run], T],
    device: str | None = None,
    step: int | None = None,
) -> T | None:
    """Open a run and ask it something, in all the processes that torchrun started; the answer is
    the first one's, None in the others.

    device: where the decoder computes, by name, as `resolve_device` takes it. step: of the
    checkpoint whose weights are taken, as `Run` says; all take the first one's. Where something
    goes wrong, in whichever of them, the first raises it, and the others leave with SystemExit(2).
    """
    with init_distributed(LOST, device) as processes:
        opened = lambda step: open_run(folder, recipe_file, processes.device, step)
        if processes.world_size == 1:
            return ask(opened(step))
        if not processes.is_rank0:
            return _serve(opened, processes)
        try:
            answer = ask(SharedRun(opened(step), processes))
        except Exception:
            _tell(processes, Leave(2))
            raise
        _tell(processes, Leave(0))
        return answer


@dataclass(frozen=True)
class Leave:
    """Told to the others at the end: whether all went well."""

    code: int


@dataclass(frozen=True)
class Draw:
    """Told to the others: the arguments of `Run.draw`, of which each takes some batches."""

    prompts: Sequence[Document]
    sampling: Sampling
    seed: int
    batch: int

    def part(self, run: SharedRun, done: Callable[[int], None]) -> dict[int, Sampled]:
        """This process's samples by the number of their prompt."""
        drawn: dict[int, Sampled] = {}
        for k in range(
            run.processes.rank, -(-len(self.prompts) // self.batch), run.processes.world_size
        ):
            start = k * self.batch
            with redirect_stderr(io.StringIO()):  # how far all are is said elsewhere
                some = Run.draw(
                    run,
                    self.prompts[start : start + self.batch],
                    self.sampling,
                    seed_of(self.seed, k),
                    self.batch,
                )
            drawn |= enumerate(
                some if k == 0 else [replace(d, trajectory=()) for d in some], start
            )  # only a call's first have strips
            done(len(some))
        return drawn


@dataclass(frozen=True)
class Rate:
    """Told to the others: the documents that are to be scored, and whether by the decoder as it was
    before training.
    """

    documents: Sequence[Document]
    untrained: bool

    def part(self, run: SharedRun, done: Callable[[int], None]) -> dict[int, LogLikelihood]:
        """This process's scores by the number of their document."""
        scored = run.score_part(
            self.documents,
            run.processes.rank,
            run.processes.world_size,
            run.before_training if self.untrained else None,
        )
        done(len(scored))
        return scored


class SharedRun(Run):
    """A run whose draws and scores are shared by several processes; in the first of them it is
    asked as any other.
    """

    def __init__(self, run: Run, processes: Processes):
        super().__init__(run.folder, run.recipe, run.device, run.step)
        self.processes = processes

    def note(self, line: str) -> None:
        """Say it, in the first process."""
        if self.processes.is_rank0:
            super().note(line)

    @cached_property
    def before_training(self) -> LM:
        """What `untrained` gives, kept."""
        return self.untrained()

    def draw(
        self, prompts: Sequence[Document], sampling: Sampling, seed: int, batch: int = 256
    ) -> list[Sampled]:
        """As `Run.draw`, each batch by one of the processes."""
        if len(prompts) <= batch:  # one batch is one process's
            return super().draw(prompts, sampling, seed, batch)
        return self._shared(
            Draw(prompts, sampling, seed, batch),
            len(prompts),
            f"draw {prompts[0].segments[-1].modality}",
            "samples",
        )

    def score_documents(
        self, documents: Sequence[Document], lm: LM | None = None, **how: int
    ) -> list[LogLikelihood]:
        """As `Run.score_documents`; by the trained decoder, and by one whose weights are the
        untrained one's, it is shared.
        """
        untrained = lm is not None and lm is not self.lm
        if not documents or how or untrained and not _same(lm, self.before_training):
            return super().score_documents(documents, lm, **how)
        return self._shared(Rate(documents, untrained), len(documents), "score", "documents")

    def _shared(self, task: Draw | Rate, n: int, label: str, unit: str) -> list:
        """What all processes make of a task, in its order.

        Raises what went wrong in any of them.
        """
        _tell(self.processes, task, None if self._checkpoint is None else self.trained["step"])
        with Progress(f"{label} ({self.processes.world_size} processes)", n, unit) as progress:
            parts = _gathered(self.processes, lambda: task.part(self, progress.advance))
            progress.advance(n - progress.done)
        return [x for _, x in sorted({i: x for part in parts for i, x in part.items()}.items())]


def _same(a: LM, b: LM) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(
        x.device == b[k].device and torch.equal(x, b[k]) for k, x in a.items()
    )


def seed_of(seed: int, k: int) -> int:
    """Of batch number k; the first one's is the call's own."""
    return (
        seed
        if k == 0
        else int(np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0] >> 1)
    )


# ---- what the processes say to each other


def _tell(processes: Processes, task: Draw | Rate | Leave, step: int | None = None) -> None:
    dist.broadcast_object_list([task, step], 0, group=processes.wait_group)


def _serve(opened: Callable[[int | None], Run], processes: Processes) -> None:
    """Do this process's part of whatever the first one tells of, until it says that there is no
    more.

    It also tells of which step the weights are: a training that goes on may have made another
    checkpoint meanwhile.
    """
    shared = cache(lambda step: SharedRun(opened(step), processes))
    while True:
        told: list[Any] = [None, None]
        dist.broadcast_object_list(told, 0, group=processes.wait_group)
        task, step = told
        if isinstance(task, Leave):
            if task.code:
                raise SystemExit(task.code)
            return
        _gathered(processes, lambda task=task, step=step: task.part(shared(step), lambda n: None))


def _gathered(processes: Processes, part: Callable[[], dict[int, Any]]) -> list[dict[int, Any]]:
    """The parts of all processes, in the first; what went wrong in any of them is raised there, the
    first one's own before all.
    """
    mine, wrong = None, None
    try:
        mine = part()
    except Exception as error:
        wrong = error
    told = (
        None
        if wrong is None
        else (
            isinstance(wrong, UserError),
            str(wrong) if isinstance(wrong, UserError) else repr(wrong),
        )
    )
    answers: list[Any] = [None] * processes.world_size
    dist.gather_object(
        (mine, told), answers if processes.is_rank0 else None, 0, group=processes.wait_group
    )
    if not processes.is_rank0:
        return []
    if wrong is not None:
        raise wrong
    for rank, (_, told) in enumerate(answers):
        if told is not None:
            raise UserError(told[1]) if told[0] else RuntimeError(f"in process {rank}: {told[1]}")
    return [found for found, _ in answers]
