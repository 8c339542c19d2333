"""The pictures of a corpus, listed but not read: what each layout of images gives."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.patterns import named_places
from mmtok.io.tables import SUFFIXES as TABLES
from mmtok.io.tars import PACKED_TARS, TARS
from mmtok.io.walk import Found, file_at, folder_at, kind_of, walk
from mmtok.sources.base import CHUNK, Chunk, Items, batched_lists
from mmtok.sources.image_files import PICTURES
from mmtok.sources.leaks import Content

WANTED = "pictures with captions"
CAPTIONS_TEXT = "captions.txt"  # Flickr8k's table
TOKENS = (".token.txt", ".token")  # of Flickr8k and Flickr30k
FLICKR_LISTS = ("trainimages.txt", "devimages.txt", "testimages.txt")  # Flickr8k's splits
IDX = tuple(
    f"{kind}{packed}" for kind in ("idx3-ubyte", "idx1-ubyte") for packed in ("", ".gz", ".xz")
)
COMPANIONS = (*TARS, *PACKED_TARS, *TABLES, *IDX, CAPTIONS_TEXT, *TOKENS, *FLICKR_LISTS)
NAMING = (*TABLES, CAPTIONS_TEXT, *TOKENS)  # files that name pictures
IMAGE_COLUMNS = (
    "file_name", "image", "file", "path", "image_path", "file_path", "image_name", "image_file",
    "img", "img_path", "picture", "photo", "jpg", "png",
)  # fmt: skip
SPLIT_COLUMNS = ("split",)
FIELDS = ("image", "caption", "split")


@dataclass(frozen=True)
class ReadSettings:
    """What a user says of how a corpus is to be read.

    Attributes:
        columns: image, caption or split -> column of its tables, or suffix of its members.
        names: of the classes 0, 1, ..., where captions are numbers.
        has_splits: whether the user names the corpus's own splits.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    has_splits: bool = False


class Pictures(ABC):
    """The pictures of a corpus, in its order, with their captions.

    Attributes:
        published: the corpus's own splits, (to train on, to hold out), where these are always used.
        looks: whether the size of a picture is found quickly, so that all are looked at.
        missing: part of the corpus -> the first of its captions whose picture is not there.
    """

    published: tuple[str, str] | None = None
    looks = True
    missing: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def __len__(self) -> int:
        """The number of pictures."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Picture i, as messages call it."""

    @abstractmethod
    def pixels(self, i: int) -> int:
        """Its height times its width, from its header. Raises UserError for a broken one."""

    @abstractmethod
    def parts(self, i: int) -> tuple[str, ...]:
        """The parts of the corpus that it is in: a folder, a file or a cell that says the split."""

    @abstractmethod
    def chunks(self, chosen: Sequence[int]) -> Iterator[Chunk]:
        """The examples of some pictures."""

    def content(self, i: int) -> Content:
        """What picture i holds, as far as that is known without reading all of it."""
        return None

    def groups(self) -> np.ndarray | None:
        """A number for each picture; equal ones belong in one split. None: all differ."""
        return None


def item_chunks(
    items: Iterator[Any],
    reader: Callable[[Any], dict[str, Any]],
    name: Callable[[Any], str],
    file: Callable[[Any], str | Path],
) -> Iterator[Chunk]:
    """Items as chunks, made when they are asked for; see `Items`."""
    return (Items(part, reader, name, file) for part in batched_lists(items, CHUNK))


# ---- where they lie


@dataclass
class Place:
    """What a user named, with the files in it that a layout may use.

    Attributes:
        shown: the name, in messages.
        folder: that all of it is in.
        home: the folder of the pictures, mostly the same.
        pictures: the paths of picture files below that, in order.
        companions: tars, tables and the like below it, in order.
        found: of the walk, where one folder was named.
    """

    shown: str
    folder: Path
    home: Path
    pictures: list[str]
    companions: list[Path]
    found: Found | None = None

    def inside(self, path: Path) -> str:
        """A path below the folder, with slashes."""
        return path.relative_to(self.folder).as_posix()

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Companions whose names end so, in any case."""
        return [path for path in self.companions if path.name.lower().endswith(suffixes)]

    def note(self, used: Sequence[Path]) -> str:
        """What was left out of the folder; "" for nothing. used: the companions that were not."""
        if self.found is None:
            return ""
        left_out = dict(self.found.left_out)
        noted = Found(self.folder, left_out=left_out)
        for path in self.companions:
            if path not in used:
                noted.leave_out(kind_of(path.name), self.inside(path))
        return noted.note()


def place_at(path: str, root: str = "") -> Place:
    """What lies at a path: a folder, a file, or several by a pattern.

    root: the folder of the pictures that tables name; "": that of the tables.

    Raises UserError where nothing is there.
    """
    places = named_places(str(path), "ImageFolder", WANTED)
    if len(places) == 1 and os.path.exists(places[0]) and not os.path.isdir(places[0]):
        file_at(places[0], "ImageFolder", WANTED)  # raises for a pipe
    if len(places) == 1 and not os.path.isfile(places[0]):
        folder = folder_at(places[0], "ImageFolder", WANTED)
        found = walk(folder, PICTURES, COMPANIONS)
        place = Place(str(folder), folder, folder, found.names, found.companions, found)
    else:
        files = _files_in(places)
        folder = Path(os.path.commonpath([file.parent for file in files]))
        pictures = _below(folder, [file for file in files if _ends(file, PICTURES)])
        companions = [file for file in files if _ends(file, COMPANIONS)]
        if not pictures and all(_ends(file, PACKED_TARS) for file in companions):
            if _ends(files[0], PACKED_TARS):
                raise UserError(
                    f"{files[0]}: is packed, and pictures in tars are read by their offset; unpack"
                    " it to a .tar first"
                )
            raise UserError(
                f"{files[0]}: is no folder and no tar, table or picture; ImageFolder wants a"
                f" folder, {WANTED}, or files of these kinds"
            )
        place = Place(str(path), folder, folder, pictures, companions)
        if not root and any(_ends(file, NAMING) for file in companions):
            root = str(folder)
            if folder.name.lower() == "annotations":  # COCO's, beside its folders of pictures
                root = str(folder.parent)
    if root:
        place.home = folder_at(root, "ImageFolder", "the pictures that a table names")
        place.pictures = walk(place.home, PICTURES).names
    return place


def _ends(file: Path, suffixes: Sequence[str]) -> bool:
    return file.name.lower().endswith(tuple(suffixes))


def _files_in(places: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            found = walk(place, PICTURES, COMPANIONS)
            files += sorted([*found.files, *found.companions], key=lambda path: path.parts)
        elif place.is_file():
            files.append(place)
    if not files:
        raise UserError(f"{places[0]}: no pictures there, nor tars or tables of them")
    return files


def _below(folder: Path, files: Sequence[Path]) -> list[str]:
    start = len(os.path.join(folder, ""))
    if str(folder) == ".":
        start = 0
    return [str(file)[start:] for file in files]


# ---- names of files in tables


class PictureNames:
    """The names by which a table may call the picture files of a folder.

    A name may have its folder or not, its suffix or not, slashes or backslashes, any case; absolute
    ones, of another machine too, count by their ends.
    """

    def __init__(self, folder: Path, pictures: Sequence[str]) -> None:
        self.folder = folder
        self.index = {path: path for path in pictures}
        self._short: dict[str, list[str] | str] = {}
        self._stems: dict[str, list[str] | str] = {}

    def find(self, cell: str, base: str, where: str) -> str | None:
        """The path of the file that a cell of a table means; None where there is none.

        Raises UserError where it may be one of several.

        Args:
            cell: what the table says.
            base: the table's own folder below the folder of pictures; "" where it is that.
            where: the row, in messages.
        """
        name = cell.strip().removeprefix("file://").replace("\\", "/")
        for path in (posixpath.normpath(posixpath.join(base, name)), posixpath.normpath(name)):
            if path in self.index:
                return self.index[path]
        if not self._short:
            self._short = _by_name(self.index, posixpath.basename)
        parts = PurePosixPath(posixpath.normpath(name)).parts
        last = _key(parts[-1]) if parts else ""
        named = self._short.get(last)
        if named is None and not last.endswith(PICTURES):
            if not self._stems:
                self._stems = _by_name(self.index, _stem)
            named = self._stems.get(last)
        return self._only(named or [], base, parts, cell, where)

    def _only(
        self,
        named: list[str] | str,
        base: str,
        parts: tuple[str, ...],
        cell: str,
        where: str,
    ) -> str | None:
        """The one of several files of a name that lies in the folders of that name."""
        paths = [named] if isinstance(named, str) else named
        matches = [path for path in paths if _is_in(path, parts[:-1])]
        if len(matches) > 1:
            own = [path for path in matches if base and path.startswith(f"{base}/")]
            exact = [path for path in own or matches if posixpath.basename(path) == parts[-1]]
            matches = exact or own or matches
        if len(matches) > 1:
            raise UserError(
                f"{where}: {cell} may be {matches[0]} or {matches[1]}; name it with its folder and"
                " suffix"
            )
        return next(iter(matches), None)

    def is_known(self, cell: str) -> bool:
        """Whether a cell names one of the files."""
        try:
            return self.find(cell, "", "") is not None
        except UserError:
            return True


def _by_name(paths: Iterable[str], name: Callable[[str], str]) -> dict[str, list[str] | str]:
    """Name -> its path, or a list of several."""
    found: dict[str, list[str] | str] = {}
    for path in paths:
        key = _key(name(path))
        there = found.get(key)
        if there is None:
            found[key] = path
        elif isinstance(there, str):
            found[key] = [there, path]
        else:
            there.append(path)
    return found


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _key(name: str) -> str:
    """A name without its case and in one Unicode form, which file systems do not keep alike."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", name).lower()


def _is_in(path: str, folders: tuple[str, ...]) -> bool:
    """Whether a file is in folders of these names, as far up as both are known."""
    own = path.split("/")[:-1]
    known = min(len(own), len(folders))
    return own[len(own) - known :] == list(folders[len(folders) - known :])
