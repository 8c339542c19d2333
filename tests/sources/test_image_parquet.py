"""Pictures inside Parquet, as the hub has them: rows are read anywhere, in order, by few at a time;
faults are said in a line.
"""

import json
import warnings
from dataclasses import replace

import pytest

from mmtok.errors import UserError
from mmtok.sources import image_parquet
from mmtok.sources.images import ImageFolder
from tests.sources.test_image_layouts import examples, refused, silently
from tests.sources.test_image_tars import picture

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_rows(path, values, rows_per_group=3, classes=(), **columns):
    """A file as `datasets` writes it: a struct of bytes and path, classes in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture(v), "path": f"{path.stem}-{v}.png"} for v in values]
    table = pa.table({"image": pa.array(images, IMAGE), **columns})
    if classes:
        label = {"names": list(classes), "_type": "ClassLabel"}
        about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def test_classes_and_published_splits(tmp_path):
    names = ("cat", "dog")
    for k in range(2):
        write_rows(
            tmp_path / "data" / f"train-{k:05}-of-00002.parquet",
            range(10 * k, 10 * k + 7),
            classes=names,
            label=[i % 2 for i in range(7)],
        )
    write_rows(
        tmp_path / "data" / "test-00000-of-00001.parquet", [90, 91], classes=names, label=[1, 0]
    )
    source = ImageFolder(str(tmp_path), train="train", heldout="test")
    with pytest.warns(UserWarning, match="read as parquet .data/test-00000-of-00001.parquet and 2"):
        assert examples(source, "heldout") == [("dog", 90), ("cat", 91)]
    wanted = [(names[i % 2], 10 * k + i) for k in range(2) for i in range(7)]
    assert silently(source, "train") == wanted
    assert sorted(silently(ImageFolder(str(tmp_path)))) == sorted(
        [*wanted, ("dog", 90), ("cat", 91)]
    )


def test_pictures_in_both_splits_are_a_leak(tmp_path, monkeypatch):
    """Whatever their rows are called; where the files are small enough to be compared."""
    for split, values in {"train": range(6), "test": (5, 7, 8, 9)}.items():
        write_rows(tmp_path / f"{split}.parquet", values, label=[split] * len(values))
    source = ImageFolder(str(tmp_path), train="train", heldout="test")
    refused(source, "test.parquet: row 0: held out, .* 1 of 4 held-out pictures")
    assert len(silently(replace(source, max_leak_share=0.5), "heldout")) == 4
    monkeypatch.setattr(image_parquet, "MOST_HASHED_BYTES", 99)
    assert len(silently(source, "heldout")) == 4
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source.check()
    (line,) = [str(w.message) for w in said if "equal pictures" in str(w.message)]
    assert "not looked for in its 10 rows" in line and "may be in two splits" in line


@pytest.mark.parametrize("has_paths", [True, False])
def test_rows_of_one_picture_are_in_one_split(tmp_path, has_paths):
    """A row for each caption, with a path or without."""
    values = [i // 5 for i in range(100)]
    paths = [f"{v}.png" if has_paths else None for v in values]
    images = [{"bytes": picture(v), "path": path} for v, path in zip(values, paths, strict=True)]
    captions = [f"caption {i}" for i in range(100)]
    table = pa.table({"image": pa.array(images, IMAGE), "caption": captions})
    pq.write_table(table, tmp_path / "a.parquet")
    source = ImageFolder(str(tmp_path))
    parts = [{value for _, value in silently(source, split)} for split in source.splits]
    assert parts[0].isdisjoint(parts[1]) and len(parts[0] | parts[1]) == 20 and all(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.check()


def test_plain_bytes_and_lists_of_captions(tmp_path):
    table = pa.table(
        {
            "img": [picture(i) for i in range(4)],
            "captions": [[f"{i} a", f"{i} b"] for i in range(4)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    wanted = sorted((f"{i} {k}", i) for i in range(4) for k in "ab")
    assert sorted(silently(ImageFolder(str(tmp_path / "a.parquet")))) == wanted


def test_rows_of_one_picture_stay_together(tmp_path):
    values = [i // 5 for i in range(50)]
    write_rows(tmp_path / "a.parquet", values, 7, text=[f"caption {i}" for i in range(50)])
    source = ImageFolder(str(tmp_path), heldout_share=0.3)
    train = silently(source, "train")
    held = silently(source, "heldout")
    assert len(held) == 15 and not {v for _, v in train} & {v for _, v in held}
    assert sorted(train + held) == sorted((f"caption {i}", i // 5) for i in range(50))


def test_rows_are_read_in_any_order_and_each_once(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.parquet", range(40), 15, text=[str(i) for i in range(40)])
    columns = ("text",)
    for i in (3, 20, 39, 0, 15, 14, 14):
        assert image_parquet.read_row(path, columns, i) == {"text": str(i)}
    monkeypatch.setattr(image_parquet, "ROWS", 4)
    assert [image_parquet.read_row(path, ("image",), i)["image"]["path"] for i in range(40)] == [
        f"a-{i}.png" for i in range(40)
    ]


def test_limits_look_at_sizes(tmp_path):
    write_rows(tmp_path / "a.parquet", range(5), text=[str(i) for i in range(5)])
    refused(ImageFolder(str(tmp_path), max_pixels=20), "none of 5 pictures is left")
    assert len(silently(ImageFolder(str(tmp_path), max_pixels=24))) == 5


def test_broken_rows_are_passed_over_while_they_are_few(tmp_path):
    images = [{"bytes": picture(i), "path": None} for i in range(200)]
    images[7] = {"bytes": b"no picture", "path": None}
    images[9] = {"bytes": None, "path": None}
    images[11] = {"bytes": None, "path": "../../etc/passwd"}
    texts = [f"t{i}" for i in range(200)]
    texts[13] = None
    table = pa.table({"image": pa.array(images, IMAGE), "text": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="a.parquet: row (7: not an image|9: holds no picture)"):
        assert len(examples(ImageFolder(str(tmp_path), max_error_share=0.02))) == 196
    with pytest.raises(UserError, match="[34] of 200 pictures cannot be used"):
        silently(ImageFolder(str(tmp_path)))


def test_unclear_columns_and_broken_files_are_named(tmp_path):
    path = write_rows(tmp_path / "a.parquet", range(3), x=[1, 2, 3], y=[1, 2, 3])
    refused(ImageFolder(str(path)), "a.parquet: which column is the caption. It has x, y; name it")
    refused(ImageFolder(str(path), columns={"caption": "z"}), "has no column 'z'; nearest: ")
    refused(
        ImageFolder(str(path), columns={"image": "x"}), "which column holds the pictures. Bytes a"
    )
    assert sorted(silently(ImageFolder(str(path), columns={"caption": "y"})))[0] == ("1", 0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(ImageFolder(str(path)), "a.parquet: not a Parquet file that can be read")
    write_rows(path, range(3), text=["a", "b", "c"])
    damaged = bytearray(path.read_bytes())
    damaged[4:200] = bytes(196)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="a.parquet: row .: "):
        silently(ImageFolder(str(path)))


def test_structs_without_bytes_name_files_or_nothing(tmp_path):
    """`datasets` writes a column whose bytes are all missing without their type."""
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(picture(i))
    paths = [{"bytes": None, "path": file.name} for file in files]
    pq.write_table(pa.table({"image": paths, "text": list("abc")}), tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    assert sorted(silently(ImageFolder(path, layout="parquet"))) == [("a", 0), ("b", 1), ("c", 2)]
    empty = [{"bytes": None, "path": None}] * 3
    pq.write_table(pa.table({"image": empty, "text": list("abc")}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="row [0-2]: holds no picture: no bytes and no path"):
        silently(ImageFolder(path, layout="parquet"))
