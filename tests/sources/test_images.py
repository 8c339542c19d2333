"""Picture files of every kind become uint8 values, and what was converted is said; sources repeat
with their seed.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtok.data.image_preparation import read_image
from mmtok.errors import UserError
from mmtok.sources.base import split_order
from mmtok.sources.images import (
    DIGIT_NAMES,
    SUFFIXES,
    ImageFolder,
    ScannedDigits,
    load_scans,
    noisy,
    shifted,
    write_image,
)


def random_image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def read_silently(path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_image(path)


# ---- files


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1)])
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif"])
def test_what_is_written_is_read(tmp_path, shape, suffix):
    image = random_image(*shape)
    write_image(tmp_path / f"a{suffix}", image)
    assert np.array_equal(read_silently(tmp_path / f"a{suffix}"), image)
    assert len(list(tmp_path.iterdir())) == 1


def test_black_and_white(tmp_path):
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read_silently(tmp_path / "a.png").tolist() == [[0, 255], [255, 0]]


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 257, 65535, 128, 129]], np.uint16)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="a.png was reduced from 16 bits to 8"):
        image = read_image(tmp_path / "a.png")
    assert image.tolist() == [[0, 1, 255, 0, 1]]


def test_sixteen_bit_colour_is_said(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(
        ">IIBBBBB", 1, 1, 16, 2, 0, 0, 0
    )  # 1 x 1, 16 bits, RGB; Pillow cannot write it
    pixels = zlib.compress(b"\0" + struct.pack(">3H", 0, 257, 65535))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with pytest.warns(UserWarning, match="reduced from 16 bits to 8"):
        assert read_image(tmp_path / "a.png").tolist() == [[[0, 1, 255]]]


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="converted from CMYK to RGB"):
        image = read_image(tmp_path / "a.tif")
    assert image.shape == (2, 3, 3) and image[0, 0].tolist() == [255, 0, 0]


def test_palette_is_converted(tmp_path):
    palette = Image.new("P", (2, 2))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="palette"):
        image = read_image(tmp_path / "a.png")
    assert image[0].tolist() == [[255, 0, 0], [0, 255, 0]]


def test_transparency_is_laid_over_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "colour.png")
    Image.new("LA", (2, 2), (0, 128)).save(tmp_path / "grey.png")
    with pytest.warns(UserWarning, match="laid over white where there is transparency"):
        assert read_image(tmp_path / "colour.png").tolist() == [[[255] * 3] * 2] * 2
    with pytest.warns(UserWarning, match="transparency"):
        assert read_image(tmp_path / "grey.png").tolist() == [[127] * 2] * 2


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (3, 3), value) for value in (10, 200, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="first of 3 frames") as said:
        image = read_image(tmp_path / "a.gif")
    assert (image == 10).all() and len(said) == 1


def test_orientation_tag_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(random_image(4, 6)).save(tmp_path / "a.png", exif=exif)
    with pytest.warns(UserWarning, match="turned upright"):
        assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(random_image(4, 6), -1))


def test_unusable_files_are_refused(tmp_path):
    write_image(tmp_path / "whole.png", random_image(64, 64, 3))
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "head.png").write_bytes(content[:20])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "none.pgm").write_bytes(b"P5 0 4 255\n")
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    names = [
        "truncated.png",
        "head.png",
        "text.png",
        "empty.png",
        "none.pgm",
        "float.tif",
        "missing.png",
        ".",
    ]
    for name in names:
        with pytest.raises(UserError) as error:
            read_image(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damaged_files_read_or_are_refused(tmp_path, kind):
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(random_image(20, 24, 3)).save(file, format=kind)
    for _ in range(100):
        damaged = bytearray(file.getvalue())
        damaged[rng.integers(200)] = rng.integers(256)
        (tmp_path / "a").write_bytes(damaged[: rng.integers(1, 2 * len(damaged))])
        try:
            image = read_image(tmp_path / "a")
        except UserError as error:
            assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
        else:
            assert image.dtype == np.uint8 and 0 not in image.shape


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    for name, image in [
        ("a.png", np.zeros((0, 3), np.uint8)),
        ("a.png", np.zeros((2, 2))),
        ("a.xyz", random_image(2, 2)),
        ("a", random_image(2, 2)),
        ("nowhere/a.png", random_image(2, 2)),
    ]:
        with pytest.raises(UserError):
            write_image(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


# ---- sources


def test_split_is_a_partition_and_repeats():
    for n in (2, 3, 10, 1797):
        split = split_order(n, 0.2, 0)
        assert sorted([*split["train"], *split["heldout"]]) == list(range(n)) and len(
            split["heldout"]
        ) == max(1, round(n * 0.2))
        assert np.array_equal(split["train"], split_order(n, 0.2, 0)["train"])


def test_shift_moves_and_fills_with_black():
    image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    assert shifted(image, 1, 0).tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert shifted(image, 0, -1).tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]
    assert np.array_equal(shifted(image, 0, 0), image)


def test_noise_has_its_deviation():
    grey = np.full((100, 100), 128, np.uint8)
    assert np.std(noisy(grey, 10.0, np.random.default_rng(0))) == pytest.approx(10.0, rel=0.05)
    assert np.array_equal(noisy(grey, 0.0, np.random.default_rng(0)), grey)


def test_scans():
    pytest.importorskip("sklearn")
    source = ScannedDigits(copies=2)
    clean = list(source.examples("heldout"))
    assert len(clean) == 359 and all(example["view"] is example["image"] for example in clean)
    assert all(example["view_caption"] == example["caption"] for example in clean)
    scans, labels = load_scans("train")
    train = list(source.examples("train"))
    assert len(train) == 2 * 1438 and [example["caption"] for example in train[:1438]] == [
        DIGIT_NAMES[label] for label in labels
    ]
    images = np.stack([example["image"] for example in train])
    assert not np.array_equal(images[:1438], images[1438:])
    moved = np.abs(images[:1438].astype(int) - scans)
    assert 0 < moved.mean() < source.noise and moved.max() < 6 * source.noise
    again = next(source.examples("train"))
    assert np.array_equal(again["view"], train[0]["view"])
    by = {
        "": (0, 0),
        ", up 1": (-1, 0),
        ", down 1, left 1": (1, -1),
    }  # the caption says how the view was moved
    moved = {
        e["view_caption"].removeprefix(e["caption"]): e
        for e in ScannedDigits(noise=0).examples("train")
    }
    assert len(moved) == 9 and all(
        np.array_equal(moved[said]["view"], shifted(moved[said]["image"], *by[said])) for said in by
    )
    assert not np.array_equal(
        next(ScannedDigits(seed=1).examples("train"))["image"], train[0]["image"]
    )
    assert set(train[0]) == set(source.fields)
    with pytest.raises(UserError, match="no split"):
        next(source.examples("test"))
    with pytest.raises(UserError, match="copies"):
        ScannedDigits(copies=0)


def test_folder_of_pictures(tmp_path):
    (tmp_path / "red_apple").mkdir()
    for i in range(6):
        write_image(tmp_path / "red_apple" / f"{i}.png", random_image(20, 30, 3))
    for name in ("green pear", "plum_tree"):
        write_image(tmp_path / f"{name}.jpg", random_image(9, 9))
    (tmp_path / "notes.txt").write_text("no picture")
    source = ImageFolder(tmp_path, heldout_share=0.25)
    parts = {split: list(source.examples(split)) for split in source.splits}
    assert [len(parts[split]) for split in ("train", "heldout")] == [6, 2]
    everything = parts["train"] + parts["heldout"]
    assert (
        sorted(example["caption"] for example in everything)
        == ["green pear", "plum tree"] + ["red apple"] * 6
    )
    sizes = sorted(example["image"].pixels.shape for example in everything)
    assert (
        sizes == [(9, 9)] * 2 + [(20, 30, 3)] * 6
    )  # as they are: what the tokenizer takes it says itself
    assert {Path(example["image"].name).stem for example in everything} == {
        *"012345",
        "green pear",
        "plum_tree",
    }
    assert [e["caption"] for e in source.examples("heldout")] == [
        e["caption"] for e in parts["heldout"]
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_the_table_is_read_here(tmp_path, suffix):
    Image.init()
    kind = Image.registered_extensions()[suffix]
    assert kind in Image.OPEN
    if kind in Image.SAVE:
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"a{suffix.upper()}", kind)
        assert read_image(tmp_path / f"a{suffix.upper()}").shape[:2] == (16, 16)


def test_hidden_pictures_are_left_out_and_said(tmp_path):
    for name in ("a.JPG", "b.avif", "._a.jpg", ".ipynb_checkpoints/b.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / name, "JPEG")
    with pytest.warns(
        UserWarning,
        match=r"left out 2 hidden or system files and folders \(first ._a.jpg\), 1 .txt files",
    ):
        files = ImageFolder(str(tmp_path)).files()
    assert [file.name for file in files] == ["a.JPG", "b.avif"]


def pictures(folder, n):
    for i in range(n):
        Image.fromarray(np.full((8 + i, 10), i, np.uint8)).save(folder / f"{i:03}.png")
    return folder


def test_one_broken_picture_in_a_hundred_stops_nothing(tmp_path, monkeypatch):
    source = ImageFolder(str(pictures(tmp_path, 200)))
    (tmp_path / "020.png").write_bytes(b"no picture")  # seen by its header
    write_image(tmp_path / "030.png", random_image(50, 50))
    half = (tmp_path / "030.png").read_bytes()[:1_000]
    (tmp_path / "030.png").write_bytes(half)  # seen when it is read
    with pytest.warns(UserWarning, match="passed over as unusable"):
        left = [e["caption"] for split in source.splits for e in source.examples(split)]
    assert sorted(left) == [f"{i:03}" for i in range(200) if i not in (20, 30)]
    for name in ("040", "050"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    monkeypatch.setattr(
        "mmtok.sources.images.open_image",
        lambda *_: pytest.fail("nothing is read before all were looked at"),
    )
    with pytest.raises(
        UserError,
        match="020.png: not an image .*; likewise .*040.png, .*050.png: 3 of 200 pictures",
    ):
        next(source.examples("train"))


def test_sizes_out_of_bounds_are_left_out_and_counted(tmp_path):
    source = ImageFolder(str(pictures(tmp_path, 10)), min_pixels=100, max_pixels=150)
    with pytest.warns(UserWarning, match="2 of 10 pictures were left out: fewer pixels than 100"):
        assert len([e for split in source.splits for e in source.examples(split)]) == 6
    with pytest.raises(UserError, match="none of 10 pictures is left"), pytest.warns(UserWarning):
        ImageFolder(str(tmp_path), min_pixels=1_000).check()


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        next(ImageFolder(tmp_path / "missing").examples("train"))
    with pytest.raises(UserError, match="0 images"):
        next(ImageFolder(tmp_path).examples("train"))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(UserError, match="not an image"):
        list(ImageFolder(tmp_path).examples("train"))
    with pytest.raises(UserError, match="heldout_share"):
        ImageFolder(tmp_path, heldout_share=1.0)
