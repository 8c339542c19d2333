"""Tables whose splits hold nothing or the same, and names in them that are not there."""

import io
import json
import warnings
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mmtok.errors import UserError
from mmtok.sources.hub import HubTable

datasets = pytest.importorskip("datasets")


def wav(value):
    file = io.BytesIO()
    soundfile.write(file, np.full(1600, value / 100), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_one_split_is_not_both(tmp_path):
    with pytest.raises(UserError, match="train and heldout are both 'train'; name two splits"):
        HubTable(str(tmp_path), {"caption": "w"}, {"caption": "text"}, heldout="train")


@pytest.mark.parametrize(("column", "split"), [("n", "heldout"), ("m", "train")])
def test_a_split_without_usable_rows_is_said(tmp_path, column, split):
    (tmp_path / "t.csv").write_text("n,m,w\n1,x,a\nx,2,b\n3,x,c\n")  # the second is held out
    table = HubTable(
        str(tmp_path / "t.csv"),
        {"n": column, "caption": "w"},
        {"n": "number", "caption": "text"},
        max_error_share=0.7,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if split == "train":
            with pytest.raises(UserError, match="none of its 1 usable row is for train; give more"):
                table.listing("train", tmp_path)
        else:
            assert len(list(table.examples("train", tmp_path))) == 2
            assert any("none of its 2 usable rows is for heldout" in str(w.message) for w in said)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_part_of_a_record_that_is_not_there_is_refused(tmp_path, streaming):
    rows = [{"en": f"e{i}", "de": f"d{i}"} for i in range(4)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"translation": rows, "text": list("abcd")}), path)
    for column, said in [
        ("translation.fr", "column 'translation': has no column 'fr'; nearest: en"),
        ("text.en", "the column 'text' holds no records, so it has no part 'en'"),
    ]:
        table = HubTable(str(path), {"caption": column}, {"caption": "text"}, streaming=streaming)
        with pytest.raises(UserError, match=said):
            list(table.examples("train", tmp_path))


def test_files_named_with_backslashes(tmp_path):
    (tmp_path / "wavs").mkdir()
    for i in range(3):
        (tmp_path / f"wavs/{i}.wav").write_bytes(wav(i))
    rows = "".join(f"wavs\\{i}.wav,{i}\n" for i in range(3))
    (tmp_path / "t.csv").write_text("file,text\n" + rows)
    columns = {"speech": "file", "caption": "text"}
    table = HubTable(str(tmp_path / "t.csv"), columns, {"speech": "speech", "caption": "text"})
    read = [x for split in table.splits for x in table.examples(split, tmp_path)]
    assert {x["caption"]: round(float(x["speech"].samples[0, 0]), 2) for x in read} == {
        "0": 0.0,
        "1": 0.01,
        "2": 0.02,
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_files_and_columns_of_another_case_or_without_folder_and_suffix(tmp_path, kind):
    (tmp_path / "wavs").mkdir()
    for i in range(4):
        (tmp_path / f"wavs/{i}.WAV").write_bytes(wav(i))
    cells = [f"{i}{end}" for i, end in enumerate(("", ".wav", ".WAV", ".Wav"))]
    rows = [{"File": cell, "Text": f"t {i}"} for i, cell in enumerate(cells)]
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        path.write_text("File,Text\n" + "".join(f"{r['File']},{r['Text']}\n" for r in rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    columns = {"speech": "file", "caption": "text"}
    modalities = {"speech": "speech", "caption": "text"}
    table = HubTable(str(path), columns, modalities, max_leak_share=1.0)
    with pytest.warns(UserWarning, match="2 of 4 rows were of files whose names have another case"):
        list(table.examples("train", tmp_path))
    for streaming in (False, True):
        table = HubTable(str(path), columns, modalities, streaming=streaming, max_leak_share=1.0)
        splits = ("train",) if streaming else table.splits  # a hash may hold none of four out
        read = [x for split in splits for x in table.examples(split, tmp_path)]
        values = {x["caption"]: round(float(x["speech"].samples[0, 0]), 2) for x in read}
        wanted = {f"t {i}": i / 100 for i in range(4)}
        assert values == {name: wanted[name] for name in values}
        assert values == wanted or (streaming and values)
    with pytest.raises(UserError, match="has no column 'files'; nearest: File"):
        list(replace(table, columns=columns | {"speech": "files"}).examples("train", tmp_path))
    (tmp_path / "secret.wav").write_bytes(wav(1))
    with pytest.raises(UserError, match="no file inside"):
        table.file_in("../secret.wav", "row 0", (".wav",))
