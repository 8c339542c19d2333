"""Coverage and minimum RMSD of conformers: exact on small matrices, blind to motions and order."""

import numpy as np
import pytest

from mmtok.metrics.conformers import agreement, rmsd_matrix, superposed

RMSD = np.array([[0.2, 1.0, 2.0], [0.9, 0.8, 0.7]])


def test_figures_of_a_small_matrix():
    found = agreement(RMSD, 0.75)
    assert found == pytest.approx((1.0, (0.2 + 0.7) / 2, 2 / 3, (0.2 + 0.8 + 0.7) / 3))
    assert agreement(RMSD, 0.5) == pytest.approx((0.5, 0.45, 1 / 3, 1.7 / 3))


def test_precision_is_recall_with_the_roles_exchanged():
    found = agreement(RMSD)
    assert agreement(RMSD.T)[:2] == pytest.approx(found[2:])


def test_a_set_covers_itself():
    itself = 1 - np.eye(4)
    assert agreement(itself) == (1, 0, 1, 0)


def test_nothing_is_covered_by_no_sample():
    cov_r, amr_r, cov_p, _ = agreement(np.empty((3, 0)))
    assert cov_r == 0 and np.isinf(amr_r) and np.isnan(cov_p)
    with pytest.raises(ValueError):
        agreement(np.empty((0, 3)))


# ---- RMSD, which RDKit aligns

SMILES = "CC(F)(Cl)N"
POSITIONS = np.random.default_rng(0).normal(size=(5, 3))


def rotation(seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def one(smiles, positions):
    pytest.importorskip("rdkit")
    from mmtok.io.molecules import Conformer

    return Conformer(smiles, positions)


def test_motions_change_nothing_but_a_mirror_does():
    reference = one(SMILES, POSITIONS)
    moved = one(SMILES, POSITIONS @ rotation(1).T + [3, -1, 2])
    mirrored = one(SMILES, POSITIONS * [1, 1, -1])
    found = rmsd_matrix([reference], [reference, moved, mirrored])[0]
    assert found[:2].max() < 1e-6 and found[2] > 0.1


def test_the_order_of_atoms_changes_nothing():
    order = [4, 1, 3, 0, 2]
    again = one("NC(Cl)(C)F", POSITIONS[order])
    assert rmsd_matrix([one(SMILES, POSITIONS)], [again]).max() < 1e-6


def test_atoms_that_are_alike_may_be_exchanged():
    positions = POSITIONS.copy()
    reference = one("CC(F)(F)F", positions)
    exchanged = one("CC(F)(F)F", positions[[0, 1, 4, 2, 3]])
    assert rmsd_matrix([reference], [exchanged]).max() < 1e-6


def test_rmsd_of_two_atoms_is_half_the_difference_of_their_distances():
    """Two points a and b apart are best laid with their middles upon each other."""
    pair = [one("CF", np.array([[0, 0, 0], [d, 0, 0.0]])) for d in (1.0, 1.5)]
    assert rmsd_matrix(pair[:1], pair[1:])[0, 0] == pytest.approx(0.25, abs=1e-6)


def test_what_is_superposed_is_as_far_off_as_its_least_rmsd_and_not_bent():
    reference = one(SMILES, POSITIONS)
    sample = one(SMILES, np.random.default_rng(1).normal(size=(5, 3)) + 7)
    found = superposed(reference, sample).positions
    apart = np.sqrt(np.square(found - POSITIONS).sum(1).mean())
    assert apart == pytest.approx(rmsd_matrix([reference], [sample])[0, 0], abs=1e-6)
    steps = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (found, sample.positions)]
    assert steps[0] == pytest.approx(steps[1], abs=1e-6)
