"""Polynomials with values in closed form, and the axioms of the energy mover's distance."""

from itertools import product

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.metrics.energy_flow import (
    emd,
    emds,
    energy_flow,
    multigraphs,
    polynomial_name,
    polynomials,
)
from mmtok.metrics.substructure import d2, shares_and_distances


def jet_of(rng, n):
    return np.stack((rng.exponential(10, n), *rng.normal(0, 0.3, (2, n))), 1)


def test_there_are_as_many_graphs_as_there_are():
    assert [len(multigraphs(k)) for k in range(1, 5)] == [1, 2, 5, 12]
    assert [len(polynomials(k)) for k in range(1, 5)] == [1, 4, 12, 35]
    assert polynomial_name(polynomials(2)[-1]) == "ab x ab"


def test_polynomials_are_sums_over_particles(rng):
    jet = jet_of(rng, 4)
    z, theta = shares_and_distances(jet)
    names, values = energy_flow([jet, jet[:0]], beta=0.5)
    assert values.shape == (2, 35) and not values[1].any()
    for graphs, value in zip(polynomials(4), values[0], strict=True):
        expected = 1.0
        for graph in graphs:
            n = max(map(max, graph)) + 1
            expected *= sum(
                np.prod(z[list(at)]) * np.prod([theta[at[i], at[j]] ** 0.5 for i, j in graph])
                for at in product(range(4), repeat=n)
            )
        assert value == pytest.approx(expected, rel=1e-10)


def test_energy_correlations_are_polynomials(rng):
    jet = jet_of(rng, 12)
    names, values = energy_flow([jet], 3)
    of = dict(zip(names, values[0], strict=True))
    e2 = of["ab"] / 2
    e3 = of["ab ac bc"] / 6
    assert d2([jet])[0] == pytest.approx(e3 / e2**3, rel=1e-10)


def test_a_degree_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="from 1 to 4"):
        energy_flow([], 5)


# ---- energy mover's distance


@pytest.fixture(autouse=True)
def needs_pot(request):
    if "emd" in request.node.name:
        pytest.importorskip("ot")


def test_emd_of_single_particles():
    two = np.array([[1.0, 0, 0], [1.0, 0.3, 0.4]])
    assert emd(two, np.array([[2.0, 0, 0]])) == pytest.approx(0.5, abs=1e-12)
    a = np.array([[3.0, 0, 0]])
    b = np.array([[2.0, 0.1, 0]])
    assert emd(a, b, radius=0.8) == pytest.approx(1.25, abs=1e-12)
    assert emd(a, a[:0]) == 3 and emd(a[:0], a[:0]) == 0
    across = np.array([[1.0, 0, np.pi - 0.1]]), np.array([[1.0, 0, -np.pi + 0.1]])
    assert emd(*across) == pytest.approx(0.2, abs=1e-12)


def test_emd_is_a_metric_that_scales_with_pt(rng):
    jets = [jet_of(rng, n) for n in (3, 7, 12, 5)]
    found = emds(jets, jets, radius=2.0)
    np.testing.assert_allclose(found, found.T, atol=1e-10)
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-10)
    assert (found[np.triu_indices(4, 1)] > 0).all()
    for i, j, k in product(range(4), repeat=3):
        assert found[i, j] <= found[i, k] + found[k, j] + 1e-10
    scaled = emd(jets[0] * [5, 1, 1], jets[1] * [5, 1, 1], radius=2.0)
    assert scaled == pytest.approx(5 * found[0, 1], abs=1e-10)
    shares = emd(jets[0] * [9, 1, 1], jets[1], normalised=True)
    assert shares == pytest.approx(emd(jets[0], jets[1], normalised=True), abs=1e-10)


def test_emd_is_the_least_of_a_linear_programme(rng):
    """Equation 1 of the paper as it stands, with inequalities, by another solver."""
    from scipy.optimize import linprog

    for _ in range(50):
        a = jet_of(rng, rng.integers(1, 7))
        b = jet_of(rng, rng.integers(1, 7))
        theta = np.hypot(a[:, 1, None] - b[:, 1], a[:, 2, None] - b[:, 2]) / 0.9
        n, m = theta.shape
        rows = np.concatenate((np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))))
        moved = min(a[:, 0].sum(), b[:, 0].sum())
        least = linprog(
            theta.ravel(),
            A_ub=rows,
            b_ub=np.concatenate((a[:, 0], b[:, 0])),
            A_eq=np.ones((1, n * m)),
            b_eq=[moved],
        ).fun
        expected = least + abs(a[:, 0].sum() - b[:, 0].sum())
        # where particles are up to 2 R apart, moving all that can be moved is the least
        if theta.max() <= 2:
            assert emd(a, b, radius=0.9) == pytest.approx(expected, rel=1e-9)


def test_emd_refuses_what_is_no_jet():
    one = np.array([[1.0, 0, 0]])
    with pytest.raises(UserError, match="negative"):
        emd(-one, one)
    with pytest.raises(UserError, match="no shares"):
        emd(one, one[:0], normalised=True)
