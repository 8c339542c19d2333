"""Figures of a classification: held-out signals, of which the run writes the name of the class.

p(class | signal) is that of the name's text, over the names that training has. So any task from a
signal to a text of few names is a classifier.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.core.segment import Document
from mmtok.data.subset import random_subset
from mmtok.errors import UserError
from mmtok.evaluation.likelihood import last_nll
from mmtok.evaluation.task import TaskEvaluation, can_be_classified
from mmtok.io.arrays import read_npz
from mmtok.io.filenames import file_names
from mmtok.io.files import atomic_write, write_text
from mmtok.io.messages import counted
from mmtok.io.terminal import print_status
from mmtok.metrics.calibration import reliability
from mmtok.metrics.intervals import mean_estimate
from mmtok.metrics.roc import auc_estimate

WHAT = "probabilities of classes"
N_CLASSIFIED = 2000  # held-out signals
MOST_PAIRED = 6  # classes up to which every two have an AUC


@dataclass(frozen=True)
class Classified:
    """Held-out signals with the probabilities of their classes.

    Attributes:
        names: of the K classes.
        probabilities: (N, K), rows sum to 1.
        labels: the true class of each signal (N,).
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    labels: np.ndarray

    def scores(self, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        """log p(second) - log p(first) of the signals of the first class, and of the second."""
        floor = np.finfo(np.float64).tiny
        log_p = np.log(np.maximum(self.probabilities, floor))
        ratio = log_p[:, second] - log_p[:, first]
        return ratio[self.labels == first], ratio[self.labels == second]

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                names=np.array(self.names),
                probabilities=self.probabilities,
                labels=self.labels,
            )

    @classmethod
    def load(cls, path: Path) -> Classified:
        """The inverse of `save`. Raises UserError for a damaged file."""
        names, probabilities, labels = read_npz(path, ("names", "probabilities", "labels"), WHAT)
        of_all = (len(labels), len(names))
        is_class = (labels >= 0) & (labels < len(names))
        if probabilities.shape != of_all or labels.dtype.kind != "i" or not is_class.all():
            raise UserError(f"{path}: cannot be read as {WHAT} (its arrays do not fit together)")
        return cls(tuple(map(str, names)), probabilities, labels)


def path_of(task_name: str, folder: Path) -> Path:
    """Where a run's folder keeps what `class_figures` classified."""
    return folder / "samples" / f"{task_name}.npz"


def class_figures(task: TaskEvaluation) -> dict[str, Any]:
    """How often, and how surely, the run names the class of held-out signals rightly.

    Keys: `accuracy` and, of every two classes, `auc_A_B`, with bootstrap intervals; `cross_entropy`
    (nats); `ece`, the expected calibration error of p of all classes, and `ece_p`, how often it is
    as large where p is right; `brier`. {} where there are too many names for classes.
    """
    found = classify(task)
    if found is None:
        return {}
    found.save(path_of(task.name, task.run.folder))
    guesses = found.probabilities.argmax(1)
    rows = [
        {"truth": found.names[true], "read": found.names[guess]}
        for true, guess in zip(found.labels, guesses, strict=True)
    ]
    write_text(task.run.folder / "samples" / f"{task.name}.json", json.dumps(rows, indent=0))
    own = found.probabilities[np.arange(len(found.labels)), found.labels]
    of_two = found.probabilities
    if len(found.names) == 2:
        of_two = found.probabilities[:, 1]
    calibration = reliability(of_two, found.labels, seed=task.seed)
    figures: dict[str, Any] = mean_estimate(guesses == found.labels, task.seed).named("accuracy")
    if len(found.names) <= MOST_PAIRED:
        stems = file_names(list(found.names), space="_")
        for first, second in combinations(range(len(found.names)), 2):
            estimate = auc_estimate(*found.scores(first, second), task.seed)
            figures |= estimate.named(f"auc_{stems[first]}_{stems[second]}")
    figures["cross_entropy"] = float(-np.log(own).mean())
    figures["ece"] = calibration.ece
    figures["ece_p"] = calibration.p_value
    figures["brier"] = calibration.brier
    return figures | dict(task.run.members) | {"n": len(found.labels)}


def classify(task: TaskEvaluation, n_most: int = N_CLASSIFIED) -> Classified | None:
    """Held-out signals, at most so many, under the run or its ensemble; None without classes.

    Signals of names that training has not are left out, and counted.
    """
    names = sorted({name for _, name in task.rows("train")})
    rows = random_subset(task.rows("heldout"), n_most, task.seed)
    known = [row for row in rows if row[1] in names]
    if not known or not can_be_classified(task, names, names):
        return None
    if len(known) < len(rows):
        left = counted(len(rows) - len(known), "held-out signal")
        print_status(f"{task}: {left} left out, of classes that training has not")
    labels = np.array([names.index(name) for _, name in known])
    probabilities = class_probabilities(task, [signal for signal, _ in known], names)
    return Classified(tuple(names), probabilities, labels)


def class_probabilities(
    task: TaskEvaluation, signals: Sequence[Any], names: Sequence[str]
) -> np.ndarray:
    """p(class | signal) (N, K) of signals: that of the name's text, over all names."""
    read = task.input_tokenizer.encode_batch(signals)
    written = task.target_tokenizer.encode_batch(names)
    documents = [Document((x, name), (False, True)) for x in read for name in written]
    scored = task.run.score_documents(documents)
    nll = np.array([last_nll(each) for each in scored]).reshape(len(signals), len(names))
    p = np.exp(nll.min(1, keepdims=True) - nll)
    return p / p.sum(1, keepdims=True)
