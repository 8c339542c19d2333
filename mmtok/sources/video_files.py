"""Video files: animations (GIF, APNG, WebP) and folders of pictures, read as pictures in time.

A video is a list of pictures, each uint8 (Y, X) grey or (Y, X, 3) RGB, at even steps of time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.files import atomic_write
from mmtok.sources.image_files import PICTURES, PIXEL_BYTES, UNREADABLE, open_image

SUFFIXES = (".gif", ".apng", ".webp")
STILLS = tuple(suffix for suffix in PICTURES if suffix not in SUFFIXES)
WRITTEN = ".gif"
MILLISECONDS = 100  # of a picture that is written, or whose file does not say it
UNEVEN = 0.1  # of a step: what lasts that much more or less is said


@dataclass(frozen=True, eq=False)
class Video:
    """A raw video, before it is prepared for a tokenizer.

    Attributes:
        pictures: (Y, X), (Y, X, 3) and with opacity, uint8; they may differ in size.
        name: as messages call it.
        done: what its reader had to do to it, as a `Tally` reports it.
    """

    pictures: Sequence[np.ndarray]
    name: str = ""
    done: tuple[str, ...] = ()


def read_video(path: Path) -> Video:
    """The video in a file, or the pictures of a folder in the order of their names' numbers.

    A picture of an animation that lasts several steps comes as often: a step is what the shortest
    lasts.

    Raises UserError for what is missing, truncated, no animation or empty.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with Image.open(path) as animation:
            n = getattr(animation, "n_frames", 1)
            n_pixels = n * animation.width * animation.height
            memory_budget.check(PIXEL_BYTES * n_pixels, path, f"a video of {n_pixels:,} pixels")
            pictures = []
            lasting = []
            for frame in ImageSequence.Iterator(animation):
                pictures.append(_values(frame))
                lasting.append(float(frame.info.get("duration", 0)) or MILLISECONDS)
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an animation; give one of {', '.join(SUFFIXES)}") from None
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read as a video, it may be truncated: {reason_of(error)}"
        ) from None
    return _at_even_steps(pictures, np.array(lasting), path)


def _at_even_steps(pictures: Sequence[np.ndarray], lasting: np.ndarray, path: Path) -> Video:
    """Pictures that last several steps, so many times; lasting (n,) in milliseconds."""
    steps = lasting / lasting.min()
    times = steps.round().astype(int)
    n_pixels = int(times.sum()) * pictures[0].size
    memory_budget.check(n_pixels, path, f"a video of {times.sum():,} pictures at even steps")
    done = []
    if (np.abs(steps / times - 1) > UNEVEN).any():
        done.append("read at even steps, as its pictures last unevenly")
    repeated = [p for p, n in zip(pictures, times, strict=True) for _ in range(n)]
    return Video(repeated, str(path), tuple(done))


def _values(frame: Image.Image) -> np.ndarray:
    """RGB values of an animation's picture, laid over white; grey ones where all are grey."""
    whole = frame.convert("RGBA")
    ground = Image.new("RGBA", whole.size, "white")
    values = np.array(Image.alpha_composite(ground, whole).convert("RGB"), dtype=np.uint8)
    if (values == values[:, :, :1]).all():
        return values[:, :, 0].copy()
    return values


def stills_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of the numbers in their names: 2.png before 10.png."""
    found = [path for path in folder.iterdir() if path.name.lower().endswith(STILLS)]
    return sorted((path for path in found if path.name[0] != "."), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _read_folder(folder: Path) -> Video:
    stills = stills_in(folder)
    if not stills:
        raise UserError(f"{folder}: holds no picture ({', '.join(STILLS[:3])} ...) of a video")
    pictures = [open_image(path) for path in stills]
    done = tuple(dict.fromkeys(what for picture in pictures for what in picture.done))
    return Video([picture.pixels for picture in pictures], str(folder), done)


def check_video(path: Path) -> None:
    """Look at a file's header. Raises UserError for one that cannot be read."""
    try:
        with Image.open(path):
            return
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UNREADABLE:
        raise UserError(f"{path}: not an animation; give one of {', '.join(SUFFIXES)}") from None


def write_video(path: Path, video: np.ndarray) -> None:
    """Write uint8 (F, Y, X) or (F, Y, X, 3) as a GIF, atomically; it repeats.

    Grey videos lose nothing; of others each picture has 256 colours.

    Raises UserError where it is no video, or the file cannot be written.
    """
    video = np.asarray(video)
    has_shape = video.ndim == 3 or (video.ndim == 4 and video.shape[3] == 3)
    if video.dtype != np.uint8 or 0 in video.shape or not has_shape:
        raise UserError(
            f"{path}: cannot be written: a video is uint8 (pictures, height, width) or (pictures,"
            f" height, width, 3) with at least one picture, got {video.dtype} {video.shape}"
        )
    first, *others = map(Image.fromarray, video)
    try:
        with atomic_write(Path(path)) as temporary:
            first.save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=others,
                duration=MILLISECONDS,
                loop=0,
                optimize=False,
            )
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
