"""Corpora of text: files of every kind are read the same, in parts, and documents stay apart."""

import csv
import gzip
import io
import json
import os
import pickle
import tracemalloc
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtok.errors import UserError
from mmtok.io import compressed
from mmtok.io.overrides import set_fields
from mmtok.io.serialize import from_plain, to_plain
from mmtok.sources import text_index, text_pieces, text_rows
from mmtok.sources.base import Unusable
from mmtok.sources.text import TextFile

LETTERS = "one two  thr\u00e9e \U0001f469 four\nfive \u2028 six\t"


def zst(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


def texts_of(source, split="train"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [example["text"] for example in source.examples(split)]


def write_rows(path, texts):
    """A table of texts in the format of the path's suffix."""
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=3)
        return
    if ".csv" in name:
        out = io.StringIO(newline="")
        csv.writer(out).writerows([("id", "text"), *enumerate(texts)])
        content = out.getvalue()
    elif ".jsonl" in name:
        content = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts))
    else:
        content = json.dumps([{"id": i, "text": text} for i, text in enumerate(texts)])
    pack = {".gz": gzip.compress, ".zst": zst}.get(path.suffix, bytes)
    path.write_bytes(pack(content.encode("utf-8-sig")))


@pytest.fixture
def small(monkeypatch):
    """Blocks of 7 bytes and ranges of 3 chunks, so that all is cut everywhere."""
    monkeypatch.setattr(compressed, "BLOCK", 7)
    monkeypatch.setattr(text_pieces, "CHUNK", 3)
    monkeypatch.setattr(text_index, "CHUNK", 3)
    monkeypatch.setattr(text_rows, "ROWS", 2)


def test_packed_and_cut_anywhere_it_is_the_same_text(tmp_path, small):
    content = (LETTERS * 20).encode()
    files = {"a.txt": content, "b.txt.gz": gzip.compress(content), "c.md.zst": zst(content)}
    for name, packed_content in files.items():
        (tmp_path / name).write_bytes(packed_content)
    for split in ("train", "heldout"):
        read = [texts_of(TextFile(str(tmp_path / name), chunk_chars=9), split) for name in files]
        assert read[0] == read[1] == read[2] and len(read[0]) > 3
    whole = texts_of(TextFile(str(tmp_path / "c.md.zst"), chunk_chars=9), "train")
    whole += texts_of(TextFile(str(tmp_path / "c.md.zst"), chunk_chars=9), "heldout")
    assert "".join(whole) == LETTERS * 20


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.csv", "a.CSV.gz", "a.json", "a.parquet"],
)
def test_a_row_is_a_document_of_one_split(tmp_path, small, name):
    texts = [f"row {i}: {LETTERS * (i % 4)}" for i in range(20)]
    write_rows(tmp_path / name.lower(), texts)
    (tmp_path / name.lower()).rename(tmp_path / name)
    source = TextFile(str(tmp_path / name), chunk_chars=1000, heldout_share=0.3)
    train = texts_of(source)
    heldout = texts_of(source, "heldout")
    assert train + heldout == texts
    n_chars = sum(map(len, texts))
    assert 0.3 * n_chars <= sum(map(len, heldout)) < 0.3 * n_chars + max(map(len, texts))
    short = TextFile(str(tmp_path / name), chunk_chars=5, heldout_share=0.3)
    assert texts_of(short) == [
        chunk for text in train for chunk in text_pieces_of(text, 5)
    ]  # none runs over two rows
    chunks = list(short.listing("train").chunks)
    assert len(chunks) > 5
    backwards = [list(chunk.read()) for chunk in pickle.loads(pickle.dumps(chunks[::-1]))]
    assert [e["text"] for part in backwards[::-1] for e in part] == texts_of(short)


def text_pieces_of(text, chunk_chars):
    stream = [text_pieces.Piece(text, 0, ends=True)]
    return [piece.text for piece in text_pieces.cut(stream, chunk_chars)]


def test_rows_are_named_by_their_lines(tmp_path, small):
    (tmp_path / "a.csv").write_text('id,body\n\n1,"two\nlines"\n2,one\n3,more\n')
    source = TextFile(str(tmp_path / "a.csv"), columns={"text": "body"})
    found = [(e.name, e["text"]) for split in source.splits for e in source.examples(split)]
    where = f"{tmp_path / 'a.csv'}: line"
    assert found == [(f"{where} 3", "two\nlines"), (f"{where} 5", "one"), (f"{where} 6", "more")]


def test_documents_between_marks_stay_apart(tmp_path, small):
    documents = [f"<|{i}|> {LETTERS * (1 + i % 3)}" for i in range(12)]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    source = TextFile(
        str(tmp_path / "a.txt"), chunk_chars=500, document_mark="<|endoftext|>", heldout_share=0.2
    )
    assert texts_of(source) + texts_of(source, "heldout") == documents
    assert 1 <= len(texts_of(source, "heldout")) <= 4
    short = TextFile(str(tmp_path / "a.txt"), chunk_chars=8, document_mark="<|endoftext|>")
    wanted = [c for d in documents for c in text_pieces_of(d, 8) if not c.isspace()]
    assert texts_of(short) + texts_of(short, "heldout") == wanted


def test_blank_lines_may_stand_between_documents(tmp_path, small):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\n  \r\nthree\r\n\r\nfour\n\n\n\n five\n\n")
    source = TextFile(str(tmp_path / "a.txt"), document_mark="blank lines")
    documents = ["one\ntwo", "three", "four", " five"]
    assert texts_of(source) + texts_of(source, "heldout") == documents


def test_one_document_cannot_be_split(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(UserError, match="single document"):
        texts_of(TextFile(str(tmp_path / "a.jsonl")))
    (tmp_path / "a.jsonl").write_text('{"text": "a very long one"}\n{"text": "b"}\n')
    source = TextFile(str(tmp_path / "a.jsonl"))
    assert [texts_of(source, split) for split in source.splits] == [["a very long one"], ["b"]]


def test_patterns_and_folders_name_many_files(tmp_path):
    for name in ("x-00.txt", "x-01.txt", "y.txt"):
        (tmp_path / name).write_text(f"text of {name} ")
    source = TextFile(f"{tmp_path}/x-{{00..01}}.txt", chunk_chars=99)
    assert "".join(texts_of(source) + texts_of(source, "heldout")) == (
        "text of x-00.txt text of x-01.txt "
    )
    assert len(texts_of(TextFile(f"{tmp_path}/*.txt", chunk_chars=99))) == 3
    with pytest.raises(UserError, match="nothing there has such a name"):
        texts_of(TextFile(f"{tmp_path}/z*.txt"))


def test_a_folder_of_txt_files_is_one_whatever_lies_beside_them(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "notes.md").write_text("not read")
    (tmp_path / "metadata.jsonl").write_text('{"n":9}\n')
    with pytest.warns(UserWarning, match=r"left out 1 .jsonl files .*1 .md files"):
        read = [e["text"] for e in TextFile(str(tmp_path)).examples("train")]
    assert read == ["some tex"]


def test_what_tells_of_a_corpus_is_not_the_corpus(tmp_path):
    """A licence beside a table, and beside texts."""
    (tmp_path / "LICENSE.txt").write_text("All rights reserved. " * 9)
    (tmp_path / "data.ndjson").write_text('{"text": "row one"}\n{"text": "row two"}\n')
    assert texts_of(TextFile(str(tmp_path))) == ["row one"]
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UserError) as error:
        texts_of(TextFile(str(tmp_path)))
    assert "plain (a.txt) and table (text in data.ndjson)" in str(error.value)
    (tmp_path / "data.ndjson").unlink()
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b" of two files"))
    (tmp_path / "README.md").write_text("no part of it")
    (tmp_path / "licensed_books.txt").write_text("a part of it ")
    with pytest.warns(UserWarning, match=r"left out what tells of the corpus: LICENSE.txt"):
        read = [e["text"] for e in TextFile(str(tmp_path), chunk_chars=99).examples("train")]
    assert "".join(read).startswith("some text of two filesa part")


@pytest.mark.parametrize(
    "tables",
    [
        {"reviews.csv": b"review,label\n" + b"a long review,1\n" * 9},  # larger than the text
        {"a_labels.csv": b"n\n1\n", "data.jsonl": b'{"text": "one"}\n{"text": "two"}\n'},
        {"train.jsonl": '{"text": "one"}\n'.encode("utf-16")},  # nobody knows what is in it
    ],
)
def test_a_stray_text_beside_tables_is_asked_about(tmp_path, tables):
    (tmp_path / "requirements.txt").write_text("numpy\ntorch\n")
    for name, content in tables.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="plain .requirements.txt. and table .*--layout"):
        texts_of(TextFile(str(tmp_path)))


def test_what_the_hub_writes_beside_tables_is_left_out(tmp_path):
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (tmp_path / "train.jsonl").write_text('{"text": "row one"}\n{"text": "row two"}\n')
    with pytest.warns(UserWarning, match="tells of the corpus: dataset_infos.json"):
        assert [e["text"] for e in TextFile(str(tmp_path)).examples("train")] == ["row one"]


def test_a_folder_as_the_hub_has_it_is_a_table(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "data").mkdir()
    for split in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_rows(tmp_path / "data" / f"{split}.parquet", [f"{split} {i}" for i in range(4)])
    source = TextFile(str(tmp_path), train="train", heldout="test")
    with pytest.warns(UserWarning, match=r"read as table \(text in test-00000-of-00001.parquet\)"):
        train = [e["text"] for e in source.examples("train")]
    assert len(train) == 8 and all(text.startswith("train") for text in train)
    assert texts_of(source, "heldout") == [f"test-00000-of-00001 {i}" for i in range(4)]
    with pytest.raises(UserError, match="'dev', the split that is asked for"):
        texts_of(TextFile(str(tmp_path), heldout="dev"))
    only = TextFile(str(tmp_path), heldout="test")
    assert texts_of(only) == train


ROWS = '{"text": "row one", "n": 1}\n{"text": "row two", "n": 2}\n'
CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.mark.parametrize("field, rows", [("text", ROWS), ("messages", CHAT + CHAT)])
@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", '{"version": "one"}'),
        ("config.json", '{\n "version": "one"\n}\n'),
        ("config.json", '["a", "list"]'),
        ("a.csv", "version\none\n"),
        ("a.csv", "n,m\n1,2\n"),
        ("a.csv", ""),
    ],
)
def test_a_table_without_the_column_of_the_others_is_counted(tmp_path, field, rows, name, content):
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / name).write_text(content)
    with pytest.warns(UserWarning) as notes:
        found = [e["text"] for e in TextFile(str(tmp_path)).examples("train")]
    said = "\n".join(str(note.message) for note in notes)
    assert len(found) == 1 and (field == "messages" or found == ["row one"])
    assert f"1 of 2 tables was left out: without a column of {field} (first: " in said
    assert name in said and f"({field} in train.jsonl)" in said


def test_a_part_of_the_corpus_without_its_column_is_a_fault(tmp_path):
    (tmp_path / "part-0.jsonl").write_text(ROWS)
    match = (
        "part-1.jsonl.*txt.*1 of 2 files cannot be used.*or name those to read, such as --path '"
    )
    (tmp_path / "part-1.jsonl").write_text('{"txt": "row three", "n": 3}\n')
    with pytest.raises(UserError, match=match):
        texts_of(TextFile(str(tmp_path)))
    assert texts_of(TextFile(f"{tmp_path}/part-0.jsonl")) == ["row one"]


def test_single_columns_that_differ_are_asked_about(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"story": "row one"}\n{"story": "row two"}\n')
    assert texts_of(TextFile(str(tmp_path))) == ["row one"]
    (tmp_path / "config.json").write_text('{"version": "one"}')
    with pytest.raises(UserError, match="Its tables have story in b.json.*--columns text=COLUMN"):
        texts_of(TextFile(str(tmp_path)))
    assert texts_of(TextFile(str(tmp_path), columns={"text": "story"})) == ["row one"]


def test_two_layouts_in_one_folder_are_asked_about(tmp_path):
    (tmp_path / "essay.md").write_text("an essay " * 9)
    (tmp_path / "a.csv").write_text("n,text\n1,row one\n2,row two\n")
    with pytest.raises(UserError) as error:
        texts_of(TextFile(str(tmp_path)))
    assert "plain (essay.md) and table (text in a.csv)" in str(error.value)
    assert "--layout plain or --layout table" in str(error.value)
    assert texts_of(TextFile(str(tmp_path), layout="table")) == ["row one"]
    assert texts_of(TextFile(str(tmp_path), layout="plain"))[0].startswith("an essay")
    with pytest.raises(UserError, match="the layouts are plain, table"):
        TextFile(str(tmp_path), layout="tables")


def test_the_column_is_found_or_asked_for(tmp_path):
    (tmp_path / "a.tsv").write_text("id\tutterance\tnote\n1\tone\tx\n2\ttwo\ty\n")
    with pytest.raises(UserError, match="--columns text=COLUMN, one of id, utterance, note"):
        texts_of(TextFile(str(tmp_path / "a.tsv")))
    with pytest.raises(UserError, match="has no column 'uterance'; nearest: utterance"):
        texts_of(TextFile(str(tmp_path / "a.tsv"), columns={"text": "uterance"}))
    with pytest.raises(UserError, match="columns names body; the fields are text"):
        TextFile(str(tmp_path / "a.tsv"), columns={"body": "utterance"})
    plain = to_plain(TextFile(str(tmp_path / "a.tsv")))
    set_fields(plain, ["--columns", "text=utterance"])
    assert texts_of(from_plain(plain, TextFile, "source")) == ["one"]
    characters = TextFile(str(tmp_path / "a.tsv"), layout="plain")
    assert texts_of(characters)[0].startswith("id\tutterance")
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UserError, match="read as characters"):
        texts_of(TextFile(str(tmp_path / "a.txt"), columns={"text": "utterance"}))
    with pytest.raises(UserError, match="each row is a document"):
        texts_of(TextFile(str(tmp_path / "a.tsv"), columns={"text": "note"}, document_mark="|"))


def test_faulty_rows_are_passed_over_while_they_are_few(tmp_path):
    lines = [json.dumps({"text": f"text {i}"}) for i in range(200)]
    lines[17] = '{"text": "open'
    lines[18] = '{"text": ["a", "list"]}'
    lines[19] = '{"text": ""}'
    lines[20] = '{"other": 1}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.warns(UserWarning) as warned:
        read = [e["text"] for e in TextFile(str(tmp_path / "a.jsonl")).examples("train")]
    said = "\n".join(str(w.message) for w in warned)
    assert "2 of 200 rows were passed over as unusable (first:" in said
    assert "a.jsonl: line 18: not JSON" in said
    assert "2 of 200 rows were left out: no text (first:" in said
    assert read[16:18] == ["text 16", "text 21"]
    lines[30] = "[1]"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 18.*line 19.*3 of 200 rows cannot be used") as error:
        texts_of(TextFile(str(tmp_path / "a.jsonl")))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="line 18: not JSON"):
        texts_of(TextFile(str(tmp_path / "a.jsonl"), on_error="raise"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt.zst", b"no zstd at all", "cannot be unpacked"),
        ("a.txt.zst", zst(b"words " * 999)[:-9], "cannot be unpacked, it may be truncated"),
        ("a.txt.gz", gzip.compress(b"words " * 999, mtime=0)[:-9], "cannot be unpacked"),
        ("a.txt.gz", gzip.compress(b"caf\xe9 noir", mtime=0), "byte 0xE9 at offset 3"),
        ("a.txt.gz", gzip.compress(b"words \xc3", mtime=0), "byte 0xC3 at offset 6"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"just words\nand more\n", "none of its first lines is a JSON object"),
        ("a.csv", "text,n\ncaf\u00e9,1\n".encode("latin1"), "not UTF-8 text: byte 0xE9"),
        ("a.csv", "text,n\na,1\n".encode("utf-16"), "is UTF-16"),
        ("a.txt", "text\n".encode("utf-16"), "is UTF-16 text"),
        ("a.csv", b'text,n\n"open,1\nb,2\n', "a quote opens in this row and is never closed"),
        ("a.csv", b"text,n\n", "a single character cannot be split"),
        ("a.parquet", b"PAR1 no", "not a Parquet file"),
        ("a.parquet.gz", b"x", "not a table whose rows can be read"),
    ],
)
def test_broken_files_are_answered_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    layout = "table" if name == "a.parquet.gz" else ""
    with pytest.raises(UserError, match=says) as error:
        TextFile(str(tmp_path / name), layout=layout).check()
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_byte_order_mark_is_a_character_of_a_text_and_none_of_a_table(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffsome text".encode())
    with pytest.warns(UserWarning, match="a.txt was read with a byte order mark"):
        read = [e["text"] for e in TextFile(str(tmp_path / "a.txt")).examples("train")]
    assert read == ["\ufeffsome tex"]
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "one"}\n{"text": "two"}'.encode())
    assert texts_of(TextFile(str(tmp_path / "a.jsonl"))) == ["one"]


def test_an_address_is_not_fetched(tmp_path):
    with pytest.raises(UserError, match="is an address, and TextFile reads local files"):
        texts_of(TextFile("https://example.org/a.txt"))


def test_a_file_that_changes_meanwhile_is_unusable(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 999)
    (tmp_path / "b.jsonl").write_text('{"text": "words"}\n' * 99)
    for name in ("a.txt", "b.jsonl"):
        chunks = list(TextFile(str(tmp_path / name)).listing("train").chunks)
        with (tmp_path / name).open("a") as file:
            file.write("more")
        (found,) = chunks[0].read()
        assert isinstance(found, Unusable) and "has changed" in found.error


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv"])
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, name):
    """Of 8 MB in documents of 2 kB, less than 1.5 MB is held."""
    monkeypatch.setattr(compressed, "BLOCK", 2**17)
    texts = [f"{i} {'word and word ' * 140}" for i in range(4_000)]
    if ".txt" in name:
        pack = {".gz": gzip.compress}.get((tmp_path / name).suffix, bytes)
        (tmp_path / name).write_bytes(pack("\n".join(texts).encode()))
    else:
        write_rows(tmp_path / name, texts)
    del texts
    source = TextFile(str(tmp_path / name), chunk_chars=2_000)
    tracemalloc.start()
    try:
        n_chars = sum(len(example["text"]) for example in source.examples("train"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_chars > 7e6 and peak < 1.5 * 2**20


def simulated(n_blocks, block):
    """As `blocks`, of a file that is not there: the same block again and again."""

    def blocks(path, first=0, last=None):
        if last is not None:
            yield from compressed.blocks(path, first, last)
            return
        for _ in range(n_blocks):
            yield block

    return blocks


@pytest.mark.parametrize("n_blocks", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_positions_in_a_hundred_gigabytes_are_exact(tmp_path, monkeypatch, n_blocks):
    """A sparse file of NUL characters, whose end alone is really read."""
    n_bytes = n_blocks * 2**20
    try:
        with (tmp_path / "a.txt").open("wb") as file:
            os.truncate(file.fileno(), n_bytes)
    except OSError:
        pytest.skip("this file system has no sparse files")
    monkeypatch.setattr(text_pieces, "blocks", simulated(n_blocks, bytes(2**20)))
    source = TextFile(str(tmp_path / "a.txt"), heldout_share=1000 / n_bytes, chunk_chars=300)
    (chunk,) = source.listing("heldout").chunks
    assert (chunk.first, chunk.last) == (n_bytes - 1000, n_bytes)
    assert [len(e["text"]) for e in chunk.read()] == [300, 300, 300, 100]
    first = next(iter(source.listing("train").chunks))
    assert (first.first, first.last) == (0, 300 * 256)


@pytest.mark.parametrize("names", [("train.txt", "test.txt"), ("train/a.txt", "validation/a.txt")])
def test_splits_of_its_own_are_said(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name} and more words of it\n" * 20)
    held = names[1].split("/")[0]
    with pytest.warns(UserWarning, match=f"has a split of its own, {held}, and yet the end"):
        list(TextFile(str(tmp_path)).listing("train").chunks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = TextFile(str(tmp_path), heldout=held.removesuffix(".txt"), max_leak_share=1)
        list(source.listing("heldout").chunks)
