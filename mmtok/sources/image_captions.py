"""Picture files with captions: by the names of their folders, or as tables say."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmtok.errors import UserError
from mmtok.io.columns import chosen_column
from mmtok.io.messages import listed
from mmtok.io.table_rows import TableFile, open_table
from mmtok.io.tables import SUFFIXES as TABLES
from mmtok.io.tables import as_text
from mmtok.io.tally import Tally
from mmtok.sources.base import Chunk, Example, Picture
from mmtok.sources.captions import CAPTION_COLUMNS, caption_of, texts_of
from mmtok.sources.image_files import PICTURES, open_image, size_of
from mmtok.sources.image_parquet import picture_columns
from mmtok.sources.leaks import Content
from mmtok.sources.pictures import (
    CAPTIONS_TEXT,
    IMAGE_COLUMNS,
    SPLIT_COLUMNS,
    PictureNames,
    Pictures,
    Place,
    ReadSettings,
    item_chunks,
)
from mmtok.sources.screen import Broken, Tolerance
from mmtok.sources.unread_tables import check_unread, fault_in, seems_list

HEAD_BYTES = 2**16  # of a text, to tell what it holds
Item = tuple[str, str, bool]  # path, caption, whether the picture has several


class PictureFiles(Pictures):
    """Picture files below a folder, each with one or several captions.

    Attributes:
        home: the folder.
        files: their paths below it.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.files: list[str] = []
        self._start = os.path.join(home, "")
        if str(home) == ".":
            self._start = ""
        self._captions: list[list[str] | str] = []
        self._parts: list[tuple[str, ...]] = []

    def add(self, file: str, captions: list[str] | str, parts: tuple[str, ...]) -> None:
        """Add a file."""
        self.files.append(file)
        self._captions.append(captions)
        self._parts.append(parts)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        """Its path."""
        return self._start + self.files[i]

    def pixels(self, i: int) -> int:
        """From its header, which is looked at once."""
        return pixels_of(self.name(i))

    def parts(self, i: int) -> tuple[str, ...]:
        """As they were added."""
        return self._parts[i]

    def content(self, i: int) -> Content:
        """Its file."""
        return self.name(i)

    def chunks(self, chosen: Sequence[int]) -> Iterator[Chunk]:
        """An example for each caption."""
        return item_chunks(self._items(chosen), read_item, name_of, name_of)

    def _items(self, chosen: Sequence[int]) -> Iterator[Item]:
        for i in chosen:
            captions = self._captions[i]
            if isinstance(captions, str):
                captions = [captions]
            for caption in captions:
                yield self.name(i), caption, len(captions) > 1


def name_of(item: Item) -> str:
    """The path of an item's file."""
    return item[0]


def read_item(item: Item) -> Example:
    """The example of an item."""
    path, caption, has_several = item
    picture = _last_image(path) if has_several else open_image(Path(path))
    return Example({"caption": caption, "image": picture}, path)


@lru_cache(maxsize=1)
def _last_image(path: str) -> Picture:
    """A picture whose captions follow each other, so that it is decoded once."""
    return open_image(Path(path))


_looked: dict[int, int] = {}  # hash of path, size and time of change -> pixels


def pixels_of(path: str) -> int:
    """Height times width of a picture file, from its header; less memory than `picture_size`.

    Raises UserError for a missing or broken file.
    """
    try:
        status = os.stat(path)
    except OSError:
        raise UserError(f"{path}: no such file") from None
    if not status.st_size:
        raise UserError(f"{path}: the file is empty")
    key = hash((path, status.st_size, status.st_mtime_ns))
    if key not in _looked:
        height, width = size_of(Path(path), path)
        _looked[key] = height * width
    return _looked[key]


# ---- folders


def read_folder(place: Place, settings: ReadSettings) -> PictureFiles:
    """Pictures with the names of their sub-folders, or their own names where they lie in none.

    The folder of a split that the user names is none of these.
    """
    pictures = PictureFiles(place.home)
    parts: dict[str, tuple[str, ...]] = {}  # each once, as there may be millions of pictures
    for file in place.pictures:
        folders = file.split("/")[:-1]
        part = parts.setdefault(folders[0] if folders else "", tuple(folders[:1]))
        if settings.has_splits:
            folders = folders[1:]
        caption = caption_of(folder_caption(folders, file), settings.names, file)
        pictures.add(file, caption, part)
    return pictures


def folder_caption(folders: Sequence[str], file: str) -> str:
    """The last folder, or the file's name without suffix, with spaces for underscores."""
    name = posixpath.splitext(posixpath.basename(file))[0]
    if folders:
        name = folders[-1]
    return name.replace("_", " ")


# ---- tables


def tables_of(
    place: Place, settings: ReadSettings, is_metadata: bool, is_wanted: bool = False
) -> list[TableFile]:
    """The tables of a place that name files and captions.

    Args:
        place: where to look.
        settings: which columns they have.
        is_metadata: those of Hugging Face's image folders, metadata.csv and the like in any folder;
            else all others that lie in the folder itself.
        is_wanted: whether their layout is chosen already, so that each must have the columns that
            the user names; else one without them may belong to another layout.

    Raises:
        UserError: a table that is meant cannot be read, or lacks a column that the user names.
    """
    tables = []
    for path in place.companions:
        is_named_so = path.name.lower().split(".")[0] == "metadata"
        if is_named_so != is_metadata or not (is_metadata or path.parent == place.folder):
            continue
        table = opened_table(place, path)
        if table is None:
            continue
        try:
            if has_columns(place, table, settings):
                tables.append(table)
        except UserError:
            if is_wanted or place.found is None:
                raise
    return tables


def has_columns(place: Place, table: TableFile, settings: ReadSettings) -> bool:
    """Whether a table names files and captions. Raises UserError as `tables_of` does."""
    return None not in _columns(place, table, settings)[:2]


def opened_table(place: Place, path: Path, is_needed: bool = False) -> TableFile | None:
    """A table; None for what is none, such as another kind of JSON.

    Raises UserError where one that the user means, or that is needed, cannot be read.
    """
    name = path.name.lower()
    if not name.endswith((*TABLES, CAPTIONS_TEXT)) or is_one_object(path):
        return None
    try:
        if name.endswith(".parquet") and picture_columns(path):
            return None  # the pictures are in it
        if name == CAPTIONS_TEXT:
            return open_table(path, separator=",")
        return open_table(path)
    except UserError:
        if is_needed or is_meant(place, path):
            raise
        return None


def is_meant(place: Place, path: Path) -> bool:
    """Whether a table is the user's own choice, or has a name that only tables of pictures have."""
    return place.found is None or path.name.lower().startswith(("metadata.", "captions."))


def is_one_object(path: Path) -> bool:
    """Whether a file of JSON holds one object, such as COCO's, and so no rows."""
    if path.suffix.lower() != ".json":
        return False
    first, _, rest = head_of(path).partition(b"\n")
    return first.startswith(b"{") and not rest.lstrip().startswith(b"{")


def head_of(path: Path) -> bytes:
    """How a text begins, without a byte order mark and white space."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()


def _columns(
    place: Place, table: TableFile, settings: ReadSettings
) -> tuple[str | None, str | None, str | None]:
    """The columns of files, captions and splits, where there are such.

    Of a table that the user named, or of metadata, a single column beside those is the caption.

    Raises UserError where the user names one that is not there.
    """
    spellings = {"image": IMAGE_COLUMNS, "caption": CAPTION_COLUMNS, "split": SPLIT_COLUMNS}
    image, caption, split = (
        chosen_column(name, table.columns, settings.columns, known, table.path, table.has_records)
        for name, known in spellings.items()
    )
    others = [name for name in table.columns if name not in (image, split)]
    if caption is None and len(others) == 1 and is_meant(place, table.path):
        caption = others[0]
    return image, caption, split


def read_tables(
    place: Place,
    settings: ReadSettings,
    tolerance: Tolerance,
    is_metadata: bool = False,
) -> PictureFiles:
    """The pictures that tables name, with all the captions that rows give them.

    tolerance: which share of the tables may be damaged, and of the rows name no picture.

    Raises UserError where there is no table with such columns, or too few of its files are there.
    """
    tables = tables_of(place, settings, is_metadata, is_wanted=True)
    if not tables:
        raise no_table(place, settings)
    if not is_metadata and place.found is not None:
        _check_others(place, [table.path for table in tables], tolerance)
    rows = _Rows(place, settings, tolerance)
    with Tally("captions") as tally:
        for table in tables:
            rows.add(table, len(tables) > 1, tally)
        rows.check(tables[0].path, tally)
    return rows.pictures()


def _check_others(place: Place, used: Sequence[Path], tolerance: Tolerance) -> None:
    """Count the tables beside those that are read which cannot be. Raises UserError for many."""
    others = [
        path
        for path in place.companions
        if path.parent == place.folder and path not in used and path.name.lower().endswith(TABLES)
    ]
    faults = {
        path: fault for path in others if not is_one_object(path) and (fault := fault_in(path))
    }
    with Tally("tables") as tally:
        tally.count(len(used) + len(faults))
        lists = [path for path in faults if seems_list(path, used, IMAGE_COLUMNS, PICTURES)]
        check_unread(used, faults, lists, "", "", tolerance, tally)


def no_table(place: Place, settings: ReadSettings) -> UserError:
    """The error to raise where no table of a place can be used."""
    for path in place.companions:
        table = opened_table(place, path)
        if table is None:
            continue
        _columns(place, table, settings)  # raises for one that the user names and is not there
        named = [cell for cell in table.columns if cell.lower().endswith(PICTURES)]
        if named:
            return UserError(
                f"{path}: line 1 names the file {named[0]}, so it is no header; put the line"
                " file,caption above it"
            )
        return UserError(
            f"{path}: needs a column of picture files and one of captions, has"
            f" {listed(table.columns)}; name them: --columns image=COLUMN,caption=COLUMN"
        )
    return UserError(f"{place.shown}: no table of pictures and captions in it")


class _Rows:
    """The captions of files, gathered from rows."""

    def __init__(self, place: Place, settings: ReadSettings, tolerance: Tolerance) -> None:
        self.place = place
        self.settings = settings
        self.names = PictureNames(place.home, place.pictures)
        self.captions: dict[str, list[str] | str] = {}
        self.parts: dict[str, tuple[str, ...]] = {}
        self.missing = Broken(0, "rows", tolerance)
        self.of_missing = Tally("captions")  # which speaks only where they are few
        self.n_rows = 0
        self.first_missing = ""

    def add(self, table: TableFile, by_table: bool, tally: Tally) -> None:
        """The rows of a table. by_table: whether tables, not folders, are the corpus's parts."""
        image, caption, split = _columns(self.place, table, self.settings)
        wanted = [name for name in (image, caption, split) if name is not None]
        base = ""
        if table.path.parent.is_relative_to(self.place.home):
            base = table.path.parent.relative_to(self.place.home).as_posix()
        for number, cells in table.rows(wanted, self.names.is_known):
            where = table.where(number)
            file = self._file(cells[0], base, where, tally)
            if file is None:
                continue
            part = file.split("/")[0] if "/" in file else ""
            if split is not None:
                part = as_text(cells[2], where) or ""
            elif by_table:
                part = table.path.relative_to(self.place.folder).as_posix()
            for text in texts_of(cells[1], where):
                if text is None or not text.strip():
                    tally.add("left out: they are empty", where)
                else:
                    self._add(file, caption_of(text, self.settings.names, where), part)

    def _file(self, cell: Any, base: str, where: str, tally: Tally) -> str | None:
        self.n_rows += 1
        tally.count()
        text = as_text(cell, where) or ""
        file = self.names.find(text, base, where) if text.strip() else None
        if file is None:
            called = text or "an empty cell"
            self.first_missing = self.first_missing or called
            error = UserError(f"{where}: no picture {called} in {self.place.home}")
            self.missing.add(f"{where}, {called}", error, self.of_missing)
        return file

    def _add(self, file: str, caption: str, part: str) -> None:
        add_caption(self.captions, file, caption)
        add_part(self.parts, file, part)

    def check(self, path: Path, tally: Tally) -> None:
        """Count the pictures that are not there. Raises UserError where none is, or too few are."""
        if not self.n_rows:
            raise UserError(f"{path}: the table has no rows")
        if not self.captions and not self.first_missing:
            raise UserError(f"{path}: none of {self.n_rows:,} rows has a caption")
        if not self.captions:
            raise UserError(
                f"{path}: none of {self.n_rows:,} rows has a caption and names a picture in"
                f" {self.place.home}, such as {self.first_missing!r}; say where the pictures lie:"
                " --root FOLDER"
            )
        self.missing.n = self.n_rows
        self.missing.stop_if_many()
        tally.merge(self.of_missing.as_plain())

    def pictures(self) -> PictureFiles:
        """The pictures that have captions; others are counted."""
        return with_captions(self.place, self.captions, self.parts)


def add_caption(captions: dict[str, list[str] | str], file: str, caption: str) -> None:
    """Add one more caption of a file; single ones are no lists, as there are millions."""
    there = captions.get(file)
    if there is None:
        captions[file] = caption
    elif isinstance(there, str):
        captions[file] = [there, caption]
    else:
        there.append(caption)


def add_part(parts: dict[str, tuple[str, ...]], file: str, part: str) -> None:
    """Add one more part of the corpus that a file is in."""
    there = parts.get(file)
    if there is None:
        parts[file] = _alone(part)
    elif part not in there:
        parts[file] = (*there, part)


@lru_cache(maxsize=1_000)
def _alone(part: str) -> tuple[str, ...]:
    return (part,)


def with_captions(
    place: Place,
    captions: Mapping[str, list[str] | str],
    parts: Mapping[str, tuple[str, ...]],
    missing: Mapping[str, str] = MappingProxyType({}),
) -> PictureFiles:
    """The pictures of a place that have captions; others are counted, and left out.

    missing: part of the corpus -> its first caption without a picture.
    """
    pictures = PictureFiles(place.home)
    pictures.missing = missing
    for file, texts in captions.items():
        pictures.add(file, texts, parts[file])
    with Tally("pictures") as tally:
        tally.count(len(place.pictures))
        rest = len(place.pictures) - len(captions)
        if rest > 0:
            first = next(file for file in place.pictures if file not in captions)
            tally.add("left out: no caption is theirs", os.path.join(place.home, first), rest)
    return pictures
