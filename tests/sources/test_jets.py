"""Files of jets come back as they were; what is no jet is refused in one line; a tiny Pythia run
keeps its promises.
"""

import gzip

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile, checked_jet, read_jets
from mmtok.sources.pythia import PythiaJets, make_chunk, versions


def make_jets(n=5, seed=0, n_features=3):
    rng = np.random.default_rng(seed)
    jets = [
        rng.uniform(0.1, 1, (rng.integers(1, 12), n_features)).astype(np.float32) for _ in range(n)
    ]
    return [jet[np.argsort(-jet[:, 0])] for jet in jets]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == np.float32


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_written_jets_come_back(tmp_path, suffix):
    jets = make_jets()
    write_jets(tmp_path / f"jets{suffix}", jets)
    assert_same(read_jets(tmp_path / f"jets{suffix}"), jets)
    assert [path.name for path in tmp_path.iterdir()] == [f"jets{suffix}"]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_features_are_chosen_by_name(tmp_path, suffix):
    jets = make_jets(n_features=4)
    names = ("pt_gev", "eta_rel", "phi_rel", "charge")
    path = tmp_path / f"jets{suffix}"
    write_jets(path, jets, names)
    assert_same(read_jets(path), [jet[:, :3] for jet in jets])
    assert_same(read_jets(path, ("charge", "pt_gev")), [jet[:, [3, 0]] for jet in jets])
    with pytest.raises(UserError, match="no .* d0"):
        read_jets(path, ("pt_gev", "d0"))


def test_padded_npz_and_a_single_jet(tmp_path):
    jet = make_jets(1)[0]
    padded = np.zeros((2, 20, 3))
    padded[:, : len(jet)] = jet
    np.savez(tmp_path / "a.npz", padded)
    assert_same(read_jets(tmp_path / "a.npz"), [jet, jet])
    np.save(tmp_path / "one.npy", jet)
    assert_same(read_jets(tmp_path / "one.npy"), [jet])


def test_jetnet_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    particles = np.zeros((2, 4, 4))
    particles[0, :2] = [[0.1, -0.2, 0.6, 1], [0.0, 0.3, 0.4, 1]]
    particles[1, :1] = [[-0.1, 0.0, 1.0, 1]]
    with h5py.File(tmp_path / "g.hdf5", "w") as file:
        file["particle_features"] = particles
        file["jet_features"] = np.array([[1000.0, 0.3, 80, 2], [900.0, -1, 0, 1]])
    a, b = read_jets(tmp_path / "g.hdf5")
    np.testing.assert_allclose(a, [[600, 0.1, -0.2], [400, 0, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(b, [[900, -0.1, 0]], rtol=1e-6)


def test_conversions_are_said(tmp_path):
    jet = np.array([[3, 0.1, 0], [2, 0, 0.2], [1, 0, 0]], np.float32)
    write_jets(tmp_path / "a.npz", [jet, jet[::-1], jet[[0, 2, 1]]])
    with pytest.warns(UserWarning, match="sorted 2 jets"):
        assert_same(read_jets(tmp_path / "a.npz"), [jet] * 3)
    write_jets(tmp_path / "b.npz", [np.concatenate((jet, np.zeros((2, 3), np.float32)))])
    with pytest.warns(UserWarning, match="dropped 2 particles"):
        assert_same(read_jets(tmp_path / "b.npz"), [jet])


def bad(jet, column=0, value=np.nan):
    jets = make_jets(3)
    jets[jet][-1, column] = value
    return jets


@pytest.mark.parametrize(
    "jets, said",
    [
        (bad(1), "jet 1 has a NaN"),
        (bad(2, 1, np.inf), "jet 2 has a NaN or infinite"),
        (bad(2, 0, -1), "jet 2 has a negative pt"),
        ([], "no jets"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_bad_jets_name_file_and_jet(tmp_path, jets, said, suffix):
    path = tmp_path / f"jets{suffix}"
    write_jets(path, jets)
    with pytest.raises(UserError, match=said) as error:
        read_jets(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_jet_without_constituents_is_called_by_its_number_in_the_file(tmp_path):
    jets = make_jets(200)
    jets[7] = np.full((1, 3), np.nan, np.float32)
    jets[20] = np.zeros((0, 3), np.float32)
    np.savez(
        tmp_path / "j.npz", values=np.concatenate(jets), offsets=np.cumsum([0, *map(len, jets)])
    )
    with pytest.warns(UserWarning) as said:
        list(JetFile(str(tmp_path / "j.npz")).examples("train", tmp_path))
    lines = [str(w.message) for w in said]
    assert any("passed over" in line and "jet 7 has a NaN" in line for line in lines)
    assert any(
        line.endswith("1 of 199 jets have no constituents, the first is jet 20") for line in lines
    )


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_jets_without_constituents_come_back_in_their_places_with_a_note(tmp_path, suffix):
    """A model may draw them; the file stays readable, and every other jet keeps its number."""
    path = tmp_path / f"jets{suffix}"
    empty = np.zeros((0, 3), np.float32)
    for jets, first in (
        ([empty, *make_jets(2), empty, *make_jets(1)], 0),
        ([*make_jets(2), empty], 2),
        ([empty, empty], 0),
    ):
        write_jets(path, jets)
        with pytest.warns(
            UserWarning, match=f"of {len(jets)} jets have no constituents, the first is jet {first}"
        ):
            again = read_jets(path)
        assert_same(again, jets)
        assert [jet.shape for jet in again] == [jet.shape for jet in jets]


def test_a_jet_in_memory_without_constituents_is_refused():
    for values in ([], np.zeros((0, 3)), np.zeros((2, 3))):
        with pytest.raises(UserError, match="row 3: "):
            checked_jet(values, "row 3")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet", ".h5"])
@pytest.mark.parametrize("content", [b"", b"not jets at all", "cut"])
def test_files_that_cannot_be_read(tmp_path, suffix, content):
    path = tmp_path / f"jets{suffix}"
    if content == "cut":
        if suffix == ".h5":
            pytest.skip("not written")
        write_jets(path, make_jets())
        content = path.read_bytes()[:-40]
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_jets(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_wrong_files_are_refused(tmp_path):
    for name, said in (("missing.npz", "no such file"), ("jets.txt", "known are")):
        with pytest.raises(UserError, match=said):
            read_jets(tmp_path / name)
    np.save(tmp_path / "two.npy", np.ones((4, 5, 2)))
    np.save(tmp_path / "flat.npy", np.ones(7))
    np.savez(tmp_path / "many.npz", a=np.ones(3), b=np.ones(3))
    np.savez(tmp_path / "offsets.npz", values=np.ones((3, 3)), offsets=np.array([0, 9]))
    np.save(tmp_path / "objects.npy", np.array([None, 1], object))
    for name in ("two.npy", "flat.npy", "many.npz", "offsets.npz", "objects.npy"):
        with pytest.raises(UserError, match=name):
            read_jets(tmp_path / name)
    with pytest.raises(UserError, match="written as"):
        write_jets(tmp_path / "jets.root", make_jets())
    assert not (tmp_path / "jets.root").exists()


def test_jet_file_splits_and_labels(tmp_path):
    jets = make_jets(20)
    write_jets(tmp_path / "jets.npz", jets)
    (tmp_path / "labels.txt").write_text("".join(f"jet {i}\n" for i in range(20)))
    source = JetFile(str(tmp_path / "jets.npz"), labels=str(tmp_path / "labels.txt"))
    assert source.fields == {"caption": "text", "jets": "jets"}
    train, heldout = (list(source.examples(split, tmp_path)) for split in source.splits)
    assert (len(train), len(heldout)) == (18, 2)
    for example in train + heldout:
        np.testing.assert_array_equal(example["jets"], jets[int(example["caption"].split()[1])])
    assert len({example["caption"] for example in train + heldout}) == 20
    assert JetFile(str(tmp_path / "jets.npz")).fields == {"jets": "jets"}
    (tmp_path / "labels.txt").write_text("one\n")
    with pytest.raises(UserError, match="1 caption for 20 jets"):
        next(source.examples("train", tmp_path))
    with pytest.raises(UserError, match="no split"):
        next(source.examples("test", tmp_path))


def test_pythia_jets(tmp_path, capfd):
    for name in ("pythia8mc", "fastjet", "awkward", "vector"):
        pytest.importorskip(name)
    from mmtok.metrics.jets import masses, summed_pts

    source = PythiaJets(n_per_class=9, n_heldout=3, processes=1)
    heldout = list(source.examples("heldout", tmp_path))
    train = list(source.examples("train", tmp_path))
    assert [example["caption"] for example in heldout[:3]] == ["gluon jet", "quark jet", "top jet"]
    assert (len(train), len(heldout)) == (18, 9)
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("27/27") == 1  # made once
    assert all(line.startswith("making jets") for line in said.err.splitlines())  # no banners
    for example in train + heldout:
        jet = example["jets"]
        assert jet.dtype == np.float32 and jet.shape[1] == 3 and len(jet) > 5
        assert (
            (np.diff(jet[:, 0]) <= 0).all()
            and (jet[:, 0] > 0).all()
            and np.abs(jet[:, 1:]).max() < 2.5
        )
        assert summed_pts([jet])[0] > 499
        # the axis is the jet's own: transverse momentum across it, and boost along the beam, vanish
        pt, eta, phi = jet.astype(np.float64).T
        assert abs(pt @ np.sin(phi)) < 0.01 and abs(pt @ np.sinh(eta)) < 0.01
    mass = masses([example["jets"] for example in train if example["caption"] == "top jet"])
    assert 140 < np.median(mass) < 210
    (made,) = tmp_path.glob("*.npz")
    assert all(
        made_by in made.name for made_by in versions()
    ) and "pythia8mc-8." in source.description(tmp_path)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"pt_hat_min_gev": 7000}, "pt_hat_min_gev is 7000.*below 6500"),
        ({"pt_hat_min_gev": -5}, "pt_hat_min_gev"),
        ({"radius": 0}, "radius"),
        ({"pt_hat_min_gev": float("nan")}, "pt_hat_min_gev"),
        ({"pt_min_gev": 0}, "pt_min_gev"),
        ({"n_heldout": 6500}, "n_heldout"),
        ({"seed": -1}, "seed"),
        ({"processes": 0}, "processes"),
    ],
)
def test_settings_that_no_collision_meets_are_refused_before_any_work(fields, said, tmp_path):
    source = PythiaJets(**fields)
    for ask in (source.check, lambda: source.make(tmp_path)):
        with pytest.raises(UserError, match=said) as refusal:
            ask()
        assert "\n" not in str(refusal.value)


def test_events_without_a_jet_are_not_made_for_ever(monkeypatch):
    for name in ("pythia8mc", "fastjet", "awkward", "vector"):
        pytest.importorskip(name)
    monkeypatch.setattr("mmtok.sources.pythia.MOST_EVENTS", 50)
    job = (PythiaJets(pt_hat_min_gev=20, pt_min_gev=4000), "top", 3, 1)
    with pytest.raises(UserError, match="50 events in a row without a top jet of pt_min_gev 4000"):
        make_chunk(job)


def test_jets_of_other_versions_are_made_anew_or_taken_where_none_can_be_made(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("mmtok.sources.pythia.need_generators", lambda: None)
    monkeypatch.setattr(
        "mmtok.sources.pythia._run",
        lambda source, chunks: ([np.ones((1, 3), np.float32)] * n for *_, n, _ in chunks),
    )
    source = PythiaJets(n_per_class=2, n_heldout=1)
    installed = ["pythia8mc-8.317.2", "fastjet-3.5.2.0"]
    monkeypatch.setattr("mmtok.sources.pythia.versions", lambda: installed)
    first = source.make(tmp_path)
    assert (
        source.description(tmp_path)
        == source.description()
        == "made by pythia8mc-8.317.2, fastjet-3.5.2.0"
    )
    assert source.make(tmp_path) == first and "8.317.2" in first.name
    installed[0] = "pythia8mc-8.318.2"
    with pytest.warns(UserWarning, match="made anew.*8.317.2"):
        second = source.make(tmp_path)
    assert second != first and "8.318.2" in second.name
    first.unlink()
    installed.clear()
    assert "8.318.2" in source.description(tmp_path) and "not installed" in source.description()
    with pytest.warns(UserWarning, match="8.318.2.* taken as they are"):
        assert source.make(tmp_path) == second


@pytest.mark.slow
def test_pythia_jets_do_not_depend_on_the_number_of_processes(tmp_path):
    for name in ("pythia8mc", "fastjet", "awkward", "vector"):
        pytest.importorskip(name)
    one, two = (
        list(
            PythiaJets(n_per_class=6, n_heldout=2, processes=n).examples("train", tmp_path / str(n))
        )
        for n in (1, 2)
    )
    assert len(one) == 12
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a["jets"], b["jets"])


def test_a_few_bad_jets_are_passed_over_with_their_captions(tmp_path):
    jets = [np.array([[50.0 + i, 0, 0]] * (1 + i % 3), np.float32) for i in range(300)]
    jets[5][0, 1] = np.nan
    jets[7][0, 0] = -1
    write_jets(tmp_path / "jets.npz", jets)
    (tmp_path / "labels.txt").write_text(
        "\ufeff" + "".join(f"jet {i}\u2028\r\n" for i in range(300))
    )
    source = JetFile(str(tmp_path / "jets.npz"), str(tmp_path / "labels.txt"))
    with pytest.warns(
        UserWarning, match="2 of 300 jets were passed over as unusable .first: .*jet 5 has a NaN"
    ):
        examples = [e for split in source.splits for e in source.examples(split, tmp_path)]
    assert len(examples) == 298 and all(
        e["caption"] == f"jet {int(e['jets'][0, 0]) - 50}\u2028" for e in examples
    )
    with pytest.raises(UserError, match="jets.npz: jet 5 has a NaN"):
        JetFile(str(tmp_path / "jets.npz"), on_error="raise").check()
    with pytest.raises(
        UserError, match="jet 5 has a NaN .*; likewise jet 7: 2 of 300 jets cannot be used"
    ):
        JetFile(str(tmp_path / "jets.npz"), max_error_share=0.001).check()
    with pytest.warns(UserWarning, match="were left out: fewer particles than 2"):
        kept = [
            e["jets"]
            for split in source.splits
            for e in JetFile(source.path, min_particles=2).examples(split, tmp_path)
        ]
    assert len(kept) == 198 and min(map(len, kept)) == 2


def test_a_jet_whose_line_of_labels_is_empty_has_no_caption(tmp_path):
    write_jets(
        tmp_path / "jets.npz", [np.array([[50.0 + i, 0, 0]], np.float32) for i in range(200)]
    )
    lines = [f"jet {i}\n" for i in range(200)]
    lines[6] = "\n"
    labels = tmp_path / "labels.txt.gz"
    labels.write_bytes(gzip.compress("".join(lines).encode()))
    source = JetFile(str(tmp_path / "jets.npz"), str(labels))
    line = "labels.txt.gz: line 7 is empty; write the caption of jet 6, or remove both"
    with pytest.warns(
        UserWarning, match=f"1 of 200 jets was passed over as unusable .first: .*{line}"
    ):
        examples = [e for split in source.splits for e in source.examples(split, tmp_path)]
    assert len(examples) == 199 and all(
        e["caption"] == f"jet {int(e['jets'][0, 0]) - 50}" for e in examples
    )
    lines[8] = lines[9] = " \n"
    labels.write_bytes(gzip.compress("".join(lines).encode()))
    with pytest.raises(
        UserError, match=f"{line}; likewise jet 8, jet 9: 3 of 200 jets cannot be used"
    ):
        source.check()


def test_labels_are_held_against_the_jets_before_anything_is_made(tmp_path):
    write_jets(tmp_path / "jets.npz", [np.ones((1, 3), np.float32)] * 3)
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="2 captions for 3 jets"):
        JetFile(str(tmp_path / "jets.npz"), str(tmp_path / "labels.txt")).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is a folder without a file that can be used"):
        JetFile(str(tmp_path / "empty")).check()


def test_files_of_other_columns_and_nests_are_refused_in_a_short_line(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    wide = tmp_path / "nano.parquet"
    deep = tmp_path / "deep.parquet"
    pq.write_table(pa.table({f"Electron_branch_{i}": [[1.0]] for i in range(1500)}), wide)
    nested = {name: [[[1.0, 2.0], [3.0]]] for name in ("pt_gev", "eta_rel", "phi_rel")}
    pq.write_table(pa.table(nested), deep)
    records = pa.array([[{f"x{i}": 1.0 for i in range(800)}]])
    pq.write_table(
        pa.table({"pt_gev": records, "eta_rel": records, "phi_rel": records}),
        tmp_path / "records.parquet",
    )
    np.save(tmp_path / "four.npy", np.ones((2, 3, 4, 3), np.float32))
    np.savez(tmp_path / "many.npz", **{f"a{i}": np.ones(2) for i in range(300)})
    said = {
        "nano.parquet": "Electron_branch_9 and 1,490 more",
        "deep.parquet": "expected a list of numbers for each jet",
        "records.parquet": "expected a list of numbers for each jet",
        "four.npy": "shape",
        "many.npz": "a9 and 290 more",
    }
    for name, words in said.items():
        with pytest.raises(UserError, match=words) as refusal:
            read_jets(tmp_path / name)
        assert len(str(refusal.value)) < 500 + len(str(tmp_path)) and "\n" not in str(refusal.value)
