"""Tars of pictures, as webdataset and img2dataset write them, give what a folder would; faults are
said in a line.
"""

import gzip
import io
import json
import tarfile
import warnings

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmtok.errors import UserError
from mmtok.sources import image_tars
from mmtok.sources.images import ImageFolder
from tests.sources.test_image_layouts import examples, refused, silently, write_picture


def picture(value, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(file, kind)
    return file.getvalue()


def write_tar(path, samples):
    """samples: key -> suffix -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, content in members.items():
                content = content.encode() if isinstance(content, str) else content
                about = tarfile.TarInfo(f"{key}.{suffix}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return path


def shard(folder, name, numbers, suffix="png", **texts):
    """A tar as img2dataset writes it: 000000012.jpg, .json, .txt."""
    samples = {}
    for i in numbers:
        texts = texts or {"txt": "picture {}", "json": '{{"caption": "json {}", "key": "{}"}}'}
        members = {suffix: picture(i, suffix)}
        members |= {kind: text.format(i, i) for kind, text in texts.items()}
        samples[f"{i:09}"] = members
    return write_tar(folder / name, samples)


def test_several_tars_by_folder_pattern_and_range(tmp_path):
    for k in range(3):
        shard(tmp_path, f"{k:05}.tar", range(10 * k, 10 * k + 4))
        (tmp_path / f"{k:05}_stats.json").write_text('{\n "count": 4\n}')
    wanted = [(f"picture {10 * k + i}", 10 * k + i) for k in range(3) for i in range(4)]
    with pytest.warns(UserWarning, match="read as webdataset .00000.tar and 2 more."):
        assert sorted(examples(ImageFolder(str(tmp_path)))) == sorted(wanted)
    table = pyarrow.table({"caption": ["c"], "url": ["u"], "key": ["000000000"]})
    pyarrow.parquet.write_table(table, tmp_path / "00000.parquet")  # as img2dataset puts it beside
    found = silently(ImageFolder(str(tmp_path), columns={"image": "png", "caption": "key"}))
    assert sorted(found)[0] == ("0", 0)
    refused(ImageFolder(str(tmp_path), columns={"caption": "kez"}), "no column 'kez'; nearest: key")
    for name in ("*.tar", "{00000..00002}.tar", "0000[0-2].tar"):
        source = ImageFolder(f"{tmp_path}/{name}")
        assert silently(source) == silently(ImageFolder(str(tmp_path)))
    assert len(silently(ImageFolder(f"{tmp_path}/00001.tar"))) == 4
    refused(ImageFolder(f"{tmp_path}/{{00000..00004}}.tar"), "2 of its names stand for nothing")
    source = ImageFolder(str(tmp_path), heldout="00002")
    assert silently(source, "heldout") == wanted[8:]


def test_they_give_what_webdataset_gives(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    shard(tmp_path, "a.tar", range(5), "webp")
    theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("rgb8")
    theirs = [(sample["txt"], int(sample["webp"].flat[0])) for sample in theirs]
    assert sorted(silently(ImageFolder(str(tmp_path)))) == theirs


@pytest.mark.parametrize(
    "texts, columns, names, wanted",
    [
        ({"cls": "{}"}, {}, ("cat", "dog"), ["cat", "dog"]),
        ({"cls": "{}"}, {}, (), ["0", "1"]),
        ({"json": '{{"caption": "j {}"}}'}, {}, (), ["j 0", "j 1"]),
        ({"json": '{{"alt": "j {}", "n": NaN}}'}, {"caption": "alt"}, (), ["j 0", "j 1"]),
        ({"txt": "t", "json": '{{"alt": "j {}"}}'}, {"caption": "alt"}, (), ["j 0", "j 1"]),
        ({"txt": "t", "json": '{{"caption": "j {}"}}'}, {"caption": "json"}, (), ["j 0", "j 1"]),
        ({"json": '{{"a": {{"b": "p {}"}}}}'}, {"caption": "a.b"}, (), ["p 0", "p 1"]),
        ({"json": '"b {}"'}, {}, (), ["b 0", "b 1"]),
        ({"txt": "t", "json": '"b {}"'}, {"caption": "json"}, (), ["b 0", "b 1"]),
        ({"json": '"{}"'}, {}, ("cat", "dog"), ["cat", "dog"]),
        ({"txt": "t", "en.txt": "﻿e {}\r\n"}, {"caption": "en.txt"}, (), ["e 0", "e 1"]),
    ],
)
def test_where_captions_are(tmp_path, texts, columns, names, wanted):
    shard(tmp_path, "a.tar", range(2), **texts)
    source = ImageFolder(str(tmp_path), columns=columns, names=names)
    assert sorted(silently(source)) == list(zip(wanted, range(2), strict=True))


def test_samples_of_one_picture_are_in_one_split(tmp_path):
    """A sample per caption, in any order and several tars: equal pictures are no leak."""
    order = np.random.default_rng(0).permutation(60).tolist()
    for k in range(2):
        some = [i for i in order if i % 2 == k]
        samples = {f"{i:03}": {"png": picture(i % 20), "txt": f"c{i}"} for i in some}
        write_tar(tmp_path / f"{k}.tar", samples)
    source = ImageFolder(str(tmp_path))
    with pytest.warns(UserWarning, match="40 of 60 pictures were equal to another one, and kept"):
        source.check()
    train = {value for _, value in silently(source, "train")}
    held = {value for _, value in silently(source, "heldout")}
    assert len(train) == 18 and len(held) == 2 and not train & held
    assert len(silently(source, "train")) == 54 and len(silently(source, "heldout")) == 6
    published = ImageFolder(str(tmp_path), train="0", heldout="1")  # whose pictures meet, by evens
    write_tar(tmp_path / "1.tar", {f"{i}": {"png": picture(i), "txt": "t"} for i in range(18, 40)})
    refused(published, "is in the split to train on and in the one to hold out, as are 3 of 22")


def test_what_is_missing_or_unclear_is_said(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, {"1": {"wav": "x", "txt": "t"}})
    refused(
        ImageFolder(str(path)), "a.tar: no member can be the image; their suffixes are txt, wav"
    )
    shard(tmp_path, "a.tar", range(2), json='{{"alt": "j", "url": "u"}}')
    refused(
        ImageFolder(str(path)), "000000000.json: which key is the caption. It has alt, url; name"
    )
    wrong = ImageFolder(str(path), columns={"caption": "atl"})
    refused(wrong, "000000000.json: has no column 'atl'; nearest: alt, ")
    write_tar(path, {"1": {"png": picture(1), "seg.png": picture(2)}})
    refused(ImageFolder(str(path)), "a.tar: no captions; looked for members called .txt, .text")
    write_tar(path, {"1": {"png": picture(1), "jpg": picture(2), "txt": "t"}})
    refused(
        ImageFolder(str(path)), "a.tar: 1: has two pictures, jpg and png; .* image=jpg or image=p"
    )
    write_tar(path, {str(i): {"png": picture(i), "jpg": picture(9), "txt": "t"} for i in range(2)})
    assert sorted(silently(ImageFolder(str(path), columns={"image": "png"}))) == [
        ("t", 0),
        ("t", 1),
    ]


def test_samples_without_a_picture_or_a_caption_are_counted(tmp_path):
    samples = {f"{i}": {"png": picture(i), "txt": f"t{i}"} for i in range(4)}
    del samples["1"]["png"], samples["2"]["txt"]
    write_tar(tmp_path / "a.tar", samples)
    with pytest.warns() as said:
        assert sorted(examples(ImageFolder(str(tmp_path)))) == [("t0", 0), ("t3", 3)]
    said = " | ".join(str(w.message) for w in said)
    assert "1 of 4 samples was left out: they have no picture (first: " in said
    assert "1 of 4 samples was left out: they have no txt (first: " in said


def test_broken_pictures_and_tars_are_passed_over_while_they_are_few(tmp_path):
    samples = {f"{i:03}": {"png": picture(i), "txt": f"t{i}"} for i in range(200)}
    samples["020"]["png"] = b"no picture"
    samples["030"]["txt"] = b"\xff"
    write_tar(tmp_path / "a.tar", samples)
    source = ImageFolder(str(tmp_path))
    with pytest.warns(
        UserWarning, match="passed over as unusable .first: .*a.tar: 020.png: not an image"
    ):
        left = {value for _, value in examples(source)}
    assert left == set(range(200)) - {20, 30}
    samples["040"]["png"] = b""
    samples["050"]["png"] = b"x"
    write_tar(tmp_path / "a.tar", samples)
    refused(source, "020.png: not an image .*040.png.*: 3 of 200 pictures cannot be used")
    for k in range(100):
        write_tar(tmp_path / f"b{k}.tar", {f"{k}": {"png": picture(k), "txt": "t"}})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:530])
    with pytest.warns(
        UserWarning, match="1 of 101 tars was passed over as unusable .first: .*truncated"
    ):
        assert len(examples(source)) == 100
    (tmp_path / "b1.tar").write_bytes(b"x")
    refused(source, "a.tar: truncated: .*b1.tar: 2 of 101 tars cannot be used")


def test_sizes_are_limited_and_looked_at_once(tmp_path, monkeypatch):
    shard(tmp_path, "a.tar", range(3))
    write_tar(tmp_path / "b.tar", {"large": {"png": large(), "txt": "large"}})
    source = ImageFolder(str(tmp_path), max_pixels=100)
    with pytest.warns(UserWarning, match="1 of 4 pictures was left out: more pixels than 100"):
        assert len(examples(source)) == 3
    monkeypatch.setattr(image_tars, "size_of", lambda *_: pytest.fail("looked at a second time"))
    silently(source)


def large():
    """A picture whose size comes behind 100 kB of its header."""
    exif = Image.Exif()
    file = io.BytesIO()
    Image.new("RGB", (50, 50)).save(file, "JPEG", icc_profile=bytes(100_000), exif=exif)
    return file.getvalue()


def test_loose_pictures_beside_tars_are_a_second_layout(tmp_path):
    shard(tmp_path, "a.tar", range(3))
    write_picture(tmp_path / "assets" / "banner.png", 1)
    assert len(silently(ImageFolder(str(tmp_path)))) == 3
    write_picture(tmp_path / "assets" / "logo.png", 2)
    said = "as webdataset, or as the 2 pictures .* --layout webdataset or --layout folder"
    refused(ImageFolder(str(tmp_path)), said)
    assert len(silently(ImageFolder(str(tmp_path), layout="webdataset"))) == 3
    assert len(silently(ImageFolder(str(tmp_path), layout="folder"))) == 2


def test_the_split_is_a_partition_that_repeats(tmp_path):
    shard(tmp_path, "a.tar", range(20))
    source = ImageFolder(str(tmp_path), heldout_share=0.25)
    train = silently(source, "train")
    held = silently(source, "heldout")
    assert len(held) == 5 and not set(train) & set(held) and len({*train, *held}) == 20
    assert silently(source, "train") == train
    assert silently(ImageFolder(str(tmp_path), heldout_share=0.25, seed=1), "heldout") != held


def test_json_of_a_sample_that_holds_no_caption_is_unusable(tmp_path):
    texts = [json.dumps({"caption": f"c{i}"}) for i in range(200)]
    texts[7] = json.dumps({"caption": None})
    texts[9] = "{"
    texts[11] = '"a string"'
    samples = {f"{i:03}": {"png": picture(i), "json": text} for i, text in enumerate(texts)}
    write_tar(tmp_path / "a.tar", samples)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        few = ImageFolder(str(tmp_path), max_error_share=0.02)
        assert len(examples(few)) == 197
    said = " | ".join(str(w.message) for w in said)
    assert "007.json: its caption is None, and no text" in said and "009.json: not JSON" in said
    with pytest.raises(UserError, match="007.json|009.json"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examples(ImageFolder(str(tmp_path), on_error="raise"))


def test_packed_tars_beside_others_are_no_silent_loss(tmp_path):
    for k in range(2):
        shard(tmp_path, f"{k}.tar", range(4 * k, 4 * k + 4))
    content = gzip.compress((tmp_path / "0.tar").read_bytes())
    (tmp_path / "0.tar.gz").write_bytes(content)  # unpacked beside: the same samples
    assert len(silently(ImageFolder(str(tmp_path)))) == 8
    (tmp_path / "0.tar").unlink()
    refused(ImageFolder(str(tmp_path)), "0.tar.gz: is packed .gzip.*: 1 of 2 tars cannot be used")
