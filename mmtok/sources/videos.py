"""Videos: digits that move over a canvas, made here, and folders of animations or of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.sources.base import (
    CHUNK,
    Example,
    Items,
    Listing,
    Source,
    batched_lists,
    check_heldout_share,
    split_order,
)
from mmtok.sources.images import DIGIT_NAMES, load_scans
from mmtok.sources.video_files import SUFFIXES, read_video, stills_in

SCAN = 8  # pixels of a scan's side


@dataclass(frozen=True)
class MovingDigits(Source):
    """scikit-learn's scanned digits, each moving straight over a black canvas.

    They bounce off its edges, as those of Srivastava et al. 2015 (arXiv 1502.04681) do.
    Examples are {"caption": "seven", "video": (F, Y, X) uint8}. Where a digit begins, and whether
    it moves up or down and left or right, is drawn anew for every copy.

    Attributes:
        n_pictures: F.
        side: of the canvas, in pixels.
        step: pixels that a digit moves between two pictures, along each axis that it moves along.
        copies: videos of a training scan; of a held-out one there is one.
        seed: of places and directions.
    """

    n_pictures: int = 8
    side: int = 20
    step: int = 4
    copies: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        fits = self.side > SCAN and 1 <= self.step <= self.side - SCAN
        if min(self.n_pictures, self.copies) < 1 or not fits:
            raise UserError(
                f"MovingDigits: n_pictures is {self.n_pictures}, copies {self.copies}, side"
                f" {self.side}, step {self.step}; the first two must be at least 1, the side above"
                f" {SCAN}, and the step from 1 to the side less {SCAN}"
            )

    @property
    def fields(self) -> dict[str, str]:
        """A digit's name is a text."""
        return {"caption": "text", "video": "video"}

    def clean(self) -> MovingDigits:
        """The same scans, each in one video."""
        return replace(self, copies=1)

    def count(self, split: str, cache: Path | None = None) -> int:
        """As many as `examples` gives."""
        self.check_split(split)
        return len(load_scans(split)[1]) * self._copies(split)

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """All scans once, then all again."""
        self.check_split(split)
        scans, labels = load_scans(split)
        rng = np.random.default_rng((self.seed, self.splits.index(split)))
        for _ in range(self._copies(split)):
            for scan, label in zip(scans, labels, strict=True):
                yield {"caption": DIGIT_NAMES[label], "video": self.moving(scan, rng)}

    def _copies(self, split: str) -> int:
        return self.copies if split == "train" else 1

    def moving(self, scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A video (F, side, side) of a scan (8, 8)."""
        n_places = (self.side - SCAN) // self.step + 1
        place = rng.integers(0, n_places, 2)
        direction = np.array([0, 0])
        while not direction.any():
            direction = rng.integers(-1, 2, 2)
        places = [
            bounced(p, d, n_places, self.n_pictures) for p, d in zip(place, direction, strict=True)
        ]
        video = np.zeros((self.n_pictures, self.side, self.side), np.uint8)
        for picture, (top, left) in zip(video, self.step * np.stack(places, 1), strict=True):
            picture[top : top + SCAN, left : left + SCAN] = scan
        return video


def bounced(place: int, direction: int, n_places: int, n_times: int) -> np.ndarray:
    """Places (n_times,) among 0..n_places - 1 of what moves one place a time, and bounces."""
    if n_places == 1:
        return np.zeros(n_times, int)
    period = 2 * (n_places - 1)
    unfolded = (place + direction * np.arange(n_times)) % period
    return np.minimum(unfolded, period - unfolded)


@dataclass(frozen=True)
class VideoFolder(Source):
    """Animations (GIF, APNG, WebP) and folders of pictures below a folder.

    A folder with pictures and no folder inside is one video, its pictures in the order of the
    numbers in their names. Examples are {"caption": text, "video": its pictures}. The caption is
    the name of the folder that a video lies in, with spaces for underscores, or of a video that
    lies in `path` itself its own name.

    Attributes:
        path: of the folder.
        heldout_share: of the videos.
        seed: of which are held out.
    """

    path: str = ""
    heldout_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_heldout_share(self, self.heldout_share)

    @property
    def fields(self) -> dict[str, str]:
        """A caption is a text."""
        return {"caption": "text", "video": "video"}

    def check(self) -> None:
        """Raise UserError where there are fewer than two videos."""
        self._found()

    def found(self) -> str:
        """How many videos there are."""
        return counted(len(self._found()), "video")

    def count(self, split: str, cache: Path) -> int:
        """The number of videos of a split."""
        self.check_split(split)
        return len(self._chosen(split))

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The videos of a split."""
        return self.listing(split, cache).examples()

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The videos of a split, not read yet."""
        self.check_split(split)
        chosen = self._chosen(split)
        reader = partial(_example, Path(self.path))
        return Listing(
            (Items(some, reader) for some in batched_lists(chosen, CHUNK)), n=len(chosen)
        )

    def _chosen(self, split: str) -> list[Path]:
        videos = self._found()
        order = split_order(len(videos), self.heldout_share, self.seed)[split]
        return [videos[i] for i in sorted(order)]

    def _found(self) -> list[Path]:
        folder = Path(self.path)
        if not self.path or not folder.is_dir():
            raise UserError(f"{self.path or 'VideoFolder'}: no such folder; give --path FOLDER")
        videos = list(videos_below(folder))
        if len(videos) < 2:
            raise UserError(
                f"{folder}: holds {counted(len(videos), 'video')}; give at least 2: animations"
                f" ({', '.join(SUFFIXES)}) or folders of pictures"
            )
        return videos


def videos_below(folder: Path) -> Iterator[Path]:
    """The animations, and the folders of pictures, below a folder, sorted by their paths."""
    for place in sorted(path for path in folder.iterdir() if path.name[0] != "."):
        if place.is_dir():
            inside = list(videos_below(place))
            if not inside and stills_in(place):
                inside = [place]
            yield from inside
        elif place.name.lower().endswith(SUFFIXES):
            yield place


def _example(root: Path, path: Path) -> Example:
    above = path.parent
    name = path.stem if above == root else above.name
    fields = {"caption": name.replace("_", " "), "video": read_video(path)}
    return Example(fields, path)
