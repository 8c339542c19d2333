"""Captions of COCO's kind: one object of JSON with images and their annotations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io.json_stream import stream_json
from mmtok.io.messages import listed
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
from mmtok.sources.pictures import PictureNames, Place, ReadSettings


def coco_files(place: Place) -> list[Path]:
    """Files of COCO's captions: JSON of images and annotations; of several, those called captions.

    They lie in the folder itself or in annotations/.
    """
    found = []
    for path in place.with_suffix(".json"):
        parents = path.relative_to(place.folder).parts[:-1]
        is_named = path.name.lower().startswith("captions_")  # then reading it says what is wrong
        if parents in ((), ("annotations",)) and (is_named or _is_coco(path)):
            found.append(path)
    named = [path for path in found if "caption" in path.name.lower()]
    return named or found


def _is_coco(path: Path) -> bool:
    """Whether a file begins as one object that has images or annotations, but no sentences."""
    head = head_of(path)
    if b'"sentences"' in head:
        return False  # Karpathy's
    return is_one_object(path) and (b'"images"' in head or b'"annotations"' in head)


def read_coco(place: Place, settings: ReadSettings) -> PictureFiles:
    """The pictures of COCO's captions, with all captions of each.

    Raises UserError where a file holds no captions, or none of its pictures is there.
    """
    files = coco_files(place)
    if not files:
        raise UserError(
            f"{place.shown}: no JSON of COCO's captions in it, such as"
            " annotations/captions_train2017.json"
        )
    names = PictureNames(place.home, place.pictures)
    captions: dict[str, list[str] | str] = {}
    parts: dict[str, tuple[str, ...]] = {}
    missing: dict[str, str] = {}
    with Tally("captions") as tally:
        for path in files:
            _add_coco(path, place, settings, names, captions, parts, missing, tally)
        n_captions = tally.total
    if not n_captions:
        raise UserError(f"{files[0]}: holds no annotations, and so no captions")
    if not captions:
        raise UserError(
            f"{files[0]}: none of its pictures is in {place.home}; say where they lie: --root"
            " FOLDER"
        )
    return with_captions(place, captions, parts, missing)


def _add_coco(
    path: Path,
    place: Place,
    settings: ReadSettings,
    names: PictureNames,
    captions: dict[str, list[str] | str],
    parts: dict[str, tuple[str, ...]],
    missing: dict[str, str],
    tally: Tally,
) -> None:
    """The captions of one file, by the pictures that they belong to."""
    cells = _CocoCells(path, settings)
    # captions_train2017.json is of the pictures in train2017
    base = path.stem.removeprefix("captions_")
    part = path.relative_to(place.folder).as_posix()
    found: dict[str, str | None] = {}
    for key, caption in cells.captions():
        tally.count()
        where = f"{path}: caption of image {key}"
        file_name = cells.files.get(key)
        if file_name is None:
            tally.add("left out: their image is not among the file's", where)
            continue
        if file_name not in found:
            found[file_name] = names.find(file_name, base, where)
        file = found[file_name]
        if file is None:
            tally.add("left out: their picture is not there", f"{where}, {file_name}")
            missing.setdefault(part, f"{where}, {file_name}")
        elif not caption.strip():
            tally.add("left out: they are empty", where)
        else:
            add_caption(captions, file, caption_of(caption, settings.names, where))
            add_part(parts, file, part)


class _CocoCells:
    """What is used of a file of COCO's: the names of its images, and captions by image."""

    def __init__(self, path: Path, settings: ReadSettings) -> None:
        self.path = path
        self.caption_key = settings.columns.get("caption", "caption")
        self.file_key = settings.columns.get("image", "file_name")
        self.files: dict[int | str, str] = {}
        self._ids: list[int | str] = []
        self._texts: list[str] = []
        for key, value in stream_json(path):
            if key == "images":
                self.files[self._cell(value, "id")] = str(self._cell(value, self.file_key))
            elif key == "annotations":
                self._ids.append(self._cell(value, "image_id"))
                self._texts.append(str(self._cell(value, self.caption_key)))

    def captions(self) -> Iterator[tuple[int | str, str]]:
        """(id of its image, caption), in the order of the file."""
        return zip(self._ids, self._texts, strict=True)

    def _cell(self, value: Any, key: str) -> Any:
        if not isinstance(value, dict):
            raise UserError(f"{self.path}: {value!r:.60} is no object; is it COCO's JSON?")
        if isinstance(value.get(key), (dict, list)):
            raise UserError(f"{self.path}: {key} is {value[key]!r:.60}; one value was expected")
        if key not in value:
            hint = ""
            if "category_id" in value:
                hint = "; it says what is seen, and captions are in captions_*.json"
            raise UserError(f"{self.path}: an entry has no {key}, only {listed(list(value))}{hint}")
        return value[key]
