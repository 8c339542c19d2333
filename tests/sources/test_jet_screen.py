"""Many files of jets: one order and one split over all, read stretch by stretch in any process."""

import gzip
import pickle
import shutil

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources import jet_screen
from mmtok.sources.base import Unusable
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile

N = 130


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """So that a few jets fill several chunks."""
    monkeypatch.setattr(jet_screen, "JETS", 16)


def numbered(n=N, first=0):
    """Jets whose hardest pt is their number plus 100."""
    rng = np.random.default_rng(first)
    jets = []
    for i in range(first, first + n):
        rest = np.sort(rng.uniform(1, 50, rng.integers(0, 6)))[::-1]
        rows = np.zeros((1 + len(rest), 3), np.float32)
        rows[:, 0] = [100 + i, *rest]
        rows[:, 1:] = rng.normal(0, 0.1, (len(rows), 2))
        jets.append(rows)
    return jets


def number(example):
    return round(float(example["jets"][0, 0])) - 100


def in_files(folder, suffix, sizes=(30, 1, 49, 50)):
    folder.mkdir()
    jets = numbered(sum(sizes))
    begin = 0
    for k, size in enumerate(sizes):
        write_jets(folder / f"part-{k}{suffix}", jets[begin : begin + size])
        begin += size
    return jets


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_files_are_read_as_one(tmp_path, suffix):
    jets = in_files(tmp_path / "many", suffix)
    write_jets(tmp_path / f"one{suffix}", jets)
    one = JetFile(str(tmp_path / f"one{suffix}"), seed=3)
    for place in (tmp_path / "many", tmp_path / "many" / f"part-*{suffix}"):
        many = JetFile(str(place), seed=3)
        for split in many.splits:
            found = list(many.examples(split))
            expected = list(one.examples(split))
            assert [number(e) for e in found] == [number(e) for e in expected]
            for a, b in zip(found, expected):
                np.testing.assert_array_equal(a["jets"], b["jets"])
    assert found[0].name.startswith(str(tmp_path / "many" / "part-"))
    assert many.listing("train").n == 117


def test_the_split_is_that_of_a_permutation_by_the_seed(tmp_path):
    write_jets(tmp_path / "a.npz", numbered())
    source = JetFile(str(tmp_path / "a.npz"), heldout_share=0.2, seed=7)
    order = np.random.default_rng(7).permutation(N)
    assert [number(e) for e in source.examples("heldout")] == sorted(order[:26])
    assert [number(e) for e in source.examples("train")] == sorted(order[26:])


def test_chunks_are_small_and_any_process_reads_any(tmp_path):
    in_files(tmp_path / "many", ".parquet")
    source = JetFile(str(tmp_path / "many"))
    chunks = list(source.listing("train").chunks)
    assert len(chunks) == 2 + 1 + 4 + 4
    packed = [pickle.dumps(chunk) for chunk in chunks]
    assert max(map(len, packed)) < 3000
    backwards = [list(pickle.loads(chunk).read()) for chunk in reversed(packed)]
    there = [number(e) for chunk in reversed(backwards) for e in chunk]
    assert there == [number(e) for e in source.examples("train")]


def test_a_file_that_changes_after_it_was_looked_at(tmp_path):
    in_files(tmp_path / "many", ".npz")
    source = JetFile(str(tmp_path / "many"), max_error_share=1)
    chunks = list(source.listing("train").chunks)
    (tmp_path / "many" / "part-2.npz").write_bytes(b"gone")
    read = [e for chunk in chunks for e in chunk.read()]
    unusable = [e for e in read if isinstance(e, Unusable)]
    assert 30 < len(unusable) < 50 and len(read) == 117
    assert all("part-2.npz: jet " in e.name and "part-2.npz" in e.error for e in unusable)


def test_bad_jets_of_any_file_are_named_and_passed_over(tmp_path):
    in_files(tmp_path / "many", ".npz", (100, 100))
    bad = numbered(100, 100)
    bad[41][0, 1] = np.nan
    write_jets(tmp_path / "many" / "part-1.npz", bad)
    source = JetFile(str(tmp_path / "many"), min_particles=2)
    with pytest.warns(UserWarning) as said:
        examples = [e for split in source.splits for e in source.examples(split)]
    lines = [str(w.message) for w in said]
    fault = "1 of 200 jets was passed over as unusable (first: "
    assert any(fault in line and "part-1.npz: jet 41 has a NaN" in line for line in lines)
    assert any("of 200 jets were left out: fewer particles than 2" in line for line in lines)
    assert 141 not in {number(e) for e in examples} and len(examples) < 190
    with pytest.raises(UserError, match="none of 200 jets is left, such as .*part-0.npz: jet 0"):
        JetFile(str(tmp_path / "many"), min_particles=99).check()


def test_one_file_of_labels_for_all_files(tmp_path):
    in_files(tmp_path / "many", ".npz")
    text = "".join(f"number {i}\n" for i in range(N))
    (tmp_path / "labels.txt.gz").write_bytes(gzip.compress(text.encode()))
    source = JetFile(str(tmp_path / "many"), str(tmp_path / "labels.txt.gz"))
    for split in source.splits:
        for example in source.examples(split):
            assert example["caption"] == f"number {number(example)}"


def test_published_splits_are_used_where_they_are_named(tmp_path):
    in_files(tmp_path / "set", ".npz", (30, 20, 10))
    for k, name in enumerate(("train_a", "val", "test")):
        (tmp_path / "set" / f"part-{k}.npz").rename(tmp_path / "set" / f"{name}.npz")
    source = JetFile(str(tmp_path / "set"), train="train", heldout="val")
    assert [number(e) for e in source.examples("heldout")] == list(range(30, 50))
    assert [number(e) for e in source.examples("train")] == list(range(30))
    rest = JetFile(str(tmp_path / "set"), heldout="val")
    assert sorted(number(e) for e in rest.examples("train")) == [*range(30), *range(50, 60)]
    with pytest.raises(UserError, match="no jets for heldout .*the files are test.npz, train_a"):
        list(JetFile(str(tmp_path / "set"), heldout="valid").examples("heldout"))
    write_jets(tmp_path / "set" / "val.npz", [np.ones((1, 3), np.float32)] * 3)
    few = JetFile(str(tmp_path / "set"), heldout="val", min_particles=2)
    with pytest.raises(UserError, match="none of the jets for heldout, in val.npz, can be used"):
        few.check()
    # before a jet is looked at, and where no file is of either
    for names in ({"heldout": "valid"}, {"train": "train", "heldout": "valid"}):
        with pytest.raises(UserError, match="no jets for heldout .*; name one, or its folder"):
            JetFile(str(tmp_path / "set"), **names).check()
    with pytest.raises(UserError, match="no jets for train .*the files are test.npz, train_a"):
        JetFile(str(tmp_path / "set"), train="tr", heldout="vl").check()
    with pytest.raises(UserError, match="train names files, but heldout none"):
        JetFile(str(tmp_path / "set"), train="train")


def test_two_layouts_in_a_folder_are_asked_about(tmp_path):
    h5py = pytest.importorskip("h5py")
    in_files(tmp_path / "mixed", ".npz")
    with h5py.File(tmp_path / "mixed" / "g.hdf5", "w") as file:
        file["particle_features"] = np.ones((2, 1, 4))
        file["jet_features"] = np.ones((2, 4))
    with pytest.raises(UserError) as refusal:
        JetFile(str(tmp_path / "mixed")).check()
    line = str(refusal.value)
    assert "jetnet (such as g.hdf5) and plain (such as part-0.npz)" in line
    assert "--layout jetnet or --layout plain" in line and "\n" not in line
    with pytest.warns(UserWarning, match="left out 1 .hdf5 files"):
        assert len(list(JetFile(str(tmp_path / "mixed"), layout="plain").examples("train"))) == 117


def test_two_layouts_of_one_suffix_are_asked_about(tmp_path):
    folder = tmp_path / "mixed"
    in_files(folder, ".npz")
    np.savez(folder / "QG.npz", X=np.ones((2, 3, 4)), y=np.zeros(2))
    with pytest.raises(UserError, match="quarkgluon .such as QG.npz. and plain .such as part"):
        JetFile(str(folder)).check()
    with pytest.warns(UserWarning, match="1 of 5 files was left out: read as quarkgluon, not pl"):
        assert len(list(JetFile(str(folder), layout="plain").examples("train"))) == 117
    (folder / "QG.npz").write_bytes(b"PK no archive")  # reading it says what is wrong
    with pytest.raises(UserError, match="QG.npz"):
        JetFile(str(folder), on_error="raise").check()


def test_a_file_of_both_layouts_is_asked_about(tmp_path):
    columns = {"X": np.ones((2, 3, 4)), "y": np.zeros(2), "gen_particles": np.ones((2, 3, 4))}
    np.savez(tmp_path / "a.npz", **columns)
    with pytest.raises(UserError, match=r"quarkgluon \(arrays X and y\) and energyflow \(gen_part"):
        JetFile(str(tmp_path / "a.npz")).check()


def test_fields_know_captions_before_the_files_are_read(tmp_path):
    np.savez(tmp_path / "qg.npz", X=np.ones((3, 2, 4)), y=np.array([0, 1, 1]))
    both = {"caption": "text", "jets": "jets"}
    assert JetFile(str(tmp_path / "qg.npz")).fields == both
    assert JetFile(str(tmp_path / "gone.npz"), layout="quarkgluon").fields == both
    assert JetFile(str(tmp_path / "gone.npz")).fields == both  # a run outlives its files
    assert JetFile("", columns={"caption": "kind"}).fields == both
    assert JetFile("").fields == {"jets": "jets"}
    (tmp_path / "broken.npz").write_bytes(b"no")
    assert JetFile(str(tmp_path / "broken.npz")).fields == {"jets": "jets"}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_byte_that_changed_in_a_file_is_noticed(tmp_path, save):
    jets = numbered()
    offsets = np.cumsum([0, *map(len, jets)])
    save(tmp_path / "a.npz", values=np.concatenate(jets), offsets=offsets)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 4] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="a.npz.*cannot be read as jets"):
        JetFile(str(tmp_path / "a.npz")).check()


def test_a_folder_is_read_without_system_files_and_by_its_links(tmp_path):
    in_files(tmp_path / "set", ".npz", (30, 20))
    (tmp_path / "set" / "._part-0.npz").write_bytes(b"AppleDouble")
    (tmp_path / "set" / "deep").mkdir()
    shutil.move(tmp_path / "set" / "part-1.npz", tmp_path / "set" / "deep" / "B.NPZ")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    with pytest.warns(UserWarning, match="hidden or system files"):
        found = [
            e for s in ("train", "heldout") for e in JetFile(str(tmp_path / "link")).examples(s)
        ]
    assert sorted(map(number, found)) == list(range(50))
