"""Tables are read strictly: what is text stays text, and what is wrong is said with its line."""

import csv
import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.table_rows import open_table
from mmtok.io.tables import as_text, read_table, suffix_of

WORDS = [
    "00501",
    "1.10",
    "1e5",
    "NA",
    "null",
    "true",
    "-",
    " x ",
    "é",
    "1_000",
    "NaN",
    "0x10",
    "2020-01-01",
]


def put(folder, content, name="t.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_stays_text(tmp_path):
    rows = "".join(f"{i},{word}\n" for i, word in enumerate(WORDS))
    assert read_table(put(tmp_path, "i,w\n" + rows)).column("w") == WORDS
    assert (
        read_table(put(tmp_path, "i\tw\n" + rows.replace(",", "\t"), "t.TSV")).column("w") == WORDS
    )
    assert read_table(put(tmp_path, "i|w\n" + rows.replace(",", "|"), "t.psv")).column("w") == WORDS
    lines = "".join(json.dumps({"w": word}) + "\n" for word in WORDS)
    assert read_table(put(tmp_path, lines, "t.jsonl")).column("w") == WORDS
    pq.write_table(pa.table({"w": WORDS}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").column("w") == WORDS


def test_numbers_of_json_keep_their_digits(tmp_path):
    path = put(
        tmp_path, '{"a": 1.10, "b": 1e5}\n{"a": true, "b": null}\n{"a": [1, 2.50]}\n', "t.jsonl"
    )
    table = read_table(path)
    assert table.columns == ("a", "b") and table.numbers == [1, 2, 3]
    assert [as_text(cell, "") for cell in table.column("a")[:2]] == ["1.10", "true"]
    assert table.column("b") == ["1e5", None, None] and table.rows[2][0] == ["1", "2.50"]
    with pytest.raises(UserError, match="here: holds list, not text"):
        as_text(table.rows[2][0], "here")
    assert (
        read_table(put(tmp_path, '[{"a": 1}, {"a": 2}]', "t.json")).where(1)
        == f"{tmp_path / 't.json'}: row 1"
    )


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_marks_line_ends_and_empty_lines_are_no_text(tmp_path, ends):
    text = ends.join(["file,text", "", 'a,"one', 'two"', "  ", ",", "b,", 'c,"say ""hi"", you"'])
    table = read_table(put(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert table.columns == ("file", "text")
    assert table.rows == [("a", f"one{ends}two"), ("b", ""), ("c", 'say "hi", you')]
    assert table.numbers == [3, 7, 8] and table.broken == [0]


def test_what_python_writes_is_read(tmp_path):
    rows = [("a", 'x,"y"\n\r\u2028z'), ("", "  "), (" b", "\t'\"")]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("f", "t"), *rows])
    assert read_table(tmp_path / "t.csv").rows == [
        rows[0],
        rows[2],
    ]  # a row without a word is an empty line


def test_separators_of_files_called_csv(tmp_path):
    for separator in (",", ";", "\t", "|"):
        table = read_table(put(tmp_path, f"file{separator}text\na{separator}one\n"))
        assert table.rows == [("a", "one")] and table.separator == separator
    assert read_table(put(tmp_path, 'a|"x" y|z\n'), ("file", "text", "more")).rows == [
        ("a", '"x" y', "z")
    ]


def test_long_cells_are_read_and_the_limit_is_left_as_it_was(tmp_path):
    before = csv.field_size_limit()
    assert len(read_table(put(tmp_path, "a,b\n1," + "x" * 200_000)).rows[0][1]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "content, part",
    [
        (
            "file,text\na,one, two\n",
            (
                "line 2 has 3 cells where the header has 2 (file, text); put quotes around a cell"
                " that holds ','"
            ),
        ),
        ("file,text\na,one\n\nb\n", "line 4 ends before its text; complete or remove it"),
        (
            'file,text\na,one\nb,"two\nc,"three, four"\nd,five\n',
            "line 3: a quote opens in this row and runs on into line 4",
        ),
        (
            'file,text\na,one\nb,"two\nc,three\n',
            "line 3: a quote opens in this row and is never closed",
        ),
        ('file,text\na,"one" two\n', "line 2: a quote closes before the end of its cell"),
        ('file,text\na, "one, two"\n', "line 2: a blank stands before a quote"),
        ('file,text\na, "one"\n', "line 2: a blank stands before a quote"),
        ("file,text,file\na,one,b\n", "line 1: the column file comes twice"),
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("file,text\n", "the table has no rows"),
        (b"file,text\na,o\0ne\n", "line 2 holds a NUL byte"),
        ("file,text\na,b\n".encode("utf-16"), "is UTF-16"),
        ("file,text\na,café\n".encode("latin1"), "not UTF-8 text (byte 15) in line 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, content, part):
    path = put(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}: {part}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, part",
    [
        ("t.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: not JSON: the key a comes twice"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", "3\n", "line 1: holds str, not an object"),
        ("t.jsonl", "[" * 100_000, "not JSON"),
        ("t.json", "[1]", "row 0: holds str"),
        ("t.jsonl", "", "the table has no rows"),
        ("t.jsonl", '{"a": ' + "9" * 5_000 + "\n", "line 1: not JSON"),
        ("t.parquet", "PAR1", "not a Parquet file"),
        ("t.xlsx", "x", "not a table that can be read; known are .csv"),
    ],
)
def test_wrong_tables_of_other_kinds_get_one_line(tmp_path, name, content, part):
    path = put(tmp_path, content, name)
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}: {part}") and "\n" not in str(error.value)


def test_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="has no column words; its columns are file, text"):
        read_table(put(tmp_path, "file,text\na,b\n")).column("words")
    with pytest.raises(UserError, match="no.csv: cannot be read: No such file"):
        read_table(tmp_path / "no.csv")


# ---- compressed


@pytest.mark.parametrize(
    "name, content",
    [
        ("t.csv.gz", 'a,b\n00501,"x, y"\n'),
        ("t.TSV.gz", "a\tb\n00501\tx, y\n"),
        ("t.jsonl.gz", '{"a": "00501", "b": "x, y"}\n'),
        ("t.csv.zst", 'a,b\n00501,"x, y"\n'),
        ("t.json.ZST", '[{"a": "00501", "b": "x, y"}]'),
    ],
)
def test_a_compressed_table_is_the_table_within(tmp_path, name, content):
    table = read_table(put(tmp_path, compressed(content.encode(), name), name))
    assert table.columns == ("a", "b") and table.rows == [("00501", "x, y")]
    assert read_table(put(tmp_path, content, name.rpartition(".")[0])).rows == table.rows


def compressed(content, name):
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return pa.compress(content, "zstd", asbytes=True)


@pytest.mark.parametrize(
    "content, part",
    [
        (gzip.compress(b"a,b\n1\n", mtime=0), "line 2 ends before its b"),
        (gzip.compress(b"a,b\n\0,1\n", mtime=0), "line 2 holds a NUL byte"),
        (gzip.compress("a\né\n".encode("latin1"), mtime=0), "not UTF-8 text (byte 2) in line 2"),
        (gzip.compress(b"a\n", mtime=0), "the table has no rows"),
        (b"a,b\n1,2\n", "cannot be unpacked, it may be truncated: Not a gzipped file"),
        (
            gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9],
            "cannot be unpacked, it may be truncated: ",
        ),
        (
            gzip.compress(b"a,b\n1,2\n", mtime=0)[:12] + b"\xff" * 20,
            "cannot be unpacked, it may be truncated: ",
        ),
    ],
)
def test_what_is_wrong_in_a_compressed_table_is_said_as_in_a_plain_one(tmp_path, content, part):
    path = put(tmp_path, content, "t.csv.gz")
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}: {part}") and "\n" not in str(error.value)


def test_a_small_file_of_a_large_table_is_refused_while_it_is_unpacked(tmp_path):
    path = put(tmp_path, gzip.compress(b"a\n" + b"\n" * 100_000_000, 1, mtime=0), "t.csv.gz")
    assert path.stat().st_size < 1_000_000
    memory_budget.set_limit("30MB")
    tracemalloc.start()
    try:
        with pytest.raises(
            UserError,
            match=(
                "t.csv.gz: what is unpacked of it would take 31.5 MB of memory, and 30 MB are"
                " allowed"
            ),
        ):
            read_table(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
        memory_budget.set_limit(None)


# ---- separators


@pytest.mark.parametrize(
    "name, header, separator",
    [
        ("t.csv", '"file, of sound";text', ";"),
        ("t.csv", '"a|b","c;d"', ","),
        ("t.csv", "file;text, cleaned;speaker", ";"),
        ("t.csv", "file\ttext, cleaned", "\t"),
        ("t.txt", "file|text", "|"),
        ("t.txt", "file\ttext", "\t"),
        ("t.TXT.gz", "file;text", ";"),
        ("t.tsv", "file\ta;b", "\t"),
    ],
)
def test_the_header_says_the_separator_outside_quotes(tmp_path, name, header, separator):
    n_cells = len(next(csv.reader([header], delimiter=separator)))
    content = f"{header}\n{separator.join('x' * n_cells)}\n".encode()
    path = put(tmp_path, gzip.compress(content, mtime=0) if name.endswith("gz") else content, name)
    table = read_table(path)
    assert table.separator == separator == open_table(path).separator
    assert table.rows == [("x",) * n_cells]
    assert [cells for _, cells in open_table(path).rows(table.columns)] == [["x"] * n_cells]


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "sep=;\r"])
def test_the_line_of_spreadsheets_declares_the_separator(tmp_path, first):
    path = put(tmp_path, f'\ufeff{first}\nfile, of sound;text\na;"b;c"\n')
    table = read_table(path)
    assert table.columns == ("file, of sound", "text") and table.rows == [("a", "b;c")]
    assert table.where(0).endswith("line 3")
    assert list(open_table(path).rows(table.columns)) == [(3, ["a", "b;c"])]


def test_a_text_is_a_table_only_where_it_is_named(tmp_path):
    path = put(tmp_path, "file,text\na,b\n", "t.txt")
    assert suffix_of(path) is None and suffix_of(path, named=True) == ".txt"
