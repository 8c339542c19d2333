"""Tables read through `datasets`, here from local files as the hub stores them; nothing asks the
network.
"""

import gzip
import io
import json
import pickle
import tarfile
import tracemalloc
import warnings
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
        (
            {"c": "nope"},
            {"c": "text"},
            {},
            "has no column 'nope'; nearest: jet, text, label (of label, text",
        ),
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


def compressed(content, name):
    """The content of a file as its suffix says."""
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith(".zst"):
        return pa.compress(content, "zstd", asbytes=True)
    return content


PLAIN = ("t.csv", "t.tsv", "t.jsonl", "folder.csv", "folder.jsonl")
ZIPPED = (*(f"{name}.gz" for name in PLAIN), "t.csv.zst", "folder.jsonl.zst")


@pytest.mark.parametrize("name", [*PLAIN, *ZIPPED])
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
    path.write_bytes(compressed(content.encode(), name))
    place = path.parent if name.startswith("folder") else path
    assert texts(
        HubTable(str(place), {"caption": "w"}, {"caption": "text"}), tmp_path / "cache"
    ) == sorted(WORDS)


def test_a_row_that_swallowed_another_is_broken(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(tmp_path / f"{i}.png")
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
    for i, name in enumerate(sorted({name for name, _ in rows if name})):
        (folder / name).write_bytes(wav(i / 10))
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
        "mmtok.sources.hub_cells.decode_sound",
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


# ---- chunks that any process reads


def read_chunks(source, split, cache):
    """The examples of a split, every chunk sent to another process and back."""
    listing = source.listing(split, cache)
    sent = [pickle.loads(pickle.dumps(chunk)) for chunk in listing.chunks]
    return [example for chunk in sent for example in chunk.read()]


def test_chunks_are_read_elsewhere(table, tmp_path):
    source = HubTable(str(table), COLUMNS, MODALITIES)
    here = list(source.examples("train", tmp_path / "cache"))
    there = read_chunks(source, "train", tmp_path / "cache")
    assert [e.name for e in here] == [e.name for e in there] and len(here) == 9
    for a, b in zip(here, there, strict=True):
        assert a["note"] == b["note"] and a["caption"] == b["caption"]
        assert (a["image"].pixels == b["image"].pixels).all()
        assert (a["speech"].samples == b["speech"].samples).all()


@pytest.mark.parametrize(
    "name, ends",
    [
        ("t.csv", "\n"),
        ("t.csv", "\r"),
        ("t.csv", "\r\n"),
        ("t.csv.gz", "\n"),
        ("t.csv.zst", "\n"),
        ("t.txt", "\r\n"),
    ],
)
def test_rows_of_text_are_found_in_the_middle_of_the_file(tmp_path, name, ends):
    words = ["é", 'say ""hi""', f"two{ends}lines, of text", "", "ß\u2028", "last"]
    rows = [f'{i},"{word}"' for i, word in enumerate(words)]
    text = ends.join(["sep=,", "i,w", "", *rows[:3], " ", *rows[3:]])
    content = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(compressed(content, name))
    source = HubTable(str(tmp_path / name), {"caption": "w"}, {"caption": "text"})
    found = [e for split in source.splits for e in read_chunks(source, split, tmp_path)]
    expected = [word.replace('""', '"') for word in words]
    assert sorted(e["caption"] for e in found) == sorted(expected)
    assert all(f"{tmp_path / name}: line " in e.name for e in found)


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_list_of_objects_is_a_table(tmp_path, name):
    content = '\ufeff[{"w": 1.10}, {"w": "é", "v": [1]}, {"w": true}]'
    (tmp_path / name).write_bytes(compressed(content.encode(), name))
    source = HubTable(str(tmp_path / name), {"caption": "w"}, {"caption": "text"})
    found = [e for split in source.splits for e in read_chunks(source, split, tmp_path)]
    assert sorted(e["caption"] for e in found) == ["1.10", "true", "é"]


def test_a_large_table_takes_little_memory(tmp_path):
    with open(tmp_path / "t.csv", "w") as file:
        file.write("id,w\n")
        for i in range(10_000):
            file.write(f"{i},{'word ' * 20}{i}\n")
    source = HubTable(str(tmp_path / "t.csv"), {"caption": "w"}, {"caption": "text"})
    source.listing("train", tmp_path)  # imports and caches
    tracemalloc.start()
    n = sum(1 for chunk in source.listing("train", tmp_path).chunks for _ in chunk.read())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 9_000 and peak < 4e6  # the cells alone are 3 MB, a dict a row 5 MB more


def test_a_pattern_names_several_files(table, tmp_path):
    for i in range(2):
        (tmp_path / f"part-{i}.csv").write_text(f"w\n{i}a\n{i}b\n")
    source = HubTable(str(tmp_path / "part-{0..1}.csv"), {"caption": "w"}, {"caption": "text"})
    assert texts(source, tmp_path) == ["0a", "0b", "1a", "1b"]
    (tmp_path / "part-2.csv").write_text("v\n2\n")
    with pytest.raises(UserError, match=r"part-2.csv: has the columns v, but .*part-0.csv has w"):
        texts(replace(source, id=str(tmp_path / "part-*.csv")), tmp_path)
    with pytest.raises(UserError, match=r"table.parquet, tables of two kinds"):
        texts(replace(source, id=str(tmp_path / "*.*[vt]")), tmp_path)


# ---- kinds of columns


def parquet(path, columns, features=None):
    schema = datasets.Features(features).arrow_schema if features else None
    pq.write_table(pa.table(columns, schema=schema), path)
    return str(path)


def test_lists_of_strings_are_joined_where_a_setting_says_with_what(tmp_path):
    labels = datasets.List(datasets.ClassLabel(names=["red", "green"]))
    columns = {"w": [["a", "b"], ["c"], []], "c": [[0, 1], [1], [0, 0]]}
    features = {"w": datasets.List(datasets.Value("string")), "c": labels}
    path = parquet(tmp_path / "t.parquet", columns, features)
    source = HubTable(path, {"caption": "w"}, {"caption": "text"}, join="; ")
    assert texts(source, tmp_path / "cache") == ["", "a; b", "c"]
    colours = replace(source, columns={"caption": "c"}, join="+")
    assert texts(colours, tmp_path / "cache") == ["green", "red+green", "red+red"]
    with pytest.raises(UserError, match=r"column 'w': holds list, not text; .*join"):
        texts(replace(source, join=""), tmp_path / "cache")


def test_a_part_of_a_record_is_a_column(tmp_path):
    rows = [{"en": f"yes {i}", "de": f"ja {i}"} for i in range(3)]
    path = parquet(tmp_path / "t.parquet", {"translation": rows})
    source = HubTable(
        path, {"a": "translation.en", "b": "translation.de"}, {"a": "text", "b": "text"}
    )
    found = [e for split in source.splits for e in source.examples(split, tmp_path / "cache")]
    assert sorted((e["a"], e["b"]) for e in found) == [(f"yes {i}", f"ja {i}") for i in range(3)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"t": row}) + "\n" for row in rows))
    source = HubTable(str(tmp_path / "t.jsonl"), {"caption": "t.de"}, {"caption": "text"})
    assert texts(source, tmp_path) == ["ja 0", "ja 1", "ja 2"]


@pytest.mark.parametrize("kind", ["records", "lists", "padded"])
def test_jets_as_records_lists_and_padded(tmp_path, kind):
    jet = [(50.0, 0.0, 0.1), (20.0, 0.2, 0.3)]
    names = ("pt", "eta_rel", "phi_rel")
    cell = [dict(zip(names, row, strict=True)) for row in jet]
    if kind == "lists":
        cell = dict(zip(names, map(list, zip(*jet, strict=True)), strict=True))
    if kind == "padded":
        cell = [*map(list, jet), [0.0, 0.0, 0.0]]
    path = parquet(tmp_path / "t.parquet", {"jet": [cell, cell]})
    source = HubTable(path, {"jets": "jet"}, {"jets": "jets"}, max_leak_share=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [e for split in source.splits for e in source.examples(split, tmp_path / "cache")]
    assert len(found) == 2 and np.allclose(found[0]["jets"], jet)


def test_records_of_other_quantities_are_refused(tmp_path):
    path = parquet(tmp_path / "t.parquet", {"jet": [[{"pt": 1.0, "eta": 0.1, "phi": 0.0}]] * 2})
    source = HubTable(path, {"jets": "jet"}, {"jets": "jets"})
    with pytest.raises(UserError, match="have no eta_rel, phi_rel, but pt, eta, phi; .*JetFile"):
        list(source.examples("train", tmp_path / "cache"))


def test_a_tar_of_samples_is_a_table(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for i in range(4):
            for suffix, content in (("png", png(i)), ("txt", f"picture {i}".encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = HubTable(
        str(tmp_path / "t.tar"),
        {"caption": "txt", "image": "png"},
        {"caption": "text", "image": "image"},
    )
    found = [e for split in source.splits for e in source.examples(split, tmp_path / "cache")]
    assert {e["caption"]: int(e["image"].pixels[0, 0]) for e in found} == {
        f"picture {i}": i for i in range(4)
    }


# ---- streaming


def test_a_streamed_table_gives_the_same_rows(table, tmp_path):
    source = HubTable(str(table), COLUMNS, MODALITIES, streaming=True, heldout_share=0.4)
    parts = {s: read_chunks(source, s, tmp_path / "cache") for s in source.splits}
    notes = {s: [e["note"] for e in examples] for s, examples in parts.items()}
    assert sorted(notes["train"] + notes["heldout"]) == [f"row {i}" for i in range(10)]
    assert notes["train"] == [e["note"] for e in source.examples("train", tmp_path / "cache")]
    for example in parts["train"]:
        i = int(example["note"].removeprefix("row "))
        assert (example["image"].pixels == i).all() and example.name.endswith(f"row {i}")
    other = replace(source, seed=1)
    assert notes["heldout"] != [e["note"] for e in other.examples("heldout", tmp_path / "cache")]
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_the_order_of_a_streamed_table_is_a_function_of_the_seed(table, tmp_path):
    settings = {"columns": {"note": "text"}, "modalities": {"note": "text"}, "streaming": True}

    def notes(**fields):
        source = HubTable(str(table), **settings, **fields)
        return [e["note"] for e in source.examples("train", tmp_path / "cache")]

    plain = notes()
    assert notes(shuffle=5) == notes(shuffle=5) != plain
    assert sorted(notes(shuffle=5)) == sorted(plain)
    assert notes(limit=3) == plain[:3]
    with pytest.raises(UserError, match="shuffle is of streaming tables"):
        HubTable(str(table), {"note": "text"}, {"note": "text"}, shuffle=5)


def test_streamed_rows_that_cannot_be_used_are_counted(tmp_path):
    images = [{"bytes": png(i % 250), "path": None} for i in range(300)]
    images[7] = {"bytes": b"no picture", "path": None}
    columns = {"w": [None if i == 9 else f"w{i}" for i in range(300)], "i": images}
    path = parquet(tmp_path / "train.parquet", columns)
    settings = {"columns": {"caption": "w", "image": "i"}, "streaming": True, "heldout_share": 0.01}
    source = HubTable(path, modalities={"caption": "text", "image": "image"}, **settings)
    with pytest.warns(UserWarning, match=r"1 of 29\d rows was passed over as unusable .*row 7"):
        assert len(list(source.examples("train", tmp_path / "cache"))) > 280
    limited = replace(source, limits={"caption": (3, 0)})
    with pytest.warns(UserWarning, match=r"rows were left out: fewer characters of caption than 3"):
        list(limited.examples("train", tmp_path / "cache"))
    with pytest.raises(UserError, match="train.parquet, row 7, .*not an image"):
        list(replace(source, max_error_share=0).examples("train", tmp_path / "cache"))


def test_equal_rows_of_a_stream_are_in_one_split(tmp_path):
    images = [{"bytes": png(i % 20), "path": None} for i in range(60)]
    path = parquet(tmp_path / "t.parquet", {"i": images})
    source = HubTable(path, {"image": "i"}, {"image": "image"}, streaming=True, heldout_share=0.3)
    seen = [
        {int(e["image"].pixels[0, 0]) for e in source.examples(split, tmp_path / "cache")}
        for split in source.splits
    ]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 20


def test_a_table_of_the_hub_without_a_network_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no") from ConnectionError("Couldn't reach 'some/table' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    source = HubTable("some/table", {"caption": "w"}, {"caption": "text"})
    for found in (source, replace(source, streaming=True)):
        with pytest.raises(
            UserError, match="no file or folder of that name is here, and .*hub"
        ) as e:
            next(found.examples("train", tmp_path))
        assert "hf download some/table --repo-type dataset" in str(e.value)
        assert "\n" not in str(e.value)


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    for name in ("t.parquet", "t.csv.gz", "folder"):
        source = HubTable(str(tmp_path / name), {"caption": "w"}, {"caption": "text"})
        with pytest.raises(UserError, match=f"{name}: no such file; HubTable wants a table"):
            source.check()
