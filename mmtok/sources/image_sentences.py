"""Pictures of five sentences each: Flickr8k's token files, and Karpathy's dataset_*.json."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.json_stream import stream_json
from mmtok.io.messages import listed, shown
from mmtok.io.table_rows import text_lines
from mmtok.io.tally import Tally
from mmtok.sources.captions import caption_of
from mmtok.sources.image_captions import (
    PictureFiles,
    add_caption,
    add_part,
    head_of,
    is_one_object,
    with_captions,
)
from mmtok.sources.pictures import FLICKR_LISTS, TOKENS, PictureNames, Place, ReadSettings

LIST = re.compile(r"(?:.*[._])?(train|dev|test)images\.txt", re.IGNORECASE)
HELD_OUT = ("val", "dev", "test")  # the first of these that a corpus has


def token_files(place: Place) -> list[Path]:
    """Flickr8k.token.txt, and Flickr30k's results_20130124.token; not the lemmas beside them."""
    files = place.with_suffix(*TOKENS)
    return [path for path in files if "lemma" not in path.name.lower()] or files


def karpathy_files(place: Place) -> list[Path]:
    """Files of JSON that begin as one object whose images have sentences."""
    return [path for path in place.with_suffix(".json") if is_karpathy(path)]


def is_karpathy(path: Path) -> bool:
    """Whether a file is of Karpathy's kind."""
    head = head_of(path)
    return is_one_object(path) and b'"images"' in head and b'"sentences"' in head


def read_tokens(place: Place, settings: ReadSettings) -> PictureFiles:
    """The pictures that token files caption, with all captions of each.

    Where Flickr_8k.trainImages.txt and the like lie there too, the splits are theirs.

    Raises UserError where there is no such file, a line is none of it, or no picture is there.
    """
    files = token_files(place)
    if not files:
        raise UserError(f"{place.shown}: no captions in it such as Flickr8k.token.txt")
    gathered = _Gathered(place, settings)
    splits = _listed_splits(place)
    with Tally("captions") as tally:
        for path in files:
            for number, line in text_lines(path):
                where = f"{path}, line {number}"
                name, tab, caption = line.rstrip("\r\n").partition("\t")
                if not line.strip():
                    continue
                if not tab or "#" not in name:
                    raise UserError(f"{where}: is not NAME#0, a tab and a caption; mend it")
                name = name.rpartition("#")[0].removeprefix("\ufeff")
                gathered.add(name, caption, splits.get(name, ()), where, tally)
    return gathered.pictures(files[0])


def read_karpathy(place: Place, settings: ReadSettings) -> PictureFiles:
    """The pictures of Karpathy's files, with all captions of each and the files' own splits.

    Those of restval are in train too, as is usual.

    Raises UserError where there is no such file, it has other fields, or no picture is there.
    """
    files = karpathy_files(place)
    if not files:
        raise UserError(f"{place.shown}: no JSON of images with sentences, as dataset_coco.json")
    gathered = _Gathered(place, settings)
    with Tally("captions") as tally:
        for path in files:
            for i, (name, splits, captions) in enumerate(_images(path)):
                for caption in captions:
                    gathered.add(name, caption, splits, f"{path}: image {i}", tally)
    return gathered.pictures(files[0])


def _images(path: Path) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """(file, its splits, its captions) of each image."""
    number = 0
    for key, image in stream_json(path):
        if key != "images":
            continue
        where = f"{path}: image {number}"
        number += 1
        try:
            name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
            split = str(image.get("split", ""))
            captions = [str(sentence["raw"]) for sentence in image["sentences"]]
        except (AttributeError, KeyError, TypeError):
            raise UserError(
                f"{where}: {shown(image)} is not of filename, split and sentences of raw; mend it"
            ) from None
        splits: tuple[str, ...] = (split,)
        if split == "restval":
            splits = ("train", "restval")
        yield name, splits, captions


def _listed_splits(place: Place) -> dict[str, tuple[str, ...]]:
    """Name of a file -> its splits, as lists of Flickr8k's kind say; {} without them."""
    splits: dict[str, tuple[str, ...]] = {}
    for path in place.with_suffix(*FLICKR_LISTS):
        match = LIST.fullmatch(path.name)
        if match:
            for _, line in text_lines(path):
                name = line.strip()
                splits[name] = (*splits.get(name, ()), match[1].lower())
    return splits


class _Gathered:
    """Captions and splits, by the pictures that they belong to."""

    def __init__(self, place: Place, settings: ReadSettings) -> None:
        self.place = place
        self.settings = settings
        self.names = PictureNames(place.home, place.pictures)
        self.captions: dict[str, list[str] | str] = {}
        self.parts: dict[str, tuple[str, ...]] = {}
        self.missing: dict[str, str] = {}

    def add(
        self, name: str, caption: str, splits: tuple[str, ...], where: str, tally: Tally
    ) -> None:
        """Add a caption of the picture that a corpus calls by this name."""
        tally.count()
        file = self.names.find(name, "", where)
        if file is None:  # in another folder than the corpus says
            file = self.names.find(name.rpartition("/")[2], "", where)
        if file is None:
            tally.add("left out: their picture is not there", f"{where}, {name}")
            for split in splits:
                self.missing.setdefault(split, f"{where}, {name}")
        elif not caption.strip():
            tally.add("left out: they are empty", where)
        else:
            add_caption(self.captions, file, caption_of(caption, self.settings.names, where))
            for split in splits or ("",):
                add_part(self.parts, file, split)

    def pictures(self, path: Path) -> PictureFiles:
        """The pictures that have captions, by the corpus's own splits where it has such."""
        if not self.captions:
            raise UserError(
                f"{path}: none of its pictures is in {self.place.home}; say where they lie: --root"
                " FOLDER"
            )
        pictures = with_captions(self.place, self.captions, self.parts, self.missing)
        counts = Counter(split for splits in self.parts.values() for split in splits)
        held_out = next((name for name in HELD_OUT if name in counts), None)
        if "train" not in counts or held_out is None or self.settings.has_splits:
            return pictures
        pictures.published = ("train", held_out)
        rest = [
            f"{n:,} of {name or 'no split'}"
            for name, n in counts.items()
            if name not in ("train", "restval", held_out)
        ]
        said = f"{path}: trains on its own split train and holds out {held_out}"
        if rest:
            said += f"; left out: {listed(rest)}"
        warnings.warn(said, stacklevel=5)
        return pictures
