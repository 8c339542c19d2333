"""Batches of a training whose token files are still being made: stage by stage.

Rank 0 begins a stage; all ranks take it at the same step. See `mmtok.data.stages`.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mmtok.core.batch import Batch
from mmtok.data.loader import Loader, NoExamples
from mmtok.data.parts import read_mark
from mmtok.data.stages import RECORD, Stage, read_stages, write_stages
from mmtok.data.tokens import TokenFile
from mmtok.errors import UserError
from mmtok.io.terminal import print_status
from mmtok.run.folder import training_has_begun
from mmtok.run.run import Run
from mmtok.run.streaming import TokenStream
from mmtok.train.distributed import Processes

GROWTH = 1.5  # a stage has so many times as many parts as the last one, at least, or all

Opened = Callable[[Sequence[TokenFile]], None]


class StagedLoader:
    """Batches by step, of the stage that the step is in.

    A stage begins with a round of the last one, as soon as there are parts enough for it; the last
    stage, of all parts, is there for good.

    Attributes:
        stages: those that are recorded.
        on_stage: are called on every rank with the token files of a stage that was opened.
    """

    is_pure = False  # a batch depends on the parts that there are when it is asked for

    def __init__(
        self,
        run: Run,
        processes: Processes,
        stream: TokenStream | None,
        make_loader: Callable[[Run, Sequence[TokenFile]], Loader],
        check: Callable[[Callable[[], Sequence[TokenFile]]], None],
    ) -> None:
        """Take in the record.

        Args:
            run: its tokenizers are fitted.
            processes: that share the training.
            stream: makes the token files; on rank 0 only.
            make_loader: of token files.
            check: warns of token files, which it opens; called on rank 0, of the first and of the
                last ones.
        """
        self.vocabulary = run.vocabulary
        self.stages = read_stages(run.folder / "tokens", len(run.recipe.sources))
        self.on_stage: list[Opened] = []
        self._run = run
        self._processes = processes
        self._stream = stream
        self._make_loader = make_loader
        self._check = check
        self._number = -1
        self._is_final = False
        self._loader: Loader
        self._files: Sequence[TokenFile] = ()
        processes.all_reduce(0)  # all have read the record before it is written

    def header(self) -> dict[str, Any]:
        """What the log's first line says of the stages."""
        return {"stages": stages_by_name(self._run)}

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step; this process's share of its rows.

        All ranks must call it. Raises UserError where the token files cannot be made, or a new
        stage has examples that do not fit.
        """
        self.prepare(step)
        return self._loader.batch(step, rank, world)

    def prepare(self, step: int) -> None:
        """Open the stage of a step, or begin one; all ranks must call it."""
        if not self._is_final:
            self._processes.on_rank0(self._poll)
        number = bisect_right([stage.step for stage in self.stages], step) - 1
        if number >= 0:
            self._open(number)
        if not self._is_final and number == len(self.stages) - 1 and self._may_begin(step):
            self._begin(step)

    def finish(self) -> None:
        """Wait for all token files; say so where training did not come to read them."""
        self._processes.on_rank0(self._finish)

    def _finish(self) -> None:
        assert self._stream is not None
        self._stream.finish()
        read = self.stages[-1].parts
        if tuple(self._stream.made) != read:
            warnings.warn(
                f"training ended before it came to all token files: it read"
                f" {self._stream.text(read)}",
                stacklevel=2,
            )

    def _opened(self) -> Sequence[TokenFile]:
        return self._files

    def _poll(self) -> None:
        """Take in what the process that makes token files has said; on rank 0."""
        assert self._stream is not None
        self._stream.poll()
        if self.stages and self._number < 0:  # later stages of the record are not waited for again
            self._wait_for(self._stream, self.stages[-1])

    def _wait_for(self, stream: TokenStream, stage: Stage) -> None:
        """Wait for the parts of a stage that is recorded."""

        def stand() -> bool:
            return all(n >= m for n, m in zip(stream.made, stage.parts, strict=True))

        stream.wait(stand, "training waits for the token files that it has read before")
        if not stand():
            raise UserError(
                f"{self._run.folder / 'tokens'}: stages.json names {stream.text(stage.parts)}, but"
                f" there are {stream.text(stream.made)}: train into another --out"
            )

    def _may_begin(self, step: int) -> bool:
        """Whether a stage may begin at a step of the newest one."""
        if not self.stages:
            return True
        return step > self.stages[-1].step and self._loader.begins_round(step)

    def _open(self, number: int) -> None:
        """Open a recorded stage; rank 0 first, which writes what all share."""
        if number == self._number:
            return
        load = partial(self._load, number, self.stages[number])
        self._processes.on_rank0(load)
        self._load_elsewhere(load)
        self._tell()

    def _load(self, number: int, stage: Stage) -> None:
        files = self._run.token_files(stage.parts)
        self._loader = self._make_loader(self._run, files).as_stage(number, stage.step)
        self._files = files
        self._number = number

    def _load_elsewhere(self, load: Callable[[], None]) -> None:
        """Load a stage on the other ranks."""
        if not self._processes.is_rank0:
            with warnings.catch_warnings(action="ignore"):
                load()

    def _tell(self) -> None:
        for opened in self.on_stage:
            opened(self._files)

    def _begin(self, step: int) -> None:
        """Begin a stage at a step, where there are parts enough for one."""
        number = len(self.stages)
        begun = self._processes.on_rank0(partial(self._begin_here, step))
        numbers = begun or [0] * (len(self._run.recipe.sources) + 1)
        *parts, is_final = map(int, self._processes.all_reduce(*numbers))
        self._is_final = bool(is_final)
        if not any(parts):
            return
        stage = Stage(step, tuple(parts))
        if not self._processes.is_rank0:
            self.stages.append(stage)
        self._load_elsewhere(partial(self._load, number, stage))
        self._tell()

    def _begin_here(self, step: int) -> list[int]:
        """Begin a stage and record it; on rank 0.

        Returns its parts, or zeros where there are not enough, and whether all are made.
        """
        stream = self._stream
        assert stream is not None
        none = [0] * len(stream.made)
        if not self.stages:
            stream.wait(lambda: all(stream.made), "training waits for the first token files")
        elif not self._is_enough(stream):
            is_final = stream.is_complete and tuple(stream.made) == self.stages[-1].parts
            return [*none, is_final]
        stage = self._loaded(step, stream)
        is_final = stream.is_complete and tuple(stream.made) == stage.parts
        if is_final or not self.stages:
            self._check(self._opened)
        self.stages.append(stage)
        write_stages(self._run.folder / "tokens", self.stages)
        print_status(f"from step {step} on training reads {stream.text(stage.parts)}")
        return [*stage.parts, is_final]

    def _is_enough(self, stream: TokenStream) -> bool:
        """Whether there are so many new parts that a stage of them may begin."""
        last = self.stages[-1].parts
        if stream.is_complete:
            return tuple(stream.made) != last
        return sum(stream.made) >= GROWTH * sum(last)

    def _loaded(self, step: int, stream: TokenStream) -> Stage:
        """A new stage, loaded; waits for more parts where the first have no example of a task."""
        while True:
            stage = Stage(step, tuple(stream.made))
            is_complete = stream.is_complete
            try:
                self._load(len(self.stages), stage)
            except NoExamples as error:
                if is_complete:
                    raise
                _wait_for_more(stream, sum(stage.parts), str(error))
            else:
                return stage


def _wait_for_more(stream: TokenStream, n: int, why: str) -> None:
    """Wait until there are so many parts more than n that another stage may be tried."""

    def is_more() -> bool:
        return sum(stream.made) >= GROWTH * n

    stream.wait(is_more, f"training waits for more token files: {why}")


def stages_by_name(run: Run) -> list[dict[str, Any]]:
    """The recorded stages as JSON values, their parts by the names of the sources' folders."""
    names = [run.token_path(i).name for i in range(len(run.recipe.sources))]
    stages = read_stages(run.folder / "tokens", len(names))
    return [{"step": s.step, "parts": dict(zip(names, s.parts, strict=True))} for s in stages]


def is_staged(run: Run, stream: bool, processes: Processes) -> bool:
    """Whether a training reads its token files stage by stage; the same on all ranks.

    It does where it began so, and where `stream` asks for it before they are all made.
    """
    folder = run.folder

    def decide() -> bool:
        if (folder / "tokens" / RECORD).exists():
            return True
        paths = [run.token_path(i) for i in range(len(run.recipe.sources))]
        if not stream or all(read_mark(path) for path in paths):
            return False
        if training_has_begun(folder):
            print_status("--stream is for a training from its start: token files are made first")
            return False
        return True

    return bool(processes.all_reduce(processes.on_rank0(decide) or False)[0])
