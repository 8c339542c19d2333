"""Figures of jets: distances of generated to real jets, per observable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mmtok.commands.sample import NOTHING
from mmtok.data.subset import random_subset
from mmtok.evaluation.task import MAX_CLASSES, TaskEvaluation
from mmtok.io.filenames import file_names
from mmtok.metrics.distance_tests import jet_tests
from mmtok.metrics.jets import jet_distances
from mmtok.model.sampling import Sampled

N_JETS = 1000  # per class and set, as the distances' denominators are defined


def jets_from_text(task: TaskEvaluation) -> dict[str, dict[str, float]]:
    """Per class: distances to real jets, in units of what two sets of real jets differ by."""
    real: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, jet in task.rows("heldout"):
        if (name in real or len(real) < MAX_CLASSES) and len(real[name]) < 2 * N_JETS:
            real[name].append(jet)
    figures = {}
    for (name, jets), stem in zip(real.items(), file_names(list(real), space="_"), strict=True):
        n = min(N_JETS, len(jets) // 2)
        if n:
            sampled = task.sample([name] * n)
            figures[stem.removesuffix("_jet")] = _distances(task, name, stem, sampled, jets)
    return figures


def jets_from_nothing(task: TaskEvaluation) -> dict[str, dict[str, float]]:
    """The same of all jets as one class."""
    jets = random_subset((jet for _, jet in task.rows("heldout")), 2 * N_JETS, task.seed)
    n = len(jets) // 2
    if not n:
        return {}
    order = np.random.default_rng(task.seed).permutation(len(jets))  # sources may come sorted
    jets = [jets[i] for i in order]
    return {"all": _distances(task, NOTHING, NOTHING, task.sample_unconditional(n), jets)}


def _distances(
    task: TaskEvaluation,
    name: str,
    stem: str,
    sampled: Sequence[Sampled],
    real: Sequence[np.ndarray],
) -> dict[str, float]:
    """Saves n samples of one class and measures their distances to its real jets.

    Args:
        task: The task that was sampled.
        name: The class.
        stem: The name of the samples' file, without suffix.
        sampled: n samples.
        real: At least 2 n real jets (P, F). Samples are compared with the first n; how far these
            are from the next n is the unit of the distances.

    Returns:
        `jet_distances` with their `jet_tests`, the shares cut at the cap, and n. Where the
        tokenizer scales constituents to their jet's totals, `_unscaled` figures are of jets without
        that scaling.
    """
    tokenizer = task.target_tokenizer
    n = len(sampled)
    task.save_samples(task.name, [name] * n, sampled, [stem] * n)
    real_a = real[:n]
    real_b = real[n : 2 * n]
    segments = [s.segment for s in sampled]
    encoded = tokenizer.encode_batch(real_a)
    generated = tokenizer.decode_batch(segments)
    detokenised = tokenizer.decode_batch(encoded)
    figures = jet_distances(generated, detokenised, real_a, real_b)
    figures |= jet_tests(generated, detokenised, real_a, real_b)
    figures["at_cap"] = float(np.mean([s.stop == "cap" for s in sampled]))
    figures["at_cap_real"] = float(np.mean([segment.truncated for segment in encoded]))
    figures["n"] = n
    if tokenizer.config.totals:
        unscaled = jet_distances(
            tokenizer.unscaled(segments), tokenizer.unscaled(encoded), real_a, real_b
        )
        figures["mass_w1_unscaled"] = unscaled["mass_w1"]
        figures["pt_w1_unscaled"] = unscaled["pt_w1"]
    return figures
