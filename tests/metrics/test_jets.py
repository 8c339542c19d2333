"""Exact values: the mass of two particles, Wasserstein-1 of small samples, the floor of a ratio."""

import numpy as np
import pytest

from mmtok.metrics.jets import (
    girths,
    jet_distances,
    jet_image,
    jet_mass,
    masses,
    multiplicities,
    pt_dispersions,
    summed_pts,
    w1,
    w1_ratio,
)


@pytest.mark.parametrize("d_eta, d_phi", [(0.4, 0.3), (1e-3, -2e-3), (0.0, 0.8), (1.5, 0.0)])
@pytest.mark.parametrize("at", [(0.0, 0.0), (1.2, 3.1)])
def test_mass_of_two_particles(d_eta, d_phi, at):
    jet = np.array([[300.0, at[0], at[1]], [40.0, at[0] + d_eta, at[1] + d_phi]])
    eta = jet[1, 1] - jet[0, 1]
    phi = jet[1, 2] - jet[0, 2]
    pair = 2 * (
        np.sinh(eta / 2) ** 2 + np.sin(phi / 2) ** 2
    )  # cosh eta - cos phi, without its cancellation
    np.testing.assert_allclose(jet_mass(jet), np.sqrt(2 * 300 * 40 * pair), rtol=1e-12)


def test_mass_is_the_sum_over_pairs_and_unchanged_by_boost_and_turn():
    rng = np.random.default_rng(0)
    jet = np.stack((rng.exponential(10, 30), *rng.normal(0, 0.3, (2, 30))), 1)
    pt, eta, phi = jet.T
    pairs = np.outer(pt, pt) * (
        np.cosh(eta[:, None] - eta) - np.cos(phi[:, None] - phi)
    )  # each pair twice
    np.testing.assert_allclose(jet_mass(jet), np.sqrt(pairs.sum()), rtol=1e-12)
    np.testing.assert_allclose(jet_mass(jet + [0, 1.3, 3.0]), jet_mass(jet), rtol=1e-12)
    np.testing.assert_allclose(jet_mass(jet[::-1]), jet_mass(jet), rtol=1e-12)


def test_observables_of_many_jets_are_those_of_each():
    rng = np.random.default_rng(1)
    jets = [np.abs(rng.normal(size=(n, 4))).astype(np.float32) for n in (3, 0, 1, 7)]
    np.testing.assert_allclose(masses(jets), [jet_mass(jet) for jet in jets])
    assert masses(jets)[1] == 0 and masses(jets)[2] == 0
    np.testing.assert_array_equal(multiplicities(jets), [3, 0, 1, 7])
    np.testing.assert_allclose(summed_pts(jets), [jet[:, 0].sum(dtype=float) for jet in jets])


def test_w1_exact_values():
    assert w1([0, 1, 3], [5, 6, 8]) == 5
    assert w1([0.0], [0.0, 1.0]) == 0.5
    assert w1([1, 2, 3], [3, 1, 2]) == 0
    assert w1([0, 0, 0, 4], [0, 0]) == 1
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    b = rng.normal(0.2, 1.5, 400)
    np.testing.assert_allclose(w1(a, b), np.abs(np.sort(a) - np.sort(b)).mean(), rtol=1e-12)


def test_w1_agrees_with_scipy():
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(2)
    for n, m in ((1, 7), (50, 51), (300, 20)):
        a = rng.integers(0, 9, n)
        b = rng.normal(3, 2, m)
        np.testing.assert_allclose(w1(a, b), wasserstein_distance(a, b), rtol=1e-12)


def test_w1_needs_samples():
    with pytest.raises(ValueError, match="not empty"):
        w1([], [1.0])


def test_ratio_has_a_floor_of_one_percent_of_the_mean():
    real = np.full(10, 100.0)
    assert w1_ratio(real + 3, real, real, real) == pytest.approx(3.0)  # the floor, 1
    assert w1_ratio(real + 3, real, real, real + 2) == pytest.approx(
        1.5
    )  # w1 of the real sets, 2, beyond 1.01


def test_distances_have_their_keys_and_vanish_on_identity():
    rng = np.random.default_rng(3)
    jets = [np.abs(rng.normal(size=(n, 3))) for n in rng.integers(1, 30, 40)]
    out = jet_distances(jets[:20], jets[:20], jets[:20], jets[20:])
    assert set(out) == {
        f"{name}_w1{end}"
        for name in ("mass", "multiplicity", "pt", "girth", "pt_dispersion")
        for end in ("", "_raw")
    }
    assert all(value == 0 for value in out.values())
    far = jet_distances(jets[20:], jets[:20], jets[:20], jets[20:])
    assert all(0 < value <= 1 + 1e-12 for value in far.values())


def test_image_holds_the_pt():
    jets = [
        np.array([[10.0, 0.1, -0.3], [2.0, -0.5, 0.7]]),
        np.array([[6.0, 0.1, -0.3], [1.0, 3.0, 0.0]]),
    ]
    image = jet_image(jets, bins=16)
    assert image.shape == (16, 16) and image.sum() == pytest.approx(18 / 2)
    assert image[9, 5] == pytest.approx(16 / 2)
    assert jet_image([]).sum() == 0


def test_girth_and_dispersion_of_two_equal_constituents():
    jet = np.array(
        [[50.0, 0.3, 3.1], [50.0, -0.1, -np.pi + (3.1 - np.pi)]], np.float32
    )  # 0.4 apart, across the seam of phi
    np.testing.assert_allclose(girths([jet, jet[:1]]), [0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(pt_dispersions([jet, jet[:1]]), [0.5**0.5, 1.0], rtol=1e-6)
    turned = jet + np.array([0, 1.0, 0.5], np.float32)
    np.testing.assert_allclose(girths([turned]), [0.2], atol=1e-5)


def test_values_that_are_all_0_have_no_scale():
    zero = np.zeros(5)
    assert w1_ratio(zero, zero, zero, zero) == 0
    assert w1_ratio(zero + 2, zero, zero, zero) == 2
