"""Jets by class, and jets under pile-up, of a few collisions of Pythia."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.metrics.jets import masses, summed_pts
from mmtok.sources import pythia_events
from mmtok.sources.pythia import PythiaJets, make_chunk
from mmtok.sources.pythia_events import _matches

KINEMATIC = ("pt_gev", "eta_rel", "phi_rel")
TRACKS = ("charge", "particle_id", "d0", "dz")


def need_pythia():
    for name in ("pythia8mc", "fastjet", "awkward", "vector"):
        pytest.importorskip(name)


@pytest.mark.parametrize(
    "name, near, is_of_class",
    [
        ("W", [(1, 24, 0.1), (-2, 24, 0.3), (21, 1, 0.2)], True),
        ("W", [(1, 24, 0.1), (-2, 24, 0.9)], False),
        ("W", [(1, 23, 0.1), (-1, 23, 0.3)], False),
        ("Z", [(1, 23, 0.1), (-1, 23, 0.3)], True),
        ("Higgs", [(5, 25, 0.1), (-5, 25, 0.3)], True),
        ("Higgs", [(5, 23, 0.1), (-5, 23, 0.3)], False),
        ("top", [(5, 6, 0.1), (1, 24, 0.3), (-2, 24, 0.3)], True),
        ("gluon", [(21, 21, 0.1), (1, 21, 0.3)], True),
        ("quark", [(21, 21, 0.1), (1, 21, 0.3)], False),
    ],
)
def test_a_jet_is_of_the_class_whose_partons_it_holds(name, near, is_of_class):
    # near: (id, mother's id, distance)
    assert _matches(near, name, radius=0.8) == is_of_class


@pytest.mark.parametrize("name, mass", [("W", 80.4), ("Higgs", 125.0)])
def test_jets_of_bosons_have_their_mass_and_tracks(name, mass):
    need_pythia()
    source = PythiaJets(classes=(name,), features=(*KINEMATIC, *TRACKS))
    jets = make_chunk((source, name, 12, 1))
    assert 0.93 * mass < np.median(masses(jets)) < 1.12 * mass
    _, _, _, charge, kind, d0, dz = np.concatenate(jets).T
    assert set(charge) == {-1, 0, 1} and set(kind) <= set(range(5))
    assert (charge[np.isin(kind, (0, 1))] == 0).all() and (charge[kind >= 2] != 0).all()
    assert (d0[charge == 0] == 0).all() and (np.abs(d0) > 0.05).any() and np.isfinite(dz).all()


def test_pile_up_is_kept_apart_and_leaves_the_jet_below_it(monkeypatch, tmp_path):
    need_pythia()
    monkeypatch.setattr(pythia_events, "POOL", 50)
    source = PythiaJets(classes=("W",), n_per_class=8, n_heldout=2, mu=40, processes=1)
    assert source.fields["clean_jets"] == "jets"
    examples = list(source.examples("train", tmp_path))
    seen = [example["jets"] for example in examples]
    clean = [example["clean_jets"] for example in examples]
    assert len(seen) == 6 and {jet.shape[1] for jet in seen + clean} == {3}
    assert (summed_pts(seen) > summed_pts(clean) + 20).all()
    assert 0.9 * 80.4 < np.median(masses(clean)) < 1.15 * 80.4 < 0.8 * np.median(masses(seen))
    again = make_chunk((source, *source._chunks()[1][1:]))
    for jet, example in zip(again, examples, strict=True):
        np.testing.assert_array_equal(jet[:, :3], example["jets"])
        is_pileup = jet[:, 3] > 0
        np.testing.assert_array_equal(jet[~is_pileup, :3], example["clean_jets"])


def test_settings_of_files_that_were_made_before_have_the_names_that_they_had():
    assert PythiaJets()._key == "dc131cec3162"
    others = ({"mu": 1.0}, {"classes": ("gluon",)}, {"features": (*KINEMATIC, "d0")})
    assert len({PythiaJets(**fields)._key for fields in ({}, *others)}) == 4


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"classes": ("charm",)}, "classes are some of gluon, .*; got charm"),
        ({"classes": ()}, "got none"),
        ({"classes": ("W", "W")}, "each once"),
        ({"features": ("eta_rel", "pt_gev")}, "first of features must be pt_gev"),
        ({"features": ("pt_gev", "colour")}, "features are some of .*; got pt_gev, colour"),
        ({"mu": -1.0}, "mu is -1"),
        ({"mu": float("nan")}, "mu is nan"),
    ],
)
def test_classes_features_and_pile_up_that_cannot_be_are_refused(fields, said):
    with pytest.raises(UserError, match=said) as refusal:
        PythiaJets(**fields)
    assert "\n" not in str(refusal.value)
