"""Figures of a task whose target is a vector: is p(vector | inputs) sharp, is it calibrated?"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmtok.data.subset import random_subset
from mmtok.evaluation.task import TaskEvaluation
from mmtok.metrics.calibration import coverage, crps, pit, sharpness, uniformity

N_DRAWS = 100  # of each posterior
LEVELS = (0.5, 0.68, 0.9, 0.95)


def posterior_figures(task: TaskEvaluation) -> dict[str, Any]:
    """Of held-out examples, at most the recipe's n_samples, with N_DRAWS draws of each posterior.

    Keys, each but the counts a list with one value per quantity, in the caller's unit:

    - rmse, rmse_of_mean: of the mean of the draws, and of the training mean without any input.
    - crps: continuous ranked probability score; width_68: of the central interval.
    - coverage_50, _68, _90, _95: how often central intervals hold the truth. Its standard deviation
      is sqrt(c (1 - c) / n) where the claims are right.
    - pit_ks_p: p-value of uniform probability integral transforms.
    """
    fields = (*task.task.inputs, task.target_field)
    examples = task.run.examples("heldout", *fields)
    chosen = random_subset(examples, task.run.recipe.n_samples, task.seed)
    repeated = [example for example in chosen for _ in range(N_DRAWS)]
    drawn = np.stack(task.decode(task.sample_examples(repeated)))
    draws = drawn.reshape(len(chosen), N_DRAWS, -1)
    truth = np.stack([np.ravel(example[task.target_field]) for example in chosen]).astype(float)
    training = task.run.examples("train", task.target_field)
    rows = [np.ravel(example[task.target_field]) for example in training]
    baseline = np.mean(np.stack(rows).astype(float), 0)
    figures: dict[str, Any] = {
        "n": len(chosen),
        "n_draws": N_DRAWS,
        "rmse": _root_mean_square(draws.mean(1) - truth),
        "rmse_of_mean": _root_mean_square(baseline - truth),
        "crps": crps(truth, draws).mean(0).tolist(),
        "width_68": sharpness(draws).mean(0).tolist(),
    }
    numbers = range(truth.shape[1])
    found = [coverage(truth[:, k], draws[:, :, k], LEVELS, task.seed).observed for k in numbers]
    for i, level in enumerate(LEVELS):
        figures[f"coverage_{round(100 * level)}"] = [float(observed[i]) for observed in found]
    places = pit(truth, draws, task.seed)
    figures["pit_ks_p"] = [uniformity(places[:, k]).ks_p for k in numbers]
    stems = [f"heldout-{i}" for i in range(len(chosen))]
    task.save_samples(task.name, stems, task.sample_examples(chosen))
    return figures


def _root_mean_square(errors: np.ndarray) -> list[float]:
    """Of errors (N, D): one for each quantity."""
    return np.sqrt(np.square(errors).mean(0)).tolist()
