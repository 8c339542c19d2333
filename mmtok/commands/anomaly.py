"""How unusual signals are: `mmtok score RUN FILE --anomaly`, and how well that finds a set of them.

Three scores, each larger for what is less like the signals that the run learned:

    nll         -log p in nats per unit; of simple signals it is small, usual or not
    typicality  |nll - its mean over held-out signals| (Nalisnick et al. 2019, arXiv 1906.02994)
    ratio       nats under the run less those under another, --against, that knows more kinds of
                signals or fewer features of them (Ren et al. 2019, arXiv 1906.02845)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mmtok.commands.prompts import condition_segments
from mmtok.commands.score import Scored, score
from mmtok.core.segment import Document
from mmtok.core.units import counted
from mmtok.data.subset import random_subset
from mmtok.errors import UserError
from mmtok.metrics.roc import auc_estimate
from mmtok.run.run import Run

N_USUAL = 300  # held-out signals that the mean is of


@dataclass(frozen=True)
class Unusual:
    """One line of `mmtok score --anomaly`.

    Attributes:
        name: of the signal.
        unit: what nats are divided by, such as particle.
        nll: nats per unit.
        typicality: how far that is from its mean over held-out signals.
        ratio: nats under the run less those under the other; None without another.
    """

    name: str
    unit: str
    nll: float
    typicality: float
    ratio: float | None = None

    def __str__(self) -> str:
        text = (
            f"{self.name}: {self.nll:.4f} nats/{self.unit}, {self.typicality:.4f} from what is"
            " usual"
        )
        if self.ratio is not None:
            text += f", {self.ratio:+.4f} nats to the other run"
        return text

    @property
    def scores(self) -> dict[str, float]:
        """Name of a score -> its value, larger for what is less usual."""
        found = {"nll": self.nll, "typicality": self.typicality}
        if self.ratio is not None:
            found["ratio"] = self.ratio
        return found


def unusual(
    run: Run,
    sets: Sequence[Sequence[str]],
    condition: Sequence[str] = (),
    reading: Mapping[str, Any] = MappingProxyType({}),
    against: Run | None = None,
) -> list[list[Unusual]]:
    """The scores of every signal of some sets of files, by set.

    Args:
        run: learned what is usual.
        sets: each of files as `score` takes them; all of one modality.
        condition: given to the run; likewise.
        reading: how the files are read; likewise.
        against: another run, which scores the same signals by itself.

    Raises UserError for signals of several modalities, and where the other run reads other signals.
    """
    rows = [score(run, files, condition, reading) for files in sets]
    modalities = sorted({row.modality for of_set in rows for row in of_set})
    if len(modalities) > 1:
        raise UserError(
            f"score --anomaly: these are signals of {', '.join(modalities)}, which cannot be"
            " compared; score one modality at a time"
        )
    if not modalities:
        return [[] for _ in sets]
    usual = _usual_nll(run, modalities[0], condition)
    found = []
    for files, of_set in zip(sets, rows, strict=True):
        ratios: Sequence[float | None] = [None] * len(of_set)
        if against is not None:
            others = score(against, files, condition, reading)
            ratios = _ratios(run, of_set, against, others)
        scored = zip(of_set, ratios, strict=True)
        found.append([_unusual(row, usual, ratio) for row, ratio in scored])
    return found


def _ratios(
    run: Run, rows: Sequence[Scored], against: Run, others: Sequence[Scored]
) -> list[float]:
    """Nats of the same signals under the run, less those under the other."""
    if [row.name for row in others] != [row.name for row in rows]:
        raise UserError(
            f"score --against: {against.folder} reads {len(others)} signals where"
            f" {run.folder} reads {len(rows)}; they must be the same"
        )
    return [row.nats - other.nats for row, other in zip(rows, others, strict=True)]


def _unusual(row: Scored, usual: float, ratio: float | None) -> Unusual:
    nll = row.nats / max(1, row.units)
    return Unusual(row.name, _unit(row), nll, abs(nll - usual), ratio)


def _unit(row: Scored) -> str:
    """What the modality counts, in the singular."""
    return counted(row.unit).removesuffix("s")


def _usual_nll(run: Run, modality: str, condition: Sequence[str]) -> float:
    """The mean nats per unit of held-out signals; with a condition each given its own inputs.

    Raises UserError where nothing is held out.
    """
    before = condition_segments(run, condition)
    task = run.task_for([segment.modality for segment in before], modality)
    fields = run.recipe.fields
    examples = random_subset(run.examples("heldout", *task.fields), N_USUAL, run.recipe.train.seed)
    if not examples:
        raise UserError(
            f"score --anomaly: {run.folder} has no held-out {modality}, so what is usual is not"
            " known"
        )
    n_inputs = len(task.inputs)
    segments = [
        run.tokenizers[fields[f]].encode_batch([example[f] for example in examples])
        for f in task.fields[: n_inputs + 1]
    ]
    documents = []
    for row in zip(*segments, strict=True):
        head = row[:-1] if before else (None,) * n_inputs
        documents.append(Document((*head, row[-1]), (False,) * n_inputs + (True,)))
    tokenizer = run.tokenizers[modality]
    n_units = [max(1, tokenizer.n_units(document.target)) for document in documents]
    nats = [scored.total for scored in run.score_documents(documents)]
    return float(np.mean(np.array(nats) / n_units))


def found_lines(signals: Sequence[Unusual], normal: Sequence[Unusual], seed: int = 0) -> list[str]:
    """How well each score tells signals from normal ones, a line each: AUC and interval."""
    if not signals or not normal:
        return []
    lines = []
    for name in signals[0].scores:
        a = np.array([each.scores[name] for each in normal])
        b = np.array([each.scores[name] for each in signals])
        lines.append(
            f"AUC of {name}: {auc_estimate(a, b, seed)}, {len(b):,} signals among {len(a):,}"
            " normal ones"
        )
    return lines
