"""Published sets of jets, written here as they are published, come back with their values."""

import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtok.errors import UserError
from mmtok.sources.jet_formats import layout_of
from mmtok.sources.jet_reader import ReadSettings
from mmtok.sources.jets import JetFile, read_jets

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(0)


def four_momenta(n=6, p=9, pad=3, seed=0):
    """(n, p, 4) E, px, py, pz of massless constituents near (eta 0.5, phi 3), the last ones 0."""
    rng = np.random.default_rng(seed)
    pt = np.sort(rng.uniform(1, 100, (n, p)), 1)[:, ::-1]
    eta = 0.5 + rng.normal(0, 0.2, (n, p))
    phi = 3 + rng.normal(0, 0.2, (n, p))  # beyond pi now and then
    momenta = np.stack(
        [pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], 2
    )
    momenta[:, p - pad :] = 0
    return momenta.astype(np.float32)


def check_jets(jets, momenta):
    """Each jet has the pt, and the mass and the sum of its four-momenta."""
    for jet, rows in zip(jets, momenta.astype(np.float64), strict=True):
        rows = rows[rows[:, 0] > 0]
        order = np.argsort(-np.hypot(rows[:, 1], rows[:, 2]), kind="stable")
        energy, px, py, pz = rows[order].T
        np.testing.assert_allclose(jet[:, 0], np.hypot(px, py), rtol=1e-5)
        total = rows.sum(0)
        y = np.arctanh(total[3] / total[0])
        phi = np.arctan2(total[2], total[1])
        np.testing.assert_allclose(jet[:, 1], np.arctanh(pz / energy) - y, atol=1e-4)
        difference = np.arctan2(py, px) - phi
        wrapped = (difference + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_allclose(jet[:, 2], wrapped, atol=1e-5)


# ---- JetNet

PARTICLES = {"etarel": 0.1, "phirel": -0.2, "ptrel": 0.6, "mask": 1.0}


def jetnet(path, parts=tuple(PARTICLES), jets=("pt", "eta", "mass", "num_particles"), attrs=""):
    """Two jets: one of two particles, one of one, of three places."""
    first = [PARTICLES[name] for name in parts]
    second = [{**PARTICLES, "etarel": 0.3, "ptrel": 0.4}[name] for name in parts]
    particles = np.zeros((2, 3, len(parts)), np.float32)
    particles[0, :2] = [first, second]
    particles[1, 0] = first
    values = {"pt": 1000.0, "eta": 0.3, "mass": 80.0, "num_particles": 2, "type": 1}
    with h5py.File(path, "w") as file:
        file["particle_features"] = particles
        file["jet_features"] = np.array([[values[name] for name in jets]] * 2, np.float32)
        if attrs:
            file["particle_features"].attrs[attrs] = list(parts)
            file["jet_features"].attrs[attrs] = list(jets)
    return path


EXPECTED = [[[600, 0.1, -0.2], [400, 0.3, -0.2]], [[600, 0.1, -0.2]]]


@pytest.mark.parametrize(
    "parts, jets, attrs",
    [
        (("etarel", "phirel", "ptrel", "mask"), ("pt", "eta", "mass", "num_particles"), ""),
        (("etarel", "phirel", "ptrel"), ("pt", "eta", "mass", "num_particles"), ""),
        (("ptrel", "etarel", "phirel", "mask"), ("mass", "pt"), "columns"),
        (("mask", "phirel", "etarel", "ptrel"), ("pt",), "names"),
        (
            ("etarel", "phirel", "ptrel", "mask"),
            ("type", "pt", "eta", "mass", "num_particles"),
            "",
        ),
    ],
)
def test_jetnet_in_every_order_of_columns(tmp_path, parts, jets, attrs):
    found = read_jets(jetnet(tmp_path / "t150.hdf5", parts, jets, attrs))
    for jet, expected in zip(found, EXPECTED, strict=True):
        np.testing.assert_allclose(jet, expected, rtol=1e-6)


def test_jetnet_by_the_users_numbers_and_by_its_type(tmp_path):
    path = jetnet(tmp_path / "t.hdf5", ("ptrel", "etarel", "phirel", "mask"))
    settings = ReadSettings({"ptrel": "0", "deta": "1", "dphi": "2", "mask": "3"})
    for jet, expected in zip(read_jets(path, settings=settings, layout="jetnet"), EXPECTED):
        np.testing.assert_allclose(jet, expected, rtol=1e-6)
    source = JetFile(str(jetnet(tmp_path / "t.hdf5")), columns={"caption": "type"})
    assert [e["caption"] for s in source.splits for e in source.examples(s)] == ["top", "top"]
    with pytest.raises(UserError, match="JetNet has caption=type, from files called"):
        JetFile(str(jetnet(tmp_path / "mine.hdf5")), columns={"caption": "type"}).check()
    settings = ReadSettings({"ptrel": "7"})
    with pytest.raises(UserError, match="no column '7'.*number one, from 0, of etarel"):
        read_jets(path, settings=settings, layout="jetnet")


def real_jetnet(path, parts=(0, 1, 2, 3), jets=(0, 1, 2, 3)):
    """20 jets of 5 to 30 particles whose stated mass is that of the particles; columns in an order
    that nothing names.
    """
    rng = np.random.default_rng(0)
    particles = np.zeros((20, 30, 4), np.float32)
    stated = np.zeros((20, 4), np.float32)
    for jet, row in zip(particles, stated):
        n = rng.integers(5, 31)
        share = np.sort(rng.dirichlet(np.ones(n)))[::-1]
        eta, phi = rng.normal(0, 0.2, (2, n))
        jet[:n] = np.stack([eta, phi, share, np.ones(n)], 1)
        directions = np.stack([np.cosh(eta), np.cos(phi), np.sin(phi), np.sinh(eta)])
        energy, *momentum = directions @ share
        mass = np.sqrt(energy**2 - np.square(momentum).sum())
        row[:] = 900, rng.normal(), 900 * mass, n
    with h5py.File(path, "w") as file:
        file["particle_features"] = particles[..., list(parts)]
        file["jet_features"] = stated[:, list(jets)]
    return path


def edited(path, edit):
    """A file of JetNet's whose particles (N, P, 4) are changed."""
    with h5py.File(path, "r+") as file:
        particles = file["particle_features"][...]
        edit(particles, file["jet_features"][...])
        file["particle_features"][...] = particles
    return path


@pytest.mark.parametrize("low, high", [(-0.5, 0.5), (0, 2), (0.25, 0.75)])
def test_a_mask_is_of_any_two_values(tmp_path, low, high):
    def shift(particles, jets):
        particles[..., 3] = np.where(particles[..., 3] > 0, high, low)

    published = read_jets(real_jetnet(tmp_path / "t.hdf5"))
    for jet, other in zip(published, read_jets(edited(tmp_path / "t.hdf5", shift)), strict=True):
        np.testing.assert_array_equal(jet, other)


def settings_of(line):
    """The layout and settings that a message advises."""
    layout, columns = line.rpartition("--layout ")[2].split(" --columns ")
    return {
        "settings": ReadSettings(dict(pair.split("=") for pair in columns.split(","))),
        "layout": layout,
    }


def test_the_advice_on_unnamed_columns_works(tmp_path):
    """Of absolute pt, and of columns without a mask, whose padding has no pt."""

    def absolute(particles, jets):
        particles[..., 2] *= jets[:, :1]

    def unmask(particles, jets):
        particles[..., 3] = np.arange(particles[..., 3].size).reshape(particles.shape[:2])

    published = read_jets(real_jetnet(tmp_path / "t.hdf5"))
    for name, edit in (("absolute", absolute), ("unmasked", unmask)):
        path = edited(real_jetnet(tmp_path / f"{name}.hdf5"), edit)
        with pytest.raises(UserError) as error:
            read_jets(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_jets(path, **settings_of(str(error.value)))
        for jet, other in zip(published, found, strict=True):
            np.testing.assert_allclose(jet, other, rtol=1e-5, atol=1e-6)


def test_columns_that_nothing_names_are_as_published_or_refused(tmp_path):
    jets = read_jets(real_jetnet(tmp_path / "t.hdf5"))
    assert all(jet[:, 0].sum() == pytest.approx(900, rel=1e-5) for jet in jets)
    with pytest.raises(UserError) as error:  # eta, phi, mask, share
        read_jets(real_jetnet(tmp_path / "mask.hdf5", (0, 1, 3, 2)))
    assert "shares of pt, which sum to 1 a jet, are in column 3, a mask in column 2" in str(
        error.value
    )
    assert str(error.value).endswith("--layout jetnet --columns ptrel=3,mask=2,deta=0,dphi=1")
    numbers = {"ptrel": "3", "mask": "2", "deta": "0", "dphi": "1"}
    again = read_jets(tmp_path / "mask.hdf5", settings=ReadSettings(numbers), layout="jetnet")
    for jet, other in zip(jets, again, strict=True):
        np.testing.assert_array_equal(jet, other)
    with pytest.raises(
        UserError, match="column 0 is not the pt, as published; .*--columns jet_pt=2"
    ):
        read_jets(real_jetnet(tmp_path / "mass.hdf5", jets=(2, 1, 0, 3)))
    again = read_jets(tmp_path / "mass.hdf5", settings=ReadSettings({"jet_pt": "2"}))
    np.testing.assert_array_equal(jets[0], again[0])


def test_the_pt_of_jetnets_jets_by_the_users_number(tmp_path):
    path = jetnet(tmp_path / "t.hdf5", jets=("mass", "pt"))  # nothing names them
    found = read_jets(path, settings=ReadSettings({"jet_pt": "1"}))
    for jet, expected in zip(found, EXPECTED, strict=True):
        np.testing.assert_allclose(jet, expected, rtol=1e-6)
    with pytest.raises(UserError, match="no column '2' of jet_features; name or number one"):
        read_jets(path, settings=ReadSettings({"jet_pt": "2"}))
    with pytest.raises(UserError, match="leave jet_eta out of columns"):
        read_jets(path, settings=ReadSettings({"jet_eta": "2"}))


# ---- top tagging


def top_table(path, momenta, labels, kind="table", **packed):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    n, p, _ = momenta.shape
    names = [f"{q}_{i}" for i in range(p) for q in ("E", "PX", "PY", "PZ")]
    names += ["truthE", "truthPX", "truthPY", "truthPZ"]
    values = np.concatenate([momenta.reshape(n, -1), np.zeros((n, 4), np.float32)], 1)
    frame = pd.DataFrame(values, columns=names)
    frame["ttv"] = 1
    frame["is_signal_new"] = labels
    frame.to_hdf(path, key="table", format=kind, **packed)
    return path


@pytest.mark.parametrize("kind", ["table", "fixed"])
def test_top_tagging(tmp_path, kind):
    momenta = four_momenta()
    path = top_table(tmp_path / "train.h5", momenta, [0, 1, 0, 1, 1, 1], kind)
    with pytest.warns(UserWarning, match="E, PX, PY, PZ in GeV"):
        check_jets(read_jets(path), momenta)
    source = JetFile(str(path), heldout_share=0.5)
    assert source.fields == {"caption": "text", "jets": "jets"}
    with pytest.warns(UserWarning, match="train.h5: read as toptagging: .*padding: E 0"):
        examples = [e for split in source.splits for e in source.examples(split)]
    examples.sort(key=lambda example: int(example.name.split()[-1]))
    assert [e["caption"] for e in examples] == ["qcd", "top", "qcd", "top", "top", "top"]
    check_jets([e["jets"] for e in examples], momenta)


@pytest.mark.parametrize("by_tables", [False, True])
def test_top_tagging_packed_by_blosc(tmp_path, monkeypatch, by_tables):
    """As it is published; hdf5plugin unpacks it, else PyTables."""
    if not by_tables:
        pytest.importorskip("hdf5plugin")
    else:
        monkeypatch.setattr("mmtok.sources.jet_columns._lacks_filter", lambda table: True)
    momenta = four_momenta(40)
    path = top_table(tmp_path / "val.h5", momenta, [1] * 40, complib="blosc", complevel=5)
    check_jets(read_jets(path), momenta)


def test_blosc_without_what_unpacks_it_names_the_extra(tmp_path, monkeypatch):
    path = top_table(tmp_path / "val.h5", four_momenta(), [1] * 6, complib="blosc", complevel=5)
    monkeypatch.setattr("mmtok.sources.jet_columns._lacks_filter", lambda table: True)
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(UserError, match=r"table/table is packed by blosc.*mmtok\[hep\]"):
        read_jets(path)


def test_a_pandas_table_of_other_columns(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    frame = pd.DataFrame({"E_0": [1.0], "PX_0": [1.0], "is_signal_new": [1.0]})
    frame.to_hdf(tmp_path / "t.h5", key="table", format="table")
    with pytest.raises(UserError, match="its table lacks PY_0, PZ_0; it has E_0, PX_0"):
        read_jets(tmp_path / "t.h5")


# ---- JetClass

CLASSES = ("QCD", "Hbb", "Tbqq")


def jetclass_columns(momenta):
    """The columns of a JetClass file, as lists of arrays, and each jet's class."""
    lists = {name: [] for name in ("px", "py", "pz", "energy", "deta", "dphi", "charge", "d0val")}
    axes = []
    for rows in momenta.astype(np.float64):
        rows = rows[rows[:, 0] > 0]
        energy, px, py, pz = rows.T
        total = rows.sum(0)
        eta = np.arcsinh(total[3] / np.hypot(total[1], total[2]))
        phi = np.arctan2(total[2], total[1])
        axes.append((np.hypot(total[1], total[2]), eta, phi))
        dphi = (np.arctan2(py, px) - phi + np.pi) % (2 * np.pi) - np.pi
        deta = np.arcsinh(pz / np.hypot(px, py)) - eta
        charge = np.sign(px - px.mean())
        for name, value in zip(lists, (px, py, pz, energy, deta, dphi, charge, deta / 9)):
            lists[name].append(value.astype(np.float32))
    numbers = np.arange(len(momenta)) % len(CLASSES)
    flat = {f"label_{name}": (numbers == k).astype(np.int32) for k, name in enumerate(CLASSES)}
    flat |= dict(zip(("jet_pt", "jet_eta", "jet_phi"), np.array(axes, np.float32).T.copy()))
    return {f"part_{name}": value for name, value in lists.items()}, flat, numbers


def write_jetclass(path, momenta):
    ak = pytest.importorskip("awkward")
    lists, flat, numbers = jetclass_columns(momenta)
    if path.suffix == ".root":
        uproot = pytest.importorskip("uproot")
        with uproot.recreate(path) as file:
            # a TTree with a counter of the particles, as the published files have
            jets = {name: ak.Array(value) for name, value in lists.items()}
            types = {name: "var * float32" for name in jets}
            types |= {name: str(value.dtype) for name, value in flat.items()}
            file.mktree("tree", types, counter_name=lambda counted: "jet_nparticles")
            file["tree"].extend({**jets, **flat})
    else:
        ak.to_parquet(ak.Array({**lists, **flat}), path)
    return lists, numbers


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_jetclass(tmp_path, suffix):
    momenta = four_momenta(30)
    path = tmp_path / f"ZJetsToNuNu_000{suffix}"
    lists, numbers = write_jetclass(path, momenta)
    features = ("pt_gev", "eta_rel", "phi_rel", "charge", "d0")
    with pytest.warns(UserWarning, match="part_px and part_py in GeV .as published."):
        jets = read_jets(path, features)
    for k, jet in enumerate(jets):
        pt = np.hypot(lists["part_px"][k], lists["part_py"][k])
        order = np.argsort(-pt, kind="stable")
        np.testing.assert_allclose(jet[:, 0], pt[order], rtol=1e-6)
        for column, name in ((1, "deta"), (2, "dphi"), (3, "charge"), (4, "d0val")):
            np.testing.assert_array_equal(jet[:, column], lists[f"part_{name}"][k][order])
    source = JetFile(str(path))
    found = {e.name: e["caption"] for s in source.splits for e in source.examples(s)}
    assert found == {f"{path}: jet {i}": CLASSES[k] for i, k in enumerate(numbers)}


def test_kinds_of_particles_are_those_of_flags_or_of_codes(tmp_path):
    ak = pytest.importorskip("awkward")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    write_jetclass(path, four_momenta(4))
    jets = ak.from_parquet(path)
    kinds = ak.local_index(jets["part_px"]) % 5
    flags = ("isPhoton", "isNeutralHadron", "isChargedHadron", "isElectron", "isMuon")
    for k, flag in enumerate(flags):
        jets[f"part_{flag}"] = ak.values_astype(kinds == k, "float32")
    ak.to_parquet(jets, path)
    codes = np.array([22, 130, -211, 11, -13])
    charge = np.array([0, 0, -1, -1, 1])
    with pytest.warns(UserWarning, match="as published"):
        flagged = read_jets(path, ("pt_gev", "particle_id"))
    assert sorted(np.concatenate(flagged)[:, 1].tolist()) == sorted(ak.flatten(kinds).tolist())
    table = pq.read_table(path)
    table = table.drop_columns([f"part_{flag}" for flag in flags] + ["part_charge"])
    jets = ak.from_arrow(table)
    flat = ak.to_numpy(ak.flatten(kinds))
    jets["part_pdgid"] = ak.unflatten(codes[flat], ak.num(kinds))
    jets["part_charge"] = ak.unflatten(charge[flat], ak.num(kinds))
    ak.to_parquet(jets, path)
    with pytest.warns(UserWarning, match="as published"):
        coded = read_jets(path, ("pt_gev", "particle_id"))
    for a, b in zip(flagged, coded, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_column_of_jetclass_is_the_caption(tmp_path):
    path = tmp_path / "a.parquet"
    _, numbers = write_jetclass(path, four_momenta(4))
    source = JetFile(str(path), columns={"caption": "label_Hbb"})
    found = {e.name[-1]: e["caption"] for s in source.splits for e in source.examples(s)}
    assert [found[str(k)] for k in range(4)] == [str(int(n == 1)) for n in numbers]


def test_jetclass_without_labels_or_without_a_class(tmp_path):
    ak = pytest.importorskip("awkward")
    lists, flat, _ = jetclass_columns(four_momenta(4))
    path = tmp_path / "a.parquet"
    ak.to_parquet(ak.Array(lists), path)
    with pytest.raises(UserError, match="a.parquet: not JetClass: it has no label_ columns"):
        read_jets(path, layout="jetclass")
    assert layout_of(path).name == "columns"
    flat["label_QCD"] = np.zeros(4, np.int32)
    ak.to_parquet(ak.Array({**lists, **flat}), path)
    with pytest.raises(UserError, match="jet 0 has no caption; likewise jet 3: 2 of 4"):
        JetFile(str(path)).check()


# ---- ATLAS top tagging


def test_atlas_top_tagging_is_in_mev(tmp_path):
    momenta = four_momenta()
    energy, px, py, pz = np.moveaxis(momenta.astype(np.float64), 2, 0)
    pt = np.hypot(px, py)
    total = momenta.astype(np.float64).sum(1)
    jet_pt = np.hypot(total[:, 1], total[:, 2])
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["fjet_clus_pt"] = 1000 * pt
        file["fjet_clus_eta"] = np.where(pt > 0, np.arcsinh(pz / np.where(pt > 0, pt, 1)), 0)
        file["fjet_clus_phi"] = np.arctan2(py, px)
        file["fjet_clus_E"] = 1000 * energy
        file["fjet_pt"] = 1000 * jet_pt
        file["fjet_eta"] = np.arctanh(total[:, 3] / total[:, 0])
        file["fjet_phi"] = np.arctan2(total[:, 2], total[:, 1])
        file["labels"] = np.array([1, 0, 1, 0, 0, 0])
        file["weights"] = np.ones(6)
    with pytest.warns(UserWarning, match="fjet_clus_pt in MeV .as published., eta from .*axis: fj"):
        check_jets(read_jets(tmp_path / "train.h5"), momenta)
    source = JetFile(str(tmp_path / "train.h5"))
    found = {e.name[-1]: e["caption"] for s in source.splits for e in source.examples(s)}
    assert [found[str(i)] for i in range(6)] == ["top", "qcd", "top", "qcd", "qcd", "qcd"]


def test_columns_that_are_named_leave_no_captions_promised(tmp_path):
    """The layout that reads the file decides, not the one that it would have without them."""
    path = tmp_path / "ZJetsToNuNu_000.parquet"
    write_jetclass(path, four_momenta(30))
    columns = {"pt": "part_pt", "eta": "part_deta", "phi": "part_dphi"}
    table = pq.read_table(path)
    pts = [
        list(np.hypot(*row))
        for row in zip(*(map(np.array, table[c].to_pylist()) for c in ("part_px", "part_py")))
    ]
    pq.write_table(table.append_column("part_pt", pa.array(pts)), path)
    source = JetFile(str(path), columns=columns)
    assert source.fields == {"jets": "jets"}
    assert all(set(e) == {"jets"} for e in source.examples("train"))
