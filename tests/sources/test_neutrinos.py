"""Neutrinos of simulated events: the W's mass leaves the solutions that the formula says."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.neutrinos import W_MASS_GEV, NeutrinoEvents, pz_solutions


def columns(source, split, cache):
    for name in ("pythia8mc", "fastjet", "awkward", "vector"):
        pytest.importorskip(name)
    rows = list(source.examples(split, cache))
    return {name: np.stack([row[name] for row in rows]) for name in source.fields}


def mass(*momenta):
    """Of massless particles with momenta (N, 3)."""
    energy = sum(np.linalg.norm(p, axis=1) for p in momenta)
    return np.sqrt(energy**2 - np.square(sum(momenta)).sum(1))


def full(lepton):
    """(pt, pz) -> (px, py, pz), with px along the lepton."""
    return np.insert(lepton, 1, 0.0, axis=1)


def test_solutions_give_the_mass_of_the_w():
    rng = np.random.default_rng(0)
    lepton = np.stack([rng.uniform(25, 80, 500), rng.normal(0, 80, 500)], 1)
    met = rng.normal(0, 30, (500, 2))
    found = pz_solutions(lepton, met)
    real = found[:, 1] > found[:, 0]
    assert 0.2 < real.mean() < 1
    for k in range(2):
        neutrino = np.concatenate([met, found[:, k, None]], 1)[real]
        assert np.allclose(mass(full(lepton)[real], neutrino), W_MASS_GEV)
    # where there is no solution the transverse mass is above the W's
    transverse = 2 * (lepton[:, 0] * np.linalg.norm(met, axis=1) - lepton[:, 0] * met[:, 0])
    assert np.array_equal(~real, transverse >= W_MASS_GEV**2)


def test_events_of_w_have_its_mass_and_pass_the_cuts(tmp_path):
    source = NeutrinoEvents("W", n_train=300, n_heldout=100)
    made = columns(source, "train", tmp_path)
    again = columns(source, "train", tmp_path)
    assert all(np.array_equal(made[name], again[name]) for name in made)
    neutrino = np.concatenate([made["met"], made["neutrino_pz"]], 1)
    masses = mass(full(made["lepton"]), neutrino)
    assert len(masses) == 300 and abs(np.median(masses) - W_MASS_GEV) < 0.5
    pt, pz = made["lepton"].T
    assert pt.min() > 25 and np.abs(np.arcsinh(pz / pt)).max() < 2.5
    assert np.hypot(*made["met"].T).min() > 25
    nearest = np.abs(pz_solutions(made["lepton"], made["met"]) - made["neutrino_pz"]).min(1)
    assert np.median(nearest) < 12
    heldout = columns(source, "heldout", tmp_path)
    assert not np.isin(heldout["neutrino_pz"], made["neutrino_pz"]).any()


def test_events_of_top_pairs_have_both_masses_within_resolution(tmp_path):
    source = NeutrinoEvents("ttbar", n_train=200, n_heldout=10)
    made = columns(source, "train", tmp_path)
    partons = made["partons"].reshape(-1, 4, 3)
    assert (np.hypot(*partons[:, 0].T[:2]) >= np.hypot(*partons[:, 1].T[:2])).all()
    hadronic_w = mass(partons[:, 2], partons[:, 3])
    assert abs(np.median(hadronic_w) - W_MASS_GEV) < 4
    leptonic_w = mass(full(made["lepton"]), made["neutrino"])
    assert abs(np.median(leptonic_w) - W_MASS_GEV) < 0.5
    tops = [mass(full(made["lepton"]), made["neutrino"], partons[:, k]) for k in range(2)]
    nearest = np.abs(np.array(tops) - 172.5).min(0)
    assert np.median(nearest) < 10
    error = made["met"] - made["neutrino"][:, :2]
    assert 10 < error.std() < 40 and abs(error.mean()) < 5


def test_other_settings_are_refused():
    with pytest.raises(UserError, match="process is 'Z'; it must be one of W, ttbar"):
        NeutrinoEvents("Z")
    with pytest.raises(UserError, match="must be 0 to 100"):
        NeutrinoEvents(met_min_gev=-1.0)
    with pytest.raises(UserError, match="n_train is 0"):
        NeutrinoEvents(n_train=0)
