"""Pile-up is Poisson distributed, and turning collisions about the beam changes no pt."""

import numpy as np

from mmtok.sources.pythia_pileup import PileUp


def pool(n):
    rng = np.random.default_rng(0)
    names = ("px", "py", "pz", "d0", "dz", "charge")
    columns = {name: rng.normal(size=n.sum()) for name in names}
    columns["charge"] = np.sign(columns["charge"]).round()
    columns["own_pt"] = np.hypot(columns["px"], columns["py"])
    columns["own_pz"] = columns["pz"].copy()
    return columns


def test_collisions_are_turned_and_mirrored_whole():
    n = np.array([3, 0, 5, 1])
    event = PileUp(30.0, pool(n), n, seed=1).draw()
    np.testing.assert_allclose(np.hypot(event["px"], event["py"]), event["own_pt"])
    np.testing.assert_allclose(np.abs(event["pz"]), np.abs(event["own_pz"]))
    assert (event["dz"][event["charge"] == 0] == 0).all()
    assert np.abs(event["dz"]).max() > 20  # vertices of their own


def test_the_number_of_collisions_is_poisson():
    n = np.ones(50, int)
    pileup = PileUp(4.0, pool(n), n, seed=0)
    found = np.array([len(pileup.draw()["px"]) for _ in range(2000)])
    assert abs(found.mean() - 4) < 4 * np.sqrt(4 / 2000)
    assert abs(found.var() - 4) < 0.5
    other = PileUp(4.0, pool(n), n, seed=0)
    assert [len(other.draw()["px"]) for _ in range(10)] == found[:10].tolist()
