"""NanoAOD and PFNano: rebuilt jets are those that the file states, with PUPPI's weights where the
jets were made with them; collections, cuts and captions.
"""

import shutil
import warnings

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.jet_formats import layout_of, open_jets
from mmtok.sources.jet_nanoaod import NanoJets
from mmtok.sources.jet_reader import ReadSettings
from mmtok.sources.jets import JetFile, read_jets


@pytest.fixture(scope="session")
def files(collider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cms")
    collider.write_pfnano(folder / "pfnano.root", collider.events)
    collider.write_nanoaod(folder / "nano.root", collider.events)
    return folder


def stated(collider, is_puppi=True):
    """Stated pt, eta, phi, mass of all jets, before jet energy corrections."""
    rows = [e.sums(None if is_puppi else np.ones_like(e.weight)) for e in collider.events]
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.parametrize(
    "name, collection, puppi",
    [("pfnano.root", "FatJet", True), ("pfnano.root", "Jet", False), ("nano.root", "", True)],
)
def test_jets_are_those_that_the_file_states(collider, files, rebuilt, name, collection, puppi):
    reader = open_jets(files / name, settings=ReadSettings(collection=collection))
    truth = stated(collider, puppi)
    pt, mass = rebuilt(reader, truth["eta"])
    np.testing.assert_allclose(pt, truth["pt"], rtol=1e-3)
    np.testing.assert_allclose(mass, truth["mass"], rtol=1e-3, atol=0.01)
    assert "rawFactor" in reader.note
    weights = {"nano.root": "weights are in PFCand_pt", "pfnano.root": "weights applied"}
    assert (weights[name] if puppi else "weights not applied") in reader.note


def test_weights_are_a_switch(collider, files, rebuilt):
    settings = ReadSettings(collection="FatJet", puppi="off")
    reader = open_jets(files / "pfnano.root", settings=settings)
    pt, _ = rebuilt(reader, stated(collider)["eta"])
    np.testing.assert_allclose(pt, stated(collider, False)["pt"], rtol=1e-3)
    assert "which they are not" in reader.note
    on = open_jets(files / "pfnano.root", settings=ReadSettings(collection="Jet", puppi="on"))
    pt, _ = rebuilt(on, stated(collider)["eta"])
    np.testing.assert_allclose(pt, stated(collider)["pt"], rtol=1e-3)
    with pytest.raises(UserError, match="no PFCand_puppiWeight; leave puppi out"):
        open_jets(files / "nano.root", settings=ReadSettings(puppi="on"))
    with pytest.raises(UserError, match="puppi is 'yes'; it is on, off or nothing"):
        JetFile(puppi="yes")


def test_constituents_that_are_not_those_of_the_jets_are_refused(files, tmp_path, monkeypatch):
    """Unless the user says which weights are right."""
    path = shutil.copy(files / "pfnano.root", tmp_path / "off.root")
    stated = NanoJets.reference
    monkeypatch.setattr(
        NanoJets, "reference", lambda self, jets: [2 * x for x in stated(self, jets)]
    )
    said = "jets: their sums are off by pt 1.* %, mass 1.* %; are some .* --puppi on or --puppi off"
    with pytest.raises(UserError, match=said):
        open_jets(path, settings=ReadSettings(collection="FatJet"))
    reader = open_jets(path, settings=ReadSettings(collection="FatJet", puppi="on"))
    assert "which they are not" in reader.note


def test_constituents_are_those_of_the_jet(collider, files):
    event = collider.events[0]
    jet = event.jets[0][event.weight[event.jets[0]] > 0]
    weighted = (event.weight * event.polar["pt"])[jet]
    jet = jet[np.argsort(-weighted)]
    features = ("pt_gev", "eta_rel", "phi_rel", "charge", "pdg_id", "d0", "puppi_weight")
    settings = ReadSettings(collection="FatJet")
    reader = open_jets(files / "pfnano.root", features, settings)
    values, offsets = reader.read(0, 1, features)
    axis = event.sums()
    phi = event.polar["phi"][jet] - axis["phi"][0]
    columns = (
        np.sort(weighted)[::-1],
        event.polar["eta"][jet] - axis["eta"][0],
        np.mod(phi + np.pi, 2 * np.pi) - np.pi,
        np.sign(event.pdg_id[jet]) * (event.pdg_id[jet] != 22),
        event.pdg_id[jet],
        np.full(len(jet), 0.01),
        event.weight[jet],
    )
    assert offsets.tolist() == [0, len(jet)]
    np.testing.assert_allclose(values, np.stack(columns, 1), rtol=1e-4, atol=1e-5)


def test_the_charge_is_that_of_the_code(collider, files):
    features = ("pt_gev", "charge", "pdg_id")
    reader = open_jets(files / "nano.root", features)
    charge, code = reader.read(0, reader.n_jets, features)[0][:, 1:].T
    assert set(charge[code == 211]) == {1} and set(charge[code == -211]) == {-1}
    assert set(charge[code == 22]) == {0}


def test_any_stretch_is_the_same_part_of_all(collider, files, monkeypatch):
    settings = ReadSettings(collection="FatJet", min_pt_gev=45)
    reader = open_jets(files / "pfnano.root", settings=settings)
    every, offsets = reader.read(0, reader.n_jets, reader.features)
    monkeypatch.setattr("mmtok.sources.jet_events.EVENTS", 7)
    monkeypatch.setattr("mmtok.sources.jet_events.BLOCK_BYTES", 1)  # many blocks
    reader = open_jets(files / "pfnano.root", settings=settings)
    assert reader.n_block == 7
    for start, stop in ((0, 1), (3, 40), (reader.n_jets - 2, reader.n_jets), (5, 5)):
        values, at = reader.read(start, stop, reader.features)
        np.testing.assert_array_equal(values, every[offsets[start] : offsets[stop]])
        np.testing.assert_array_equal(at, offsets[start : stop + 1] - offsets[start])


def test_cuts_are_counted(collider, files):
    truth = stated(collider)
    pt = truth["pt"] / (1 - collider.CORRECTION)
    is_low = pt < 60
    is_far = ~is_low & (np.abs(truth["eta"]) > 1.5)
    source = JetFile(
        str(files / "pfnano.root"), collection="FatJet", min_pt_gev=60, max_abs_eta=1.5
    )
    with pytest.warns(UserWarning) as said:
        n = sum(len(list(source.examples(split))) for split in source.splits)
    lines = " ".join(str(w.message) for w in said)
    assert n == np.sum(~is_low & ~is_far)
    assert f"{is_low.sum():,} of {len(pt):,} jets were left out: FatJet_pt below 60 GeV" in lines
    assert f"{is_far.sum():,} of {len(pt):,} jets were left out: |FatJet_eta| above 1.5" in lines
    with pytest.raises(UserError, match=r"holds no jets \(\d+ left out: FatJet_pt below 9000 GeV"):
        JetFile(str(files / "nano.root"), min_pt_gev=9000).check()


def test_captions_are_a_column_of_the_jets(collider, files):
    source = JetFile(
        str(files / "nano.root"),
        columns={"caption": "hadronFlavour"},
        features=("pt_gev", "eta_rel", "phi_rel", "mass_gev"),
    )
    assert source.fields == {"caption": "text", "jets": "jets"}
    examples = list(source.examples("train"))
    assert {e["caption"] for e in examples} == {"0", "5"}
    assert examples[0]["jets"].shape[1] == 4
    with pytest.raises(UserError, match="no column 'hadronFlavor'; nearest: .*hadronFlavour"):
        JetFile(str(files / "nano.root"), columns={"caption": "hadronFlavor"}).check()


def test_a_collection_must_be_named_where_there_are_several(collider, files):
    path = files / "pfnano.root"
    with pytest.raises(UserError, match="jets of Jet, FatJet; name one: --collection Jet or"):
        JetFile(str(path)).check()
    with pytest.raises(UserError, match="no jets 'AK8' with constituents.* one of Jet, FatJet"):
        JetFile(str(path), collection="AK8").check()
    assert layout_of(path).name == "pfnano"
    assert layout_of(files / "nano.root").name == "nanoaod"


def test_nanoaod_without_constituents_is_refused(collider, tmp_path):
    tables = collider.nano_tables(
        collider.events[:3], ("FatJet",), "{}PFCand", "PFCand", "pfCandIdx", weights=False
    )
    del tables["FatJetPFCand"], tables["PFCand"]
    collider.write_trees(tmp_path / "n.root", {"Events": tables})
    with pytest.raises(UserError, match="no constituents of jets: NanoAOD .* v15 .* it has FatJet"):
        JetFile(str(tmp_path / "n.root")).check()


@pytest.mark.parametrize("table, index", [("JetPFCandsAK8", "candIdx"), ("FatJetPFCands", "")])
def test_pfnano_of_earlier_years(collider, tmp_path, rebuilt, table, index):
    """Of 106X in 2020, and of 102X, whose tables hold the candidates themselves."""
    tables = collider.nano_tables(
        collider.events, ("FatJet",), table, "JetPFCands", "candIdx", weights=True
    )
    if not index:
        links = tables.pop(table)
        candidates = tables.pop("JetPFCands")
        for name in candidates.fields:
            links[name] = candidates[name][links["candIdx"]]
        tables[table] = links[[name for name in links.fields if name != "candIdx"]]
    collider.write_trees(tmp_path / "n.root", {"Events": tables})
    reader = open_jets(tmp_path / "n.root")
    truth = stated(collider)
    np.testing.assert_allclose(rebuilt(reader, truth["eta"])[0], truth["pt"], rtol=1e-3)


def test_links_to_what_is_not_there_are_refused(collider, tmp_path):
    tables = collider.nano_tables(
        collider.events[:9], ("FatJet",), "{}PFCand", "PFCand", "pfCandIdx", weights=False
    )
    tables["FatJetPFCand"]["pfCandIdx"] = tables["FatJetPFCand"]["pfCandIdx"] + 200
    collider.write_trees(tmp_path / "n.root", {"Events": tables})
    with pytest.raises(UserError, match=r"FatJetPFCand_pfCandIdx of event 0 is \d+, and there are"):
        JetFile(str(tmp_path / "n.root")).check()


def test_jets_without_constituents_are_left_out(collider, tmp_path):
    """As of NanoAOD beyond |eta| of 2.5."""
    tables = collider.nano_tables(
        collider.events, ("FatJet",), "{}PFCand", "PFCand", "pfCandIdx", weights=False
    )
    links = tables["FatJetPFCand"]
    tables["FatJetPFCand"] = links[links["jetIdx"] != 0]
    collider.write_trees(tmp_path / "n.root", {"Events": tables})
    n_first = sum(len(event.jets) > 0 for event in collider.events)
    with pytest.warns(UserWarning, match=f"{n_first} left out: no constituents in the file"):
        jets = read_jets(tmp_path / "n.root")
    assert len(jets) == sum(len(event.jets) for event in collider.events) - n_first


def test_no_events_and_several_files(collider, files, tmp_path):
    collider.write_nanoaod(tmp_path / "a.root", collider.events[:20])
    collider.write_nanoaod(tmp_path / "b.root", collider.events[20:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = list(JetFile(str(tmp_path)).examples("train"))
        alone = list(JetFile(str(files / "nano.root")).examples("train"))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one["jets"], other["jets"])
    tables = collider.nano_tables(
        collider.events[:1], ("FatJet",), "{}PFCand", "PFCand", "pfCandIdx", weights=False
    )
    none = {name: table[:0] for name, table in tables.items()}
    collider.write_trees(tmp_path / "none.root", {"Events": none, "Runs": {"run": np.ones(1)}})
    with pytest.raises(UserError, match="none.root: holds no jets"):
        JetFile(str(tmp_path / "none.root")).check()


def test_settings_of_events_are_refused_elsewhere(tmp_path):
    np.savez(tmp_path / "j.npz", values=np.ones((3, 3), np.float32), offsets=[0, 2, 3])
    with pytest.raises(
        UserError, match="read as plain, and collection, min_pt_gev is for nanoaod,"
    ):
        JetFile(str(tmp_path / "j.npz"), collection="Jet", min_pt_gev=5).check()
