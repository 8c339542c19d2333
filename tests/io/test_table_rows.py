"""Tables read row by row are what the same tables are when they are read as a whole."""

import gzip
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtok.errors import UserError
from mmtok.io.table_rows import open_table, text_lines
from mmtok.io.tables import read_table

TABLES = {
    "a.csv": 'file,text\r\na.wav,"one, ""two"""\r\n\r\nb.wav,"x\r\ny"\r\n',
    "b.csv": "\ufefffile;text\na;00501\nb;NA\n",
    "c.tsv": "file\ttext\na\t1.10\nb\t\n",
    "d.csv": 'file|text\na|"quoted" words\nb|x\n',
    "e.jsonl": '{"file": "a", "text": 1.10}\n\n{"text": null, "file": "b", "more": [1]}\n',
    "f.json": '[{"file": "a", "text": "x"}, {"file": "b"}]',
}


def whole_and_streamed(path):
    whole = read_table(path)
    table = open_table(path)
    assert table.columns == whole.columns and table.unit == whole.unit
    rows = list(table.rows(["text", "file", "nowhere"]))
    assert [number for number, _ in rows] == whole.numbers
    assert all(cells[2] is None for _, cells in rows)
    expected = list(zip(whole.column("text"), whole.column("file"), strict=True))
    return [tuple(cells[:2]) for _, cells in rows], expected


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("packed", [False, True])
def test_rows_equal_those_of_the_whole_table(tmp_path, name, packed):
    path = tmp_path / (name + ".gz" * packed)
    content = TABLES[name].encode()
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    rows, expected = whole_and_streamed(path)
    assert rows == expected


def test_rows_of_parquet(tmp_path):
    pq.write_table(
        pa.table({"file": ["a", "b"], "text": ["x", None], "n": [1, 2]}), tmp_path / "t.parquet"
    )
    rows, expected = whole_and_streamed(tmp_path / "t.parquet")
    assert rows == expected == [("x", "a"), (None, "b")]


@pytest.mark.parametrize(
    "name, content",
    [
        ("t.csv", "file,text\na,one\nb\n"),
        ("t.csv", "file,text\na,one,two\n"),
        ("t.csv", 'file,text\na,"one\n'),
        ("t.csv", "file,file\na,one\n"),
        ("t.csv", ""),
        ("t.tsv", "file\ttext\na\t caf\xe9\n".encode("latin1")),
        ("t.csv", b"file,text\na,o\0ne\n"),
        ("t.csv", "file,text\na,one\n".encode("utf-16")),
        ("t.jsonl", '{"file": "a"}\n{"file": "a"\n'),
        ("t.jsonl", '{"file": "a"}\n[1]\n'),
        ("t.jsonl", '{"file": "a", "file": "b"}\n'),
        ("t.csv.gz", b"no gzip"),
        ("t.csv.gz", gzip.compress(b"file,text\na,one\n" * 999, mtime=0)[:-20]),
        ("t.parquet", b"no parquet"),
        ("t.xlsx", b""),
    ],
)
def test_faults_are_those_of_the_whole_table(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as whole:
        read_table(path)
    with pytest.raises(UserError) as streamed:
        list(open_table(path).rows(["file", "text"]))
    assert "\n" not in str(streamed.value) and str(streamed.value).startswith(str(path))
    assert str(streamed.value).split(":")[1] == str(whole.value).split(":")[1] or name == "t.xlsx"


def test_a_swallowed_row_is_found(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('file,text\na.wav,"one\nb.wav,two"\nc.wav,three\n')
    with pytest.raises(UserError, match="line 2: a cell in quotes holds another row, 'b.wav,two'"):
        list(open_table(path).rows(["file"], lambda name: name.endswith(".wav")))


def test_only_the_row_at_hand_is_in_memory(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,text\n" + "".join(f"{i}.wav,{'x' * 100}\n" for i in range(20_000)))
    tracemalloc.start()
    n_rows = sum(1 for _ in open_table(path).rows(["file", "text"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_rows == 20_000 and peak < path.stat().st_size / 4


def test_lines_know_their_numbers_and_a_missing_file_is_named(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa\rb\n\nc")
    assert list(text_lines(path, "\n")) == [(1, "a\rb\n"), (2, "\n"), (3, "c")]
    with pytest.raises(UserError, match="nowhere: no such file"):
        list(text_lines(tmp_path / "nowhere"))
