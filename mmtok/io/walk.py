"""Files below folders, by one rule for all sources and verbs; paths that a user named.

The rule: hidden and system files are left out, links are followed once, suffixes match in any case,
a file with two names is taken once, and the order is that of the names. Whatever is left out is
counted by kind.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.patterns import named_places

SYSTEM = {
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
}
# what lies beside a corpus and tells of it
ABOUT = re.compile(
    r"(readme|licen[cs]e|changelog|dataset_infos?)"
    r"(\.(txt|text|md|markdown|rst|tex|html?|ya?ml|jsonl?|csv|tsv|gz|zst|[a-z]{2}))*",
    re.IGNORECASE,
)
N_KINDS = 10  # kinds of what is left out that one line names


@dataclass
class Found:
    """What a walk found.

    Attributes:
        folder: where it began.
        names: those with a wanted suffix, as paths below the folder with slashes, ordered by their
            names, folder by folder.
        companion_names: those with a suffix of what goes with them (transcripts), likewise.
        left_out: kind -> how many, and the first of them as it is called below the folder.
    """

    folder: Path
    names: list[str] = field(default_factory=list)
    companion_names: list[str] = field(default_factory=list)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)

    @cached_property
    def files(self) -> list[Path]:
        """The paths of `names`, which take some ten times their memory."""
        return [self.folder / name for name in self.names]

    @cached_property
    def companions(self) -> list[Path]:
        """The paths of `companion_names`."""
        return [self.folder / name for name in self.companion_names]

    def leave_out(self, kind: str, name: str) -> None:
        """Count one more of this kind, by its name below the folder."""
        count, first = self.left_out.get(kind, (0, name))
        self.left_out[kind] = (count + 1, first)

    def note(self) -> str:
        """What was left out, in one line; "" where nothing was."""
        kinds = sorted(self.left_out.items(), key=lambda item: (-item[1][0], item[0]))
        if not kinds:
            return ""
        parts = [f"{count:,} {kind} (first {first})" for kind, (count, first) in kinds[:N_KINDS]]
        if len(kinds) > N_KINDS:
            parts.append(f"{sum(count for _, (count, _) in kinds[N_KINDS:]):,} of other kinds")
        return f"{self.folder}: left out {', '.join(parts)}"


class _Entry(NamedTuple):
    """A file; sorted by `key`, real ones first. There may be millions."""

    is_link: bool
    key: str  # its path below the folder, with NUL for slashes: then a/b comes before a-b
    device: int
    inode: int


def walk(folder: Path, suffixes: Collection[str], companions: Collection[str] = ()) -> Found:
    """The files below a folder whose suffix is one of `suffixes` or `companions`.

    Suffixes are given in lower case; ".csv.gz" is one too. What cannot be opened below the folder
    is left out and counted.

    Raises UserError when the folder itself cannot be opened.
    """
    found = Found(folder)
    seen: set[tuple[int, int]] = set()
    for _, key, device, inode in sorted(_entries(found)):
        path = key.replace("\0", "/")
        name = path.rsplit("/", 1)[-1].lower()
        wanted = name.endswith(tuple(suffixes))
        if not wanted and not name.endswith(tuple(companions)):
            found.leave_out(kind_of(name), path)
        elif (device, inode) in seen:
            found.leave_out("second names of one file", path)
        else:
            seen.add((device, inode))
            (found.names if wanted else found.companion_names).append(path)
    found.names.sort(key=_in_order)
    found.companion_names.sort(key=_in_order)
    return found


def is_about(name: str) -> bool:
    """Whether a file's name says that it tells of a corpus, and so is none of it."""
    return bool(ABOUT.fullmatch(name))


def kind_of(name: str) -> str:
    """What files of such a name are called where they are counted."""
    suffix = os.path.splitext(name)[1].lower()
    return f"{suffix} files" if suffix else "files without a suffix"


def _in_order(name: str) -> str:
    return name.replace("/", "\0")


def _entries(found: Found) -> Iterator[_Entry]:
    """Every regular file below the folder that is not hidden.

    Real folders come before links to folders, so that a folder with two names goes by its own.
    """
    folders = [""]
    links: list[str] = []
    seen: set[tuple[int, int]] = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        for name, status, is_link in _inside(folder, found, seen):
            if stat.S_ISDIR(status.st_mode):
                (links if is_link else folders).append(name)
            elif stat.S_ISREG(status.st_mode):
                yield _Entry(is_link, _in_order(name), status.st_dev, status.st_ino)
            else:
                found.leave_out("pipes, sockets or devices", name)
        folders.sort(key=_in_order, reverse=True)
        links.sort(key=_in_order)


def _inside(
    folder: str, found: Found, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, os.stat_result, bool]]:
    """(name below where the walk began, status, whether it is a link) of what lies in a folder.

    Nothing of one that was visited before; in the order of the names.
    """
    place = os.path.join(found.folder, folder)
    try:
        status = os.stat(place)
        names = sorted(os.listdir(place))
    except OSError as error:
        if not folder:
            raise UserError(f"{found.folder}: cannot be opened: {error.strerror}") from None
        found.leave_out("folders that cannot be opened", folder)
        return
    if (status.st_dev, status.st_ino) in seen:
        found.leave_out("links to a folder that was met before", folder)
        return
    seen.add((status.st_dev, status.st_ino))
    for name in names:
        path = f"{folder}/{name}" if folder else name
        if name.startswith(".") or name.lower() in SYSTEM:
            found.leave_out("hidden or system files and folders", path)
        elif not _is_utf8(name):
            readable = os.fsencode(path).decode(errors="replace")
            found.leave_out("names that are not UTF-8", readable)
        else:
            try:
                status = os.lstat(os.path.join(place, name))
                is_link = stat.S_ISLNK(status.st_mode)
                if is_link:
                    status = os.stat(os.path.join(place, name))
                yield path, status, is_link
            except OSError:
                found.leave_out("links to nothing", path)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps other bytes as surrogates
        return False
    return True


def files_among(places: Sequence[Path], suffixes: Collection[str]) -> list[Path]:
    """The files that are named, and those below the folders that are named.

    A warning says what is left out of a folder.

    Raises UserError for a folder without such files.
    """
    files: list[Path] = []
    for place in places:
        if not place.is_dir():
            files.append(place)
            continue
        found = walk(place, suffixes)
        if not found.files:
            raise UserError(
                f"{place}: is a folder without a file that can be used ({listed(list(suffixes))})"
            )
        if found.left_out:
            warnings.warn(found.note(), stacklevel=2)
        files += found.files
    return files


def corpus_among(places: Sequence[Path], suffixes: Collection[str]) -> list[Path]:
    """As `files_among`, without what tells of the others in a folder, which is said."""
    files = files_among(places, suffixes)
    about = [file for file in files if is_about(file.name) and file not in places]
    if not about or len(about) == len(files):
        return files
    warnings.warn(
        f"{about[0].parent}: left out what tells of the corpus:"
        f" {listed([file.name for file in about])}",
        stacklevel=2,
    )
    return [file for file in files if file not in set(about)]


# ---- paths that a user named


def files_at(path: str, suffixes: Collection[str], who: str, wanted: str) -> list[Path]:
    """The files that a user named: a file, those below a folder, or those of a pattern.

    A warning says what is left out of a folder. What a pattern names is taken, whatever its suffix.

    Args:
        path: as the user typed it; see `mmtok.io.patterns`.
        suffixes: in lower case, of the files of a folder.
        who: whose setting it is.
        wanted: what the files should hold.

    Raises:
        UserError: there is no such file, or none that can be used.
    """
    places = named_places(path, who, wanted)
    if len(places) == 1 and not places[0].is_dir():
        return [file_at(places[0], who, wanted)]
    return files_among(places, suffixes)


def folder_at(path: str | Path, who: str, wanted: str) -> Path:
    """The folder that a user named; ~ is the home.

    Raises UserError, saying what to name, where there is none.

    who: whose setting it is; wanted: what the folder should hold.
    """
    place = _named(path, who, f"--path FOLDER, {wanted}")
    if os.path.isfile(place):
        raise UserError(
            f"{place}: is a file, and {who} wants a folder, {wanted}; name the folder that it"
            " lies in"
        )
    if not os.path.isdir(place):
        raise UserError(f"{place}: no such folder{_hint(place)}; {who} wants {wanted}")
    return place


def file_at(path: str | Path, who: str, wanted: str) -> Path:
    """The file that a user named; ~ is the home.

    Raises UserError, saying what to name, where there is none.
    """
    place = _named(path, who, f"--path FILE, {wanted}")
    if os.path.isdir(place):
        raise UserError(
            f"{place}: is a folder, and {who} wants a file, {wanted}; name a file in it"
        )
    if not os.path.exists(place):
        raise UserError(f"{place}: no such file{_hint(place)}; {who} wants {wanted}")
    if not os.path.isfile(place):
        raise UserError(
            f"{place}: is a pipe or a device, and {who} wants a file, {wanted}: "
            "it is read more than once"
        )
    return place


def _named(path: str | Path, who: str, what: str) -> Path:
    if not str(path):
        raise UserError(f"{who}: no path given; pass {what}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{who}: {path} is in the home of somebody whom this machine does not know; pass {what}"
        ) from None


def _hint(place: Path) -> str:
    """A hint for a missing path: patterns are not expanded, and the nearest folder that exists."""
    if any(sign in str(place) for sign in "*?["):
        return " (patterns are not looked up here: name the folder itself)"
    above = next((parent for parent in place.parents if os.path.isdir(parent)), None)
    if above in (None, Path("."), Path("/"), place.parent):
        return ""
    return f" ({above} is there)"
