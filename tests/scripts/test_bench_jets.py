"""Substructure of jets by hand, and trees that tell what differs and nothing else."""

import importlib
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    """name -> module."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - before:
        if (SCRIPTS / f"{name}.py").exists():
            del sys.modules[name]


def make_jets(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return [
        np.stack([rng.uniform(1, 90, k), *rng.normal(0, 0.2, (2, k))], 1)
        for k in rng.integers(4, 20, n)
    ]


def test_d2_is_its_sum_over_pairs_and_triples(script):
    d2 = script("jet_substructure").d2
    jets = make_jets(5)
    for jet, found in zip(jets, d2(jets), strict=True):
        z = jet[:, 0] / jet[:, 0].sum()
        r = np.hypot(*(jet[:, None, c] - jet[None, :, c] for c in (1, 2)))
        n = range(len(jet))
        e2 = sum(z[i] * z[j] * r[i, j] for i, j in combinations(n, 2))
        e3 = sum(z[i] * z[j] * z[k] * r[i, j] * r[j, k] * r[i, k] for i, j, k in combinations(n, 3))
        assert np.isclose(found, e3 / e2**3)


def test_subjettiness_falls_with_its_axes_and_is_0_of_as_many_particles(script):
    for package in ("fastjet", "awkward", "vector"):
        pytest.importorskip(package)
    subjettiness = script("jet_substructure").subjettiness
    three = np.array([[50, 0.3, 0.0], [40, -0.3, 0.1], [30, 0.0, -0.4]])
    tau1, tau2, tau3 = subjettiness([three, *make_jets()])
    assert (tau1 >= tau2).all() and (tau2 >= tau3).all() and np.isclose(tau3[0], 0, atol=1e-7)
    turned = subjettiness([three + [0, 0.5, 3.0]])  # across the seam of phi
    np.testing.assert_allclose(turned, [[t[0]] for t in (tau1, tau2, tau3)], atol=1e-6)


def test_trees_tell_a_shift_as_well_as_can_be_and_nothing_else(script):
    pytest.importorskip("sklearn")
    auc_of_classifier = script("bench_jets").auc_of_classifier
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1500, 2))
    same, error = auc_of_classifier(a, rng.normal(size=(1500, 2)))
    assert abs(same - 0.5) < 2 * error and error < 0.03
    shifted, error = auc_of_classifier(a, rng.normal(size=(1500, 2)) + [1.0, 0.0])
    # Phi(1 / sqrt 2) is the most that any classifier can reach
    assert 0.7602 - 3 * error - 0.03 < shifted < 0.7602 + 2 * error
