"""Image files: reading and writing them, scikit-learn's scanned digits, and folders of pictures
with names.

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
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmtok.errors import UserError, missing_extra
from mmtok.io import memory_budget
from mmtok.io.files import atomic_write
from mmtok.io.messages import counted
from mmtok.io.walk import folder_at, walk
from mmtok.preparation import Preparer
from mmtok.preparation.images import ImagePreparation, Picture
from mmtok.sources.base import Example
from mmtok.sources.screen import Limit, Screen, Screened, remembered

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpf", ".jpx", ".webp", ".avif", ".gif", ".bmp", ".dib",
            ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".sgi", ".qoi", ".ico", ".psd")  # fmt: skip
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "heldout")
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
SCANS_SPLIT_SEED = (
    0  # the scans' split is the same in every run, so that figures of different seeds compare
)


# ---- files


def read_image(path: Path) -> np.ndarray:
    """A picture as uint8 (Y, X) or (Y, X, 3); what is transparent is laid over white.

    What was done is said in one warning.

    Raises UserError as `open_image` does.
    """
    return Preparer("image", ImagePreparation())(open_image(path))


def open_image(path: Path) -> Picture:
    """A picture as it is, but for what no tokenizer takes: CMYK, palettes, 16 bits, animations and
    camera rotation are converted to grey or RGB values, with their opacity where the file has it.

    Raises UserError for what is missing, truncated, without pixels or not an image.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    return decode_image(path, str(path))


def decode_image(file: Path | BinaryIO, name: str) -> Picture:
    """As `open_image`, of a path or an open file, which messages call `name`."""
    said: list[str] = []
    with _opened(file, name) as picture:
        memory_budget.check(
            PIXEL_BYTES * picture.width * picture.height,
            "picture",
            f"{picture.width:,} x {picture.height:,} pixels",
        )
        values = _converted(picture, said)
    return Picture(values, name, tuple(said))


@remembered
def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, by its header.

    Raises UserError as `read_image` does, but for what only its pixels tell.
    """
    return size_of(path, str(path))


def size_of(file: Path | BinaryIO, name: str) -> tuple[int, int]:
    """As `picture_size`, of a path or an open file, which messages call `name`."""
    with _opened(file, name) as picture:
        return picture.height, picture.width


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """A picture whose header is read.

    Raises UserError, by `name`, for what is wrong with it then or while it is used.
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
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise UserError(
            f"{name}: cannot be read as an image, it may be truncated: {reason}"
        ) from None


def _converted(picture: Image.Image, said: list[str]) -> np.ndarray:
    """The first frame as grey or RGB values, opacity last where there is some; what was converted
    is added to `said`.
    """
    if getattr(picture, "n_frames", 1) > 1:
        said.append(f"cut to the first of {picture.n_frames} frames")
    stored = (
        str(picture.tile[0][3]) if picture.tile else ""
    )  # Pillow cuts 16-bit colour to 8 while loading; only here does it still say so
    deep = ";16" in stored and "BGR" not in stored or picture.mode.startswith("I;16")
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.size != picture.size or upright.tobytes() != picture.tobytes():
        said.append("turned upright as its orientation tag says")
    if deep:
        said.append("reduced from 16 bits to 8")
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        return _deep_grey(upright)
    grey = upright.mode in ("1", "L", "LA", "La")
    if upright.mode in ("P", "PA"):
        said.append("converted from a palette to RGB")
    elif not grey and upright.mode not in ("RGB", "RGBA", "RGBa"):
        said.append(f"converted from {upright.mode} to RGB")
    if upright.has_transparency_data:
        return _with_opacity(upright, grey)
    return np.array(upright.convert("L" if grey else "RGB"), dtype=np.uint8)


def _with_opacity(picture: Image.Image, grey: bool) -> np.ndarray:
    """(Y, X, 4), or (Y, X, 2) where the colours are grey."""
    values = np.array(picture.convert("RGBA"), dtype=np.uint8)
    return values[:, :, [0, 3]] if grey else values


def _deep_grey(picture: Image.Image) -> np.ndarray:
    """16-bit grey as 8 bits. Raises UserError for values outside 0..65535 (floats, 32 bits)."""
    values = np.array(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"{'float' if picture.mode == 'F' else '32-bit'} pixels have no stated range; save the"
            " image with 8 or 16 bits"
        )
    return ((values.astype(np.uint32) * 2 + 257) // 514).astype(np.uint8)  # round(v * 255 / 65535)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 (Y, X) or (Y, X, 3), whole or not at all, in the format of the suffix.

    Raises UserError when that cannot be.
    """
    path, image = Path(path), np.asarray(image)
    if (
        image.dtype != np.uint8
        or 0 in image.shape
        or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
    ):
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


def split_order(n: int, heldout_share: float, seed: int) -> dict[str, np.ndarray]:
    """Which of n items are in "train" and which in "heldout": a seeded permutation, the held-out
    ones from its end.
    """
    order = np.random.default_rng(seed).permutation(n)
    n_train = n - max(1, round(n * heldout_share))
    return {"train": order[:n_train], "heldout": order[n_train:]}


def check_split(source: object, split: str) -> None:
    """Raise UserError for a split that an image source does not have."""
    if split not in SPLITS:
        raise UserError(f"{type(source).__name__}: no split {split!r}; one of {', '.join(SPLITS)}")


def load_scans(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's scanned digits: clean images (N, 8, 8) uint8 (17 levels over 0..255) and
    labels (N,) of one split.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise missing_extra("reading the scanned digits", "demo") from None
    digits = load_digits()
    rows = split_order(len(digits.target), 0.2, SCANS_SPLIT_SEED)[split]
    return np.round(digits.images[rows] * 255 / 16).astype(np.uint8), digits.target[rows]


@dataclass(frozen=True)
class ScannedDigits:
    """scikit-learn's 1,797 scanned digits, 8 x 8: examples {"caption": "seven", "image": scan,
    "view": scan, "view_caption": "seven, up 1"}.

    In "train" each scan comes `copies` times, each time changed a little before it is tokenised:
    `image` by noise, for learning to draw; `view` by noise and a shift, for learning to read. In
    "heldout" both are the clean scan. `view_caption` says the shift too. A model that learns to
    draw views by it sees many more scans, and still does not shift those that it draws by name
    alone (Jun et al. 2020, distribution augmentation).

    seed    of noise and shifts; the split is the same for all seeds
    copies  per training scan
    noise   standard deviation in grey values (0..255); a level of the scans is 16
    shift   at most so many pixels, each way
    """

    seed: int = 0
    copies: int = 8
    noise: float = 8.0
    shift: int = 1

    def __post_init__(self):
        if self.copies < 1 or self.noise < 0 or self.shift < 0:
            raise UserError(
                f"ScannedDigits: copies is {self.copies}, noise {self.noise}, shift {self.shift}; "
                "copies must be at least 1, the others not negative"
            )

    @property
    def fields(self) -> dict[str, str]:
        return {"caption": "text", "image": "image", "view": "image", "view_caption": "text"}

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def clean(self) -> ScannedDigits:
        """The same scans, each once and unchanged: for judges, and to look for copies."""
        return replace(self, copies=1, noise=0.0, shift=0)

    def count(self, split: str, cache: Path | None = None) -> int:
        """How many examples a split has."""
        check_split(self, split)
        return len(load_scans(split)[1]) * (self.copies if split == "train" else 1)

    def examples(
        self, split: str, cache: Path | None = None
    ) -> Iterator[dict[str, str | np.ndarray]]:
        """The examples of a split: all scans once, then all scans again, `copies` times over."""
        check_split(self, split)
        scans, labels = load_scans(split)
        rng = np.random.default_rng(self.seed)
        for _ in range(self.copies if split == "train" else 1):
            for scan, label in zip(scans, labels):
                image, view, by = scan, scan, (0, 0)
                if split == "train":
                    image = noisy(scan, self.noise, rng)
                    by = rng.integers(-self.shift, self.shift + 1, 2)
                    view = noisy(shifted(scan, *by), self.noise, rng)
                name = DIGIT_NAMES[label]
                yield {
                    "caption": name,
                    "image": image,
                    "view": view,
                    "view_caption": ", ".join((name, *moves(*by))),
                }


def noisy(image: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of that standard deviation in grey values, cut to 0..255."""
    return np.clip(np.round(image + rng.normal(0.0, noise, image.shape)), 0, 255).astype(np.uint8)


def moves(down: int, right: int) -> list[str]:
    """A shift in words, none for none: ["up 1", "left 2"]."""
    return [
        f"{way} {abs(by)}"
        for by, way in (
            (down, "down" if down > 0 else "up"),
            (right, "right" if right > 0 else "left"),
        )
        if by
    ]


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image moved by whole pixels; what comes in at the edges is black."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


@dataclass(frozen=True)
class ImageFolder(Screened):
    """A folder of pictures with names: examples {"caption": name, "image": Picture}, each of its
    own size and colours.

    A picture in a sub-folder is captioned by that folder's name, one beside it by its own name
    without the suffix; underscores become spaces.

    path           of the folder
    heldout_share  share of the pictures; seed: of who is held out
    min_pixels, max_pixels  height times width of a picture as it is stored; others are left out and
                            counted. 0: any
    """

    path: str = ""
    heldout_share: float = 0.1
    seed: int = 0
    min_pixels: int = 0
    max_pixels: int = 0

    def __post_init__(self):
        super().__post_init__()
        self._limit()
        if not 0 < self.heldout_share < 1:
            raise UserError(
                f"ImageFolder: heldout_share is {self.heldout_share}; it must be between 0 and 1"
            )

    @property
    def fields(self) -> dict[str, str]:
        return {"caption": "text", "image": "image"}

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

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
        """Raise UserError when the pictures are not there or, by their headers, too many cannot be
        used.
        """
        self._screen()

    def _limit(self) -> Limit:
        return Limit("pixels", self.min_pixels, self.max_pixels)

    def _screen(self) -> Screen[Path]:
        look = lambda file: {"pixels": math.prod(picture_size(file))}
        screen = Screen(self.files(), look, self, "pictures", (self._limit(),))
        if len(screen.items) < 2:
            raise UserError(
                f"{self.path}: {counted(len(screen.items), 'picture')} left; at least two are"
                " needed, one to train on and one to hold out"
            )
        return screen

    def caption(self, file: Path) -> str:
        """What a picture is of: its folder's name where it lies in one, else its own without the
        suffix, with spaces for underscores.
        """
        inside = file.relative_to(Path(self.path).expanduser())
        return (inside.stem if len(inside.parts) == 1 else inside.parts[-2]).replace("_", " ")

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, str | Picture]]:
        """The pictures of "train" or "heldout".

        Raises UserError where more than `on_error` passes over cannot be read.
        """
        check_split(self, split)
        screen = self._screen()
        rows = np.sort(split_order(len(screen.items), self.heldout_share, self.seed)[split])
        read = lambda file: Example(
            {"caption": self.caption(file), "image": open_image(file)}, file
        )
        yield from screen.read([screen.items[row] for row in rows], read)
