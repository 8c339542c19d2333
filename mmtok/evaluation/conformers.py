"""Figures of conformers: do samples find a molecule's minima, seen and held out, as ETKDG does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmtok.data.subset import random_subset
from mmtok.evaluation.task import TaskEvaluation
from mmtok.io.molecules import Conformer, conformer_of
from mmtok.metrics.conformers import Agreement, agreement, rmsd_matrix
from mmtok.metrics.intervals import mean_estimate
from mmtok.sources.conformers import embedded

PER_REFERENCE = 2  # samples of a molecule, for each of its reference conformers
ETKDG_SEED = 10_007  # none of those that references begin from
LABELS = "@/\\"  # what a SMILES has where it names stereochemistry


def conformers_from_molecule(task: TaskEvaluation) -> dict[str, Any]:
    """Of seen and of held-out molecules, of each split at most the recipe's n_samples.

    Keys, each with its interval (`_low`, `_high`) over molecules: cov_r, amr_r, cov_p and amr_p of
    `mmtok.metrics.conformers`, with two samples for each reference; the same after `etkdg_`, of as
    many embeddings by ETKDGv3 that are not relaxed. stereo_right: the share of samples of molecules
    with named stereochemistry that have it.
    """
    figures: dict[str, Any] = {}
    for name, split in (("seen", "train"), ("heldout", "heldout")):
        references = _references(task, split)
        figures[name] = _figures(task, name, references)
    return figures


def _references(task: TaskEvaluation, split: str) -> dict[str, list[Conformer]]:
    """Molecule -> its conformers, of random molecules of a split."""
    found: dict[str, list[Conformer]] = {}
    for smiles, conformer in task.rows(split):
        found.setdefault(smiles, []).append(conformer)
    chosen = random_subset(found, task.run.recipe.n_samples, task.seed)
    return {smiles: found[smiles] for smiles in chosen}


def _figures(
    task: TaskEvaluation, name: str, references: Mapping[str, Sequence[Conformer]]
) -> dict[str, Any]:
    asked = [s for s, known in references.items() for _ in range(PER_REFERENCE * len(known))]
    sampled = task.sample(asked)
    task.save_samples(f"{task.name}_{name}", asked, sampled, _stems(asked))
    drawn: dict[str, list[Conformer]] = {smiles: [] for smiles in references}
    for smiles, conformer in zip(asked, task.decode(sampled), strict=True):
        drawn[smiles].append(conformer)
    ours = [agreement(rmsd_matrix(references[smiles], drawn[smiles])) for smiles in references]
    theirs = [
        agreement(rmsd_matrix(known, etkdg(smiles, PER_REFERENCE * len(known))))
        for smiles, known in references.items()
    ]
    labelled = [smiles for smiles in references if set(LABELS) & set(smiles)]
    right = [conformer.smiles == smiles for smiles in labelled for conformer in drawn[smiles]]
    return {
        "n_molecules": len(references),
        "n_references": sum(map(len, references.values())),
        **_means(ours, ""),
        **_means(theirs, "etkdg_"),
        **mean_estimate(np.array(right, float)).named("stereo_right"),
    }


def _stems(asked: Sequence[str]) -> list[str]:
    """A file for each molecule, by its number."""
    numbers = {smiles: i for i, smiles in enumerate(dict.fromkeys(asked))}
    return [f"molecule-{numbers[smiles]:03d}" for smiles in asked]


def etkdg(smiles: str, n: int) -> list[Conformer]:
    """Up to n conformers of a molecule, as ETKDGv3 embeds them."""
    molecule = embedded(smiles, n, ETKDG_SEED)
    return [conformer_of(molecule, one.GetId()) for one in molecule.GetConformers()]


def _means(found: Sequence[Agreement], prefix: str) -> dict[str, float]:
    """Means over molecules, with their intervals."""
    figures = {}
    for key in Agreement._fields:
        estimate = mean_estimate(np.array([getattr(one, key) for one in found]))
        figures.update(estimate.named(prefix + key))
    return figures
