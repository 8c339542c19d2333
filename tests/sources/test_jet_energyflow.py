"""EnergyFlow's data sets, written here as they are published, come back with their values."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.jet_reader import ReadSettings
from mmtok.sources.jets import JetFile, read_jets

FEATURES = ("pt_gev", "eta_rel", "phi_rel", "pdg_id", "charge")


def quark_gluon(path, save=np.savez):
    """Two jets: a proton, a photon and a pi-; and one electron."""
    rows = np.zeros((2, 5, 4))
    rows[0, :3] = [[60, 1.0, 6.2, 2212], [30, 1.2, 6.4, 22], [10, 0.8, 6.1, -211]]
    rows[1, :1] = [[500, -0.3, 0.1, 11]]
    save(path, X=rows, y=np.array([1.0, 0.0]))
    return rows


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_quark_and_gluon_jets(tmp_path, save):
    path = tmp_path / "QG_jets.npz"
    rows = quark_gluon(path, save)
    with pytest.warns(UserWarning, match="pt, rapidity, phi and PDG code in GeV"):
        first, second = read_jets(path, FEATURES)
    assert first[:, 0].tolist() == [60, 30, 10]
    assert first[:, 3].tolist() == [2212, 22, -211]
    assert first[:, 4].tolist() == [1, 0, -1]
    np.testing.assert_allclose(second, [[500, 0, 0, 11, -1]], atol=1e-6)
    np.testing.assert_allclose(np.diff(first[:, 1]), np.diff(rows[0, :3, 1]), atol=1e-6)
    np.testing.assert_allclose(np.diff(first[:, 2]), np.diff(rows[0, :3, 2]), atol=1e-6)
    # in the frame of the axis the sum has neither a transverse part across nor a rapidity
    pt, y, phi = first[:, :3].astype(np.float64).T
    mass = np.array([0.938272, 0, 0.13957])
    assert abs(np.sum(pt * np.sin(phi))) < 1e-3
    assert abs(np.sum(np.hypot(pt, mass) * np.sinh(y))) < 1e-3
    source = JetFile(str(path))
    found = {e.name[-1]: e["caption"] for s in source.splits for e in source.examples(s)}
    assert found == {"0": "quark", "1": "gluon"}


def test_quark_and_gluon_jets_of_other_shapes(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.ones((2, 3)), y=np.ones(2))
    with pytest.raises(UserError, match=r"expected X \(N, M, 4\) of pt, .*got \(2, 3\)"):
        read_jets(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", X=np.ones((2, 3, 4)), y=np.ones(3))
    with pytest.raises(UserError, match="y has 3 labels for 2 jets"):
        read_jets(tmp_path / "b.npz")


def test_z_and_jets_with_delphes(tmp_path):
    path = tmp_path / "Pythia21_Zjet_pTZ-200GeV_0.npz"
    particles = np.zeros((1, 4, 4))
    particles[0, :2] = [[0.5, 0.1, -0.2, 0.1], [2.0, -0.1, 0.05, 1.3]]
    np.savez(
        path,
        gen_jets=np.ones((1, 4)),
        gen_particles=particles,
        sim_particles=particles[:, :1],
        sim_mults=np.ones(1),
    )
    with pytest.raises(UserError, match="gen_particles and sim_particles; name one, as in --col"):
        read_jets(path)
    settings = ReadSettings({"particles": "gen_particles"})
    (jet,) = read_jets(path, FEATURES, settings)
    np.testing.assert_allclose(
        jet, [[200, -0.1, 0.05, -2112, 0], [50, 0.1, -0.2, 211, 1]], rtol=1e-6
    )
    source = JetFile(str(path), columns={"particles": "sim_particles"})
    assert source.fields == {"jets": "jets"}
    with pytest.raises(UserError, match="1 jet cannot be split"):
        source.check()


def write_mod(path, **without):
    h5py = pytest.importorskip("h5py")
    pfcs = [
        [90, 1.1, 3.1, 0.0, 22, -1],
        [20, 0.9, -3.1, 0.13957, 211, 0],
        [70, -0.5, 0.4, 0.0, 130, -1],
    ]
    with h5py.File(path, "w") as file:
        file["jets_i"] = np.zeros((3, 2), np.int64)
        file["jets_f"] = np.array([[110, 1.05, 3.12, 9.0], [70, -0.5, 0.3, 0], [5, 0, 0, 0]])
        file["jets_f"].attrs.create("cols", np.array(["jet_pt", "jet_y", "jet_phi", "jet_m"], "S"))
        file["pfcs"] = np.array(pfcs)
        columns = np.array(["pt", "y", "phi", "m", "pid", "vertex"], "S")
        file["pfcs"].attrs.create("cols", columns)
        file["pfcs_index"] = np.array([0, 2, 3, 3], np.uint32)
        for name in without:
            del file[name]


def test_jets_of_the_cms_open_data(tmp_path):
    path = tmp_path / "CMS_Jet300_pT375-infGeV_0_compressed.h5"
    write_mod(path)
    with pytest.warns(UserWarning, match="1 of 3 jets have no constituents, the first is jet 2"):
        first, second, third = read_jets(path, FEATURES)
    expected = [[90, 0.05, -0.02, 22, 0], [20, -0.15, -6.22 + 2 * np.pi, 211, 1]]
    np.testing.assert_allclose(first, expected, atol=1e-6)
    np.testing.assert_allclose(second, [[70, 0, 0.1, 130, 0]], atol=1e-6)
    assert third.shape == (0, 5)
    write_mod(tmp_path / "b.h5", pfcs_index=True)
    with pytest.raises(UserError, match="not a MOD file: it lacks pfcs_index"):
        read_jets(tmp_path / "b.h5")
