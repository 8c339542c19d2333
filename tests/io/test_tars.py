"""Laws of tars: what tar programs write is found by offset, in any of their formats; faults are
named.
"""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.io.tars import read_span, tar_index

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path, members, kind=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


def contents(path):
    """Key -> suffix -> content."""
    index = tar_index(path)
    found = {}
    for i in range(len(index)):
        spans = {suffix: index.span(i, suffix) for suffix in index.suffixes}
        found[index.key(i)] = {
            suffix: read_span(path, span, "a member") for suffix, span in spans.items() if span
        }
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_grouped_by_key_in_every_format(tmp_path, kind):
    long = "f" * 90 + "/" + "n" * 60
    rng = np.random.default_rng(0)
    samples = {
        "a/0001": {"jpg": rng.bytes(2000), "txt": b"one"},
        "a/0002": {"jpg": rng.bytes(512), "txt": b"two", "seg.png": b"mask"},
        long: {"jpg": rng.bytes(300_000), "txt": "äöü".encode()},
        "empty": {"txt": b""},
    }
    if kind != "ustar":
        samples["日本/" + "語" * 60] = {"jpg": b"unicode"}
    members = [(f"{key}.{s}", content) for key, of in samples.items() for s, content in of.items()]
    path = write_tar(tmp_path / "a.tar", members, FORMATS[kind])
    assert contents(path) == samples
    assert not tar_index(path).notes
    assert tar_index(path).n_members == len(members)


def test_it_is_what_webdataset_reads(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    path = str(tmp_path / "a.tar")
    with webdataset.TarWriter(path) as writer:
        for i in range(5):
            writer.write({"__key__": f"d/{i:03}", "jpg": bytes(i), "txt": f"text {i}", "cls": i})
    theirs = {
        sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
        for sample in webdataset.WebDataset(path, shardshuffle=False)
    }
    assert contents(tmp_path / "a.tar") == theirs


def test_what_is_no_member_of_a_sample_is_noted(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in [("d", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE)]:
            about = tarfile.TarInfo(name)
            about.type = kind
            tar.addfile(about)
        for name in ("d/._1.jpg", "__MACOSX/1.jpg", "d/1.JPG", "README", "d/1.jpg"):
            about = tarfile.TarInfo(name)
            about.size = len(name)
            tar.addfile(about, io.BytesIO(name.encode()))
    assert contents(path) == {"d/1": {"jpg": b"d/1.jpg"}}
    assert tar_index(path).notes == {
        "left out: links, devices and the like": (1, f"{path}: link.jpg"),
        "left out: hidden or of a system": (2, f"{path}: d/._1.jpg"),
        "left out: names without a suffix": (1, f"{path}: README"),
        "replaced by one of the same name behind it": (1, f"{path}: .jpg"),
    }


def test_tars_put_one_behind_another_are_read_on(tmp_path):
    a = write_tar(tmp_path / "a.tar", [("1.txt", b"one")]).read_bytes()
    b = write_tar(tmp_path / "b.tar", [("2.txt", b"two")]).read_bytes()
    (tmp_path / "both.tar").write_bytes(a + b)
    assert contents(tmp_path / "both.tar") == {"1": {"txt": b"one"}, "2": {"txt": b"two"}}


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: data[:700], "truncated: the member 1.jpg would end at byte 5,512 of 700"),
        (lambda data: data[:6000], "damaged or truncated at byte 5,632"),
        (lambda data: b"no tar" * 1000, "is no tar"),
        (lambda data: gzip.compress(data), "is packed .gzip., .* unpack it first"),
        (lambda data: data[:5632] + b"x" * 512 + data[6144:], "damaged or truncated at byte"),
    ],
)
def test_faults_are_named(tmp_path, damage, said):
    data = write_tar(tmp_path / "a.tar", [("1.jpg", bytes(5000)), ("1.txt", b"one")]).read_bytes()
    (tmp_path / "b.tar").write_bytes(damage(data))
    with pytest.raises(UserError, match=f"b.tar: {said}"):
        tar_index(tmp_path / "b.tar")
    with pytest.raises(UserError, match="missing.tar: cannot be read: No such file"):
        tar_index(tmp_path / "missing.tar")


def test_a_tar_cut_between_members_is_noted(tmp_path):
    data = write_tar(tmp_path / "a.tar", [("1.txt", b"one"), ("2.txt", b"two")]).read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:1024])
    (what,) = tar_index(tmp_path / "a.tar").notes
    assert "no end mark follows" in what


def test_damaged_tars_read_or_are_refused(tmp_path):
    members = [(f"{i}.jpg", bytes(700)) for i in range(3)] + [("n" * 120 + ".txt", b"long")]
    data = write_tar(tmp_path / "a.tar", members, tarfile.PAX_FORMAT).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "b.tar").write_bytes(damaged[: rng.integers(1, 2 * len(data))])
        try:
            contents(tmp_path / "b.tar")
        except UserError as error:
            assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)


def test_a_tar_that_changes_is_read_anew_and_one_that_shrinks_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("1.txt", b"one")])
    assert contents(path) == {"1": {"txt": b"one"}}
    write_tar(path, [("2.txt", b"twice"), ("3.txt", b"three")])
    os.utime(path, ns=(1, 1))
    assert contents(path) == {"2": {"txt": b"twice"}, "3": {"txt": b"three"}}
    span = tar_index(path).span(1, "txt")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match="3.txt: its tar is shorter now than when it was listed"):
        read_span(path, span, "3.txt")


def test_an_index_is_small_and_may_travel(tmp_path):
    members = [(f"{i:06}.{suffix}", b"x") for i in range(1000) for suffix in ("jpg", "txt")]
    index = tar_index(write_tar(tmp_path / "a.tar", members))
    assert len(pickle.dumps(index)) < 60 * 1000  # bytes a sample
    assert index.key(999) == "000999"
    assert index.having("jpg").all() and not index.having("png").any()
