"""Splits that leak: the same content in both, under any name, is counted, and refused where it is
more than a share.
"""

import json
import shutil
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.hub import HubTable
from mmtok.sources.images import ImageFolder, write_image
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.jets import JetFile
from mmtok.sources.leaks import FilePart, equal_contents
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import SpeechFolder
from mmtok.sources.text import TextFile


def refused(source, part):
    with pytest.raises(UserError) as error:
        source.check()
    assert part in str(error.value) and "\n" not in str(error.value)


def counted(source, part):
    with pytest.warns(UserWarning, match=part):
        source.check()


def test_only_whole_contents_are_equal(tmp_path):
    rng = np.random.default_rng(0)
    content = bytearray(rng.bytes(100_000))
    paths = []
    for name, change in [("a", None), ("b", None), ("c", 0), ("d", 50_000), ("e", 99_999)]:
        changed = bytearray(content)
        if change is not None:
            changed[change] ^= 1
        (tmp_path / name).write_bytes(changed)
        paths.append(str(tmp_path / name))
    (tmp_path / "whole").write_bytes(b"12" + content + b"34")
    (tmp_path / "empty").write_bytes(b"")
    parts = [FilePart(str(tmp_path / "whole"), 2, len(content)), *[str(tmp_path / "empty")] * 2]
    contents = [*paths, *parts, 7, 7, None, None, str(tmp_path / "missing")]
    sides = range(len(contents))
    assert equal_contents(contents, sides) == [[0, 1, 5], [8, 9]]
    assert equal_contents(contents, [0] * len(contents)) == []


def test_files_without_copies_are_not_read(tmp_path, monkeypatch):
    for i in range(9):
        (tmp_path / str(i)).write_bytes(b"x" * (i + 1))
    paths = [str(tmp_path / str(i)) for i in range(9)]
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("sizes differ"))
    assert not equal_contents(paths, range(9))


@pytest.fixture
def pictures(tmp_path):
    """200 pictures in two classes, of which some may be replaced."""
    rng = np.random.default_rng(0)
    for i in range(200):
        folder = tmp_path / "pictures" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"{i:03}.png", rng.integers(0, 256, (4, 4)).astype(np.uint8))
    return tmp_path / "pictures"


def name_of(example):
    return str(example.name)


def test_a_picture_under_two_names(pictures):
    source = ImageFolder(str(pictures), heldout_share=0.5)
    source.check()  # captions that repeat are no leak
    held = [name_of(e) for e in source.examples("heldout")]
    train = [name_of(e) for e in source.examples("train")]
    shutil.copy(train[0], held[0])
    counted(source, f"1 of 100 held-out pictures was of a content that .*{held[0]}")
    shutil.copy(train[1], held[1])
    refused(source, f"{held[0]}: held out, and its content is in training too, as is that of 2 of")
    counted(ImageFolder(str(pictures), heldout_share=0.5, max_leak_share=0.02), "2 of 100")


def test_a_picture_in_two_tars(pictures, tmp_path):
    files = sorted(pictures.rglob("*.png"))
    tars = tmp_path / "tars"
    tars.mkdir()
    for name, some in (("train-0", files[:100]), ("test-0", files[98:])):
        with tarfile.open(tars / f"{name}.tar", "w") as tar:
            for i, file in enumerate(some):
                tar.add(file, f"{i:03}.png")
                (tmp_path / "t.txt").write_text(file.parent.name)
                tar.add(tmp_path / "t.txt", f"{i:03}.txt")
    source = ImageFolder(str(tars), train="train", heldout="test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(source, "in the one to hold out, as are 2 of 102")


def test_a_sound_under_two_names(tmp_path):
    for i in range(30):
        write_sound(tmp_path / f"{i:02}.wav", np.full(800, i / 100, np.float32))
        (tmp_path / f"{i:02}.txt").write_text("yes")
    source = SpeechFolder(str(tmp_path))
    source.check()
    held = next(source.examples("heldout")).name
    shutil.copy(next(source.examples("train")).name, held)
    refused(source, f"{held}: held out, and its content is in training too, as is that of 1 of 3")


def test_a_file_of_jets_under_two_names(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        jets = [rng.random((4, 3)).astype(np.float32) + 1 for _ in range(10)]
        write_jets(tmp_path / f"{i}.npz", jets)
    source = JetFile(str(tmp_path), heldout_share=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.check()
        shutil.copy(tmp_path / "0.npz", tmp_path / "0 (copy).npz")
        refused(source, "0 (copy).npz: held out, and its content is in training too")
        JetFile(str(tmp_path), heldout="1").check()  # both copies are for training


def test_a_text_under_two_names(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        words = " ".join(map(str, rng.integers(0, 1000, 100)))
        (tmp_path / f"{i}.txt").write_text(words)
    source = TextFile(str(tmp_path), heldout_share=0.3)
    source.check()
    shutil.copy(tmp_path / "0.txt", tmp_path / "9.txt")
    refused(source, "9.txt: held out, and its content is in training too")


def test_a_row_of_text_in_two_tables(tmp_path, monkeypatch):
    rows = [json.dumps({"text": f"a text that is long enough, the {i}th"}) for i in range(400)]
    for name, some in (("train", rows[:300]), ("test", rows[298:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some))
    named = {"train": "train", "heldout": "test"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(TextFile(str(tmp_path), **named), "test.jsonl: row 1: held out, and its content")
        refused(TextFile(str(tmp_path)), " of 2 of 40 held-out rows")
        (tmp_path / "test.jsonl").write_text("\n".join(rows[300:]))
        TextFile(str(tmp_path), **named).check()
        monkeypatch.setattr("mmtok.sources.text_index.MOST_SAMPLED", 64)
        (tmp_path / "test.jsonl").write_text("\n".join(rows[150:]))
        refused(TextFile(str(tmp_path), **named), "held out, and its content is in training too")


@pytest.mark.parametrize("mark, between", [("<|end|>", "<|end|>\n"), ("blank lines", "\n\n\n")])
def test_a_document_between_marks_in_both_splits(tmp_path, mark, between):
    documents = [f"A text of\n two lines that is long, the {i}th." for i in range(400)]
    for name, some in (("train", documents[:300]), ("test", [*documents[300:398], documents[7]])):
        (tmp_path / f"{name}.txt").write_text(between.join(["yes", *some, "yes"]))
    source = TextFile(str(tmp_path), document_mark=mark, train="train", heldout="test")
    refused(source, "test.txt: document 100: held out, and its content is in training too, as is"
            " that of 1 of 99 held-out documents")  # fmt: skip
    counted(replace(source, max_leak_share=0.02), "1 of 99 held-out documents was of a content")
    one = tmp_path / "one.txt"
    one.write_text(between.join([*documents[:399], documents[0]]))
    refused(TextFile(str(one), document_mark=mark), "one.txt: document 400: held out")
    TextFile(str(tmp_path / "train.txt"), document_mark=mark).check()


def texts(tmp_path, words):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"w": w}) + "\n" for w in words))
    return HubTable(str(tmp_path / "t.jsonl"), {"caption": "w"}, {"caption": "text"})


def test_texts_that_repeat(tmp_path):
    sentences = [f"a sentence that is long enough, the {i}th" for i in range(50)]
    next(texts(tmp_path, sentences).examples("train", tmp_path))
    with pytest.raises(UserError, match=r"t.jsonl: line \d+: held out, .* of \d of 10 held-out"):
        next(texts(tmp_path, [*sentences, *sentences]).examples("train", tmp_path))
    next(texts(tmp_path, ["yes", "no"] * 20).examples("train", tmp_path))  # words do by nature


def test_splits_of_a_table_that_share_rows(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    for split, first in (("train", 0), ("test", 48)):
        rows = [f"row of a table, the number {i} of them" for i in range(first, first + 50)]
        (folder / f"{split}.csv").write_text("w\n" + "\n".join(f'"{row}"' for row in rows))
    source = HubTable(str(folder), {"caption": "w"}, {"caption": "text"}, heldout="test")
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match=r"test.csv: line 2: held out, .* of 2 of 50 held-out rows"):
        next(source.examples("train", tmp_path))


def test_the_share_is_one():
    with pytest.raises(UserError, match="max_leak_share is 2; it is a share"):
        ImageFolder("x", max_leak_share=2)
