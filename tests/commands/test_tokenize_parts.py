"""`mmtok tokenize ... -o FOLDER/`: parts by several calls, after a kill, by several processes."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.data import parts as parts_room
from mmtok.data.tokens import read_tokens
from mmtok.sources.image_files import write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.signal_files import SIGNAL_FILES
from mmtok.sources.sound_files import write_sound


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """Eleven texts in a folder; chunks of two, parts of one chunk."""
    folder = tmp_path / "letters"
    folder.mkdir()
    for i in range(11):
        (folder / f"{i:02d}.txt").write_text("abc"[: 1 + i % 3] * (i + 1))
    monkeypatch.setattr("mmtok.commands.tokenize.CHUNK", 2)
    monkeypatch.setattr("mmtok.data.tokenise.CHUNK", 2)
    monkeypatch.setattr(parts_room, "CHUNKS", 1)
    return folder


def tokenize(*words):
    assert main(["tokenize", *map(str, words)]) == 0


def rows(path):
    file = read_tokens(path)
    (field,) = file.fields
    return [file.segment(field, i).codes.tolist() for i in range(len(file))], file.files(field)


def test_a_folder_holds_the_rows_of_the_file(letters, tmp_path, capsys):
    tokenize("text", letters, "-o", tmp_path / "t.parquet")
    tokenize("text", letters, "-o", f"{tmp_path}/parts/", "--check")
    assert "parts: 11 rows" in capsys.readouterr().out
    assert len(list((tmp_path / "parts").glob("part-*.parquet"))) == 6
    assert rows(tmp_path / "parts") == rows(tmp_path / "t.parquet")


def test_the_same_call_again_redoes_nothing_and_says_the_same(letters, tmp_path, capsys):
    words = ("text", letters, "-o", f"{tmp_path}/parts/")
    tokenize(*words)
    said = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("part-*")}
    tokenize(*words)
    assert capsys.readouterr().out == said
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("part-*")}


def test_shards_of_a_folder_are_its_parts(letters, tmp_path, capsys, contents):
    tokenize("text", letters, "-o", f"{tmp_path}/whole/")
    for i in (2, 0, 1):
        tokenize("text", letters, "-o", f"{tmp_path}/parts/", "--shard", f"{i}/3")
        said = capsys.readouterr().out
        assert ("this share is made" in said) == (i != 1)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_folder_for_other_things_is_refused(letters, tmp_path, said):
    words = ["tokenize", "text", letters]
    assert "holds 00.txt, which is no token file" in said([*words, "-o", f"{letters}/"])
    (tmp_path / "file").write_text("a")
    assert "file is a file: leave the slash out" in said([*words, "-o", f"{tmp_path}/file/"])
    assert f"-o {letters}/" in said([*words, "-o", letters])
    tokenize("text", letters, "-o", f"{tmp_path}/parts/")
    (letters / "03.txt").unlink()
    line = said([*words, "-o", f"{tmp_path}/parts/"])
    assert "part-00000.parquet was made from other data (a file more, less or of " in line
    assert "to make all of it anew, or write what is new alone into another folder" in line
    assert "--workers is 0" in said([*words, "-o", tmp_path / "t.parquet", "--workers", "0"])
    assert "-o FOLDER/" in said([*words, "-o", tmp_path / "t.parquet", "--ray"])


def test_a_wrong_text_stops_a_folder_with_its_name(letters, tmp_path, said, contents):
    (letters / "07.txt").write_bytes(b"\xff")
    line = said(["tokenize", "text", letters, "-o", f"{tmp_path}/parts/"])
    assert line.startswith(f"mmtok: {letters}/07.txt: not UTF-8")
    assert len(list((tmp_path / "parts").iterdir())) == 3
    (letters / "07.txt").write_text("mended")
    tokenize("text", letters, "-o", f"{tmp_path}/parts/")
    tokenize("text", letters, "-o", f"{tmp_path}/whole/")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_part_whose_files_changed_is_made_anew_with_a_note(letters, tmp_path, notes, contents):
    words = ["tokenize", "text", letters, "-o"]
    assert notes([*words, f"{tmp_path}/parts/"]) == []
    (letters / "03.txt").write_text("changed")
    (line,) = notes([*words, f"{tmp_path}/parts/"])
    assert "part-00001.parquet is made anew: files that it was made from have changed" in line
    notes([*words, f"{tmp_path}/whole/"])
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_files_of_many_signals_are_shared_whole(tmp_path, monkeypatch):
    """By files where there are enough of them, else by signals."""
    for k in range(3):
        jets = [np.array([[5.0 + 3 * k + i, 0, 0]], np.float32) for i in range(4)]
        write_jets(tmp_path / f"{k}.npz", jets)
    read = []
    as_ever = SIGNAL_FILES["jets"]

    def noted(path, takes):
        read.append(path.name)
        return as_ever.read(path, takes)

    monkeypatch.setitem(SIGNAL_FILES, "jets", replace(as_ever, read=noted))
    files = [tmp_path / f"{k}.npz" for k in range(3)]
    tokenize("jets", *files, "-o", tmp_path / "t.parquet", "--shard", "1/3")
    assert read == ["1.npz"]
    whole = rows_of_jets(tmp_path, files)
    assert rows(tmp_path / "t-00001-of-00003.parquet")[0] == whole[4:8]
    tokenize("jets", *files, "-o", tmp_path / "t.parquet", "--shard", "1/5")
    assert rows(tmp_path / "t-00001-of-00005.parquet")[0] == whole[1::5]


def rows_of_jets(tmp_path, files):
    tokenize("jets", *files, "-o", tmp_path / "whole.parquet")
    return rows(tmp_path / "whole.parquet")[0]


# ---- several processes


def make_sounds(folder):
    for i in range(6):
        write_sound(folder / f"{i}.wav", np.sin(np.arange(900 + i) * 0.1).astype(np.float32), 8000)


def make_pictures(folder):
    for i in range(6):
        write_image(folder / f"{i}.png", np.full((4, 4 + i, 3), 20 * i, np.uint8))


def make_jets(folder):
    for k in range(3):
        jets = [np.array([[9.0 + i, 0.1 * k, 0], [0.1, 0, 5]], np.float32) for i in range(5)]
        write_jets(folder / f"{k}.npz", jets)


def make_texts(folder):
    for i in range(6):
        (folder / f"{i}.txt").write_text("word " * i + "end")


MAKERS = {"speech": make_sounds, "image": make_pictures, "jets": make_jets, "text": make_texts}


@pytest.mark.slow
@pytest.mark.parametrize("modality", MAKERS)
def test_two_processes_write_the_bytes_of_one_and_say_the_same(
    modality, tmp_path, notes, monkeypatch, contents
):
    monkeypatch.setattr("mmtok.commands.tokenize.CHUNK", 2)
    (tmp_path / "in").mkdir()
    MAKERS[modality](tmp_path / "in")
    said = []
    for n in (1, 2):
        words = ["tokenize", modality, tmp_path / "in", "--workers", n, "-o"]
        said.append(notes([*words, tmp_path / f"{n}.parquet"]))
        assert said[-1] == notes([*words, f"{tmp_path}/{n}/"])
    assert said[0] == said[1]
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


# ---- killed at random

CALL = """
import sys
from mmtok.cli import main
from mmtok.commands import tokenize
from mmtok.data import parts, tokenise
tokenize.CHUNK = tokenise.CHUNK = 2
parts.CHUNKS = 1
sys.exit(main(sys.argv[1:]))
"""


def killed_at_random(words, n, rng, folder):
    """Start the call n times, and kill each (with its workers' parent) at a random moment."""
    n_killed = 0
    for _ in range(n):
        process = subprocess.Popen(
            [sys.executable, "-c", CALL, *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = len(list(folder.glob("part-*")))
        deadline = time.monotonic() + 60
        # the start takes seconds, so that a random moment alone would hardly meet a part
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("part-*"))) > before:
                break
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        n_killed += process.wait() == -signal.SIGKILL
    return n_killed


@pytest.mark.slow
def test_killed_twenty_times_at_random_it_writes_the_same_bytes(tmp_path, contents):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(400):
        write_image(tmp_path / "in" / f"{i:03d}.png", rng.integers(0, 256, (40, 40), np.uint8))
    words = ["tokenize", "image", tmp_path / "in", "--workers", 2, "-o"]
    folder = tmp_path / "killed"
    assert killed_at_random([*words, f"{folder}/"], 20, random.Random(0), folder) == 20
    assert 20 <= len(list(folder.glob("part-*.parquet"))) < 200
    for out in ("killed/", "whole/"):
        call = [sys.executable, "-c", CALL, *map(str, [*words, f"{tmp_path}/{out}"])]
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_with_one_line(tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(2000):
        write_image(tmp_path / "in" / f"{i:04d}.png", rng.integers(0, 256, (64, 64), np.uint8))
    words = ["tokenize", "image", tmp_path / "in", "--workers", 2, "-o", tmp_path / "t.parquet"]
    process = subprocess.Popen(
        [sys.executable, "-c", CALL, *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".t.parquet.*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    children = descendants(process.pid)
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
        children = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130 and said[-1] == "mmtok: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]


def descendants(pid):
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


# ---- of a run


def small_parts(monkeypatch):
    """Chunks of two examples, parts of one chunk."""
    for room in ("mmtok.data.tokenise", "mmtok.sources.pictures", "mmtok.sources.screen"):
        monkeypatch.setattr(f"{room}.CHUNK", 2)
    monkeypatch.setattr(parts_room, "CHUNKS", 1)


def test_shares_of_a_run_are_what_training_makes(tiny_words, tmp_path, monkeypatch, capsys, said):
    small_parts(monkeypatch)
    one = tmp_path / "one"
    shared = tmp_path / "shared"
    assert main(["train", *tiny_words, "--train.steps", "1", "-o", str(one)]) == 0
    assert "no fitted" in said(["tokenize", _begun(tiny_words, shared)])
    assert main(["fit", *tiny_words, "--train.steps", "1", "-o", str(shared)]) == 0
    capsys.readouterr()
    for i in (2, 0):
        tokenize(shared, "--shard", f"{i}/3")
        assert "this share is made" in capsys.readouterr().out
    assert not list(shared.glob("tokens/0-*/complete.json"))
    tokenize(shared, "--shard", "1/3")
    assert "all token files are made" in capsys.readouterr().out
    made = {path.relative_to(shared): path for path in shared.glob("tokens/*/*.parquet")}
    assert len(made) > 3
    for name, path in made.items():
        assert path.read_bytes() == (one / name).read_bytes()
    assert main(["train", *tiny_words, "--train.steps", "1", "-o", str(shared)]) == 0
    assert "stands" in capsys.readouterr().err


def _begun(words, folder):
    """The folder of a run that has a recipe alone."""
    from mmtok.run.build import start_run
    from mmtok.run.recipe import load_recipe

    start_run(load_recipe(words[0], [*words[1:], "--train.steps", "1"]), folder)
    return folder


def test_options_of_files_are_refused_for_a_run(tiny_run, said):
    line = said(["tokenize", tiny_run, "-o", "x", "--columns", "a=b"])
    assert line.endswith("is a run, whose recipe says all that; without --out, --columns")
    assert "is no run's folder, and without one FILE is needed" in said(["tokenize", "text"])
    assert "say where the tokens go: -o" in said(["tokenize", "text", "README.md"])
