"""What stands beside figures that compare two sets."""

import numpy as np
import pytest
from scipy.stats import kstest

from mmtok.metrics.distance_tests import (
    Comparison,
    frechet_test,
    jet_tests,
    label_test,
    share_test,
    w1_halves,
    w1_p,
    w1_ratio_test,
)
from mmtok.metrics.jets import jet_distances, w1, w1_ratio


def test_p_values_of_sets_that_are_alike_are_uniform(monkeypatch):
    monkeypatch.setattr("mmtok.metrics.distance_tests.N_PERMUTATIONS", 39)
    p = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        p.append(w1_p(rng.exponential(size=20), rng.exponential(size=30), seed))
    jitter = np.random.default_rng(0).uniform(0, 1 / 40, 150)
    assert kstest(np.array(p) - jitter, "uniform").pvalue > 0.01


def test_a_ratio_has_its_value_in_its_interval_and_is_told_from_real(rng):
    real = rng.normal(100, 10, 800)
    a = real[:400]
    b = real[400:]
    for shift, alike in ((0.0, True), (6.0, False)):
        ours = rng.normal(100 + shift, 10, 400)
        found = w1_ratio_test(ours, a, a, b)
        value = w1_ratio(ours, a, a, b)
        assert found.low <= value <= found.high and found.low < found.high
        assert (found.p_value > 0.02) == alike
    unit = w1_halves(real, 400)
    assert w1(real[::2], real[1::2]) < 2 * unit and unit < w1(a + 6, b)


def test_jets_have_a_test_beside_each_distance(rng):
    jets = [np.abs(rng.normal(size=(n, 3))) for n in rng.integers(1, 9, 40)]
    sets = jets[:20], jets[:20], jets[:20], jets[20:]
    found = jet_tests(*sets)
    expected = {f"{key}_{end}" for key in jet_distances(*sets) for end in ("low", "high", "p")}
    assert expected <= found.keys()
    assert {key for key in found if key not in expected} == {
        f"{name}_w1_halves" for name in ("mass", "multiplicity", "pt", "girth", "pt_dispersion")
    }
    assert found["mass_w1_raw_p"] == 1 and all(np.isfinite(list(found.values())))
    one = [jets[:1]] * 4
    assert jet_tests(*one)["mass_w1_p"] == 1 and "mass_w1_low" not in jet_tests(*one)


def test_frechet(rng):
    a = rng.normal(size=(60, 2))
    assert frechet_test(a, rng.normal(size=(60, 2))).p_value > 0.02
    found = frechet_test(a + 1, a)
    assert found.p_value < 0.01 and found.low < 2 < found.high


def test_shares_and_entropies():
    found = share_test([True] * 9 + [False], [True] * 90 + [False] * 10)
    assert found.low < 0.9 and found.p_value == 1
    assert share_test([False] * 30, [True] * 30).p_value < 1e-6
    assert share_test([True], []).named("x") == {}

    def n_kinds(labels):
        return len(set(labels))

    assert label_test(list("aaaaaaaaaa"), list("abcdefghij"), n_kinds).p_value < 0.02
    assert label_test(list("abcabc"), list("bcabca"), n_kinds).p_value == 1


def test_names():
    assert Comparison(0.1, 0.2, 0.5).named("x") == {"x_low": 0.1, "x_high": 0.2, "x_p": 0.5}
    assert Comparison(np.nan, np.nan, 0.5).named("x") == pytest.approx({"x_p": 0.5})
