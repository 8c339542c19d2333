"""Makes a run's token files: by all processes of a training, or in shares before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mmtok.data.encoder import Encoder
from mmtok.data.interleaved import encoders_of
from mmtok.data.parts import read_mark
from mmtok.data.tokenise import PartSet
from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.io.progress import Progress
from mmtok.io.serialize import to_plain
from mmtok.io.terminal import print_status
from mmtok.run.run import Run
from mmtok.sources.base import Source
from mmtok.train.distributed import SINGLE_PROCESS, Processes

Write = Callable[[PartSet, Progress, tuple[int, int]], None]  # makes a share (i, n) of the parts


def tokenise(run: Run, processes: Processes = SINGLE_PROCESS) -> None:
    """Write the training split of every source as token files, unless they are already there.

    What an interrupted call has made stands. Under torchrun all processes must call it, and each
    makes its share of the files.
    """
    for i in range(len(run.recipe.sources)):
        stands = processes.on_rank0(partial(parts_stand, run.token_path(i)))
        if not processes.all_reduce(stands or False)[0]:
            _tokenise_source(run, i, processes)


def parts_stand(folder: Path) -> bool:
    """Whether the token files of a source are all made; says so.

    Raises UserError for the one file that older versions made.
    """
    older = folder.with_name(f"{folder.name}.parquet")
    if older.exists():
        raise UserError(
            f"{older} was made by an older version of mmtok: remove {folder.parent}, and the tokens"
            " are made anew"
        )
    if read_mark(folder) is None:
        return False
    print_status(f"{folder.name} stands")
    return True


def _tokenise_source(run: Run, i: int, processes: Processes) -> None:
    source = run.recipe.sources[i]
    is_shared = can_be_shared(source)

    def write(share: tuple[int, int]) -> PartSet:
        """Write a share of the parts."""
        parts = parts_of(run, i)
        n = parts.listing.n
        n_own = None if n is None else n // share[1]
        label = f"tokenise {type(source).__name__}"
        with Progress(label, n_own, "examples", quiet=not processes.is_rank0) as progress:
            parts.write(progress, share=share)
        return parts

    def write_share() -> PartSet:
        """Write this process's share; rank 0 reports for all."""
        share = (processes.rank, processes.world_size) if is_shared else (0, 1)
        with ExitStack() as stack:
            if not processes.is_rank0:
                stack.enter_context(warnings.catch_warnings(action="ignore"))
            return write(share)

    meet = processes.on_each_rank if is_shared else processes.on_rank0
    parts: PartSet | None = meet(write_share)
    processes.on_rank0(partial(finish, run, source, parts))


def parts_of(run: Run, i: int) -> PartSet:
    """The token files of a source that are to be made."""
    source = run.recipe.sources[i]
    plain = to_plain(run.recipe)
    preparers = run.preparers_of(source)
    tokenizers = encoders_of(preparers, run.tokenizers)
    return PartSet(
        run.token_path(i),
        source.listing("train", run.folder / "data"),
        Encoder(tokenizers, preparers),
        [plain["sources"][i], plain["preparation"]],
    )


def finish(run: Run, source: Source, parts: PartSet | None) -> None:
    """Mark the token files of a source as complete, and say what was left out.

    parts: of rank 0, which alone comes here.
    """
    assert parts is not None
    if not _report(run, source, parts):
        raise UserError(
            f"{parts.folder}: files of other processes are not there; all machines must see the run"
            " folder under the same path"
        )


def _report(run: Run, source: Source, parts: PartSet) -> bool:
    """The same where no part misses; returns whether that is so."""
    counts = parts.finish(run.noted_of(source))
    if counts is None:
        return False
    print_status(f"{parts.folder.name}: {counted(counts.n_rows, 'example')}")
    return True


# ---- in shares


def tokenise_share(run: Run, write: Write, share: tuple[int, int] = (0, 1)) -> bool:
    """Make a share of the token files of a run whose tokenizers are fitted, as jobs of a cluster.

    They are those that training makes, which then finds them. Shares may be made at the same time;
    the one that ends last marks a source's files as complete. A source that only one process can
    read is left to share 0.

    Args:
        run: the run.
        write: makes the parts of a share.
        share: (i, n), every n-th part from part i on.

    Returns:
        Whether all token files of the run are there now.

    Raises:
        UserError: the run has no fitted tokenizers, or a signal is refused.
    """
    is_complete = True
    for i, source in enumerate(run.recipe.sources):
        if parts_stand(run.token_path(i)):
            continue
        own = share
        if not can_be_shared(source):
            if share[0]:
                is_complete = False
                continue
            own = (0, 1)
        parts = parts_of(run, i)
        n = parts.listing.n
        n_own = None if n is None else n // own[1]
        with Progress(f"tokenise {type(source).__name__}", n_own, "examples") as progress:
            write(parts, progress, own)
        is_complete = _report(run, source, parts) and is_complete
    return is_complete


def can_be_shared(source: Source) -> bool:
    """Whether several processes can read it; else what it caches must be made once."""
    return type(source).listing is not Source.listing
