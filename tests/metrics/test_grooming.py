"""Pile-up removed by rules: soft drop by its condition, PUPPI by what it does to soft noise."""

import numpy as np
import pytest
from scipy.stats import chi2

from mmtok.metrics.grooming import puppi, soft_drop
from mmtok.metrics.jets import masses
from mmtok.metrics.substructure import subjettiness_ratios


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("z", [0.02, 0.06, 0.09, 0.11, 0.3])
@pytest.mark.parametrize("apart", [0.2, 0.5])
def test_two_prongs_are_kept_by_the_condition_alone(z, apart, beta):
    jet = np.array([[100 * (1 - z), 0.0, 0.0], [100 * z, apart, 0.0]])
    kept = soft_drop(jet, z_cut=0.1, beta=beta)
    is_kept = z > 0.1 * (apart / 0.8) ** beta
    np.testing.assert_array_equal(kept, jet if is_kept else jet[:1])


def test_soft_drop_is_of_the_jet_not_of_its_order_or_place(rng):
    jet = np.column_stack((rng.exponential(10, 30), rng.normal(0, 0.1, (30, 2))))
    jet[:3] = [[0.5, 0.6, 0.0], [0.4, 0.0, 0.7], [0.3, -0.6, 0.1]]  # soft and wide: dropped
    kept = soft_drop(jet)
    assert 0 < len(kept) < 28
    order = rng.permutation(30)
    again = soft_drop(jet[order])
    np.testing.assert_array_equal(np.sort(again, 0), np.sort(kept, 0))
    turned = soft_drop(jet + [0, 0.3, 1.0])
    np.testing.assert_allclose(turned - [0, 0.3, 1.0], kept, atol=1e-12)
    np.testing.assert_allclose(soft_drop(jet * [3, 1, 1]), kept * [3, 1, 1])


@pytest.mark.parametrize("n", [0, 1])
def test_jets_of_no_pair_stay(n):
    jet = np.ones((n, 3))
    np.testing.assert_array_equal(soft_drop(jet), jet)


def test_puppis_weight_is_that_of_the_papers_equations():
    """Four particles on a line, 0.1 apart: alpha by hand; the median is between two of them."""
    pt = np.array([1.0, 2.0, 50.0, 40.0])
    jet = np.column_stack((pt, [0.0, 0.1, 0.2, 0.3], np.zeros(4)))
    alpha = []
    for i in range(4):
        near = [j for j in range(4) if j != i]
        alpha.append(np.log(sum(pt[j] / (0.1 * abs(i - j)) for j in near)))
    alpha = np.array(alpha)
    median = np.median(alpha)
    rms = np.sqrt(np.mean((alpha[alpha <= median] - median) ** 2))
    weight = np.where(alpha > median, chi2.cdf(((alpha - median) / rms) ** 2, 1), 0)
    found = puppi(jet)
    np.testing.assert_allclose(found[:, 0], (pt * weight)[weight > 0.1])


def test_both_bring_mass_back_that_soft_noise_added(rng):
    """Two hard prongs in 150 soft particles all over the jet."""
    clean = []
    raw = []
    for _ in range(20):
        prong = np.column_stack((rng.exponential(15, 24), rng.normal(0, 0.03, (24, 2))))
        prong[12:, 1] += 0.3
        angle = rng.uniform(0, 2 * np.pi, 150)
        far = 0.8 * np.sqrt(rng.random(150))
        noise = np.column_stack(
            (rng.exponential(1.0, 150), far * np.cos(angle), far * np.sin(angle))
        )
        clean.append(prong)
        raw.append(np.concatenate((prong, noise)))
    truth = masses(clean)
    wrong = np.abs(masses(raw) / truth - 1).mean()
    for method in (soft_drop, lambda jet: puppi(jet, 60)):
        groomed = [method(jet) for jet in raw]
        assert np.abs(masses(groomed) / truth - 1).mean() < wrong / 2
    tau21 = subjettiness_ratios([puppi(jet, 60) for jet in raw])["tau21"]
    assert tau21.mean() < subjettiness_ratios(raw)["tau21"].mean()


def test_what_has_no_neighbours_is_pile_up():
    assert len(puppi(np.array([[5.0, 0.0, 0.0], [5.0, 0.6, 0.0]]))) == 0
    assert len(puppi(np.zeros((0, 3)))) == 0
