"""Flickr8k's token files and Karpathy's JSON, written as published: captions and splits."""

import json

import pytest

from mmtok.sources.images import ImageFolder
from tests.sources.test_image_layouts import examples, refused, silently, write_picture


@pytest.fixture
def flickr(tmp_path):
    texts = tmp_path / "Flickr8k_text"
    texts.mkdir()
    lines = []
    for i in range(4):
        write_picture(tmp_path / "Flicker8k_Dataset" / f"{i}_6a.jpg", i)
        lines += [f"{i}_6a.jpg#{k}\tPicture {i} , sentence {k} .\n" for k in range(2)]
    lines.append("9_6a.jpg.1#0\tA picture that is not there .\n")
    (texts / "Flickr8k.token.txt").write_text("".join(lines))
    (texts / "Flickr8k.lemma.token.txt").write_text("0_6a.jpg#0\tpicture 0\n")
    return tmp_path


def test_flickr8k(flickr):
    with (
        pytest.warns(UserWarning, match="read as flickr .Flickr8k_text/Flickr8k.token.txt."),
        pytest.warns(UserWarning, match="1 of 9 captions was left out: their picture is not there"),
    ):
        found = examples(ImageFolder(str(flickr)))
    wanted = [(f"Picture {i} , sentence {k} .", i) for i in range(4) for k in range(2)]
    assert sorted(found) == wanted
    named = flickr / "Flickr8k_text" / "Flickr8k.token.txt"
    pictures = flickr / "Flicker8k_Dataset"
    assert sorted(silently(ImageFolder(str(named), root=str(pictures)))) == wanted
    refused(ImageFolder(str(named), root=str(named.parent)), "none of its pictures is in .*--root")
    named.write_text("0_6a.jpg a caption\n")
    refused(ImageFolder(str(flickr)), "line 1: is not NAME#0, a tab and a caption")


def test_lists_of_flickr8k_are_its_splits(flickr):
    for split, i in (("train", (0, 3)), ("dev", (1,)), ("test", (2,))):
        path = flickr / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt"
        path.write_text("".join(f"{k}_6a.jpg\n" for k in i))
    source = ImageFolder(str(flickr))
    with pytest.warns(UserWarning, match="train and holds out dev; left out: 1 of test"):
        assert {grey for _, grey in examples(source, "heldout")} == {1}
    assert {grey for _, grey in silently(source, "train")} == {0, 3}
    source = ImageFolder(str(flickr), train="train", heldout="test")
    assert {grey for _, grey in silently(source, "heldout")} == {2}


def test_karpathy_of_coco(tmp_path):
    images = []
    for i, split in enumerate(("train", "restval", "val", "test")):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{i:012}.jpg"
        write_picture(tmp_path / folder / name, i)
        sentences = [
            {"tokens": ["a", "dog"], "raw": f"A dog, {i} {k}.", "imgid": i, "sentid": 2 * i + k}
            for k in range(2)
        ]
        images.append(
            {"filepath": folder, "sentids": [2 * i, 2 * i + 1], "filename": name, "imgid": i,
             "split": split, "sentences": sentences, "cocoid": i}
        )  # fmt: skip
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    source = ImageFolder(str(tmp_path))
    with (
        pytest.warns(UserWarning, match="read as karpathy .dataset_coco.json."),
        pytest.warns(UserWarning, match="holds out val; left out: 1 of test"),
    ):
        assert examples(source, "heldout") == [("A dog, 2 0.", 2), ("A dog, 2 1.", 2)]
    assert {grey for _, grey in silently(source, "train")} == {0, 1}
    source = ImageFolder(str(tmp_path), train="train", heldout="test")
    assert {grey for _, grey in silently(source, "heldout")} == {3}
    del images[0]["filename"]
    path.write_text(json.dumps({"images": images}))
    refused(ImageFolder(str(tmp_path)), "image 0: .* is not of filename, split and sentences")


def test_karpathy_of_flickr8k_names_no_folders(tmp_path):
    images = [
        {"sentids": [i], "imgid": i, "sentences": [{"raw": f"picture {i}"}], "split": split,
         "filename": f"{i}.jpg"}
        for i, split in enumerate(("train", "test"))
    ]  # fmt: skip
    for i in range(2):
        write_picture(tmp_path / "Flicker8k_Dataset" / f"{i}.jpg", i)
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    assert silently(ImageFolder(str(tmp_path)), "heldout") == [("picture 1", 1)]
