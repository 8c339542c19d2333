"""Figures of pile-up removal: draws of the clean jet, given the jet with pile-up in it.

Beside the run stand what is known without one: the jet as it is, soft drop, and PUPPI's weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.data.subset import random_subset
from mmtok.errors import UserError
from mmtok.evaluation.task import TaskEvaluation
from mmtok.io.arrays import names_in, read_npz
from mmtok.io.files import atomic_write
from mmtok.metrics.calibration import coverage, pit, uniformity
from mmtok.metrics.grooming import puppi, soft_drop
from mmtok.metrics.intervals import paired_difference, width_estimate
from mmtok.metrics.jets import masses
from mmtok.metrics.substructure import subjettiness_ratios

WHAT = "observables of jets"
N_DRAWS = 32  # of each posterior
METHODS = ("run", "soft_drop", "puppi", "raw")
OBSERVABLES = ("mass", "tau21")
LEVELS = (0.5, 0.68, 0.9, 0.95)


@dataclass(frozen=True)
class Cleaned:
    """Observables of held-out jets, by the name of the observable.

    Attributes:
        truth: of the clean jets, (N,) each.
        draws: of draws of them, (N, L) each.
        others: method -> the same of what it makes of the jet with pile-up, (N,) each.
    """

    truth: Mapping[str, np.ndarray]
    draws: Mapping[str, np.ndarray]
    others: Mapping[str, Mapping[str, np.ndarray]]

    def errors(self, observable: str, method: str) -> np.ndarray:
        """(N,) of the method's estimate: relative ones of masses. That of the run is the median."""
        truth = self.truth[observable]
        estimate = np.median(self.draws[observable], 1)
        if method != "run":
            estimate = self.others[method][observable]
        if observable == "mass":
            return estimate / np.maximum(truth, 1e-12) - 1
        return estimate - truth

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        arrays = {f"truth/{key}": x for key, x in self.truth.items()}
        arrays |= {f"draws/{key}": x for key, x in self.draws.items()}
        for method, found in self.others.items():
            arrays |= {f"{method}/{key}": x for key, x in found.items()}
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Cleaned:
        """The inverse of `save`. Raises UserError for a damaged file."""
        names = names_in(path, WHAT)
        tables: dict[str, dict[str, np.ndarray]] = {}
        for name, array in zip(names, read_npz(path, names, WHAT), strict=True):
            method, _, key = name.partition("/")
            tables.setdefault(method, {})[key] = array
        needed = {f"{m}/{key}" for m in ("truth", "draws", *METHODS[1:]) for key in OBSERVABLES}
        if not needed <= set(names):
            raise UserError(f"{path}: cannot be read as {WHAT} (arrays are missing)")
        return cls(tables.pop("truth"), tables.pop("draws"), tables)


def cleaned_path(task_name: str, folder: Path) -> Path:
    """Where a run's folder keeps what `cleaning_figures` measured."""
    return folder / "samples" / f"{task_name}.npz"


def cleaning_figures(task: TaskEvaluation) -> dict[str, Any]:
    """Of held-out jets, at most the recipe's n_samples, with N_DRAWS draws of each clean jet.

    Of each observable (mass, relative; tau21), a table with

    - width_run, _soft_drop, _puppi, _raw: half of the central 68 % of the errors, with bootstrap
      intervals; that of the run is of the median of its draws.
    - bias_run and so on: the median error.
    - gain_soft_drop: mean absolute error of soft drop less the run's, `_p` that it is chance.
    - pit_ks, pit_ks_p: of uniform probability integral transforms of the truth.
    - coverage_50, _68, _90, _95: how often central intervals hold the truth.

    {} where nothing is held out.
    """
    examples = list(_held_out(task))
    if not examples:
        return {}
    found = cleaned(task, examples)
    found.save(cleaned_path(task.name, task.run.folder))
    return {name: _figures(found, name, task.seed) for name in OBSERVABLES}


def _held_out(task: TaskEvaluation) -> Sequence[Mapping[str, Any]]:
    fields = (*task.task.inputs, task.target_field)
    examples = task.run.examples("heldout", *fields)
    return random_subset(examples, task.run.recipe.n_samples, task.seed)


def cleaned(task: TaskEvaluation, examples: Sequence[Mapping[str, Any]]) -> Cleaned:
    """Observables of the clean jets of examples, of draws of them, and by the other methods."""
    repeated = [example for example in examples for _ in range(N_DRAWS)]
    draws = observables(task.decode(task.sample_examples(repeated)))
    raw = [np.asarray(example[task.input_field])[:, :3] for example in examples]
    n_collisions = max(getattr(source, "mu", 0.0) for source in task.run.recipe.sources)
    return Cleaned(
        observables([example[task.target_field] for example in examples]),
        {key: x.reshape(len(examples), N_DRAWS) for key, x in draws.items()},
        {
            "raw": observables(raw),
            "soft_drop": observables([soft_drop(jet) for jet in raw]),
            "puppi": observables([puppi(jet, n_collisions) for jet in raw]),
        },
    )


def observables(jets: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Mass [GeV] and tau21 of jets, (N,) each."""
    return {"mass": masses(jets), "tau21": subjettiness_ratios(jets)["tau21"]}


def _figures(found: Cleaned, name: str, seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for method in METHODS:
        errors = found.errors(name, method)
        figures |= width_estimate(errors, seed).named(f"width_{method}")
        figures[f"bias_{method}"] = float(np.median(errors))
    for method in ("soft_drop", "puppi"):
        theirs = np.abs(found.errors(name, method))
        gain, p_value = paired_difference(theirs, np.abs(found.errors(name, "run")), seed)
        figures |= gain.named(f"gain_{method}")
        figures[f"gain_{method}_p"] = p_value
    truth = found.truth[name]
    test = uniformity(pit(truth, found.draws[name], seed))
    figures["pit_ks"] = test.max_deviation
    figures["pit_ks_p"] = test.ks_p
    observed = coverage(truth, found.draws[name], LEVELS, seed).observed
    for level, share in zip(LEVELS, observed, strict=True):
        figures[f"coverage_{round(100 * level)}"] = float(share)
    return figures | {"n": len(truth), "n_draws": found.draws[name].shape[1]}
