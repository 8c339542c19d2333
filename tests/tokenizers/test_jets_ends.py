"""What lies outside the grid of jets comes back as its mean, once that was seen."""

import warnings

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.tokenizers.jets import JetGrid, JetGridConfig


def wide_jets(n=100):
    rng = np.random.default_rng(0)
    return [
        np.stack((np.exp(rng.normal(2, 2.0, 60)), *rng.normal(0, 0.35, (2, 60))), 1).astype(
            np.float32
        )
        for _ in range(n)
    ]


def test_what_lies_outside_comes_back_as_its_mean_once_it_was_seen(tmp_path):
    jets = wide_jets()
    config = JetGridConfig(allow_clipping=True)
    grid = config.fit(jets)
    back = np.concatenate(grid.decode_batch(grid.encode_batch(jets)))
    raw = np.concatenate(jets)
    edges = [(np.exp(-2), np.exp(6.9)), (-0.8, 0.8), (-0.8, 0.8)]
    for c, (low, high) in enumerate(edges):
        x = raw[:, c]
        x_back = back[:, c]
        for out, out_back in ((x < low, x_back < low), (x >= high, x_back >= high)):
            assert out.sum() == out_back.sum() > 0
            assert np.isclose(x_back[out_back].sum(), x[out].sum(), rtol=1e-4)
    grid.save(tmp_path)
    again = JetGrid.load(tmp_path)
    assert (
        again.config == grid.config
        and again.signature == grid.signature != config.build().signature
    )
    np.testing.assert_array_equal(
        again.encode(again.decode(again.encode(jets[0]))).codes, grid.encode(jets[0]).codes
    )


def test_means_at_the_very_edge_stay_outside_and_those_given_stay_as_they_are():
    edge = np.array([[np.exp(6.9) * (1 + 2e-7), 0.8, -0.8000001], [5, 0, 0]], np.float32)
    grid = JetGridConfig(allow_clipping=True).fit([edge])
    codes = grid.encode(edge).codes
    np.testing.assert_array_equal(grid.encode(grid.decode(grid.encode(edge))).codes, codes)
    given = JetGridConfig(above=(5000.0, 1.0, 1.0), allow_clipping=True)
    assert given.fit([edge]).config.above == given.above
    for wrong in (
        {"above": (900.0, 1, 1)},
        {"above": (5000.0,)},
        {"below": (-1.0, -1, -1)},
        {"below": (0.01, -0.7, -1)},
    ):
        with pytest.raises(UserError, match="JetGridConfig"):
            JetGridConfig(**wrong)


def real_jet(n=60, pt=500.0, eta=0.0, seed=0):
    rng = np.random.default_rng(seed)
    share = np.sort(rng.dirichlet(np.full(n, 0.5)))[::-1]
    return np.stack((pt * np.maximum(share, 1e-3), *rng.normal(0, 0.1, (2, n))), 1).astype(
        np.float32
    ) + np.array([0, eta, 0], np.float32)


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda jet: jet * np.array([1000, 1, 1], np.float32),
            "pt_gev, above 992.*pt in MeV.*--pt_unit MeV",
        ),
        (
            lambda jet: jet / np.array([500, 1, 1], np.float32),
            "pt_gev, below 0.135.*is pt relative to the jet's, or in TeV",
        ),
        (
            lambda jet: jet + np.array([0, 1.7, 0], np.float32),
            "eta_rel, above 0.8.*absolute, not relative",
        ),
        (
            lambda jet: jet + np.array([0, 0, -2], np.float32),
            "phi_rel, below -0.8.*absolute, not relative",
        ),
        (
            lambda jet: np.array([[4988, 0.01, 0], [4988, -0.01, 0]], np.float32),
            "pt_gev, above 992.*harder than the grid's range",
        ),
    ],
)
def test_jets_in_other_units_are_refused_with_the_likely_one_unless_allowed(change, said):
    jets = [change(real_jet(seed=i)) for i in range(5)]
    with pytest.raises(UserError, match=said) as refusal:
        JetGridConfig().build().encode_batch(jets)
    assert "\n" not in str(refusal.value) and "allow-clipping" in str(refusal.value)
    with pytest.raises(UserError, match=said):
        JetGridConfig().fit(jets)
    with pytest.warns(UserWarning, match=said):
        assert len(JetGridConfig(allow_clipping=True).build().encode_batch(jets)) == 5
    assert JetGridConfig().build().fidelity(jets)["clipped_share"] > 0.2


def test_a_few_particles_with_much_of_the_pt_are_said():
    jets = [real_jet(seed=i, pt=400) for i in range(20)]
    jets[3][0, 0] = 1200
    with pytest.warns(UserWarning) as told:
        JetGridConfig().build().encode_batch(jets)
    (line,) = [str(w.message) for w in told]
    assert line.startswith(
        "1 of 1,200 particles was clipped in pt_gev, above 992.3, 0.1% of them, with 1"
    ) and line.endswith("(first: jet 3)")


def test_what_is_clipped_and_cut_is_said_once_for_all_calls_together():
    grid = JetGridConfig(max_constituents=50).build()
    jets = [real_jet(seed=i) for i in range(6)]
    jets[2][:, 1] += np.linspace(0, 1.2, 60)
    with pytest.warns(UserWarning) as told, grid.counting():
        for jet in jets:
            grid.encode(jet)
    cut, clipped = (str(w.message) for w in told)
    assert cut.startswith(
        "6 of 6 jets were cut to the 50 hardest particles: 60 more, with "
    ) and cut.endswith("(first: jet 0)")
    assert "of 360 particles were clipped in eta_rel, above 0.8" in clipped and clipped.endswith(
        "(first: jet 2)"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with grid.counting(quiet=True):
            grid.encode_batch(jets)
        grid.fidelity(jets)
        grid.encode_batch([real_jet()[:50]])
    with pytest.warns(UserWarning):  # a call of its own, and the same again is not said again
        grid.encode_batch(jets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid.encode_batch(jets)


def test_many_soft_particles_with_nothing_to_say_are_no_reason_to_refuse():
    jet = np.concatenate([real_jet(), np.full((30, 3), 0.01, np.float32)])
    with pytest.warns(UserWarning, match="softer than the grid's range"):
        assert len(JetGridConfig().build().encode(jet)) == len(jet)
