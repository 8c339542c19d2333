"""A jet's pt and mass as fields of its example."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.jet_coordinates import jet_numbers
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.sources.pythia import PythiaJets


def test_pt_and_mass_of_two_particles():
    """Of massless particles m^2 = 2 pt1 pt2 (cosh(d eta) - cos(d phi))."""
    values = np.array([[30, 0.3, 0.2], [20, -0.4, -0.1], [7, 0, 0]], np.float32)
    found = jet_numbers(
        values, np.array([0, 2, 3]), ("pt_gev", "eta_rel", "phi_rel"), ("pt_gev", "mass_gev")
    )
    pt = np.sqrt(30**2 + 20**2 + 2 * 30 * 20 * np.cos(0.3))
    mass = np.sqrt(2 * 30 * 20 * (np.cosh(0.7) - np.cos(0.3)))
    assert np.allclose(found["pt_gev"], [pt, 7]) and np.allclose(found["mass_gev"], [mass, 0])


def test_jets_of_a_file_have_their_numbers(tmp_path):
    jets = [np.array([[10 + i, 0, 0], [10, 0.1, 0]], np.float32) for i in range(6)]
    write_jets(tmp_path / "jets.npz", jets)
    source = JetFile(str(tmp_path / "jets.npz"), numbers=("mass_gev", "pt_gev"))
    assert source.fields == {"mass_gev": "mass_gev", "pt_gev": "pt_gev", "jets": "jets"}
    for split in source.splits:
        for example in source.examples(split, tmp_path):
            assert example["pt_gev"] == pytest.approx(float(example["jets"][:, 0].sum()))
            assert 0.9 < example["mass_gev"] / (0.1 * np.sqrt(10 * example["jets"][0, 0])) < 1.1
    plain = JetFile(str(tmp_path / "jets.npz"))
    assert [list(e) for e in plain.examples("train", tmp_path)] == [["jets"]] * 5


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"numbers": ("pt",)}, "numbers names 'pt'; a jet's numbers are pt_gev, mass_gev"),
        ({"numbers": ("pt_gev",), "features": ("pt_gev", "charge")}, "need the features"),
    ],
)
def test_numbers_that_cannot_be_had_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        JetFile("jets.npz", **settings)


def test_pythia_jets_keep_their_file(tmp_path):
    """Numbers are computed from the jets, so asking for them makes no jet anew."""
    assert PythiaJets()._key == PythiaJets(numbers=("pt_gev",))._key
    assert PythiaJets(numbers=("pt_gev",)).fields["pt_gev"] == "pt_gev"
