"""Pictures with captions in the layouts that people have, and scikit-learn's scanned digits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, missing_extra
from mmtok.io.columns import check_named
from mmtok.io.messages import counted, listed
from mmtok.sources.base import Listing, Source, check_heldout_share, split_order
from mmtok.sources.image_captions import no_table
from mmtok.sources.image_files import DIGIT_NAMES, PICTURES, SUFFIXES, open_image, write_image
from mmtok.sources.image_layouts import (
    CLOSED,
    IMAGE_LAYOUTS,
    WITH_ROOT,
    WITHOUT_COLUMNS,
    Splits,
    check_classes,
)
from mmtok.sources.image_unread import check_tables_used
from mmtok.sources.layouts import check_layout, chosen_layout, found_text
from mmtok.sources.leaks import check_leaks
from mmtok.sources.pictures import FIELDS, Pictures, ReadSettings, place_at
from mmtok.sources.screen import Limit, Screen, ScreenedSource

__all__ = [
    "DIGIT_NAMES",
    "SUFFIXES",
    "ImageFolder",
    "ScannedDigits",
    "load_scans",
    "noisy",
    "open_image",
    "shifted",
    "write_image",
]

SCANS_SPLIT_SEED = 0  # the same in every run, so that figures of different seeds compare


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
        return len(self._load(split)[1]) * self._copies(split)

    def examples(self, split: str, cache: Path | None = None) -> Iterator[dict[str, Any]]:
        """The examples of a split: all scans once, then all scans again, `copies` times over."""
        self.check_split(split)
        scans, labels = self._load(split)
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

    def _load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Clean images (N, Y, X) uint8 and labels (N,)."""
        return load_scans(split)

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
    """Pictures with captions: examples {"caption": text, "image": Picture}.

    Pictures keep their size and colours. Read are, by what is there or as `layout` says:

    * folder: one in a sub-folder is captioned by that folder's name, one in the folder itself by
      its own name without the suffix; underscores become spaces
    * imagefolder: metadata.csv, .jsonl or .parquet with file_name and a caption, as on the Hugging
      Face hub, also in the folder of each split
    * table: any csv, tsv, JSON lines or Parquet that names files and captions, several of one file
    * coco: annotations/captions_*.json beside the folders of pictures
    * karpathy: dataset_coco.json, dataset_flickr8k.json and the like, with their splits
    * flickr: Flickr8k.token.txt, with the splits of Flickr_8k.trainImages.txt where that is there
    * webdataset: tars of pictures with txt, cls or json
    * parquet: Parquet files that hold the pictures, as on the hub
    * idx: MNIST's four files

    Attributes:
        path: of the folder, or of files: one, a pattern (*.tar), a range ({0000..0099}.tar).
        heldout_share: share of the pictures that is held out.
        seed: of the choice which are held out.
        min_pixels: height times width of a picture as it is in the file, at least; others are left
            out and counted.
        max_pixels: at most. 0: any.
        layout: one of those above; "" finds it out.
        columns: image, caption or split -> column of a table, suffix of a tar's members, or key of
            its JSON.
        names: of the classes 0, 1, ..., where captions are numbers.
        root: the folder of the pictures that a table names; "": the table's.
        train: the corpus's own split to train on: a word in the names of its folders, tables or
            tars, or in its column split. "": all that is not held out.
        heldout: likewise to hold out. "": a share.
    """

    path: str = ""
    heldout_share: float = 0.1
    seed: int = 0
    min_pixels: int = 0
    max_pixels: int = 0
    layout: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    root: str = ""
    train: str = ""
    heldout: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._limit()
        check_heldout_share(self, self.heldout_share)
        check_layout(IMAGE_LAYOUTS, self.layout, "ImageFolder")
        check_named(self.columns, FIELDS, "ImageFolder")

    @property
    def fields(self) -> dict[str, str]:
        """A picture and its name."""
        return {"caption": "text", "image": "image"}

    def files(self) -> list[Path]:
        """All picture files below the folder, sorted. Raises UserError where nothing is there."""
        place = place_at(self.path, self.root)
        _warn(place.note(()))
        return [place.home / path for path in place.pictures]

    def check(self) -> None:
        """Raise UserError where the pictures are missing, or too many have unusable headers.

        Likewise where too many of the held-out ones are among the others too.
        """
        pictures, screen = self._screen()
        chosen = self._splits(pictures).of(screen.items, screen.lost)
        contents = {split: [pictures.content(i) for i in part] for split, part in chosen.items()}
        heldout = chosen["heldout"]

        def name(i: int) -> str:
            return pictures.name(heldout[i])

        check_leaks(contents["train"], contents["heldout"], name, self, "pictures")

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """The pictures of a split, in the corpus's order; nothing is cached."""
        self.check_split(split)
        pictures, screen = self._screen()
        chosen = self._splits(pictures).of(screen.items, screen.lost)[split]
        return screen.listing_of(pictures.chunks(chosen), len(chosen))

    def _limit(self) -> Limit:
        return Limit("pixels", self.min_pixels, self.max_pixels)

    def _splits(self, pictures: Pictures) -> Splits:
        names = (self.train, self.heldout)
        return Splits(
            pictures, self.path, names, self.heldout_share, self.seed, self.max_leak_share
        )

    def _screen(self) -> tuple[Pictures, Screen[int]]:
        _, pictures = self._pictures()
        limits = (self._limit(),)

        def look(i: int) -> dict[str, float]:
            if pictures.looks or self.min_pixels or self.max_pixels:
                return {"pixels": pictures.pixels(i)}
            return {}

        screen = Screen(range(len(pictures)), look, self, "pictures", limits, pictures.name)
        return pictures, screen

    def found(self) -> str:
        """The layout, and the pictures of each split before their headers are looked at."""
        layout, pictures = self._pictures()
        parts = self._splits(pictures).of(range(len(pictures)))
        return found_text(layout, {name: len(part) for name, part in parts.items()}, "pictures")

    def _pictures(self) -> tuple[str, Pictures]:
        """The layout, and its pictures. Raises UserError where none is there."""
        place = place_at(self.path, self.root)
        settings = ReadSettings(self.columns, self.names, bool(self.train or self.heldout))
        layout = chosen_layout(IMAGE_LAYOUTS, (place, settings), self.layout, place.shown)
        if layout is None and place.found is None:
            raise no_table(place, settings)
        if not self.layout and (layout is None or layout.plain):
            check_tables_used(place, settings)
        if layout is None or layout.plain:
            _warn(place.note(()))
        n_loose = len(place.pictures)
        if layout is None or (layout.plain and n_loose < 2):
            raise UserError(
                f"{place.shown}: {counted(n_loose, 'image')} in it; at least two are needed, one"
                f" to train on and one to hold out ({listed(PICTURES)})"
            )
        if layout.name in CLOSED and not self.layout and place.found is not None and n_loose >= 2:
            raise UserError(
                f"{place.shown}: could be read as {layout.name}, or as the {n_loose:,} pictures"
                f" that lie in it (first {place.pictures[0]}); say which: --layout {layout.name} or"
                " --layout folder"
            )
        self._check_used(layout.name, place.shown)
        pictures = layout.reader(place, settings, self)
        if not len(pictures):
            raise UserError(f"{place.shown}: no picture with a caption in it")
        if not self.layout:
            check_classes(layout.name, place, pictures)
        return layout.name, pictures

    def _check_used(self, layout: str, shown: str) -> None:
        """Raise UserError for a setting that the layout does not use."""
        if self.columns and layout in WITHOUT_COLUMNS:
            raise UserError(
                f"{shown}: is read as {layout}, which has no columns; leave columns out, or choose"
                " another --layout"
            )
        if self.root and layout not in WITH_ROOT:
            raise UserError(
                f"{shown}: is read as {layout}, whose pictures lie there; leave root out, or choose"
                " another --layout"
            )


def _warn(note: str) -> None:
    if note:
        warnings.warn(note, stacklevel=3)
