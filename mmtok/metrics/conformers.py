"""Figures of sampled conformers beside reference ones: coverage and average minimum RMSD.

    COV-R = share of references with a sample within delta    AMR-R = mean of min_s RMSD(r, s)
    COV-P = share of samples with a reference within delta    AMR-P = mean of min_r RMSD(r, s)

of each molecule, as GEOM's benchmarks have them (Ganea et al. 2021, arXiv 2106.07802, section 4;
Wang et al. 2023, arXiv 2311.17932). RMSD is over heavy atoms, at its least over rotations,
translations and the molecule's symmetries, but not reflections. Letters: R references, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmtok.io.molecules import Conformer, in_space

DELTA_ANGSTROM = 0.75  # of drug-like molecules; 0.5 is usual for QM9's small ones
MOST_MATCHES = 1_000  # symmetric numberings of a molecule that are tried


class Agreement(NamedTuple):
    """How the samples of one molecule agree with its references; RMSD in angstrom."""

    cov_r: float
    amr_r: float
    cov_p: float
    amr_p: float


def rmsd_matrix(references: Sequence[Conformer], samples: Sequence[Conformer]) -> np.ndarray:
    """(R, S) least RMSD of conformers of one molecule, in angstrom.

    Raises UserError for positions that are not those of a molecule's atoms.
    """
    from rdkit.Chem import rdMolAlign

    ours = [in_space(conformer) for conformer in references]
    theirs = [in_space(conformer) for conformer in samples]
    found = np.empty((len(ours), len(theirs)))
    for r, reference in enumerate(ours):
        for s, sample in enumerate(theirs):
            found[r, s] = rdMolAlign.GetBestRMS(sample, reference, maxMatches=MOST_MATCHES)
    return found


def superposed(reference: Conformer, sample: Conformer) -> Conformer:
    """A sample moved to where its RMSD to a reference conformer of the molecule is least.

    Raises UserError for positions that are not those of a molecule's atoms.
    """
    from rdkit.Chem import rdMolAlign

    moved = in_space(sample)
    rdMolAlign.GetBestRMS(moved, in_space(reference), maxMatches=MOST_MATCHES)  # moves its first
    return Conformer(sample.smiles, moved.GetConformer().GetPositions())


def agreement(rmsd: np.ndarray, delta: float = DELTA_ANGSTROM) -> Agreement:
    """The four figures of one molecule from its RMSD (R, S); with no sample nothing is covered.

    Raises ValueError without references.
    """
    n_references, n_samples = rmsd.shape
    if not n_references:
        raise ValueError("a molecule without reference conformers has no coverage")
    if not n_samples:
        return Agreement(0.0, np.inf, np.nan, np.nan)
    of_references = rmsd.min(1)
    of_samples = rmsd.min(0)
    return Agreement(
        cov_r=float((of_references <= delta).mean()),
        amr_r=float(of_references.mean()),
        cov_p=float((of_samples <= delta).mean()),
        amr_p=float(of_samples.mean()),
    )
