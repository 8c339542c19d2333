"""Tables read through `datasets`, here from local files as the hub stores them; nothing asks the
network.
"""

import gzip
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmtok.errors import UserError
from mmtok.sources.hub import HubTable

datasets = pytest.importorskip("datasets")

COLUMNS = {"caption": "label", "note": "text", "image": "image", "speech": "audio", "jets": "jet"}
MODALITIES = {
    "caption": "text",
    "note": "text",
    "image": "image",
    "speech": "speech",
    "jets": "jets",
}


def png(value):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def wav(value):
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, np.full(1600, value / 100), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture
def table(tmp_path):
    """A parquet file with ten rows; row i holds i in every column."""
    numbers = datasets.List(datasets.List(datasets.Value("float32")))
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["even", "odd"]),
            "text": datasets.Value("string"),
            "image": datasets.Image(),
            "audio": datasets.Audio(),
            "jet": numbers,
        }
    )
    rows = range(10)
    columns = {
        "label": pa.array([i % 2 for i in rows], pa.int64()),
        "text": [f"row {i}" for i in rows],
        "image": [{"bytes": png(i), "path": None} for i in rows],
        "audio": [{"bytes": wav(i), "path": None} for i in rows],
        "jet": [[[50.0 + i, 0, 0], [20.0, 0.1, 0.1]] for i in rows],
    }
    pq.write_table(pa.table(columns, schema=features.arrow_schema), tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def test_every_modality_comes_out_of_its_column(table, tmp_path):
    source = HubTable(str(table), COLUMNS, MODALITIES)
    assert source.fields == MODALITIES
    seen = [
        example for split in source.splits for example in source.examples(split, tmp_path / "cache")
    ]
    assert len(seen) == 10
    for example in seen:
        i = int(example["note"].removeprefix("row "))
        assert example["caption"] == ("odd" if i % 2 else "even")
        assert example["image"].pixels.shape == (6, 8) and (example["image"].pixels == i).all()
        assert example["speech"].samples.shape == (1600, 1) and np.allclose(
            example["speech"].samples, i / 100
        )
        assert (
            example["speech"].rate_hz == 16_000
            and f"row {i}, column 'audio'" in example["speech"].name
        )
        assert example["jets"].dtype == np.float32 and example["jets"][0, 0] == 50 + i


def test_the_split_is_repeatable_and_disjoint(table, tmp_path):
    source = HubTable(str(table), {"note": "text"}, {"note": "text"}, heldout_share=0.3)

    def read(split):
        return [example["note"] for example in source.examples(split, tmp_path / "cache")]

    assert len(read("heldout")) == 3 and not set(read("heldout")) & set(read("train"))
    assert read("train") == read("train") == sorted(read("train"))
    assert (
        len(
            list(
                HubTable(str(table), {"note": "text"}, {"note": "text"}, limit=2).examples(
                    "train", tmp_path / "cache"
                )
            )
        )
        == 2
    )


def test_file_names_are_looked_up_beside_the_table(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.wav").write_bytes(wav(i))
    (tmp_path / "list.csv").write_text(
        "file,text\n" + "".join(f"{i}.wav,word {i}\n" for i in range(3))
    )
    source = HubTable(
        str(tmp_path / "list.csv"),
        {"caption": "text", "speech": "file"},
        {"caption": "text", "speech": "speech"},
    )
    for example in source.examples("train", tmp_path / "cache"):
        assert np.allclose(example["speech"].samples, int(example["caption"][-1]) / 100)


def test_a_folder_of_tables_is_read(table, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    table.rename(folder / "train-00000-of-00001.parquet")
    source = HubTable(str(folder), {"note": "text"}, {"note": "text"})
    assert len(list(source.examples("train", tmp_path / "cache"))) == 9


@pytest.mark.parametrize(
    "columns, modalities, fields, message",
    [
        ({"c": "nope"}, {"c": "text"}, {}, "has no column nope; its columns are label, text"),
        ({"c": "text"}, {"c": "image"}, {}, "row 0, column 'text': no file row 0"),
        ({"c": "image"}, {"c": "speech"}, {}, "row 0, column 'image': not a sound file"),
        ({"c": "jet"}, {"c": "text"}, {}, "holds list, not text"),
        ({"c": "text"}, {"c": "jets"}, {}, "a jet is a list of constituents of 3 numbers"),
        ({"c": "text"}, {"c": "text"}, {"heldout": "test"}, "is one file"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    table, tmp_path, columns, modalities, fields, message
):
    with pytest.raises(UserError) as told:
        list(
            HubTable(str(table), columns, modalities, **fields).examples(
                "train", tmp_path / "cache"
            )
        )
    assert message in str(told.value) and "\n" not in str(told.value)


def test_wrong_settings_are_refused(tmp_path):
    with pytest.raises(UserError, match="both must name the same"):
        HubTable("x", {"a": "b"}, {})
    with pytest.raises(UserError, match="'video'"):
        HubTable("x", {"a": "b"}, {"a": "video"})
    with pytest.raises(UserError, match="no id given"):
        HubTable("", {"a": "b"}, {"a": "text"}).check()
    (tmp_path / "table.xls").write_bytes(b"x")
    with pytest.raises(UserError, match="known are .parquet"):
        next(
            HubTable(str(tmp_path / "table.xls"), {"a": "b"}, {"a": "text"}).examples(
                "train", tmp_path
            )
        )


WORDS = ["00501", "1.10", "1e5", "NA", "null", "true", "", " x", "2020-01-01"]


def texts(source, cache):
    """The texts of all splits, in any order."""
    return sorted(
        example["caption"] for split in source.splits for example in source.examples(split, cache)
    )


@pytest.mark.parametrize(
    "name",
    [
        "t.csv",
        "t.tsv",
        "t.jsonl",
        "folder.csv",
        "folder.jsonl",
        "t.csv.gz",
        "t.tsv.gz",
        "t.jsonl.gz",
        "folder.csv.gz",
        "folder.jsonl.gz",
    ],
)
def test_text_stays_text(tmp_path, name):
    separator = "\t" if name.startswith("t.tsv") else ","
    lines = [f"{i}{separator}{word}" for i, word in enumerate(WORDS)]
    content = (
        "\n".join([f"id{separator}w", *lines])
        if "json" not in name
        else "".join(json.dumps({"w": w}) + "\n" for w in WORDS)
    )
    path = tmp_path / (
        "folder/train." + name.partition(".")[2] if name.startswith("folder") else name
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    place = path.parent if name.startswith("folder") else path
    assert texts(
        HubTable(str(place), {"caption": "w"}, {"caption": "text"}), tmp_path / "cache"
    ) == sorted(WORDS)


def test_a_row_that_swallowed_another_is_broken(tmp_path):
    for i in range(4):
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "t.csv").write_text('file,text\n0.png,"a\n1.png,b"\n2.png,"c,\nd"\n3.png,e\n')
    source = HubTable(
        str(tmp_path / "t.csv"),
        {"caption": "text", "image": "file"},
        {"caption": "text", "image": "image"},
    )
    with pytest.raises(
        UserError,
        match=(
            "t.csv: line 2: a cell in quotes holds another row, '1.png,b'; close the quote .* 1 of"
            " 3 rows"
        ),
    ):
        texts(source, tmp_path)
    with pytest.warns(UserWarning, match="1 of 3 rows was passed over"):
        assert texts(replace(source, max_error_share=0.5), tmp_path) == ["c,\nd", "e"]


def test_one_row_is_one_row(tmp_path):
    (tmp_path / "t.csv").write_text("w\na\n")
    with pytest.raises(
        UserError, match="split 'train': 1 row cannot be split into train and heldout"
    ):
        texts(HubTable(str(tmp_path / "t.csv"), {"caption": "w"}, {"caption": "text"}), tmp_path)


def test_rows_that_hold_nothing_are_left_out_and_counted(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"w": "a"}\n{"w": null}\n{"w": "b"}\n{"v": 1}\n')
    with pytest.warns(
        UserWarning, match="2 of 4 rows were left out: fewer filled cells than 1 .*t.jsonl: line 2"
    ):
        assert texts(
            HubTable(str(tmp_path / "t.jsonl"), {"caption": "w"}, {"caption": "text"}), tmp_path
        ) == ["a", "b"]


def test_splits_of_a_folder_of_csv_files(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"w\n0{split}\n01\n")
    source = HubTable(str(tmp_path), {"caption": "w"}, {"caption": "text"}, heldout="test")
    assert [e["caption"] for e in source.examples("heldout", tmp_path / "cache")] == ["0test", "01"]
    with pytest.raises(UserError, match="has no split 'dev'; its splits are train, test"):
        list(
            HubTable(str(tmp_path), {"caption": "w"}, {"caption": "text"}, heldout="dev").examples(
                "heldout", tmp_path / "cache"
            )
        )


@pytest.mark.parametrize(
    "content, part",
    [
        ("file,text\n0.wav,one, two\n", "line 2 has 3 cells"),
        ("file,text\n0.wav,one\n1.wav\n", "line 3 ends before its text"),
        ('file,text\n0.wav,"one\n1.wav,"two, three"\n', "line 2: a quote opens in this row"),
    ],
)
def test_rows_of_a_local_table_are_held_against_its_header(tmp_path, content, part):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError) as told:
        texts(HubTable(str(tmp_path / "t.csv"), {"caption": "text"}, {"caption": "text"}), tmp_path)
    assert str(told.value).startswith(f"{tmp_path / 't.csv'}: {part}")


def clips(folder, rows):
    """A table of rows (file, text) with the files that it names."""
    for name in {name for name, _ in rows if name}:
        (folder / name).write_bytes(wav(1))
    (folder / "t.csv").write_text(
        "file,text\n" + "".join(f"{name},{text}\n" for name, text in rows)
    )
    return {
        "id": str(folder / "t.csv"),
        "columns": {"caption": "text", "speech": "file"},
        "modalities": {"caption": "text", "speech": "speech"},
    }


def test_a_cell_without_a_file_is_a_field_that_is_lacking(tmp_path):
    source = HubTable(**clips(tmp_path, [("a.wav", "one"), ("", "two"), ("c.wav", "")]))
    examples = [e for split in source.splits for e in source.examples(split, tmp_path)]
    assert {e["caption"]: "speech" in e for e in examples} == {"one": True, "two": False, "": True}


def test_one_broken_row_in_a_hundred_is_passed_over_before_the_work(tmp_path, monkeypatch):
    settings = clips(tmp_path, [(f"{i}.wav", f"word {i}") for i in range(200)])
    (tmp_path / "7.wav").write_bytes(b"no sound")
    with pytest.warns(
        UserWarning,
        match=(
            "1 of 200 rows was passed over as unusable .*t.csv: line 9, column 'file': not a sound"
        ),
    ):
        assert len(texts(HubTable(**settings), tmp_path)) == 199
    for i in range(8, 20):
        (tmp_path / f"{i}.wav").unlink()
    monkeypatch.setattr(
        "mmtok.sources.hub.decode_sound",
        lambda *_: pytest.fail("nothing is read before all were looked at"),
    )
    with pytest.raises(UserError, match="13 of 200 rows cannot be used"):
        next(HubTable(**settings).examples("train", tmp_path))


def test_rows_that_name_one_file_are_in_one_split(tmp_path):
    source = HubTable(
        **clips(tmp_path, [(f"{i % 20}.wav", f"{i % 20}") for i in range(60)]), heldout_share=0.3
    )
    parts = [[e["caption"] for e in source.examples(split, tmp_path)] for split in source.splits]
    assert not set(parts[0]) & set(parts[1]) and (len(parts[0]), len(parts[1])) == (42, 18)


def test_limits_of_a_field_leave_rows_out(table, tmp_path):
    settings = {
        "columns": {"caption": "text", "speech": "audio"},
        "modalities": {"caption": "text", "speech": "speech"},
    }
    with (
        pytest.warns(UserWarning, match="left out: more seconds of speech than 0.05"),
        pytest.raises(UserError, match="none of 10 rows is left"),
    ):
        texts(HubTable(str(table), **settings, limits={"speech": (0, 0.05)}), tmp_path)
    assert (
        len(
            texts(
                HubTable(str(table), **settings, limits={"speech": (0, 0.1), "caption": (5, 5)}),
                tmp_path,
            )
        )
        == 10
    )
    with pytest.raises(UserError, match="limits names image; its fields are caption, speech"):
        HubTable(str(table), **settings, limits={"image": (0, 1)})
