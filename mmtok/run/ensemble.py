"""Runs that score together: their mixture, each with dropout masks where asked.

The mean of members' probabilities is that of a deep ensemble (Lakshminarayanan et al. 2017,
arXiv 1612.01474), or of dropout as a draw of weights (Gal and Ghahramani 2016, arXiv 1506.02142).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.model.likelihood import LogLikelihood, mixture, score
from mmtok.run.run import Run, open_run


def take_ensemble(run: Run, folders: Sequence[Path], n_masks: int = 0) -> None:
    """Let a run's scores be those of a mixture with others; of none, its own.

    Args:
        run: the run.
        folders: of the others, of the same vocabulary.
        n_masks: dropout masks that each run scores with; 0: no dropout.

    Raises UserError for runs of another vocabulary, and for masks of a run without dropout.
    """
    others = [open_run(folder, device=run.device) for folder in folders]
    for each in (run, *others):
        run.vocabulary.check(each.vocabulary.fingerprint, str(each.folder))
        trunk = each.recipe.model.trunk
        if n_masks < 0 or (n_masks and (not trunk.dropout or trunk.mod_capacity)):
            raise UserError(
                f"--dropout_members {n_masks}: {each.folder} was trained with dropout"
                f" {trunk.dropout:g} and mod_capacity {trunk.mod_capacity:g}; members need dropout"
                " above 0 and no mixture-of-depths, and their number is not negative"
            )
    members: dict[str, str | int] = {}
    if others:
        members["ensemble"] = ", ".join(str(other.folder) for other in others)
    if n_masks:
        members["dropout_members"] = n_masks
    run.members = members
    run.mixture = None
    if members:
        run.mixture = partial(_scores, run, others, n_masks)


def _scores(
    run: Run,
    others: Sequence[Run],
    n_masks: int,
    documents: Sequence[Document],
    group_size: int | None,
) -> list[LogLikelihood]:
    """As `Run.score_documents`, of all members together."""
    members = []
    for each in (run, *others):
        if not n_masks:
            members.append(Run.score_documents(run, documents, each.lm, group_size))
        for seed in range(n_masks):
            members.append(score(each.lm, documents, dropout_seed=seed))
    return mixture(members)
