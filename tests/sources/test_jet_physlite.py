"""PHYSLITE and other DAOD: rebuilt jets are those that the file states before calibration, whatever
containers their links lead to.
"""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.jet_formats import layout_of, open_jets
from mmtok.sources.jet_physlite import Variables
from mmtok.sources.jet_reader import ReadSettings
from mmtok.sources.jets import JetFile


@pytest.fixture(scope="session")
def files(collider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    collider.write_daod(folder / "tree.root", collider.events)
    collider.write_daod(folder / "DAOD.pool.root.1", collider.events, "AnalysisJets", ":")
    return folder


def stated(collider):
    rows = [event.sums() for event in collider.events]
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


def columns_of(path, *containers):
    """The columns of some containers, to be written into another file."""
    import uproot

    tree = uproot.open(path)["CollectionTree"]
    keys = list(tree.keys())  # noqa: SIM118 (iterating a tree gives no names)
    names = [name for name in keys if name.startswith(containers) and ".m_pers" not in name]
    return tree.arrays(names, how=dict)


@pytest.mark.parametrize("name", ["tree.root", "DAOD.pool.root.1"])
def test_jets_are_those_that_the_file_states(collider, files, rebuilt, name):
    reader = open_jets(files / name)
    truth = stated(collider)
    pt, mass = rebuilt(reader, truth["eta"])
    np.testing.assert_allclose(pt, truth["pt"], rtol=1e-3)  # in GeV
    np.testing.assert_allclose(mass, truth["mass"], rtol=1e-3, atol=0.01)
    for words in (
        "GlobalNeutralParticleFlowObjects.pt and GlobalCharged",
        "in MeV (as ATLAS has it)",
        "constituentWeights applied",
        "JetConstitScaleMomentum_pt within pt 0.001 %",
    ):
        assert words in reader.note
    assert layout_of(files / name).name == "physlite"


def test_features_of_both_containers(collider, files):
    features = ("pt_gev", "charge")
    reader = open_jets(files / "tree.root", features)
    charge = reader.read(0, reader.n_jets, features)[0][:, 1]
    event = collider.events[0]
    jet = event.jets[0][event.weight[event.jets[0]] > 0]
    n_charged = np.sum(~np.isin(event.pdg_id[jet], (22, 130, 2112, -2112)))
    assert charge[: len(jet)].sum() == n_charged
    assert set(charge) == {0, 1}


def test_containers_may_be_named(collider, files):
    both = "GlobalNeutralParticleFlowObjects+GlobalChargedParticleFlowObjects"
    named = JetFile(str(files / "tree.root"), columns={"constituents": both})
    found = JetFile(str(files / "tree.root"))
    for one, other in zip(named.examples("train"), found.examples("train"), strict=True):
        np.testing.assert_array_equal(one["jets"], other["jets"])
    with pytest.raises(UserError, match="no column 'UFOCSSK'; nearest: "):
        JetFile(str(files / "tree.root"), columns={"constituents": "UFOCSSK"}).check()


def test_a_container_that_does_not_fit_is_refused(collider, tmp_path):
    """Where the right one is thinned away, another with enough entries is not taken for it."""
    import awkward as ak
    import uproot

    collider.write_daod(tmp_path / "all.root", collider.events)
    columns = columns_of(tmp_path / "all.root", "AnalysisLargeRJets", "CaloCal")
    with uproot.recreate(tmp_path / "thin.root") as file:
        file.mkrntuple("CollectionTree", columns)
    with pytest.raises(UserError, match="no containers? fit|of none of the containers") as error:
        JetFile(str(tmp_path / "thin.root")).check()
    assert "\n" not in str(error.value)
    few = [name for name in columns if "CaloCal" not in name]
    with uproot.recreate(tmp_path / "bare.root") as file:
        file.mkrntuple("CollectionTree", {name: columns[name] for name in few})
    with pytest.raises(UserError, match="are not in the file: no container has momenta and enough"):
        JetFile(str(tmp_path / "bare.root")).check()
    few = [name for name in few if "constituent" not in name]
    with uproot.recreate(tmp_path / "links.root") as file:
        file.mkrntuple("CollectionTree", {name: columns[name] for name in few})
    with pytest.raises(UserError, match="no jets with constituentLinks: PHYSLITE keeps them for"):
        JetFile(str(tmp_path / "links.root")).check()
    assert ak.num(columns["AnalysisLargeRJetsAuxDyn.pt"], axis=0) == len(collider.events)


def test_clusters_and_truth_have_momenta_of_their_own_kinds(collider, tmp_path, rebuilt):
    """Calibrated energies of clusters, and px, py, pz, e of truth, give the same jets."""
    import awkward as ak
    import uproot

    parts = {
        "calE": lambda e: 1e3 * e.energy,
        "calEta": lambda e: e.polar["eta"],
        "calPhi": lambda e: e.polar["phi"],
        "calM": lambda e: 1e3 * e.polar["mass"],
        "rawE": lambda e: 8e2 * e.energy,
        "rawEta": lambda e: e.polar["eta"],
        "rawPhi": lambda e: e.polar["phi"],
        "rawM": lambda e: 8e2 * e.polar["mass"],
    }
    momenta = {"px": "px", "py": "py", "pz": "pz", "e": "energy"}
    truth = {key: lambda e, name=name: 1e3 * getattr(e, name) for key, name in momenta.items()}
    for container, columns in (("CaloCalTopoClusters", parts), ("TruthParticles", truth)):
        collider.write_daod(tmp_path / "all.root", collider.events, "AntiKt4Jets", decoys=False)
        jets = columns_of(tmp_path / "all.root", "AntiKt4Jets")
        links = [
            [[{"m_persKey": 7, "m_persIndex": int(i)} for i in jet] for jet in event.jets]
            for event in collider.events
        ]
        jets["AntiKt4JetsAuxDyn.constituentLinks"] = ak.Array(links)
        for name, value in columns.items():
            rows = [value(event) for event in collider.events]
            jets[f"{container}AuxDyn.{name}"] = collider.lists(rows)
        path = tmp_path / f"{container}.root"
        with uproot.recreate(path) as file:
            file.mkrntuple("CollectionTree", jets)
        reader = open_jets(path)
        pt, mass = rebuilt(reader, stated(collider)["eta"])
        np.testing.assert_allclose(pt, stated(collider)["pt"], rtol=1e-3)
        np.testing.assert_allclose(mass, stated(collider)["mass"], rtol=2e-3, atol=0.05)
        assert f"into {container}." in reader.note and "raw" not in reader.note.split(" in MeV")[0]


def test_names_of_branches():
    """Of dynamic and static variables, of trees and RNTuples, and of links that are split."""
    found = Variables(
        (
            "AnalysisJetsAuxDyn.pt",
            "AntiKt10UFOCSSKJetsAux./AntiKt10UFOCSSKJetsAux.constituentLinks",
            "UFOAuxDyn:pt",
            "AnalysisJetsAuxDyn.btaggingLink/AnalysisJetsAuxDyn.btaggingLink.m_persKey",
            "index_ref",
        )
    )
    assert found.of("AnalysisJets") == {"pt": "AnalysisJetsAuxDyn.pt"}
    assert list(found.of("AntiKt10UFOCSSKJets")) == ["constituentLinks"]
    assert found.of("UFO") == {"pt": "UFOAuxDyn:pt"}


def test_the_unit_is_stated(collider, files):
    reader = open_jets(files / "tree.root", settings=ReadSettings(pt_unit="GeV"))
    right = open_jets(files / "tree.root")
    values, _ = reader.read(0, 3, ("pt_gev",))
    np.testing.assert_allclose(values, 1e3 * right.read(0, 3, ("pt_gev",))[0], rtol=1e-6)
    assert "in GeV (as named)" in reader.note
