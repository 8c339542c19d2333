"""Image files: read in their own size and colours, and written.

An image is uint8, (Y, X) grey or (Y, X, 3) RGB, values 0..255.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmtok.errors import UserError, missing_extra, reason_of
from mmtok.io import memory_budget
from mmtok.io.files import atomic_write
from mmtok.sources.base import Picture
from mmtok.sources.screen import looks_once

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpf", ".jpx", ".webp",
    ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
    ".pcx", ".sgi", ".qoi", ".ico", ".psd",
)  # fmt: skip
HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # of a package that is optional
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
PICTURES = (*SUFFIXES, *HEIF_SUFFIXES)
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# what Pillow's readers raise on damaged files
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
    MemoryError,
    RuntimeError,
    ArithmeticError,
    AttributeError,
    Image.DecompressionBombError,
)
PIXEL_BYTES = 24  # of memory per pixel, while a picture is decoded, turned and converted


def open_image(path: Path) -> Picture:
    """The picture in a file, in its own size and colours.

    Only what no tokenizer takes is converted: CMYK, palettes, 16 bits, animations and camera
    rotation become grey or RGB values, with opacity where the file has it.

    Raises UserError for a file that is missing, truncated, without pixels or not an image.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    return decode_image(path, str(path))


def decode_image(file: Path | BinaryIO, name: str) -> Picture:
    """As `open_image`, of a path or an open file, which messages call `name`."""
    done: list[str] = []
    with _opened(file, name) as picture:
        memory_budget.check(
            PIXEL_BYTES * picture.width * picture.height,
            "picture",
            f"{picture.width:,} x {picture.height:,} pixels",
        )
        values = _converted(picture, done)
    return Picture(values, name, tuple(done))


@looks_once
def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, from its header.

    Raises UserError as `open_image` does, but for what only the pixels tell.
    """
    return size_of(path, str(path))


def size_of(file: Path | BinaryIO, name: str) -> tuple[int, int]:
    """As `picture_size`, of a path or an open file, which messages call `name`."""
    with _opened(file, name) as picture:
        return picture.height, picture.width


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open a picture, whose header is read.

    Raises UserError, by `name`, for what is wrong with the header, or with the pixels when they are
    read inside the `with` block.
    """
    try:
        with _pillow_image(file) as picture:
            if 0 in picture.size:
                raise UserError(f"the image has no pixels ({picture.size[0]} x {picture.size[1]})")
            yield picture
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: {_why_unknown(file)}") from None
    except UNREADABLE as error:
        raise UserError(
            f"{name}: cannot be read as an image, it may be truncated: {reason_of(error)}"
        ) from None


def _pillow_image(file: Path | BinaryIO) -> Image.Image:
    """A picture as Pillow opens it, those of telephones (HEIC) by its companion."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if _brand(file) not in HEIF_BRANDS:
            raise
    try:
        from pillow_heif import HeifImageFile
    except ModuleNotFoundError:
        raise missing_extra("reading HEIC", "media") from None
    # not registered with Pillow: what others can read and write must not depend on this
    return HeifImageFile(file)


def _brand(file: Path | BinaryIO) -> bytes:
    """The kind of picture in a container of MPEG-4's family; b"" in others."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            start = opened.read(12)
    else:
        file.seek(0)
        start = file.read(12)
    if start[4:8] != b"ftyp":
        return b""
    return start[8:12]


def _why_unknown(file: Path | BinaryIO) -> str:
    """What is said of a file that is no picture for Pillow."""
    if _brand(file) in (b"avif", b"avis"):
        return "an AVIF picture, which this Pillow cannot read; pip install -U pillow"
    return "not an image (of a kind that Pillow knows)"


def _converted(picture: Image.Image, done: list[str]) -> np.ndarray:
    """The first frame as grey or RGB values, opacity last where there is some.

    done: what was converted is added here.
    """
    n_frames = getattr(picture, "n_frames", 1)
    if n_frames > 1:
        done.append(f"cut to the first of {n_frames} frames")
    is_deep = _has_16_bits(picture)
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.size != picture.size or upright.tobytes() != picture.tobytes():
        done.append("turned upright as its orientation tag says")
    if is_deep:
        done.append("reduced from 16 bits to 8")
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        return _deep_grey(upright)
    grey = upright.mode in ("1", "L", "LA", "La")
    if upright.mode in ("P", "PA"):
        done.append("converted from a palette to RGB")
    elif not grey and upright.mode not in ("RGB", "RGBA", "RGBa"):
        done.append(f"converted from {upright.mode} to RGB")
    if upright.has_transparency_data:
        return _with_opacity(upright, grey)
    return np.array(upright.convert("L" if grey else "RGB"), dtype=np.uint8)


def _has_16_bits(picture: Image.Image) -> bool:
    """Whether the file has 16 bits a channel.

    Asked before the pixels are loaded: Pillow reduces 16-bit colour to 8 bits while loading, and
    only the decoder's raw mode tells.
    """
    tiles = getattr(picture, "tile", None)
    raw_mode = str(tiles[0][3]) if tiles else ""
    return picture.mode.startswith("I;16") or (";16" in raw_mode and "BGR" not in raw_mode)


def _with_opacity(picture: Image.Image, grey: bool) -> np.ndarray:
    """(Y, X, 4), or (Y, X, 2) where the colours are grey."""
    values = np.array(picture.convert("RGBA"), dtype=np.uint8)
    if grey:
        return values[:, :, [0, 3]]
    return values


def _deep_grey(picture: Image.Image) -> np.ndarray:
    """16-bit grey as 8 bits. Raises UserError for values outside 0..65535 (floats, 32 bits)."""
    values = np.array(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        kind = "float" if picture.mode == "F" else "32-bit"
        raise UserError(f"{kind} pixels have no stated range; save the image with 8 or 16 bits")
    return ((values.astype(np.uint32) * 2 + 257) // 514).astype(np.uint8)  # round(v * 255 / 65535)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 (Y, X) or (Y, X, 3) atomically, in the format of the suffix.

    Raises UserError where it is no image, the format is unknown, or the file cannot be written.
    """
    path = Path(path)
    image = np.asarray(image)
    has_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or 0 in image.shape or not has_shape:
        raise UserError(
            f"{path}: cannot be written: an image is uint8 (height, width) or (height, width, 3)"
            f" with at least one pixel, got {image.dtype} {image.shape}"
        )
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"{path}: no image format for the suffix {path.suffix!r}; use .png")
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written: there is no folder {path.parent}")
    try:
        with atomic_write(path) as temporary:
            Image.fromarray(image).save(temporary, format=kind)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
