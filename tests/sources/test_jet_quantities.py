"""Jets from columns of any names: what is named, what is found, what is said."""

import gzip
import json

import numpy as np
import pytest

from mmtok.commands.tokenize import tokenize_files
from mmtok.errors import UserError
from mmtok.sources.jet_formats import layout_of
from mmtok.sources.jet_reader import ReadSettings
from mmtok.sources.jets import JetFile, read_jets

JETS = [  # pt, eta, phi of constituents, by falling pt
    [[50.0, 0.5, 3.1], [20.0, 0.4, -3.1], [1.0, 0.7, 3.0]],
    [[30.0, -1.0, 0.2]],
]
AXES = [[71.0, 0.45, 3.13], [30.0, -0.9, 0.1]]


def columns_of(prefix="part_"):
    """Lists of pt, eta and phi, and the axes."""
    names = ("pt", "eta", "phi")
    lists = {f"{prefix}{n}": [[p[k] for p in jet] for jet in JETS] for k, n in enumerate(names)}
    return lists | {f"jet_{n}": [axis[k] for axis in AXES] for k, n in enumerate(names)}


def about(axes):
    """The jets about these axes."""
    made = []
    for jet, (_, eta, phi) in zip(JETS, axes):
        rows = np.array(jet) - [0, eta, phi]
        rows[:, 2] = (rows[:, 2] + np.pi) % (2 * np.pi) - np.pi
        made.append(rows)
    return made


def assert_close(found, expected):
    assert len(found) == len(expected)
    for jet, rows in zip(found, expected):
        np.testing.assert_allclose(jet, rows, rtol=1e-5, atol=1e-6)


def padded(lists, size=4, value=0.0):
    return np.array([[*row, *[value] * (size - len(row))] for row in lists])


def write(path, columns):
    """The columns as a file of that suffix."""
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".root":
        uproot = pytest.importorskip("uproot")
        ak = pytest.importorskip("awkward")
        with uproot.recreate(path) as file:
            file["Events"] = {name: ak.Array(column) for name, column in columns.items()}
    else:
        arrays = {
            name: padded(column) if isinstance(column[0], list) else np.array(column)
            for name, column in columns.items()
        }
        if path.suffix == ".npz":
            np.savez(path, **arrays)
        else:
            h5py = pytest.importorskip("h5py")
            with h5py.File(path, "w") as file:
                for name, array in arrays.items():
                    file[f"events/{name}"] = array
    return path


SUFFIXES = [".parquet", ".jsonl", ".root", ".npz", ".h5"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_known_names_of_columns(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", columns_of())
    assert layout_of(path).name == "columns"
    with pytest.warns(
        UserWarning, match="part_pt in GeV .assumed., eta from .*part_eta, axis: .*jet_eta"
    ):
        assert_close(read_jets(path), about(AXES))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_named_columns_and_the_sum_as_axis(tmp_path, suffix):
    columns = columns_of("mine_")
    columns = {n: c for n, c in columns.items() if not n.startswith("jet_")}
    columns["mine_q"] = [[1.0, -1.0, 0.0], [1.0]]
    path = write(tmp_path / f"a{suffix}", columns)
    named = {"pt": "mine_pt", "eta": "mine_eta", "phi": "Mine_Phi", "charge": "mine_q"}
    features = ("pt_gev", "eta_rel", "phi_rel", "charge")
    with pytest.warns(UserWarning, match="axis: the sum of the constituents"):
        first, second = read_jets(path, features, ReadSettings(named))
    np.testing.assert_allclose(second, [[30, 0, 0, 1]], atol=1e-6)
    pt, eta, phi, charge = first.astype(np.float64).T
    assert charge.tolist() == [1, -1, 0]
    assert abs(pt @ np.sin(phi)) < 1e-4 and abs(pt @ np.sinh(eta)) < 1e-4
    np.testing.assert_allclose(np.diff(eta), np.diff([0.5, 0.4, 0.7]), atol=1e-6)
    with pytest.raises(UserError, match="no column 'mine_p'; nearest: mine_"):
        read_jets(path, settings=ReadSettings({**named, "pt": "mine_p"}))


def test_momenta_ptrel_and_angles_of_their_own(tmp_path):
    pt, eta, phi = ([[p[k] for p in jet] for jet in JETS] for k in range(3))
    momenta = {
        "part_px": [list(np.multiply(a, np.cos(b))) for a, b in zip(pt, phi)],
        "part_py": [list(np.multiply(a, np.sin(b))) for a, b in zip(pt, phi)],
        "part_pz": [list(np.multiply(a, np.sinh(b))) for a, b in zip(pt, eta)],
    }
    axes = {n: c for n, c in columns_of().items() if n.startswith("jet_")}
    path = write(tmp_path / "p.parquet", {**momenta, **axes})
    assert_close(read_jets(path), about(AXES))
    relative = {
        "ptrel": [[p / axis[0] for p in row] for row, axis in zip(pt, AXES)],
        "deta": [list(jet[:, 1]) for jet in about(AXES)],
        "dphi": [list(jet[:, 2]) for jet in about(AXES)],
    }
    path = write(tmp_path / "r.parquet", {**relative, **axes})
    with pytest.warns(UserWarning, match="ptrel and jet_pt in GeV .*as they are in deta, dphi"):
        assert_close(read_jets(path), about(AXES))


@pytest.mark.parametrize(
    "name, unit, scale", [("part_pt_MeV", "", 1e-3), ("part_pt", "MeV", 1e-3), ("pt_gev", "", 1)]
)
def test_units_by_name_or_by_word(tmp_path, name, unit, scale):
    columns = columns_of()
    columns[name] = columns.pop("part_pt")
    path = write(tmp_path / "a.jsonl", columns)
    settings = ReadSettings({"pt": name, "eta": "part_eta", "phi": "part_phi"}, unit)
    assert_close(read_jets(path, settings=settings), [j * [scale, 1, 1] for j in about(AXES)])
    with pytest.raises(UserError, match="pt_unit is 'eV'; it is one of GeV, MeV"):
        read_jets(path, settings=ReadSettings(settings.columns, "eV"))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_padding_is_left_out_and_numbers_that_are_missing_are_not(tmp_path, value):
    columns = columns_of()
    arrays = {n: np.array(columns[n]) for n in ("jet_eta", "jet_phi")}
    arrays |= {n: padded(columns[n], 6, value) for n in ("part_pt", "part_eta", "part_phi")}
    np.savez(tmp_path / "a.npz", **arrays)
    assert_close(read_jets(tmp_path / "a.npz"), about(AXES))
    arrays["part_eta"][1, 0] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match="jet 1 has a NaN"):
        read_jets(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_lists_of_records(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    records = [[dict(zip(("pt", "eta", "phi"), p)) for p in jet] for jet in JETS]
    if suffix == ".parquet":
        ak = pytest.importorskip("awkward")
        ak.to_parquet(ak.Array([{"particles": jet, "kind": "top"} for jet in records]), str(path))
    else:
        path.write_text("".join(f"{json.dumps(jet)}\n\n" for jet in [*records, []]))
    with pytest.warns(UserWarning):
        found = read_jets(path)
    axes = [[0, *(np.array(jet)[0, 1:] - rows[0, 1:])] for jet, rows in zip(JETS, found)]
    assert_close(found[:2], about(axes))
    assert suffix == ".parquet" or found[2].shape == (0, 3)
    if suffix == ".parquet":
        source = JetFile(str(path), columns={"caption": "kind"})
        assert [e["caption"] for s in source.splits for e in source.examples(s)] == ["top"] * 2


def test_columns_that_do_not_fit_are_refused_in_a_line(tmp_path):
    columns = columns_of()
    columns["part_eta"] = [[0.1], [0.2]]
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match="jet 0 has other numbers of eta than of pt"):
        read_jets(path)
    path = write(tmp_path / "b.jsonl", {"x": [[1.0]], "name": ["a"]})
    with pytest.raises(UserError, match=r"lack a pt \(.*name them, as in --columns pt=.*x, name"):
        read_jets(path)
    (tmp_path / "c.jsonl").write_text('[{"pt": 1, "eta": 2, "phi": 3}, {"pt": 1}]\n')
    with pytest.raises(
        UserError, match="c.jsonl: line 1: its records do not all have pt, eta, phi"
    ):
        read_jets(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text('[{"pt": 1, "eta": 2, "phi": 3}]\n{"pt": \n')
    with pytest.raises(UserError, match="d.jsonl: line 2: not JSON"):
        read_jets(tmp_path / "d.jsonl")
    with pytest.raises(UserError, match="the layouts are plain, jetnet, jetclass"):
        JetFile(str(path), layout="jetklass")


def test_captions_by_column(tmp_path):
    path = write(tmp_path / "a.parquet", {**columns_of(), "label": [3, 1]})
    source = JetFile(str(path), columns={"caption": "Label"})
    found = {e.name[-1]: e["caption"] for s in source.splits for e in source.examples(s)}
    assert found == {"0": "3", "1": "1"}
    with pytest.raises(UserError, match="no column 'labl'; nearest: label"):
        JetFile(str(path), columns={"caption": "labl"}).check()


def test_a_source_says_how_files_like_its_own_are_read(tmp_path):
    named = {"pt": "p", "eta": "e", "phi": "f"}
    columns = dict(zip("pef", (columns_of()[f"part_{n}"] for n in ("pt", "eta", "phi"))))
    path = write(tmp_path / "a.parquet", columns)
    source = JetFile(str(path), columns=named, pt_unit="MeV")
    assert source.reading("jets", path) == {"columns": named, "pt_unit": "MeV"}
    assert source.reading("text", path) == {}
    captioned = JetFile(str(path), columns={**named, "caption": "label"}, layout="columns")
    assert captioned.reading("jets", path) == {"columns": named, "layout": "columns"}
    # a file of another kind is scored as what it is: no captions of it are read
    other = JetFile(str(path), columns={"caption": "label"}, layout="jetclass")
    np.savez(tmp_path / "qg.npz", X=np.ones((2, 3, 4)), y=np.zeros(2))
    assert other.reading("jets", tmp_path / "qg.npz") == {}
    plain = dict(zip(("pt_gev", "eta_rel", "phi_rel"), columns.values()))
    assert source.reading("jets", write(tmp_path / "ours.parquet", plain)) == {}


def test_the_tree_of_a_root_file(tmp_path):
    uproot = pytest.importorskip("uproot")
    ak = pytest.importorskip("awkward")
    lists = {n: ak.Array(c) for n, c in columns_of().items() if n.startswith("part_")}
    with uproot.recreate(tmp_path / "a.root") as file:
        file["jets"] = lists
        file["runs"] = {"number": np.arange(10)}
    with pytest.raises(
        UserError, match=r"in the tree runs \(--columns tree=NAME .*jets, runs\) lack"
    ):
        read_jets(tmp_path / "a.root")
    assert len(read_jets(tmp_path / "a.root", settings=ReadSettings({"tree": "jets"}))) == 2
    with pytest.raises(UserError, match="has no tree 'jet'; its trees are jets, runs"):
        read_jets(tmp_path / "a.root", settings=ReadSettings({"tree": "jet"}))


@pytest.mark.parametrize(
    "pt, said",
    [
        (np.ones((2, 4), complex), "pt holds complex128, expected numbers"),
        (np.ones((2, 4, 2)), "lack a pt .*; they are eta, phi, pt.0, pt.1"),
        (np.ones((2, 4, 2, 1)), "pt has 4 axes, expected one value for each constituent"),
        (np.ones(2), "pt has one value for each jet, expected"),
    ],
)
def test_columns_that_are_no_numbers_of_constituents(tmp_path, pt, said):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, column in (("pt", pt), ("eta", np.ones((2, 4))), ("phi", np.ones((2, 4)))):
            file[name] = column
    with pytest.raises(UserError, match=said):
        read_jets(tmp_path / "a.h5")


def test_trees_of_one_name_in_two_folders(tmp_path):
    """None is taken in silence; each has its own jets."""
    uproot = pytest.importorskip("uproot")
    ak = pytest.importorskip("awkward")
    lists = {n: ak.Array(c) for n, c in columns_of().items()}
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        for folder, kept in (("signal", slice(2)), ("other", slice(1, 2))):
            types = {n: "var * float64" if a.ndim == 2 else "float64" for n, a in lists.items()}
            file.mktree(f"{folder}/jets", types).extend({n: a[kept] for n, a in lists.items()})
    with pytest.raises(UserError, match="--columns tree=signal/jets or tree=other/jets"):
        read_jets(path)
    with pytest.raises(UserError, match="has several trees 'jets'; its trees are signal/jets, oth"):
        read_jets(path, settings=ReadSettings({"tree": "jets"}))
    assert_close(read_jets(path, settings=ReadSettings({"tree": "other/jets"})), about(AXES)[1:])


def test_the_last_cycle_of_a_tree_is_read(tmp_path):
    """As ROOT does; those before are backups."""
    uproot = pytest.importorskip("uproot")
    ak = pytest.importorskip("awkward")
    lists = {n: ak.Array(c) for n, c in columns_of().items()}
    with uproot.recreate(tmp_path / "a.root") as file:
        file["jets"] = lists
        file["jets"] = {n: a[1:] for n, a in lists.items()}
    assert_close(read_jets(tmp_path / "a.root"), about(AXES)[1:])


def test_records_of_an_rntuple(tmp_path):
    uproot = pytest.importorskip("uproot")
    ak = pytest.importorskip("awkward")
    parts = {n.removeprefix("part_"): ak.Array(c) for n, c in columns_of().items() if "part" in n}
    axes = {n: ak.Array(c) for n, c in columns_of().items() if "jet" in n}
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mkrntuple("jets", {"Particle": ak.zip(parts), **axes})
    assert_close(read_jets(tmp_path / "a.root"), about(AXES))


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_an_array_of_four_momenta(tmp_path, suffix):
    pt, eta, phi = (padded([[p[k] for p in jet] for jet in JETS]) for k in range(3))
    momenta = [pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]
    array = np.stack(momenta, 2)
    if suffix == ".npz":
        np.savez(tmp_path / "a.npz", Pmu=array, label=[1, 0])
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["Pmu"] = array
            file["label"] = [1, 0]
    named = {"E": "Pmu.0", "px": "Pmu.1", "py": "Pmu.2", "pz": "Pmu.3"}
    found = read_jets(tmp_path / f"a{suffix}", settings=ReadSettings(named))
    for jet, expected in zip(found, JETS, strict=True):
        np.testing.assert_allclose(jet[:, 0], np.array(expected)[:, 0], rtol=1e-6)
        np.testing.assert_allclose(np.diff(jet[:, 1]), np.diff(expected, axis=0)[:, 1], atol=1e-5)


def test_padding_by_a_number_that_no_constituent_has(tmp_path):
    columns = columns_of()
    arrays = {n: padded(c, value=-999) for n, c in columns.items() if n.startswith("part_")}
    axes = {n: c for n, c in columns.items() if n.startswith("jet_")}
    np.savez(tmp_path / "a.npz", **arrays, **axes)
    assert_close(read_jets(tmp_path / "a.npz"), about(AXES))
    logarithms = arrays | {"part_pt": np.where(arrays["part_pt"] > 0, -0.5, 0)}
    np.savez(tmp_path / "b.npz", **logarithms, **axes)
    with pytest.raises(UserError, match="jet 0 has a negative pt; give pt in GeV, not its log"):
        read_jets(tmp_path / "b.npz")


def test_json_lines_without_constituents(tmp_path):
    rows = [{"pt": [2.0], "eta": [0.1], "phi": [0.0]}, {"pt": None, "eta": None, "phi": None}]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.warns(UserWarning, match="1 of 2 jets have no constituents, the first is jet 1"):
        jets = read_jets(tmp_path / "a.jsonl")
    assert [len(jet) for jet in jets] == [1, 0]


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_list_in_json_as_awkward_writes_it(tmp_path, is_nested):
    """One list of jets: columns of each, or records of its constituents."""
    ak = pytest.importorskip("awkward")
    array = ak.Array([dict(zip(columns_of(), row)) for row in zip(*columns_of().values())])
    if is_nested:
        array = ak.Array([[dict(zip(("pt", "eta", "phi"), p)) for p in jet] for jet in JETS])
    path = tmp_path / "a.json"
    ak.to_json(array, path)
    lines = tmp_path / "a.jsonl"
    ak.to_json(array, lines, line_delimited=True)
    found = read_jets(path)
    assert_close(found, read_jets(lines))
    if not is_nested:
        assert_close(found, about(AXES))
        source = JetFile(str(path), columns={"caption": "jet_eta"}, layout="columns")
        texts = {e["caption"] for s in source.splits for e in source.examples(s)}
        assert texts == {str(axis[1]) for axis in AXES}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_json_lines(tmp_path, suffix):
    plain = write(tmp_path / "a.jsonl", columns_of())
    path = tmp_path / f"b.jsonl{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        pa = pytest.importorskip("pyarrow")
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(plain.read_bytes())
    assert layout_of(path).name == "columns"
    assert_close(read_jets(path), about(AXES))
    assert tokenize_files("jets", [path], tmp_path / "t.parquet").rows == len(JETS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"b.jsonl{suffix}: cannot be unpacked, it may be trunc"):
        read_jets(path)


def test_json_that_is_no_list_of_jets_is_refused_in_a_line(tmp_path):
    path = tmp_path / "a.json"
    for text, told in (
        ('{"pt": [1]}', "a.json: holds no list in JSON; lines of JSON"),
        ('[{"pt": 1}]\n[{"pt": 2}]\n', "not JSON at character 12: something follows the list"),
        ("[]", "a.json: holds no jets"),
        ('[{"pt": [1', "a.json: not JSON at character"),
        ("[1, 2]", "a.json: line 1: holds int; a jet is a list of records"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=told) as refusal:
            read_jets(path)
        assert "\n" not in str(refusal.value)


def test_a_folder_of_jets_may_hold_json_that_is_none(tmp_path):
    write(tmp_path / "a.parquet", columns_of())
    (tmp_path / "about.json").write_text("{}")
    with pytest.warns(UserWarning, match="left out 1 .json files .first about.json"):
        assert JetFile(str(tmp_path)).listing("train").n == len(JETS) - 1


def test_a_unit_is_used_or_refused(tmp_path):
    """Of jets in MeV none comes back in GeV, a thousand times too hard, in silence."""
    np.save(tmp_path / "a.npy", np.ones((2, 3, 3), np.float32))
    settings = ReadSettings(pt_unit="mev")
    with pytest.raises(
        UserError, match="a.npy: is read as plain, whose pt is in GeV; leave out pt"
    ):
        read_jets(tmp_path / "a.npy", settings=settings)
    rows = np.zeros((2, 3, 4))
    rows[:, :2] = [[60000, 1.0, 0.2, 22], [30000, 1.2, 0.4, 211]]
    np.savez(tmp_path / "qg.npz", X=rows, y=np.ones(2))
    with pytest.raises(UserError, match="is read as quarkgluon, whose pt is in GeV"):
        read_jets(tmp_path / "qg.npz", settings=settings)
    named = {"pt": "X.0", "y": "X.1", "phi": "X.2", "pdg_id": "X.3", "caption": "y"}
    features = ("pt_gev", "eta_rel", "phi_rel", "pdg_id")
    jet, _ = read_jets(tmp_path / "qg.npz", features, ReadSettings(named, "mev"))
    np.testing.assert_allclose(jet[:, [0, 3]], [[60, 22], [30, 211]], rtol=1e-6)


def test_files_of_two_layouts_of_one_suffix(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.ones((2, 3, 4)), y=np.ones(2))
    np.savez(tmp_path / "b.npz", pt=np.ones((2, 3)), eta=np.ones((2, 3)), phi=np.ones((2, 3)))
    asked = r"quarkgluon \(such as a.npz\) and columns \(such as b.npz\); say which .*--layout"
    with pytest.raises(UserError, match=asked):
        JetFile(str(tmp_path)).check()
