"""Parts of columns of records, such as ann.text, are read alike in every kind of table."""

import json
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtok.errors import UserError
from mmtok.sources.images import ImageFolder
from mmtok.sources.speech import SpeechFolder
from mmtok.sources.text import TextFile
from tests.sources.layout_trees import content, put_picture, put_sound, sentence

N = 12
KINDS = ("t.jsonl", "t.json", "t.parquet", "metadata.jsonl", "transcripts.jsonl")
SIGNALS = {  # source -> suffix of its files, how one is written, its field of files
    SpeechFolder: (".wav", put_sound, "file"),
    ImageFolder: (".png", put_picture, "image"),
}


def put_rows(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(source):
    suffix = SIGNALS.get(source, ("", None, ""))[0]
    return [
        {"n": i, "src": {"file": f"{i}{suffix}"}, "ann": {"en": {"text": sentence(i)}}}
        for i in range(N)
    ]


def captions(source, field):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.check()
        return sorted(
            example[field] for split in source.splits for example in source.examples(split)
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", SIGNALS)
def test_of_files_and_captions(tmp_path, source, kind):
    suffix, put_signal, field = SIGNALS[source]
    for i in range(N):
        put_signal(tmp_path / f"{i}{suffix}", i)
    put_rows(tmp_path / kind, rows_of(source))
    columns = {field: "src.file", "caption": "ANN.en.text"}
    if kind.startswith("t."):
        assert len(captions(source(str(tmp_path / kind), columns=columns), "caption")) == N
    found = captions(source(str(tmp_path), columns=columns), "caption")
    assert found == sorted(map(sentence, range(N)))
    with pytest.raises(UserError, match="src.fil|none of"):
        captions(source(str(tmp_path), columns=columns | {field: "src.fil"}), "caption")


@pytest.mark.parametrize("kind", KINDS)
def test_of_texts(tmp_path, kind):
    put_rows(tmp_path / kind, rows_of(TextFile))
    for path in (tmp_path, tmp_path / kind):
        source = TextFile(str(path), columns={"text": "ann.en.text"})
        assert captions(source, "text") == sorted(map(sentence, range(N)))
    with pytest.raises(UserError, match="none of 12 rows has a text in the column 'ann.de'"):
        captions(TextFile(str(tmp_path / kind), columns={"text": "ann.de"}), "text")


def test_of_pictures_in_parquet(tmp_path):
    rows = [
        {
            "image": {"bytes": content(put_picture, ".png", i), "path": None},
            "ann": {"text": sentence(i)},
        }
        for i in range(N)
    ]
    for i, row in enumerate(rows):
        row["ann"]["of"] = "train" if i < 9 else "test"
    put_rows(tmp_path / "a.parquet", rows)
    columns = {"caption": "ann.text", "split": "ann.of"}
    source = ImageFolder(str(tmp_path), columns=columns, train="train", heldout="test")
    assert captions(source, "caption") == sorted(map(sentence, range(N)))
    assert len(list(source.examples("heldout"))) == 3
