"""The layouts of pictures with captions: IMAGE_LAYOUTS, and which pictures are held out."""

from __future__ import annotations

import posixpath
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmtok.errors import UserError
from mmtok.io.messages import counted, listed
from mmtok.io.tally import Tally
from mmtok.sources.base import split_order
from mmtok.sources.image_captions import PictureFiles, read_folder, read_tables, tables_of
from mmtok.sources.image_coco import coco_files, read_coco
from mmtok.sources.image_idx import image_files, read_idx_images
from mmtok.sources.image_parquet import parquet_files, read_parquet
from mmtok.sources.image_sentences import (
    karpathy_files,
    read_karpathy,
    read_tokens,
    token_files,
)
from mmtok.sources.image_tars import read_tars
from mmtok.sources.layouts import HELDOUT_NAMES, Layout, check_lost, is_part, own_heldout
from mmtok.sources.pictures import Pictures, Place, ReadSettings
from mmtok.sources.screen import Tolerance

Found = tuple[Place, ReadSettings]
Reader = Callable[[Place, ReadSettings, Tolerance], Pictures]


def _shown(paths: Sequence[Path], place: Place) -> str:
    """The first of the files that speak for a layout; "" where there are none."""
    if not paths:
        return ""
    first = place.inside(paths[0])
    if len(paths) == 1:
        return first
    return f"{first} and {len(paths) - 1:,} more"


def _of_folder(found: Found) -> str:
    place, _ = found
    if place.found is None and place.companions:
        return ""  # the user named tables or tars, and not the pictures beside them
    return next(iter(place.pictures), "")


def _of_metadata(found: Found) -> str:
    place, settings = found
    return _shown([table.path for table in tables_of(place, settings, True)], place)


def _of_table(found: Found) -> str:
    place, settings = found
    return _shown([table.path for table in tables_of(place, settings, False)], place)


def _of_coco(found: Found) -> str:
    return _shown(coco_files(found[0]), found[0])


def _of_karpathy(found: Found) -> str:
    return _shown(karpathy_files(found[0]), found[0])


def _of_tokens(found: Found) -> str:
    return _shown(token_files(found[0]), found[0])


def _of_tars(found: Found) -> str:
    return _shown(found[0].with_suffix(".tar"), found[0])


def _of_parquet(found: Found) -> str:
    return _shown(parquet_files(found[0]), found[0])


def _of_idx(found: Found) -> str:
    return _shown(image_files(found[0]), found[0])


def _read_folder(place: Place, settings: ReadSettings, tolerance: Tolerance) -> Pictures:
    return read_folder(place, settings)


def _read_metadata(place: Place, settings: ReadSettings, tolerance: Tolerance) -> Pictures:
    return read_tables(place, settings, tolerance, is_metadata=True)


def _read_table(place: Place, settings: ReadSettings, tolerance: Tolerance) -> Pictures:
    return read_tables(place, settings, tolerance)


def _read_coco(place: Place, settings: ReadSettings, tolerance: Tolerance) -> Pictures:
    return read_coco(place, settings)


def _read_karpathy(place: Place, settings: ReadSettings, tolerance: Tolerance) -> Pictures:
    return read_karpathy(place, settings)


def _read_tokens(place: Place, settings: ReadSettings, tolerance: Tolerance) -> Pictures:
    return read_tokens(place, settings)


def _read_parquet(place: Place, settings: ReadSettings, tolerance: Tolerance) -> Pictures:
    return read_parquet(place, settings)


def _read_idx(place: Place, settings: ReadSettings, tolerance: Tolerance) -> Pictures:
    return read_idx_images(place, settings)


IMAGE_LAYOUTS: tuple[Layout[Found, Reader], ...] = (
    Layout("folder", "pictures, in a folder for each class", _of_folder, _read_folder, plain=True),
    Layout("imagefolder", "metadata.csv, .jsonl or .parquet", _of_metadata, _read_metadata),
    Layout("table", "a table of picture files and captions", _of_table, _read_table),
    Layout("coco", "COCO's captions_*.json", _of_coco, _read_coco),
    Layout("karpathy", "dataset_coco.json and the like", _of_karpathy, _read_karpathy),
    Layout("flickr", "Flickr8k.token.txt and the like", _of_tokens, _read_tokens),
    Layout("webdataset", "tars of pictures with txt, json or cls", _of_tars, read_tars),
    Layout("parquet", "Parquet files that hold the pictures", _of_parquet, _read_parquet),
    Layout("idx", "MNIST's four files", _of_idx, _read_idx),
)
WITHOUT_COLUMNS = ("folder", "idx", "karpathy", "flickr")
WITH_ROOT = ("imagefolder", "table", "coco", "karpathy", "flickr")  # layouts that name files
# layouts whose pictures are not files, so that loose ones beside are a second layout
CLOSED = ("webdataset", "parquet", "idx")
NO_CLASSES = ("train", "unlabeled", "unlabelled", *HELDOUT_NAMES)  # folders that name no class


def check_classes(layout: str, place: Place, pictures: Pictures) -> None:
    """Raise UserError where folders of classes lie beside what a table names.

    These are two folders or more without a picture that is named. Those of splits are none, and
    none lies beside several folders that the table does name: there it names a part of a corpus.
    """
    if layout not in WITH_ROOT or not isinstance(pictures, PictureFiles):
        return
    named = {posixpath.dirname(file) for file in pictures.files}
    n_beside = Counter(posixpath.dirname(folder) for folder in named if folder)
    unnamed: dict[str, int] = {}
    for file in place.pictures:
        folder = posixpath.dirname(file)
        if folder and folder not in named:
            unnamed[folder] = unnamed.get(folder, 0) + 1
    classes = [
        folder
        for folder in unnamed
        if n_beside[posixpath.dirname(folder)] < 2
        and not any(is_part(name, part) for name in NO_CLASSES for part in folder.split("/"))
    ]
    if len(classes) < 2:
        return
    n = sum(unnamed[folder] for folder in classes)
    raise UserError(
        f"{place.shown}: could be read as {layout}, or as the {n:,} other pictures in folders of"
        f" classes ({listed(classes, 3)}); say which: --layout {layout} or --layout folder"
    )


# ---- splits


class Splits:
    """Which pictures train, and which are held out.

    The corpus's own splits where the user names them, or where they are always used; else a share
    that the seed chooses. Pictures of one group stay together.

    Raises UserError where a split is empty, and for splits that share more than `most_leaked` of
    the held-out pictures.
    """

    def __init__(
        self,
        pictures: Pictures,
        shown: str,
        names: tuple[str, str],
        share: float,
        seed: int,
        most_leaked: float,
    ) -> None:
        self.pictures = pictures
        self.shown = shown
        self.names = names
        if not any(names) and pictures.published:
            self.names = pictures.published
        self.share = share
        self.seed = seed
        self.most_leaked = most_leaked

    def of(
        self, usable: Sequence[int], lost: Sequence[tuple[int, str]] = ()
    ) -> Mapping[str, list[int]]:
        """Split -> the pictures in it, of those that can be used.

        lost: the others, each with the reason.
        """
        train, heldout = self.names
        if not train and not heldout:
            self._hint(usable)
            return self._by_seed(usable)
        parts = dict.fromkeys(part for i in usable for part in self.pictures.parts(i))
        of_train = self._parts(train, parts, lost)
        of_heldout = self._parts(heldout, parts, lost)
        if not train:
            of_train = set(parts) - of_heldout
        if both := of_train & of_heldout:
            raise UserError(
                f"{self.shown}: {listed(sorted(both))} would be in both splits, by train={train!r}"
                f" and heldout={heldout!r}; give names that do not meet"
            )
        chosen = [i for i in usable if of_train.intersection(self.pictures.parts(i))]
        if not heldout:
            return self._by_seed(chosen)
        held = [i for i in usable if of_heldout.intersection(self.pictures.parts(i))]
        split = {"train": self._without(chosen, held), "heldout": held}
        for name, part in split.items():
            if not part:
                raise UserError(f"{self.shown}: no picture is left in {name}")
        return split

    def _parts(
        self, name: str, parts: Mapping[str, None], lost: Sequence[tuple[int, str]]
    ) -> set[str]:
        """The parts that a name means; none for ""."""
        found = {part for part in parts if name and is_part(name, part)}
        if name and not found:
            of_lost = ((self.pictures.parts(i), why) for i, why in lost)
            reasons = [why for some, why in of_lost if any(is_part(name, part) for part in some)]
            check_lost(name, f"{self.shown}: ", reasons, "pictures")
            for part, first in self.pictures.missing.items():
                if is_part(name, part):
                    raise UserError(
                        f"{self.shown}: no picture of the split {name!r} is there (first: {first})"
                    )
            raise UserError(
                f"{self.shown}: no part is called {name!r}; the parts are"
                f" {listed([part for part in parts if part]) or 'none'}"
            )
        return found

    def _without(self, chosen: list[int], held: list[int]) -> list[int]:
        """The pictures of training that are not held out, nor of the group of one that is."""
        groups = self._groups()
        taken = {groups[i] for i in held}
        shared = [i for i in chosen if groups[i] in taken]
        if len(shared) > self.most_leaked * len(held):
            raise UserError(
                f"{self.pictures.name(shared[0])}: is in the split to train on and in the one to"
                f" hold out, as are {len(shared):,} of {len(held):,}; take them out of one"
            )
        if shared:
            with Tally("pictures") as tally:
                tally.count(len(chosen))
                first = self.pictures.name(shared[0])
                tally.add("left out: they are held out too", first, len(shared))
        return [i for i in chosen if groups[i] not in taken]

    def _groups(self) -> Sequence[int]:
        groups = self.pictures.groups()
        if groups is None:
            return range(len(self.pictures))
        return groups.tolist()

    def _by_seed(self, usable: Sequence[int]) -> Mapping[str, list[int]]:
        groups = self.pictures.groups()
        if len(usable) < 2:
            raise UserError(
                f"{self.shown}: {counted(len(usable), 'picture')} left; at least two are needed,"
                " one to train on and one to hold out"
            )
        indices = np.asarray(usable)
        if groups is None:
            order = split_order(len(usable), self.share, self.seed)
            return {split: indices[np.sort(rows)].tolist() for split, rows in order.items()}
        _, group = np.unique(groups[indices], return_inverse=True)
        n_groups = int(group.max()) + 1
        if n_groups < 2:
            raise UserError(f"{self.shown}: all rows name one picture; at least two are needed")
        order = split_order(n_groups, self.share, self.seed)
        return {split: indices[np.isin(group, chosen)].tolist() for split, chosen in order.items()}

    def _hint(self, usable: Sequence[int]) -> None:
        """Say that the corpus has splits of its own, which are not used."""
        own = own_heldout(part for i in usable for part in self.pictures.parts(i))
        if own is not None:
            name, first = own
            warnings.warn(
                f"{self.shown}: has a split of its own, {first}, and yet a share of all is held"
                f" out; heldout={name} keeps it apart",
                stacklevel=4,
            )
