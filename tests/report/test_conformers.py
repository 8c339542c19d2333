"""Conformers in the report lie upon the minima that they are drawn over."""

import numpy as np
import pytest

pytest.importorskip("rdkit")

from mmtok.io.molecules import Conformer  # noqa: E402
from mmtok.report.conformers import N_MINIMA, in_axes, panels  # noqa: E402

SMILES = "CC(F)(Cl)N"
RNG = np.random.default_rng(0)
MINIMA = [Conformer(SMILES, RNG.normal(size=(5, 3))) for _ in range(N_MINIMA + 1)]

CLOSE = 1e-5  # angstrom: RDKit iterates the rotation, to 1e-6 of its eigenvalue


def rotation(seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def moved(conformer, seed):
    return Conformer(conformer.smiles, conformer.positions @ rotation(seed).T + [5, -2, 1])


def distances(positions):
    return np.linalg.norm(positions[:, None] - positions[None], axis=2)


def test_conformers_that_are_minima_lie_upon_them_wherever_they_were():
    drawn = [moved(minimum, seed) for seed, minimum in enumerate(reversed(MINIMA))]
    found = panels(MINIMA, drawn)
    assert [panel.title for panel in found] == ["0.00 Å"] * N_MINIMA
    for panel in found:
        (reference,) = panel.references
        (sample,) = panel.drawn
        assert sample.positions == pytest.approx(reference.positions, abs=CLOSE)


def test_another_order_of_atoms_and_atoms_that_are_alike_change_nothing():
    minimum = Conformer("CC(F)(F)F", MINIMA[0].positions)
    again = Conformer("FC(F)(F)C", moved(minimum, 1).positions[[4, 1, 2, 3, 0]])
    (panel,) = panels([minimum], [again])
    (reference,) = panel.references
    (sample,) = panel.drawn
    gaps = np.linalg.norm(reference.positions[:, None] - sample.positions[None], axis=2)
    assert gaps.min(0).max() < CLOSE and gaps.min(1).max() < CLOSE


def test_without_minima_all_lie_upon_the_first():
    drawn = [moved(MINIMA[0], seed) for seed in range(3)]
    (panel,) = panels([], drawn)
    assert not panel.references and len(panel.drawn) == 3
    for conformer in panel.drawn:
        assert conformer.positions == pytest.approx(panel.drawn[0].positions, abs=CLOSE)


def test_axes_are_those_of_falling_spread_and_no_mirror():
    before = MINIMA[0].positions
    after = in_axes(MINIMA[0]).positions
    assert distances(after) == pytest.approx(distances(before))
    volume = [np.linalg.det(x[1:4] - x[0]) for x in (before, after)]
    assert volume[1] == pytest.approx(volume[0])
    spread = after.T @ after
    assert spread == pytest.approx(np.diag(np.diag(spread)), abs=1e-9)
    assert (np.diff(np.diag(spread)) < 0).all()
