"""Image files, folders of pictures with names, and scikit-learn's scanned digits.

An image is uint8, (Y, X) grey or (Y, X, 3) RGB, values 0..255.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmtok.errors import UserError, missing_extra, reason_of
from mmtok.io import memory_budget
from mmtok.io.files import atomic_write
from mmtok.io.messages import counted
from mmtok.io.walk import folder_at, walk
from mmtok.sources.base import Example, Listing, Picture, Source, check_heldout_share, split_order
from mmtok.sources.screen import Limit, Screen, ScreenedSource, remembered

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpf", ".jpx", ".webp",
    ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
    ".pcx", ".sgi", ".qoi", ".ico", ".psd",
)  # fmt: skip
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
SCANS_SPLIT_SEED = 0  # the same in every run, so that figures of different seeds compare


# ---- files


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


@remembered
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
        with Image.open(file) as picture:
            if 0 in picture.size:
                raise UserError(f"the image has no pixels ({picture.size[0]} x {picture.size[1]})")
            yield picture
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image (of a kind that Pillow knows)") from None
    except UNREADABLE as error:
        raise UserError(
            f"{name}: cannot be read as an image, it may be truncated: {reason_of(error)}"
        ) from None


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


# ---- sources


def load_scans(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's scanned digits of one split.

    Returns clean images (N, 8, 8) uint8 (17 grey values over 0..255) and labels (N,).
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise missing_extra("reading the scanned digits", "demo") from None
    digits = load_digits()
    rows = split_order(len(digits.target), 0.2, SCANS_SPLIT_SEED)[split]
    return np.round(digits.images[rows] * 255 / 16).astype(np.uint8), digits.target[rows]


@dataclass(frozen=True)
class ScannedDigits(Source):
    """scikit-learn's 1,797 scanned digits, 8 x 8 pixels, with their names.

    Examples are {"caption": "seven", "image": scan, "view": scan, "view_caption": "seven, up 1"}.
    In "train" each scan comes `copies` times, augmented anew each time: `image` by noise, for
    learning to draw; `view` by noise and a shift, for learning to read. In "heldout" both are the
    clean scan. `view_caption` names the shift too. A model that learns to draw views by it sees
    many more scans, and still does not shift those that it draws by name alone (Jun et al. 2020,
    distribution augmentation).

    Attributes:
        seed: of noise and shifts; the split is the same for all seeds.
        copies: per training scan.
        noise: standard deviation in grey values (0..255); two grey values of the scans differ by
            16.
        shift: at most so many pixels, each way.
    """

    seed: int = 0
    copies: int = 8
    noise: float = 8.0
    shift: int = 1

    def __post_init__(self) -> None:
        if self.copies < 1 or self.noise < 0 or self.shift < 0:
            raise UserError(
                f"ScannedDigits: copies is {self.copies}, noise {self.noise}, shift {self.shift}; "
                "copies must be at least 1, the others not negative"
            )

    @property
    def fields(self) -> dict[str, str]:
        """The scan and its name, plain and as a view."""
        return {"caption": "text", "image": "image", "view": "image", "view_caption": "text"}

    def clean(self) -> ScannedDigits:
        """The same scans, each once and not augmented: for judges, and to look for copies."""
        return replace(self, copies=1, noise=0.0, shift=0)

    def count(self, split: str, cache: Path | None = None) -> int:
        """The number of examples of a split."""
        self.check_split(split)
        return len(load_scans(split)[1]) * self._copies(split)

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """The examples of a split: all scans once, then all scans again, `copies` times over."""
        self.check_split(split)
        scans, labels = load_scans(split)
        rng = np.random.default_rng(self.seed)
        for _ in range(self._copies(split)):
            for scan, label in zip(scans, labels, strict=True):
                image = view = scan
                down = right = 0
                if split == "train":
                    image = noisy(scan, self.noise, rng)
                    down, right = rng.integers(-self.shift, self.shift + 1, 2)
                    view = noisy(shifted(scan, down, right), self.noise, rng)
                name = DIGIT_NAMES[label]
                yield {
                    "caption": name,
                    "image": image,
                    "view": view,
                    "view_caption": ", ".join((name, *shift_words(down, right))),
                }

    def _copies(self, split: str) -> int:
        if split == "train":
            return self.copies
        return 1


def noisy(image: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The image with Gaussian noise of that standard deviation in grey values, cut to 0..255."""
    return np.clip(np.round(image + rng.normal(0.0, noise, image.shape)), 0, 255).astype(np.uint8)


def shift_words(down: int, right: int) -> list[str]:
    """A shift in words: ["up 1", "left 2"]; [] for none."""
    words = []
    if down:
        words.append(f"{'down' if down > 0 else 'up'} {abs(down)}")
    if right:
        words.append(f"{'right' if right > 0 else 'left'} {abs(right)}")
    return words


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image moved by whole pixels; what comes in at the edges is black."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


@dataclass(frozen=True)
class ImageFolder(ScreenedSource):
    """A folder of pictures with names: examples {"caption": name, "image": Picture}.

    Pictures keep their size and colours. One in a sub-folder is captioned by that folder's name,
    one in the folder itself by its own name without the suffix; underscores become spaces.

    Attributes:
        path: of the folder.
        heldout_share: share of the pictures that is held out.
        seed: of the choice which are held out.
        min_pixels: least height times width of a picture as it is in the file; smaller ones are
            left out and counted. 0: any.
        max_pixels: the most, likewise.
    """

    path: str = ""
    heldout_share: float = 0.1
    seed: int = 0
    min_pixels: int = 0
    max_pixels: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._limit()
        check_heldout_share(self, self.heldout_share)

    @property
    def fields(self) -> dict[str, str]:
        """A picture and its name."""
        return {"caption": "text", "image": "image"}

    def files(self) -> list[Path]:
        """All pictures below the folder, sorted. Raises UserError when there are fewer than two."""
        found = walk(folder_at(self.path, "ImageFolder", "pictures with names"), SUFFIXES)
        if found.left_out:
            warnings.warn(found.note(), stacklevel=2)
        if len(found.files) < 2:
            raise UserError(
                f"{found.folder}: {counted(len(found.files), 'image')} in it; at least two are"
                f" needed, one to train on and one to hold out ({', '.join(SUFFIXES)})"
            )
        return found.files

    def check(self) -> None:
        """Raise UserError where the pictures are missing, or too many have unusable headers."""
        self._screen()

    def _limit(self) -> Limit:
        return Limit("pixels", self.min_pixels, self.max_pixels)

    def _screen(self) -> Screen[Path]:
        screen = Screen(self.files(), _pixels, self, "pictures", (self._limit(),))
        if len(screen.items) < 2:
            raise UserError(
                f"{self.path}: {counted(len(screen.items), 'picture')} left; at least two are"
                " needed, one to train on and one to hold out"
            )
        return screen

    def caption(self, file: Path) -> str:
        """The name of a picture's sub-folder, or its own without the suffix where it has none."""
        inside = file.relative_to(Path(self.path).expanduser())
        name = inside.stem
        if len(inside.parts) > 1:
            name = inside.parts[-2]
        return name.replace("_", " ")

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The pictures of a split, by name; nothing is cached."""
        self.check_split(split)
        screen = self._screen()
        rows = np.sort(split_order(len(screen.items), self.heldout_share, self.seed)[split])
        return screen.listing([screen.items[row] for row in rows], self._example)

    def _example(self, file: Path) -> Example:
        return Example({"caption": self.caption(file), "image": open_image(file)}, file)


def _pixels(file: Path) -> dict[str, float]:
    """The size of a picture, in pixels, from its header."""
    return {"pixels": math.prod(picture_size(file))}
