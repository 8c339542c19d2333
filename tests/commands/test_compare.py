"""The verb compare: which features, how many signals, wrong files in one line."""

import io
import json

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands.compare import compare
from mmtok.commands.compare_points import kind_of
from mmtok.errors import UserError
from mmtok.sources.image_files import write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.sound_files import write_sound

FEW = {"n_null": 49, "n_power": 0, "tests": ("ks", "sw")}


@pytest.fixture
def tables(tmp_path, rng):
    for name, shift in (("a", 0.0), ("b", 0.0), ("far", 2.0)):
        lines = ["mass,name,pt"]
        for x, y in rng.normal(size=(60, 2)) + shift:
            lines.append(f"{x:.6f},jet,{y:.6f}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    return tmp_path


def test_columns_of_numbers(tables, capsys):
    found = compare(f"{tables}/a.csv", f"{tables}/far.csv", **FEW)
    assert found.kind == "numbers" and found.features == ("mass", "pt")
    assert found.found["ks"].p_value == 0.02 and found.means[1, 0] > 1.5
    assert "not compared, as no numbers: name" in capsys.readouterr().err
    alike = compare(f"{tables}/a.csv", f"{tables}/b.csv", columns=("pt",), **FEW)
    assert alike.features == ("pt",) and alike.found["sw"].p_value > 0.02


def test_the_table_and_the_json_say_what_was_compared(tables, capsys):
    words = ["--permutations", "29", "--power", "3", "--tests", "ks,c2st", "-n", "40"]
    words += ["--classifier", "linear"]
    assert main(["compare", f"{tables}/a.csv", f"{tables}/b.csv", *words]) == 0
    out = capsys.readouterr().out
    assert "40 of 60 rows, chosen at random" in out and "mass" in out and "null 95 %" in out
    assert "29 permutations" in out and "shift by epsilon = 0.1" in out
    assert main(["compare", f"{tables}/a.csv", f"{tables}/b.csv", *words, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["a"] == {"path": f"{tables}/a.csv", "n": 40, "n_all": 60}
    assert set(plain["tests"]) == {"ks", "c2st"} and 0 < plain["tests"]["ks"]["p_value"] <= 1
    assert set(plain["features"]) == {"mass", "pt"}
    no_power = ["--power", "0", "--tests", "ks", "--permutations", "9", "--json"]
    assert main(["compare", f"{tables}/a.csv", f"{tables}/b.csv", *no_power]) == 0
    assert json.loads(capsys.readouterr().out)["tests"]["ks"]["power"] is None


def test_arrays_and_rows_with_missing_numbers(tmp_path, rng):
    x = rng.normal(size=(30, 2))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.where(np.arange(30)[:, None] == 4, np.nan, x))
    with pytest.warns(UserWarning, match="1 of 30 rows was left out"):
        found = compare(f"{tmp_path}/x.npy", f"{tmp_path}/y.npy", **FEW)
    assert found.b.n_all == 29 and found.features == ("column 0", "column 1")


def test_texts_are_lines_cells_files_and_stdin(tmp_path, monkeypatch):
    lines = [f"line {'word ' * (i % 5)}{i}" for i in range(20)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, line in enumerate(lines):
        (folder / f"{i:02d}.txt").write_text(line)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    for other in (f"{tmp_path}/t.jsonl", str(folder), "-"):
        found = compare(f"{tmp_path}/a.txt", other, kind="text", **FEW)
        assert found.a.n_all == found.b.n_all == 20 and found.apart.max() == 0
    assert "share of capitals" in found.constant


def test_jets_by_their_particles(tmp_path, rng, monkeypatch):
    from mmtok.metrics import particle_test

    monkeypatch.setattr(particle_test, "MOST_STEPS", 2)
    for side in "ab":
        jets = [np.abs(rng.normal(size=(5 + i % 3, 3))) for i in range(12)]
        write_jets(tmp_path / f"{side}.npz", jets, ("pt_gev", "eta_rel", "phi_rel"))
    a, b = (str(tmp_path / f"{side}.npz") for side in "ab")
    found = compare(a, b, tests=("ks", "particles"), n_null=20, n_power=2).found
    assert list(found.tests) == ["ks", "particles"]
    test = found["particles"]
    assert 0 <= test.statistic <= 1 and test.n_null == 20 and np.isnan(test.power)
    assert list(compare(a, b, tests=("particles",), n_null=9).found.tests) == ["particles"]
    with pytest.raises(UserError, match="'partcles' is unknown; one of .*c2st, particles$"):
        compare(a, b, tests=("partcles",))
    with pytest.raises(UserError, match="the test particles is of jets, not of texts"):
        (tmp_path / "t.txt").write_text("one\ntwo\n")
        compare(str(tmp_path / "t.txt"), str(tmp_path / "t.txt"), tests=("particles",))


def test_sounds_pictures_and_jets(tmp_path, rng):
    for side in "ab":
        for kind in ("sounds", "pictures"):
            (tmp_path / kind / side).mkdir(parents=True)
        for i in range(10):
            clip = 0.1 * rng.normal(size=4000)
            write_sound(tmp_path / "sounds" / side / f"{i}.wav", clip)
            pixels = rng.integers(0, 255, (8, 9, 3), np.uint8)
            write_image(tmp_path / "pictures" / side / f"{i}.png", pixels)
        jets = [np.abs(rng.normal(size=(5 + i % 3, 3))) for i in range(20)]
        write_jets(tmp_path / f"{side}.npz", jets, ("pt_gev", "eta_rel", "phi_rel"))
    for kind, feature in (("sounds", "spectral centroid [Hz]"), ("pictures", "brightness")):
        found = compare(f"{tmp_path}/{kind}/a", f"{tmp_path}/{kind}/b", **FEW)
        assert feature in found.features and found.a.n_all == 10
    found = compare(f"{tmp_path}/a.npz", f"{tmp_path}/b.npz", **FEW)
    assert found.kind == "jets" and "mass [GeV]" in found.features
    with pytest.raises(UserError, match="name a folder of them"):
        compare(f"{tmp_path}/sounds/a/0.wav", f"{tmp_path}/sounds/b", **FEW)


def test_token_files(tmp_path, rng):
    from mmtok.commands.tokenize import tokenize_files

    for side in "ab":
        (tmp_path / side).mkdir()
        for i in range(10):
            (tmp_path / side / f"{i}.txt").write_text("ab " * (1 + i))
        tokenize_files("text", [tmp_path / side], tmp_path / f"{side}.parquet")
    found = compare(f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet", **FEW)
    assert found.kind == "tokens" and "frames" in found.features


@pytest.mark.parametrize(
    "words, says",
    [
        (("a.csv", "none.csv"), "does not exist"),
        (("-", "-"), "only one side"),
        (("a.csv", "few.npy"), "at least 8"),
        (("a.csv", "x.npy"), "name some that both have"),
        (("a.csv", "broken.csv"), "broken.csv"),
        (("a.csv", "text.txt"), "holds numbers and"),
        (("a.csv", "odd.xyz"), "no file or folder of a known modality"),
        (("a.csv", "a.csv", "--columns", "name"), "is no number"),
        (("a.csv", "a.csv", "--columns", "mas"), "no column mas"),
        (("a.csv", "a.csv", "-n", "3"), "-n is 3"),
        (("a.csv", "a.csv", "--tests", "t"), "'t' is unknown"),
        (("a.csv", "a.csv", "--modality", "music"), "invalid choice"),
        (("a.csv", "a.csv", "--layout", "jetclass"), "--layout is for files of jets"),
        (("same.npy", "same.npy"), "the same features"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tables, capsys, monkeypatch, words, says):
    monkeypatch.chdir(tables)
    np.save("few.npy", np.zeros((3, 2)))
    np.save("x.npy", np.zeros((30, 2)))
    np.save("same.npy", np.ones((30, 2)))
    (tables / "broken.csv").write_text("mass,pt\n1,2,3\n")
    (tables / "text.txt").write_text("words\n" * 20)
    (tables / "odd.xyz").write_text("?")
    assert main(["compare", *words, "--power", "0"]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith("note")]
    assert says in said.err and len(lines) == 1 and not said.out


def test_a_folder_is_what_most_of_its_files_are(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.wav").write_bytes(b"")
        (tmp_path / f"{i}.txt").write_text("what is said in it")
    (tmp_path / "metadata.csv").write_text("")
    assert kind_of(str(tmp_path)) == "speech"
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"")
    assert kind_of(str(tmp_path)) == "image"
    for i in range(3, 9):
        (tmp_path / f"{i}.txt").write_text("a text")
    assert kind_of(str(tmp_path)) == "text"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file or folder of a known modality"):
        kind_of(str(tmp_path / "empty"))


def test_kinds_by_suffix(tmp_path):
    for name, kind in (("a.wav", "speech"), ("a.png", "image"), ("a.h5", "jets")):
        (tmp_path / name).write_bytes(b"")
        assert kind_of(str(tmp_path / name)) == kind
