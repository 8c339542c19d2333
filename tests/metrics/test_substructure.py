"""Substructure with values by hand, invariances, and agreement with FastJet."""

from itertools import combinations

import numpy as np
import pytest

from mmtok.metrics.jets import masses
from mmtok.metrics.substructure import (
    CAMBRIDGE,
    KT,
    _axes_of,
    cluster,
    d2,
    kt_axes,
    lund_plane,
    massive_masses,
    pt_y_phi,
    subjettiness,
    subjettiness_ratios,
    substructure,
)


def jet_of(rng, n, spread=0.3):
    return np.stack((rng.exponential(10, n), *rng.normal(0, spread, (2, n))), 1)


def test_a_particle_keeps_its_coordinates():
    found = pt_y_phi(np.array([3.0, 4.0, 5 * np.sinh(1.2), 5 * np.cosh(1.2)]))
    assert found == pytest.approx([5, 1.2, np.arctan2(4, 3)])
    assert pt_y_phi(np.zeros(4)) == pytest.approx([0, 0, 0])


def test_masses_of_particles_count(rng):
    jet = jet_of(rng, 9)
    assert massive_masses([jet], [np.zeros(9)]) == pytest.approx(masses([jet]), rel=1e-9)
    assert massive_masses([jet[:1]], [np.array([0.14])])[0] == pytest.approx(0.14, rel=1e-6)
    assert massive_masses([jet], [np.full(9, 0.14)])[0] > masses([jet])[0]


def test_two_equal_particles_have_one_axis_between_them():
    jet = np.array([[10.0, 0.2, 3.1], [10.0, -0.2, 3.1]])
    one, two, three = kt_axes(jet)
    assert one == pytest.approx(np.array([[0, 3.1]])) and len(two) == len(three) == 2
    # both are 0.2 from it, of R = 0.8
    np.testing.assert_allclose(subjettiness([jet, jet[:1]]), [[0.25, 0, 0], [0, 0, 0]], atol=1e-12)
    assert subjettiness([jet], beta=2.0)[0, 0] == pytest.approx(0.25**2)


def test_prongs_make_ratios_small(rng):
    centres = np.array([[0.4, 0.0], [-0.3, 0.3], [0.0, -0.4]])
    prongs = []
    for n in (1, 2, 3):
        places = np.repeat(centres[:n], 8, 0) + rng.normal(0, 0.01, (8 * n, 2))
        prongs.append(np.column_stack((rng.uniform(5, 10, 8 * n), places)))
    found = subjettiness_ratios(prongs)
    assert found["tau21"][1] < 0.1 < found["tau21"][0]
    assert found["tau32"][2] < 0.1 < found["tau32"][1]
    assert d2(prongs)[1] < d2(prongs)[2]


def test_observables_do_not_change_with_place_order_and_scale(rng):
    jet = jet_of(rng, 20)
    moved = (jet * [7, 1, 1] + [0, 0, 3.0])[rng.permutation(20)]
    for name, values in substructure([jet, moved]).items():
        assert values[1] == pytest.approx(values[0], rel=1e-9), name
    assert set(substructure([jet[:0], jet[:1]])) == {"tau21", "tau32", "d2"}


def test_d2_of_three_particles():
    """Equal pt at the corners of a triangle: e3 / e2^3 = t^3 / 27 / (3 t / 9)^3 = 1."""
    corners = np.array([[0, 0], [0.2, 0], [0.1, 0.1 * 3**0.5]])
    jet = np.column_stack((np.full(3, 4.0), corners))
    assert d2([jet, jet[:2]]) == pytest.approx([1, 0])


def test_lund_plane_of_three_particles():
    jet = np.array([[10.0, 0, 0], [1.0, 0.05, 0], [4.0, 0.5, 0]])
    found = lund_plane(jet)
    assert len(found) == 2 and len(lund_plane(jet[:1])) == 0
    wide, narrow = found
    assert wide[0] == pytest.approx(0.5 - 0.05 / 11, rel=1e-3)
    assert wide[1] == pytest.approx(4 * wide[0]) and wide[2] == pytest.approx(4 / 15, rel=1e-3)
    assert narrow == pytest.approx([0.05, 0.05, 1 / 11])


@pytest.mark.parametrize("power", [KT, CAMBRIDGE])
def test_clusterings_agree_with_fastjet(rng, power):
    ak = pytest.importorskip("awkward")
    fastjet = pytest.importorskip("fastjet")
    from mmtok.metrics.substructure import WIDEST, four_vectors

    jet = jet_of(rng, 15)
    algorithm = {KT: fastjet.kt_algorithm, CAMBRIDGE: fastjet.cambridge_algorithm}[power]
    columns = dict(zip(("px", "py", "pz", "E"), four_vectors(jet).T, strict=True))
    events = ak.unflatten(ak.zip(columns, with_name="Momentum4D"), [15])
    sequence = fastjet.ClusterSequence(events, fastjet.JetDefinition(algorithm, WIDEST))
    merged = cluster(jet, power)
    members = [{i} for i in range(15)]
    for step in merged:
        members.append(members[step.left[0]] | members[step.left[1]])
    last = [members[k] for k in merged[-1].left]
    theirs = sequence.exclusive_jets_constituent_index(2)[0]
    assert sorted(map(sorted, last)) == sorted(sorted(ak.to_list(jet)) for jet in theirs)


def test_axes_of_many_jets_agree_with_those_of_each(rng, capfd):
    pytest.importorskip("fastjet")
    jets = [jet_of(rng, n) for n in (9, 1, 0, 2, 30, 3)]
    for jet, axes in zip(jets, _axes_of(jets, 3), strict=True):
        for k, (ours, theirs) in enumerate(zip(kt_axes(jet), axes, strict=True)):
            if len(jet) > k + 1:
                np.testing.assert_allclose(np.sort(ours, 0), np.sort(theirs, 0), atol=1e-9)
    assert capfd.readouterr().out == ""  # no banner among what a verb prints


def jets_by_chance(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return [
        np.stack([rng.uniform(1, 90, k), *rng.normal(0, 0.2, (2, k))], 1)
        for k in rng.integers(4, 20, n)
    ]


def test_d2_is_its_sum_over_pairs_and_triples():
    jets = jets_by_chance(5)
    for jet, found in zip(jets, d2(jets), strict=True):
        z = jet[:, 0] / jet[:, 0].sum()
        r = np.hypot(*(jet[:, None, c] - jet[None, :, c] for c in (1, 2)))
        n = range(len(jet))
        e2 = sum(z[i] * z[j] * r[i, j] for i, j in combinations(n, 2))
        e3 = sum(z[i] * z[j] * z[k] * r[i, j] * r[j, k] * r[i, k] for i, j, k in combinations(n, 3))
        assert np.isclose(found, e3 / e2**3)


def test_subjettiness_falls_with_its_axes_and_is_0_of_as_many_particles():
    three = np.array([[50, 0.3, 0.0], [40, -0.3, 0.1], [30, 0.0, -0.4]])
    tau = subjettiness([three, *jets_by_chance()])
    assert (tau[:, 0] >= tau[:, 1]).all() and (tau[:, 1] >= tau[:, 2]).all()
    assert np.isclose(tau[0, 2], 0, atol=1e-7)
    turned = subjettiness([three + [0, 0.5, 3.0]])  # across the seam of phi
    np.testing.assert_allclose(turned[0], tau[0], atol=1e-6)
