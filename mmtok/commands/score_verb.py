"""The verb `mmtok score`: -log p of files and words, and how unusual they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from mmtok.commands.arguments import Arg
from mmtok.commands.options import (
    AS_FOUND,
    Checkpoint,
    Columns,
    Device,
    DropoutMembers,
    Ensemble,
    JetFiles,
    MaxMemory,
    RecipeFile,
    RunFolder,
)
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.terminal import print_answer


def score(
    run: RunFolder,
    files: Annotated[
        Sequence[str], Arg("files of any modality, folders of them, or words", "FILE")
    ],
    *,
    condition: Annotated[Sequence[str], Arg("the condition: text, or a file", "PROMPT")] = (),
    anomaly: Annotated[
        bool, Arg("how unusual each is, beside what the run holds out, instead of -log p alone")
    ] = False,
    against: Annotated[
        Path | None,
        Arg("with --anomaly: a run that knows more kinds, for the likelihood ratio", "RUN"),
    ] = None,
    normal: Annotated[
        Sequence[str],
        Arg("with --anomaly: normal signals, among which the FILEs are to be found", "FILE"),
    ] = (),
    ensemble: Ensemble = (),
    dropout_members: DropoutMembers = 0,
    columns: Columns = None,
    jet_files: JetFiles = AS_FOUND,
    device: Device = None,
    checkpoint: Checkpoint = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
) -> None:
    """Print -log p of files or words: in nats and the customary unit per segment.

    Each line says whether its figure is exact, a bound or an estimate. For continuous latents p is
    a density of the standardised values, so nats may be negative.

    Files of jets are read as the run's own were. Where the options say how (--layout, --columns,
    ...), they alone count.

    With --anomaly each line has -log p per unit, how far that is from its mean over what the run
    holds out (typicality), and with --against the log-likelihood ratio of both runs; with --normal
    the last lines say how well each of these finds the FILEs (AUC with a bootstrap interval).
    """
    memory_budget.set_limit(max_memory)
    from mmtok.commands.anomaly import found_lines, unusual
    from mmtok.commands.score import score as score_files
    from mmtok.commands.score import totals
    from mmtok.run.distributed import run_on_all_ranks
    from mmtok.run.ensemble import take_ensemble
    from mmtok.run.run import Run, open_run

    if (against or normal) and not anomaly:
        raise UserError("score: --against and --normal belong to --anomaly; add it")

    reading = jet_files.with_columns(columns)

    def lines_of(opened: Run) -> list[Any]:
        """What is printed, a value for each line."""
        take_ensemble(opened, ensemble, dropout_members)
        if not anomaly:
            rows = score_files(opened, files, condition, reading)
            return [*rows, *totals(rows)]
        other = None
        if against is not None:
            other = open_run(against, recipe, opened.device)
        found, usual = unusual(opened, (files, normal), condition, reading, other)
        return [*found, *found_lines(found, usual)]

    for line in run_on_all_ranks(run, recipe, lines_of, device, checkpoint) or ():
        print_answer(line)
