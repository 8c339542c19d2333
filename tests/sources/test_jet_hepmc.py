"""HepMC: the jets are those of fastjet, of what is seen; files that break off are said so."""

import gzip
import warnings

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.jet_formats import layout_of, open_jets, suffix_of
from mmtok.sources.jet_reader import ReadSettings
from mmtok.sources.jets import JetFile, read_jets

N = 12


@pytest.fixture(scope="session")
def files(collider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hepmc")
    events = collider.events[:N]
    collider.write_hepmc(folder / "e.hepmc", events)
    collider.write_hepmc(folder / "mev.hepmc3.gz", events, "MEV")
    collider.write_hepmc(folder / "old.hepmc2", events, kind="HepMC2")
    (folder / "packed.hepmc").write_bytes(gzip.compress((folder / "e.hepmc").read_bytes()))
    return folder


def expected(collider, radius, min_pt):
    """pt, pseudorapidity, mass and number of constituents of the jets, by fastjet's own classes."""
    import fastjet

    jets = []
    for event in collider.events[:N]:
        p = event.hepevt
        is_seen = ~np.isin(np.abs(p["pid"]), (12, 14, 16))
        columns = (p[key][is_seen].tolist() for key in ("px", "py", "pz", "en"))
        particles = [fastjet.PseudoJet(*row) for row in zip(*columns, strict=True)]
        definition = fastjet.JetDefinition(fastjet.antikt_algorithm, radius)
        sequence = fastjet.ClusterSequence(particles, definition)
        found = fastjet.sorted_by_pt(sequence.inclusive_jets(min_pt))
        jets += [(j.pt(), j.eta(), j.m(), len(j.constituents())) for j in found]
    return np.array(jets).T


@pytest.mark.parametrize("name", ["e.hepmc", "mev.hepmc3.gz", "old.hepmc2", "packed.hepmc"])
def test_jets_are_those_of_fastjet(collider, files, name):
    reader = open_jets(files / name, settings=ReadSettings(radius=0.4, min_pt_gev=25))
    pt, _, mass, n = expected(collider, 0.4, 25)
    values, offsets = reader.read(0, reader.n_jets, ("pt_gev", "eta_rel", "phi_rel", "mass_gev"))
    np.testing.assert_array_equal(np.diff(offsets), n)
    jet = np.repeat(np.arange(len(n)), n.astype(int))
    px = np.bincount(jet, values[:, 0] * np.cos(values[:, 2]))
    py = np.bincount(jet, values[:, 0] * np.sin(values[:, 2]))
    np.testing.assert_allclose(px, pt, rtol=1e-4)  # the axis is the sum
    np.testing.assert_allclose(py, 0, atol=1e-3)
    assert np.all(mass >= 0)
    assert layout_of(files / name).name == "hepmc3"


def test_cuts_and_defaults(collider, files):
    pt, eta, _, _ = expected(collider, 0.8, 20)
    source = JetFile(str(files / "e.hepmc"), max_abs_eta=2)
    with pytest.warns(UserWarning) as said:
        n = sum(len(list(source.examples(split))) for split in source.splits)
    lines = " ".join(str(w.message) for w in said)
    assert n == np.sum(np.abs(eta) <= 2)
    assert f"{np.sum(np.abs(eta) > 2)} of {len(pt)} jets were left out: |eta| above 2" in lines
    assert "anti-kT, radius 0.8, pt from 20 GeV, without neutrinos" in lines


def test_a_cut_above_all_jets_is_said_with_the_remedy(files):
    told = r"e.hepmc: holds no jets of pt from 9000 GeV in its \d+ events; lower min_pt_gev"
    with pytest.raises(UserError, match=told):
        JetFile(str(files / "e.hepmc"), min_pt_gev=9000).check()
    with pytest.raises(UserError, match=told):
        read_jets(files / "e.hepmc", settings=ReadSettings(min_pt_gev=9000))
    with pytest.raises(UserError, match=r"no jets \(\d+ left out: .eta. above 1e-09\)$"):
        JetFile(str(files / "e.hepmc"), max_abs_eta=1e-9).check()


def test_features_of_constituents(files):
    features = ("pt_gev", "pdg_id", "charge")
    reader = open_jets(files / "e.hepmc", features)
    pt, code, charge = reader.read(0, reader.n_jets, features)[0].T
    assert not set(np.abs(code)) & {12, 14, 16}
    assert set(charge[code == 211]) == {1} and set(charge[code == 22]) == {0}
    first = reader.read(0, 1, ("pt_gev",))[0][:, 0]
    assert np.all(np.diff(first) <= 0)


def test_any_stretch_is_the_same_part_of_all(files):
    reader = open_jets(files / "e.hepmc")
    every, offsets = reader.read(0, reader.n_jets, reader.features)
    values, at = reader.read(2, 7, reader.features)
    np.testing.assert_array_equal(values, every[offsets[2] : offsets[7]])
    np.testing.assert_array_equal(at, offsets[2:8] - offsets[2])
    assert reader.read(3, 3, ("pt_gev",))[0].shape == (0, 1)


def test_a_file_that_breaks_off_keeps_its_whole_events(files, tmp_path, capfd):
    text = (files / "e.hepmc").read_text()
    last = text.rindex("\nE ")
    (tmp_path / "cut.hepmc").write_text(text[: last + 200])
    with pytest.warns(UserWarning, match="breaks off there, and an event that is cut off is left"):
        jets = read_jets(tmp_path / "cut.hepmc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert 0 < len(jets) < len(read_jets(files / "e.hepmc"))
    packed = (files / "mev.hepmc3.gz").read_bytes()
    (tmp_path / "cut.hepmc.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.warns(UserWarning, match="breaks off there"):
        assert read_jets(tmp_path / "cut.hepmc.gz")
    assert capfd.readouterr().out == ""  # HepMC prints what it misses


def test_what_is_no_hepmc_is_refused(files, tmp_path):
    lines = (files / "e.hepmc").read_text().split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("P 9 "))
    lines[at] = "P 9 -1 211 x y z"
    (tmp_path / "bad.hepmc").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"event 1 of {N} cannot be read as HepMC; mend or remove"):
        JetFile(str(tmp_path / "bad.hepmc")).check()
    (tmp_path / "text.hepmc").write_text("hello\n")
    with pytest.raises(UserError, match="not a HepMC file: HepMC::Version is not in its head"):
        JetFile(str(tmp_path / "text.hepmc")).check()
    (tmp_path / "none.hepmc").write_text("\n".join(lines[:2]))
    with pytest.raises(UserError, match="holds no event that can be read"):
        JetFile(str(tmp_path / "none.hepmc")).check()
    with pytest.raises(
        UserError, match="read as hepmc3, and collection is for nanoaod, pfnano, phys"
    ):
        JetFile(str(files / "e.hepmc"), collection="Jet").check()
    with pytest.raises(UserError, match="no columns to name"):
        JetFile(str(files / "e.hepmc"), columns={"caption": "label"}).check()
    with pytest.raises(UserError, match="radius is 2; it must be at most pi / 2"):
        JetFile(str(files / "e.hepmc"), radius=2).check()


def test_a_run_on_other_events_reads_them(files):
    """What a run's source says of collections is not said of HepMC's files."""
    source = JetFile("cms.root", collection="FatJet", min_pt_gev=30, puppi="off")
    assert source.reading("jets", files / "e.hepmc") == {"min_pt_gev": 30}


def test_long_suffixes(tmp_path):
    assert suffix_of(tmp_path / "a.b.HepMC3.gz") == ".hepmc3.gz"
    assert suffix_of(tmp_path / "DAOD.pool.root.1") == ".root.1"
    assert suffix_of(tmp_path / "a.root") == ".root"
