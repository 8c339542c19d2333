"""The verb `mmtok embed` as `mmtok.cli` lists it; that file is full. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from mmtok.commands.arguments import Arg
from mmtok.commands.options import Checkpoint, Device, MaxMemory, RecipeFile, RunFolder
from mmtok.io import memory_budget
from mmtok.io.terminal import print_answer


def embed(
    run: RunFolder,
    files: Annotated[
        Sequence[str], Arg("files of any modality, folders of them, or words", "FILE")
    ],
    *,
    out: Annotated[
        Path | None,
        Arg("the file of vectors to write, .parquet or .npz", "VECTORS", "-o"),
    ] = None,
    nearest: Annotated[
        Path | None,
        Arg("a file of vectors of this run: print those nearest to each FILE", "VECTORS"),
    ] = None,
    to: Annotated[str | None, Arg("the modality of the nearest (default: any)", "MODALITY")] = None,
    n: Annotated[int, Arg("how many of the nearest", "N", "-n")] = 1,
    device: Device = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Turn files of any modality into vectors of one size: mmtok embed RUN *.png -o v.parquet.

    Vectors have norm 1, so that their dot products are cosines. A line of the file has an id, the
    name of what it is of, its modality and its vector. With --nearest, retrieval: for each FILE the
    lines of such a file by falling cosine. The run's recipe must have contrasts.
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.embed import embed_files, nearest_lines
    from mmtok.run.distributed import run_on_all_ranks
    from mmtok.run.run import Run

    def work(opened: Run) -> list[str]:
        if nearest is not None:
            return nearest_lines(opened, files, nearest, to, n, out)
        return [embed_files(opened, files, out, to)]

    for line in run_on_all_ranks(run, recipe, work, device, checkpoint) or ():
        print_answer(line)
