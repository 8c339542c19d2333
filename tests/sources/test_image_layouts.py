"""Each layout of pictures, written as it is published: captions and pixels are right, faults are
said in a line.
"""

import json
import pickle
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from mmtok.errors import UserError
from mmtok.sources.images import ImageFolder


def write_picture(path, value, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path, kind)
    return path


def examples(source, *splits):
    """(caption, grey value of the picture) of all examples, with the chunks sent as they would be
    to another process.
    """
    found = []
    for split in splits or source.splits:
        listing = source.listing(split)
        listing.chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in listing.chunks]
        found += [(e["caption"], int(e["image"].pixels.flat[0])) for e in listing.examples()]
    return found


def silently(source, *splits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return examples(source, *splits)


def refused(source, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=said) as error:
            source.check()
    assert "\n" not in str(error.value)


# ---- folders


def split_folders(folder):
    for i, split in enumerate(("train", "train", "train", "test")):
        write_picture(folder / split / "cat" / f"{i}.png", i)
        write_picture(folder / split / "hot_dog" / f"{i}.png", 10 + i)
    return folder


def test_published_splits_are_used_where_they_are_named(tmp_path):
    folder = split_folders(tmp_path)
    source = ImageFolder(str(folder), train="train", heldout="test")
    assert examples(source, "heldout") == [("cat", 3), ("hot dog", 13)]
    assert sorted(examples(source, "train")) == [
        *(("cat", i) for i in range(3)),
        *(("hot dog", 10 + i) for i in range(3)),
    ]
    assert examples(ImageFolder(str(folder), heldout="test"), "heldout") == [
        ("cat", 3),
        ("hot dog", 13),
    ]
    with pytest.warns(UserWarning, match="a split of its own, test, .* heldout=test keeps it"):
        assert len(examples(ImageFolder(str(folder)))) == 8
    refused(ImageFolder(str(folder), heldout="dev"), "no part is called 'dev'; .* are test, train")
    refused(ImageFolder(str(folder), train="t*", heldout="test"), "test would be in both splits")
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"no picture")
    broken = ImageFolder(str(folder), heldout="test", max_error_share=1)
    refused(broken, "split 'test' has 2 pictures, and none can be used; the first: .*not an")


# ---- tables


@pytest.mark.parametrize(
    "name, text",
    [
        ("captions.csv", "image,caption\n{0},A dog.\n{0},The dog.\n{1},a cat\n"),
        ("list.csv", "﻿File Name;Text\r\n{0};A dog.\r\n{0};The dog.\r\n{1};a cat\r\n"),
        ("list.csv", "filepath\ttitle\n{0}\tA dog.\n{0}\tThe dog.\n{1}\ta cat\n"),
        ("results.csv", "image_name| comment_number| comment\n"
                        "{0}| 0| A dog.\n{0}| 1| The dog.\n{1}| 0| a cat\n"),
        ("captions.txt", "image,caption\n{0},A dog.\n{0},The dog.\n{1},a cat\n"),
        ("t.jsonl", '{{"image": "{0}", "captions": ["A dog.", "The dog."]}}\n'
                    '{{"image": "{1}", "captions": ["a cat"]}}\n'),
        ("t.json", '[{{"image": "{0}", "captions": ["A dog.", "The dog."]}},\n'
                   '{{"image": "{1}", "captions": ["a cat"]}}]'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("names", [("Images/1.JPG", "Images/2.jpg"), ("1.JPG", "2.jpg")])
def test_caption_tables_with_several_rows_of_a_picture(tmp_path, name, text, names):
    write_picture(tmp_path / "Images" / "1.JPG", 10)
    write_picture(tmp_path / "Images" / "2.jpg", 20)
    (tmp_path / name).write_text(text.format(*names), "utf-8", newline="")
    wanted = [("A dog.", 10), ("The dog.", 10), ("a cat", 20)]
    with pytest.warns(UserWarning, match=f"read as table .{name}."):
        assert sorted(examples(ImageFolder(str(tmp_path)))) == wanted
    for place in (tmp_path / name, f"{tmp_path}/{name[:-3]}*"):
        assert sorted(silently(ImageFolder(str(place)))) == wanted
    splits = {
        s: {v for _, v in silently(ImageFolder(str(tmp_path)), s)} for s in ("train", "heldout")
    }
    assert not splits["train"] & splits["heldout"], "rows of one picture are in one split"


@pytest.mark.parametrize(
    "cell",
    ["a\\1.png", "./a/1.png", "/home/x/data/a/1.png", "a/1", "A/../a/1.png", "file:///y/a/1.png"],
)
def test_spellings_of_a_path(tmp_path, cell):
    for folder, value in (("a", 10), ("b", 20)):
        write_picture(tmp_path / folder / "1.png", value)
    (tmp_path / "t.csv").write_text(f"file,caption\n{cell},ten\nb/1.png,twenty\n")
    source = ImageFolder(str(tmp_path / "t.csv"))
    assert sorted(silently(source)) == [("ten", 10), ("twenty", 20)]
    (tmp_path / "t.csv").write_text("file,caption\n1.png,ten\n")
    refused(source, "t.csv: line 2: 1.png may be a/1.png or b/1.png; name it with its folder")


def test_parquet_tables_and_columns_by_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for i in range(3):
        write_picture(tmp_path / "images" / f"{i}.png", i)
    rows = {"img": [f"{i}.png" for i in range(3)], "n": [7, 8, 9], "what": ["a", "b", "c"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    refused(ImageFolder(str(tmp_path / "t.parquet")), "needs a column .* --columns image=COLUMN")
    source = ImageFolder(str(tmp_path), columns={"image": "img", "caption": "what"})
    assert sorted(silently(source)) == [("a", 0), ("b", 1), ("c", 2)]
    source = ImageFolder(str(tmp_path), columns={"caption": "N"})
    assert sorted(silently(source)) == [("7", 0), ("8", 1), ("9", 2)]
    wrong = ImageFolder(str(tmp_path), columns={"caption": "wat"})
    refused(wrong, "t.parquet: has no column 'wat'; nearest: what, ")
    with pytest.raises(
        UserError, match="columns names label; the fields are image, caption, split"
    ):
        ImageFolder(str(tmp_path), columns={"label": "n"})


def test_classes_have_names(tmp_path):
    for i in range(3):
        write_picture(tmp_path / f"{i}.png", i)
    (tmp_path / "t.csv").write_text("file,label\n0.png,1\n1.png,0\n2.png,1\n")
    source = ImageFolder(str(tmp_path), names=("cat", "dog"))
    assert sorted(silently(source)) == [("cat", 1), ("dog", 0), ("dog", 2)]
    refused(
        ImageFolder(str(tmp_path), names=("cat",)), "line 2: the class 1 has no name; names has 1"
    )


def test_what_a_table_and_its_folder_do_not_share_is_counted(tmp_path):
    for i in range(4):
        write_picture(tmp_path / f"{i}.png", i)
    write_picture(tmp_path / "._0.png", 0)
    (tmp_path / "t.csv").write_text("file,caption\n0.png,a\n1.png,b\n9.png,c\n2.png,\n")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match="line 4: no picture 9.png .* 1 of 4 rows cannot be"):
            ImageFolder(str(tmp_path)).check()
    assert not [note for note in said if "passed over" in str(note.message)]
    with pytest.warns() as said:
        few = ImageFolder(str(tmp_path), max_error_share=0.25)
        assert sorted(examples(few)) == [("a", 0), ("b", 1)]
    said = " | ".join(str(w.message) for w in said)
    assert "1 of 4 captions was passed over as unusable (first: " in said
    assert "t.csv: line 4: no picture 9.png in " in said
    assert "1 of 4 captions was left out: they are empty" in said
    assert "2 of 4 pictures were left out: no caption is theirs" in said


def test_a_table_without_its_files_says_where_it_looked(tmp_path):
    (tmp_path / "t.csv").write_text("file,caption\n0.png,a\n1.png,b\n")
    refused(ImageFolder(str(tmp_path / "t.csv")), "none of 2 rows .* '0.png'; .* --root FOLDER")
    for i in range(2):
        write_picture(tmp_path / "elsewhere" / "deep" / f"{i}.png", i)
    (tmp_path / "here").mkdir()
    (tmp_path / "t.csv").rename(tmp_path / "here" / "t.csv")
    source = ImageFolder(str(tmp_path / "here"), root=str(tmp_path / "elsewhere"))
    assert sorted(silently(source)) == [("a", 0), ("b", 1)]


def test_splits_of_tables(tmp_path):
    for i in range(4):
        write_picture(tmp_path / f"{i}.png", i)
    (tmp_path / "t.csv").write_text(
        "file,caption,split\n0.png,a,train\n1.png,b,val\n2.png,c,train\n"
    )
    source = ImageFolder(str(tmp_path), train="train", heldout="val")
    assert silently(source, "heldout") == [("b", 1)]
    assert silently(source, "train") == [("a", 0), ("c", 2)]
    (tmp_path / "t.csv").unlink()
    (tmp_path / "train.csv").write_text("file,caption\n0.png,a\n1.png,b\n")
    (tmp_path / "val.csv").write_text("file,caption\n2.png,c\n3.png,d\n")
    assert silently(source, "heldout") == [("c", 2), ("d", 3)]
    (tmp_path / "val.csv").write_text("file,caption\n1.png,c\n3.png,d\n")
    refused(source, "1.png: is in the split to train on and in the one to hold out, as are 1 of 2")


def test_broken_tables_are_named(tmp_path):
    for i in range(2):
        write_picture(tmp_path / f"{i}.png", i)
    table = tmp_path / "captions.csv"
    for text, said in [
        (b"file,caption\n0.png,a dog, brown\n", "captions.csv: line 2 has 3 cells"),
        ("file,caption\n0.png,a\n".encode("utf-16"), "captions.csv: is UTF-16"),
        (b"0.png,a\n1.png,b\n", "captions.csv: line 1 names the file 0.png, so it is no header"),
        (b"", "captions.csv: the file is empty"),
    ]:
        table.write_bytes(text)
        refused(ImageFolder(str(table)), said)


def test_a_table_that_cannot_be_read_is_no_folder_of_one_class(tmp_path):
    for i in range(3):
        write_picture(tmp_path / "train" / f"{i}.png", i)
    table = tmp_path / "labels.csv"
    for text, said in [
        ("id,breed\n0,pug\n1,boxer\n2,pug\n", "has id, breed; name them: --columns image=.*folder"),
        ("0.png,a\n1.png,b\n", "names the file 0.png, so it is no header.*--layout folder"),
        ("file,caption\n0.png,Gr\xfcn\n", "not UTF-8 text.*--layout folder"),
        ("", "the file is empty"),
    ]:
        table.write_bytes(text.encode("latin-1"))
        refused(ImageFolder(str(tmp_path)), said)
    assert sorted(silently(ImageFolder(str(tmp_path), layout="folder")))[0] == ("train", 0)
    table.write_text("id,breed\n0,pug\n1,boxer\n2,pug\n")
    columns = {"image": "id", "caption": "breed"}
    found = silently(ImageFolder(str(tmp_path), columns=columns))
    assert sorted(found) == [("boxer", 1), ("pug", 0), ("pug", 2)]
    table.rename(tmp_path / "train" / "labels.csv")
    refused(ImageFolder(str(tmp_path), columns=columns), "train/labels.csv: .* give its own --path")


# ---- Hugging Face's imagefolder


def test_imagefolder_with_metadata_of_each_split(tmp_path):
    for split, n in (("train", 3), ("test", 2)):
        for i in range(n):
            write_picture(tmp_path / split / f"{i:04}.png", 10 * n + i)
        rows = [{"file_name": f"{i:04}.png", "text": f"{split} {i}"} for i in range(n)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / split / "metadata.jsonl").write_text(lines)
    source = ImageFolder(str(tmp_path), train="train", heldout="test")
    with pytest.warns(UserWarning, match="read as imagefolder .test/metadata.jsonl and 1 more."):
        assert examples(source, "heldout") == [("test 0", 20), ("test 1", 21)]
    assert silently(source, "train") == [("train 0", 30), ("train 1", 31), ("train 2", 32)]


def test_imagefolder_with_one_metadata_file(tmp_path):
    for split, n in (("train", 3), ("test", 2)):
        for i in range(n):
            write_picture(tmp_path / split / f"{i:04}.png", 10 * n + i)
    (tmp_path / "metadata.csv").write_text(
        "file_name,additional_feature\n"
        + "".join(
            f"{s}/{i:04}.png,{s} {i}\n" for s, n in (("train", 3), ("test", 2)) for i in range(n)
        )
    )
    source = ImageFolder(str(tmp_path), heldout="test")
    assert silently(source, "heldout") == [("test 0", 20), ("test 1", 21)]
    (tmp_path / "metadata.csv").write_text("file_name,x,y\ntrain/0000.png,1,2\n")
    source = ImageFolder(str(tmp_path), layout="imagefolder")
    refused(
        source, "metadata.csv: needs a column of picture files and one of captions, has .* x, y"
    )


# ---- COCO


def write_coco(folder, split, ids, kind="captions", first=0):
    """A split of COCO 2017."""
    for i in ids:
        write_picture(folder / f"{split}2017" / f"{i:012}.jpg", i, "JPEG")
    images = [
        {
            "license": 3,
            "file_name": f"{i:012}.jpg",
            "coco_url": "",
            "height": 4,
            "width": 6,
            "id": i,
        }
        for i in ids
    ]
    notes = [
        {"image_id": i, "id": 100 * k + i, "caption": f"{split} {i} {k}\n"}
        for k in range(2)
        for i in ids
    ]
    if kind != "captions":
        notes = [{"image_id": i, "id": i, "category_id": 1, "bbox": [1, 2, 3, 4]} for i in ids]
    about = {
        "info": {"year": 2017},
        "images": images,
        "licenses": [{"id": 3}],
        "annotations": notes,
    }
    (folder / "annotations").mkdir(exist_ok=True)
    path = folder / "annotations" / f"{kind}_{split}2017.json"
    path.write_text(json.dumps(about))
    return path


def test_coco_captions(tmp_path):
    write_coco(tmp_path, "train", [9, 25, 30])
    val = write_coco(tmp_path, "val", [42, 73])
    write_coco(tmp_path, "train", [9, 25, 30], "instances")
    source = ImageFolder(str(tmp_path), train="train", heldout="val")
    held = [("val 42 0", 42), ("val 42 1", 42), ("val 73 0", 73), ("val 73 1", 73)]
    with pytest.warns(UserWarning, match="read as coco .annotations/captions_train2017.json and 1"):
        assert examples(source, "heldout") == held
    assert len(silently(source, "train")) == 6
    assert sorted(silently(ImageFolder(str(val)))) == held
    assert len(silently(ImageFolder(f"{tmp_path}/annotations/captions_*.json"))) == 10


def test_a_split_of_coco_whose_pictures_are_missing_is_not_called_unknown(tmp_path):
    write_coco(tmp_path, "train", [9, 25, 30])
    write_coco(tmp_path, "val", [42, 73])
    source = ImageFolder(str(tmp_path), train="train", heldout="val")
    assert len(silently(source, "heldout")) == 4
    shutil.rmtree(tmp_path / "val2017")
    refused(source, "no picture of the split 'val' is there .first: .*val2017.json: .*42")
    unknown = ImageFolder(str(tmp_path), train="train", heldout="test")
    refused(unknown, "no part is called 'test'")


def test_coco_faults(tmp_path):
    instances = write_coco(tmp_path, "train", [9, 25, 30], "instances")
    refused(
        ImageFolder(str(instances)), "an entry has no caption, .* captions are in captions_.*json"
    )
    path = write_coco(tmp_path, "val", [42, 73])
    value = json.loads(path.read_text())
    value["annotations"].append({"image_id": 5, "id": 1, "caption": "lost"})
    path.write_text(json.dumps(value))
    with pytest.warns(UserWarning, match="left out: their image is not among the file's"):
        assert len(examples(ImageFolder(str(tmp_path)))) == 4
    for picture in (tmp_path / "val2017").iterdir():
        picture.unlink()
    refused(
        ImageFolder(str(path)), "none of its pictures is in .*; say where they lie: --root FOLDER"
    )
    path.write_text(path.read_text()[:500])
    refused(ImageFolder(str(path)), "captions_val2017.json: not JSON at character")


# ---- two at once


def test_two_layouts_are_asked_about(tmp_path):
    for i in range(3):
        write_picture(tmp_path / f"{i}.png", i)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,m\n1.png,n\n")
    (tmp_path / "captions.csv").write_text("file,caption\n0.png,a\n1.png,b\n2.png,c\n")
    refused(
        ImageFolder(str(tmp_path)),
        r"could be read as imagefolder \(metadata.csv\) and table \(captions.csv\); say which:"
        " --layout imagefolder or --layout table",
    )
    wanted = {"imagefolder": "mn", "table": "abc", "folder": "012"}
    for layout, captions in wanted.items():
        found = silently(ImageFolder(str(tmp_path), layout=layout))
        assert sorted(caption for caption, _ in found) == list(captions)
    with pytest.raises(
        UserError, match="layout is 'csv'; the layouts are folder, imagefolder, tab"
    ):
        ImageFolder(str(tmp_path), layout="csv")
    refused(ImageFolder(str(tmp_path), layout="coco"), "no JSON of COCO's captions in it")
    refused(ImageFolder(str(tmp_path), layout="webdataset"), "no tars in it")
    refused(ImageFolder(str(tmp_path), layout="parquet"), "no Parquet files in it")
    refused(ImageFolder(str(tmp_path), layout="idx"), "has no train-images-idx3-ubyte")


@pytest.mark.parametrize("table", ["metadata.csv", "captions.csv"])
def test_folders_of_classes_beside_a_table_are_asked_about(tmp_path, table):
    for i in range(4):
        write_picture(tmp_path / "images" / f"{i}.png", i)
        write_picture(tmp_path / ("cat", "hot_dog")[i % 2] / f"c{i}.png", 10 + i)
    rows = "".join(f"images/{i}.png,text {i}\n" for i in range(3))
    (tmp_path / table).write_text(f"file_name,caption\n{rows}")
    layout = {"metadata.csv": "imagefolder", "captions.csv": "table"}[table]
    refused(
        ImageFolder(str(tmp_path)),
        f"could be read as {layout}, or as the 4 other pictures in folders of classes \\(cat,"
        f" hot_dog\\); say which: --layout {layout} or --layout folder",
    )
    found = silently(ImageFolder(str(tmp_path), layout=layout))
    assert sorted(found) == [(f"text {i}", i) for i in range(3)]
    found = silently(ImageFolder(str(tmp_path), layout="folder"))
    assert sorted(found)[:2] == [("cat", 10), ("cat", 12)]


def test_folders_of_splits_and_of_a_part_are_no_classes(tmp_path):
    for i, folder in enumerate(("images", "test2017", "unlabeled2017", "classes/a", "classes/b")):
        write_picture(tmp_path / folder / f"{i}.png", i)
    write_picture(tmp_path / "classes" / "c" / "9.png", 9)
    write_picture(tmp_path / "classes" / "d" / "8.png", 8)
    names = ("images/0.png", "classes/a/3.png", "classes/b/4.png")
    rows = "".join(f"{name},{name[-5]}\n" for name in names)
    (tmp_path / "captions.csv").write_text(f"file,caption\n{rows}")
    found = silently(ImageFolder(str(tmp_path)))
    assert sorted(found) == [("0", 0), ("3", 3), ("4", 4)]


def test_places_that_are_none(tmp_path):
    (tmp_path / "a.doc").write_text("x")
    refused(
        ImageFolder(str(tmp_path / "a.doc")), "a.doc: is no folder and no tar, table or picture"
    )
    (tmp_path / "a.tar.gz").write_text("x")
    refused(ImageFolder(str(tmp_path / "a.tar.gz")), "is packed, .* unpack it to a .tar first")
    refused(ImageFolder("https://host/a.tar"), "is an address")
    refused(ImageFolder(""), "no path given")
    refused(ImageFolder(f"{tmp_path}/*.tar"), "nothing there has such a name")


def test_settings_that_a_layout_does_not_use_are_refused(tmp_path):
    folder = split_folders(tmp_path / "a")
    refused(
        ImageFolder(str(folder), columns={"caption": "x"}), "read as folder, which has no columns"
    )
    refused(ImageFolder(str(folder), root=str(folder)), "read as folder, whose pictures lie there")
    for k in range(2):
        write_picture(tmp_path / "b" / str(k) / "1.png", k)
    source = ImageFolder(str(tmp_path / "b"), names=("cat", "dog"))
    assert sorted(examples(source)) == [("cat", 0), ("dog", 1)]
