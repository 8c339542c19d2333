"""The sound files that tables name: by path or its end, in another case or suffix."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.io.walk import Found, walk
from mmtok.sources.media import SOUNDS

BELOW = ("wavs", "wav", "clips", "audio", "audios", "data")  # folders of sounds beside a table
GUESSED = (
    ".wav",
    ".flac",
    ".mp3",
    ".ogg",
    ".opus",
    ".m4a",
    ".WAV",
    ".FLAC",
)  # where a table leaves the suffix out
OTHER_CASE = "of files whose names have another case than the table says"
OTHER_SUFFIX = "of files that have another suffix than the table says"


def composed(name: str) -> str:
    """A name in one Unicode form: a file system may give an accent as a character of its own."""
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", name)


def bare_name(cell: str) -> str:
    """A name as a table may have it, with slashes and without what says nothing."""
    return cell.strip().removeprefix("file://").replace("\\", "/").removeprefix("./")


class SoundFiles:
    """Finds the sound files that the rows of a table name.

    A name is looked up below `bases`, also without its suffix; where that fails, among all sounds
    below the folder, by as many of its folders as agree; then in any case, and last under another
    suffix, as converted files have.

    Args:
        folder: of the table.
        bases: where its names begin; by default the folder, and the usual ones below it.
        found: the sounds of the folder, where a walk has found them; then it is one of these.
    """

    def __init__(
        self, folder: Path, bases: Sequence[Path] = (), found: Found | None = None
    ) -> None:
        self.folder = folder
        self._found = found
        self._ways: list[tuple[str, str]] = []
        if found is None:
            below = [folder, *(folder / name for name in BELOW if (folder / name).is_dir())]
            self._ways = [
                (f"{base}/", suffix) for suffix in ("", *GUESSED) for base in (bases or below)
            ]

    def file(self, cell: str, where: str, tally: Tally | None = None) -> str | None:
        """The file that a cell names; None where there is none.

        tally: counts files whose names differ from what the cell says in case or suffix.

        Raises UserError where it may be one of several.
        """
        name = bare_name(cell)
        if not name:
            return None
        stem, suffix = os.path.splitext(name)
        has_suffix = suffix.lower() in SOUNDS
        path = self._at(name, plain=has_suffix) or self.names.file(cell, where)
        if path is not None:
            return str(path)
        difference = OTHER_CASE
        path = self.names.in_any_case(name, where)
        if path is None and has_suffix:
            difference = OTHER_SUFFIX
            path = self._at(stem, plain=False)
            path = path or self.names.file(stem, where) or self.names.in_any_case(stem, where)
        if path is None:
            return None
        if tally is not None:
            tally.add(difference, path)
        return str(path)

    def _at(self, name: str, plain: bool) -> str | None:
        """The file of that name below a base; unless `plain`, also with a suffix more."""
        for base, suffix in self._ways:  # always in this order, so that rows may have any
            if suffix and plain:
                continue
            path = os.path.normpath(os.path.join(base, name)) + suffix
            if os.path.isfile(path):
                return self._spelled(path)
        return None

    def _spelled(self, path: str) -> str:
        """An absolute path as the files of a relative folder are called: it is the same file."""
        if self.folder.is_absolute() or not os.path.isabs(path):
            return path
        below = os.path.relpath(path, os.path.abspath(self.folder))
        if not below.startswith(os.pardir):
            return os.path.normpath(self.folder / below)
        relative = os.path.relpath(path)
        if not relative.startswith(os.pardir):
            return relative
        return path

    @cached_property
    def names(self) -> Names:
        """Of all the sounds below the folder."""
        return Names(self._found or walk(self.folder, SOUNDS))

    @staticmethod
    def is_known(name: str) -> bool:
        """Whether a text looks like the name of a sound."""
        return name.lower().endswith(SOUNDS)


class Names:
    """The names of the sound files of a folder: path below it, file name, name without suffix."""

    def __init__(self, found: Found) -> None:
        self.folder = found.folder
        self.by_path = {
            composed(path.relative_to(found.folder).as_posix()): path for path in found.files
        }
        self.short: dict[str, list[Path]] = defaultdict(list)
        for path in found.files:
            for name in {path.name, path.stem}:
                self.short[composed(name)].append(path)

    @cached_property
    def _folded(self) -> dict[str, list[Path]]:
        """Name in no case -> the files of that name, or of that name and a suffix."""
        folded: dict[str, list[Path]] = defaultdict(list)
        for name, paths in self.short.items():
            folded[name.casefold()] += paths
        return folded

    def file(self, cell: str, where: str) -> Path | None:
        """The file that a cell names; None where there is none.

        Raises UserError where it may be one of several.
        """
        name = composed(bare_name(cell))
        if name in self.by_path:
            return self.by_path[name]
        parts = PurePosixPath(posixpath.normpath(name)).parts
        last = parts[-1] if parts else ""
        named = self.short.get(name) or self.short.get(last, [])
        return self._only(named, parts[:-1], cell, where, composed)

    def in_any_case(self, cell: str, where: str) -> Path | None:
        """The file that a cell names, whatever the case of its letters. Raises as `file` does."""
        parts = PurePosixPath(posixpath.normpath(_folded(bare_name(cell)))).parts
        named = self._folded.get(parts[-1], []) if parts else []
        return self._only(named, parts[:-1], cell, where, _folded)

    def is_known(self, name: str) -> bool:
        """Whether a file, or several, have this name."""
        return composed(name) in self.by_path or composed(name) in self.short

    def _only(
        self,
        named: Sequence[Path],
        folders: tuple[str, ...],
        cell: str,
        where: str,
        form: Callable[[str], str],
    ) -> Path | None:
        """The one of several files of a name that is in folders of these names.

        form: of the names of folders that are compared.
        """
        matches = [path for path in dict.fromkeys(named) if self._is_in(path, folders, form)]
        if len(matches) > 1:
            raise UserError(
                f"{where}: {cell} may be {matches[0]} or {matches[1]}; name it with its folder and"
                " suffix"
            )
        return next(iter(matches), None)

    def _is_in(self, path: Path, folders: tuple[str, ...], form: Callable[[str], str]) -> bool:
        """Whether a file is in folders of these names, as far up as both are known."""
        own = tuple(map(form, path.relative_to(self.folder).parent.parts))
        known = min(len(own), len(folders))
        return own[len(own) - known :] == folders[len(folders) - known :]


def _folded(name: str) -> str:
    return composed(name).casefold()


def difference(file: Path, cell: str) -> str:
    """How a file's name differs from what a cell says; "" where that leaves out only the suffix."""
    said = composed(bare_name(cell)).rpartition("/")[2]
    names = (composed(file.name), composed(file.stem))
    if said in names:
        return ""
    if said.casefold() in [name.casefold() for name in names]:
        return OTHER_CASE
    return OTHER_SUFFIX


def none_found(path: Path, n_rows: int, first: str) -> UserError:
    """The error of a table that names no file that is there. first: of its rows."""
    return UserError(
        f"{path}: none of its {n_rows:,} rows names a sound file that is there (first: {first});"
        " put the files beside the table, or name their column: --columns file=COLUMN"
    )


def missing(where: str, name: str) -> str:
    """The fault of a row whose file is not there."""
    return f"{where}: names {name or 'no file'}, and no such sound file is there"
