"""From files and folders to token files and back: what is broken is found first, names, sizes,
leftovers of killed calls.
"""

import subprocess
import sys
import unicodedata

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmtok.cli import main
from mmtok.commands.tokenize import How, tokenize_files
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.errors import UserError
from mmtok.sources.images import write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import read_jets
from mmtok.sources.sound_files import sound_seconds, write_sound
from mmtok.tokenizers import default

KILLED = (
    "import os, signal, sys; from mmtok.cli import main; os.replace = lambda *_:"
    " os.kill(os.getpid(), signal.SIGKILL); main(sys.argv[1:])"
)


@pytest.fixture
def pictures(tmp_path):
    """A folder with ten pictures, and a hidden one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        write_image(folder / f"{i}.png", np.full((4, 4), i, np.uint8))
    (folder / "._0.png").write_bytes(b"x")
    return folder


def test_a_folder_stands_for_the_files_in_it(pictures, tmp_path):
    with pytest.warns(UserWarning, match="left out 1 hidden"):
        done = tokenize_files("image", [pictures], tmp_path / "t.parquet")
    assert done.rows == 10


def test_all_broken_files_are_named_before_any_is_encoded(pictures, tmp_path, monkeypatch):
    for i in (7, 9):
        (pictures / f"{i}.png").write_bytes(b"no picture")
    monkeypatch.setattr(
        "mmtok.data.encoder.encode_named",
        lambda *_: pytest.fail("nothing is encoded before all were looked at"),
    )
    files = sorted(pictures.glob("[0-9].png"))
    with pytest.raises(
        UserError,
        match=(
            "7.png: not an image .*; likewise .*9.png: 2 of 10 files cannot be used; mend or remove"
            " them"
        ),
    ):
        tokenize_files("image", files, tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == [pictures]


def test_the_check_holds_no_more_signals_than_are_encoded_at_once(pictures, tmp_path, monkeypatch):
    """So its memory is bounded by what one batch, or one large file, takes."""
    held = []

    def kept(tokenizer, signals):
        return held.append(sum(map(np.size, signals))) or {}

    monkeypatch.setattr(type(default("image")), "fidelity", kept)
    files = sorted(pictures.glob("[0-9].png"))
    assert tokenize_files(
        "image", files, tmp_path / "t.parquet", how=How(check=True)
    ).checked == 10 and held == [160]
    for most, n in ((50, 3), (16, 1), (1, 1)):
        monkeypatch.setattr("mmtok.data.tokens.MOST_VALUES", most)
        done = tokenize_files("image", files, tmp_path / "t.parquet", how=How(check=True))
        assert (done.rows, done.checked, held[-1]) == (10, n, 16 * n)


def test_jets_in_mev_are_no_token_file_unless_allowed(tmp_path, capsys):
    jets = [np.array([[9e4, 0.1, 0], [4e3, 0, 0.1], [3.0, 0, 0]], np.float32)] * 3
    write_jets(tmp_path / "mev.npz", jets)
    command = ["tokenize", "jets", str(tmp_path / "mev.npz"), "-o", str(tmp_path / "t.parquet")]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert (
        "is pt in MeV" in line
        and "--allow-clipping" in line
        and not list(tmp_path.glob("*t.parquet*"))
    )
    assert (
        main([*command, "--allow-clipping"]) == 0 and len(read_tokens(tmp_path / "t.parquet")) == 3
    )
    assert "6 of 9 particles were clipped in pt_gev" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("a")
    assert (
        main(
            [
                "tokenize",
                "text",
                str(tmp_path / "a.txt"),
                "-o",
                str(tmp_path / "u.parquet"),
                "--allow-clipping",
            ]
        )
        == 2
    )
    assert "is for jets" in capsys.readouterr().err


def killed(*words):
    """A command line that is killed at the moment when its first file would get its name."""
    assert (
        subprocess.run(
            [sys.executable, "-c", KILLED, *map(str, words)], stderr=subprocess.DEVNULL
        ).returncode
        == -9
    )


def test_what_a_killed_call_left_is_swept_by_the_next(tmp_path):
    (tmp_path / "a.txt").write_text("seven")
    (tmp_path / ".notes.999999999.tmp").write_text("of another program")
    (tmp_path / ".a.txt.999999999.tmp").write_text("of another file")
    words = ["tokenize", "text", tmp_path / "a.txt", "-o", tmp_path / "t.parquet"]
    killed(*words)
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 4 and "t.parquet" not in names
    assert main([str(word) for word in words]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.txt",
        "t.parquet",
        ".notes.999999999.tmp",
        ".a.txt.999999999.tmp",
    }


# ---- names of files


def painted(home, *names):
    """Grey pictures of 2 x 2, the i-th of the value i."""
    for i, name in enumerate(names):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(
            path, "png" if name.lower().endswith("png") else None
        )
    return home


def values(home):
    return {
        path.relative_to(home).as_posix(): int(np.array(Image.open(path))[0, 0])
        for path in home.rglob("*")
        if path.is_file()
    }


def there_and_back(tmp_path, modality, *places):
    assert main(["tokenize", modality, *map(str, places), "-o", str(tmp_path / "t.parquet")]) == 0
    assert main(["detokenize", str(tmp_path / "t.parquet"), "-o", str(tmp_path / "back")]) == 0
    return tmp_path / "back"


def test_files_come_back_under_their_names(tmp_path):
    home = painted(tmp_path / "in", "a.png", "b/c d.PNG", "b/été.tif", "z.a.png")
    back = there_and_back(tmp_path, "image", home)
    assert values(back) == {"a.png": 0, "b/c d.png": 1, "b/été.png": 2, "z.a.png": 3}
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["image.file"].to_pylist() == ["a.png", "b/c d.PNG", "b/été.tif", "z.a.png"]


def test_files_and_several_folders_are_told_apart(tmp_path):
    one = painted(tmp_path / "one", "a.png")
    two = painted(tmp_path / "two", "x.png", "a.png")
    assert values(there_and_back(tmp_path, "image", one, two, two / "x.png")) == {
        "one/a.png": 0,
        "two/a.png": 1,
        "two/x.png": 0,
    }


def test_names_that_would_be_one_are_made_two(tmp_path):
    home = painted(
        tmp_path / "in",
        "a.png",
        "a.tif",
        "A.png",
        "b.png/c.png",
        "b.tif",
        "e\u0301.png",
        "\u00e9.png",
    )
    found = values(there_and_back(tmp_path, "image", home))
    assert (
        sorted(found.values()) == list(range(7))
        and len({unicodedata.normalize("NFC", name).lower() for name in found}) == 7
    )


def test_hostile_names_in_a_token_file_stay_in_the_folder(tmp_path, contents):
    text = default("text")
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    names = [
        "../x.txt",
        "/etc/x.txt",
        "..",
        "",
        "/",
        "a\0.txt",
        "\x1b[31m.txt",
        "x" * 320 + ".txt",
        "d/" * 500 + "x.txt",
        "con.txt",
        "../../x.txt",
        "e\u0301.txt",
        "\u00e9.txt",
        "s.txt/s.txt",
        "s",
        "s.txt",
        "s.txt",
        "a\\b.txt",
        "b/./../c.txt",
    ]
    rows = [(name, {"text": text.encode(str(i))}) for i, name in enumerate(names)]
    write_tokens(home / "t.parquet", {"text": text.signature}, rows, named=True)
    assert read_tokens(home / "t.parquet").files("text") == names
    assert main(["detokenize", str(home / "t.parquet"), "-o", str(home / "out")]) == 0
    found = [path for path in (home / "out").rglob("*") if path.is_file()]
    assert sorted(int(path.read_text()) for path in found) == list(range(len(names))) and all(
        path.suffix == ".txt" for path in found
    )
    assert not [
        name
        for name in contents(tmp_path)
        if not name.startswith("a/b/out/") and name not in ("a", "a/b", "a/b/out", "a/b/t.parquet")
    ]


def test_jets_of_a_file_come_back_as_one(tmp_path):
    jets = [np.array([[50.0, 0.1, 0.1]] * n, np.float32) for n in (1, 2, 3)]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write_jets(tmp_path / "in" / "a.npz", jets[:2])
    write_jets(tmp_path / "in" / "deep" / "a.parquet", jets[2:])
    write_jets(tmp_path / "in" / "deep" / "a.npz", jets[:1])
    back = there_and_back(tmp_path, "jets", tmp_path / "in")
    assert [len(jet) for jet in read_jets(back / "a.npz")] == [1, 2]
    assert (
        sorted(len(jet) for path in (back / "deep").iterdir() for jet in read_jets(path)) == [1, 3]
        and len(list((back / "deep").iterdir())) == 2
    )


def test_what_is_there_is_not_replaced(tmp_path, said, contents):
    home = painted(tmp_path / "in", "a.png", "b.png")
    assert main(["tokenize", "image", str(home), "-o", str(tmp_path / "t.parquet")]) == 0
    (home / "a.png").unlink()
    before = contents(home)
    assert (
        "b.png is there already" in said(["detokenize", tmp_path / "t.parquet", "-o", home])
        and contents(home) == before
    )


def test_without_names_files_are_numbered(tmp_path):
    text = default("text")
    write_tokens(
        tmp_path / "t.parquet",
        {"a": text.signature, "b": text.signature},
        [{"a": text.encode("x")}, {"b": text.encode("y")}],
    )
    for _ in range(2):
        assert main(["detokenize", str(tmp_path / "t.parquet"), "-o", str(tmp_path / "back")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "back").iterdir()} == {
        "a-000000.txt": "x",
        "b-000001.txt": "y",
    }


# ---- sizes


def test_a_large_picture_says_what_it_becomes(tmp_path, notes):
    for size in (256, 257):
        Image.fromarray(np.zeros((256, size), np.uint8)).save(tmp_path / f"{size}.png")
    (line,) = notes(
        [
            "tokenize",
            "image",
            tmp_path / "256.png",
            tmp_path / "257.png",
            "-o",
            tmp_path / "t.parquet",
        ]
    )
    assert (
        "65,792 tokens" in line
        and "257.png" in line
        and "1 of 2" in line
        and "--tokenizer" in line
        and "65,536" in line
    )


# ---- tokenizers of others


def test_published_tokenizers_are_taken_as_they_are(tmp_path, make_llama, said):
    make_llama(tmp_path / "llama")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("low high é")
    words = [
        "tokenize",
        "text",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "t.parquet"),
        "--tokenizer",
    ]
    assert main([*words, str(tmp_path / "llama")]) == 0
    assert (
        main(
            [
                "detokenize",
                str(tmp_path / "t.parquet"),
                "-o",
                str(tmp_path / "out"),
                "--tokenizer",
                str(tmp_path / "llama"),
            ]
        )
        == 0
    )
    assert (tmp_path / "out" / "a.txt").read_text() == "low high é"
    for wrong in (tmp_path / "in", tmp_path / "in" / "a.txt", tmp_path / "none"):
        line = said([*words, wrong])
        assert str(wrong) in line and "RUN/tokenizers/text" in line and ".model" in line


@pytest.mark.parametrize("name", ["0.png", "notes.csv", "jets.parquet", "gone/../notes.csv", "."])
def test_tokens_take_the_place_of_token_files_only(tmp_path, said, contents, name):
    """Neither of what they are made from, nor of anything else that is there."""
    write_image(tmp_path / "0.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "notes.csv").write_text("precious")
    (tmp_path / "gone").mkdir()
    write_jets(tmp_path / "jets.parquet", [np.ones((2, 3), np.float32)])
    before = contents(tmp_path)
    line = said(["tokenize", "image", tmp_path / "0.png", "-o", tmp_path / name])
    assert ("is a folder" if name == "." else "is no token file, so it is not replaced") in line
    assert contents(tmp_path) == before


def test_a_token_file_is_made_anew_by_the_same_call(tmp_path):
    write_image(tmp_path / "0.png", np.zeros((4, 4), np.uint8))
    for _ in range(2):
        tokenize_files("image", [tmp_path / "0.png"], tmp_path / "t.parquet")
    assert len(read_tokens(tmp_path / "t.parquet")) == 1


def test_long_signals_are_encoded_and_written_a_few_at_a_time(pictures, tmp_path, monkeypatch):
    """So that memory is bounded by their size; what is written is the same."""
    files = sorted(pictures.glob("[0-9].png"))
    tokenize_files("image", files, tmp_path / "whole.parquet")
    monkeypatch.setattr("mmtok.data.tokens.MOST_VALUES", 40)  # two pictures of 16 pixels
    monkeypatch.setattr("mmtok.data.token_writer.MOST_VALUES", 40)
    tokenize_files("image", files, tmp_path / "parts.parquet")
    about = pq.read_metadata(tmp_path / "parts.parquet")
    assert [about.row_group(i).num_rows for i in range(about.num_row_groups)] == [2] * 5
    assert pq.read_table(tmp_path / "parts.parquet") == pq.read_table(tmp_path / "whole.parquet")
    for name in ("whole", "parts"):
        assert (
            main(["detokenize", str(tmp_path / f"{name}.parquet"), "-o", str(tmp_path / name)]) == 0
        )
    assert [(tmp_path / "parts" / f.name).read_bytes() for f in files] == [
        (tmp_path / "whole" / f.name).read_bytes() for f in files
    ]


def test_a_file_that_is_named_twice_is_taken_once_and_said(pictures, tmp_path, notes):
    words = ["tokenize", "image", pictures / "1.png", pictures, "-o", tmp_path / "t.parquet"]
    (said,) = [line for line in notes(words) if "taken once" in line]
    assert f"1 of 11 image files was named more than once and taken once (first: {pictures}" in said
    assert len(read_tokens(tmp_path / "t.parquet")) == 10


def test_jets_of_named_columns(tmp_path, said, notes):
    lines = ['{"cl": [{"p": 5000, "e": 1, "f": 3}, {"p": 9000, "e": 1.1, "f": 2.9}]}\n'] * 3
    (tmp_path / "a.jsonl").write_text("".join(lines))
    words = ["tokenize", "jets", tmp_path / "a.jsonl", "-o", tmp_path / "t.parquet", "--columns"]
    found = notes([*words, "pt=cl.p,eta=cl.e,phi=cl.f", "--pt_unit", "MeV"])
    assert any("pt from cl.p in MeV (as named)" in line for line in found)
    assert len(read_tokens(tmp_path / "t.parquet")) == 3
    line = said([*words, "pt=cl.q,eta=cl.e,phi=cl.f"])
    assert "has no column 'cl.q'; nearest: cl." in line
    assert "columns names ptt; the fields are pt, " in said([*words, "ptt=cl.p"])
    assert "it must be NAME=VALUE" in said([*words, "pt"])
    texts = ["tokenize", "text", tmp_path / "a.txt", "-o", tmp_path / "t.parquet"]
    assert "no option of reading texts" in said([*texts, "--layout", "jetclass"])


def test_what_tells_of_texts_is_none_of_them(tmp_path, notes):
    """The same rule as in corpora: of a folder, unless nothing else is in it."""
    folder = tmp_path / "texts"
    folder.mkdir()
    words = ["tokenize", "text", folder, "-o", tmp_path / "t.parquet"]
    for name in ("LICENSE.txt", "README.txt"):
        (folder / name).write_text(name)
    notes(words)
    assert len(read_tokens(tmp_path / "t.parquet")) == 2
    (folder / "a.txt").write_text("one")
    (line,) = [line for line in notes(words) if "tells of the corpus" in line]
    assert "LICENSE.txt, README.txt" in line
    assert len(read_tokens(tmp_path / "t.parquet")) == 1
    notes([*words[:2], folder / "README.txt", *words[3:]])
    assert len(read_tokens(tmp_path / "t.parquet")) == 1


def test_two_layouts_of_jets_in_a_folder_are_asked_about(tmp_path, said, notes):
    folder = tmp_path / "jets"
    folder.mkdir()
    write_jets(folder / "own.npz", [np.array([[50.0, 0.1, 0.2], [20, 0, 0]], np.float32)] * 2)
    np.savez(folder / "QG.npz", X=np.ones((3, 4, 4)), y=np.zeros(3))
    words = ["tokenize", "jets", folder, "-o", tmp_path / "t.parquet"]
    line = said(words)
    assert "quarkgluon (such as QG.npz) and plain (such as own.npz); say which to read" in line
    lines = notes([*words, "--layout", "plain"])
    assert any("1 of 2 files was left out: read as quarkgluon, not plain" in x for x in lines)
    assert len(read_tokens(tmp_path / "t.parquet")) == 2


def test_a_corpus_is_no_single_signal(tmp_path, said, pictures, notes):
    """What holds many is refused with the way that reads it; patterns in quotes are read."""
    out = ["-o", tmp_path / "t.parquet"]
    for modality, name in (
        ("text", "a.txt.gz"),
        ("text", "rows.jsonl"),
        ("image", "00000.tar"),
        ("speech", "part.parquet"),
    ):
        (tmp_path / name).write_bytes(b"{}")
        line = said(["tokenize", modality, tmp_path / name, *out])
        way = f"mmtok fit recipes/{modality}.py --path {tmp_path / name} -o RUN"
        assert "holds many signals, or packed ones" in line and way in line
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "folder" / name)
        line = said(["tokenize", modality, tmp_path / "folder", *out])
        way = f"mmtok fit recipes/{modality}.py --path {tmp_path / 'folder'} -o RUN"
        assert "holds many signals, or packed ones" in line and way in line
        (tmp_path / "folder" / name).unlink()
    assert "without a file that can be used" in said(["tokenize", "text", pictures, *out])
    notes(["tokenize", "image", f"{pictures}/*.png", *out])
    assert len(read_tokens(tmp_path / "t.parquet")) == 10
    twice = [pictures / "1.png", pictures / ".." / pictures.name / "1.png"]
    (line,) = [line for line in notes(["tokenize", "image", *twice, *out]) if "taken once" in line]
    assert len(read_tokens(tmp_path / "t.parquet")) == 1


def test_presets_of_speech_by_name(tmp_path, monkeypatch, capsys):
    """A preset tokenises, is shown, and is found again from what it made."""
    monkeypatch.chdir(tmp_path)
    clip = np.random.default_rng(0).uniform(-0.5, 0.5, 1001).astype(np.float32)
    write_sound(tmp_path / "a.wav", clip, 16_000)
    main(["tokenize", "speech", "a.wav", "-o", "t.parquet", "--tokenizer", "dmel-40hz-causal"])
    assert len(read_tokens(tmp_path / "t.parquet").segments("speech", 0)[0][0]) == 3
    main(["detokenize", "t.parquet", "-o", "out"])
    assert sound_seconds(tmp_path / "out" / "a.wav") == 1001 / 16_000
    capsys.readouterr()
    main(["show", "dmel-40hz-causal"])
    assert "40 frames/s, 12800 bit/s" in capsys.readouterr().out
