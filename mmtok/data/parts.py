"""A folder of token files that is made part by part, and goes on after it was interrupted.

    FOLDER/part-00000.parquet  part-00001.parquet  ...  complete.json

A part is a token file (`mmtok.data.tokens`) of a whole number of chunks, which do not depend on the
machine. It is written whole or not at all, and its metadata `mmtok.part` say which set it belongs
to and what was left out while it was made. So several processes, or machines, can each make some
of the parts. The mark complete.json is written last; without it the folder is not read.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.serialize import Within, check_known, read_json_as
from mmtok.io.strict_json import parse_json
from mmtok.sources.base import Chunk, Items

MARK = "complete.json"
PART = {"key": str, "part": Annotated[int, Within(0)], "stamp": str, "counts": dict[str, Any]}
METADATA = b"mmtok.part"
CHUNKS = 8  # of a part, at least; fewer would make many small files
MOST_PARTS = 4096  # where the number of examples is known; parts are larger then


@dataclass(frozen=True)
class Complete:
    """The content of complete.json.

    Attributes:
        key: of the set, see `key_of`.
        parts: how many there are.
        rows: how many they have together.
    """

    key: str
    parts: Annotated[int, Within(1)]
    rows: Annotated[int, Within(0)]


def part_path(folder: Path, k: int) -> Path:
    """Where part k is."""
    return folder / f"part-{k:05d}.parquet"


def chunks_per_part(n_examples: int | None, chunk: int) -> int:
    """How many chunks of so many examples a part has; n_examples: of all parts, None: unknown."""
    n_chunks = -(-(n_examples or 0) // chunk)
    return max(CHUNKS, -(-n_chunks // MOST_PARTS))


def key_of(*made_from: Any) -> str:
    """Twelve hex digits for what a set is made from, JSON values: parts of two sets do not mix."""
    text = json.dumps(made_from, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def stamp_of(chunk: Chunk) -> str:
    """Changes where the files of a chunk do, by their sizes and times, or what is listed of them.

    "" where it has none.
    """
    files = getattr(chunk, "files", ())
    if not files:
        return ""
    listed = repr(chunk.items) if isinstance(chunk, Items) else ""  # captions among it
    return key_of([_version(Path(file)) for file in files], listed)


def _version(path: Path) -> tuple[int, ...]:
    """The size and time of change of a file; () where it is not there, as reading it will say."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def standing_parts(folder: Path, key: str) -> dict[int, dict[str, Any]]:
    """The parts that are made: number -> what its metadata say.

    One whose metadata cannot be read does not count, with a warning. Raises UserError where the
    folder holds anything of another set.
    """
    standing = {}
    for path in token_paths(folder):
        try:
            about = part_metadata(path)
        except UserError as error:
            warnings.warn(f"{error}: it is made anew", stacklevel=2)
            continue
        if about is None or about["key"] != key:
            raise UserError(
                f"{path} was made from other data (a file more, less or of another name counts), or"
                f" by other tokenizers, than what would be written beside it: remove {folder} to"
                " make all of it anew, or write what is new alone into another folder"
            )
        standing[about["part"]] = about
    return standing


def part_metadata(path: Path) -> dict[str, Any] | None:
    """What a part's metadata say of it; None where it is no part of a set.

    Raises UserError for a damaged file.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except Exception as error:  # Arrow has some ten types for damaged files
        raise UserError(f"{path}: a damaged token file ({str(error).splitlines()[0]})") from None
    if METADATA not in metadata:
        return None
    return _parsed(path, metadata)


def _parsed(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    where = f"{path}: its metadata {METADATA.decode()}"
    found = parse_json(metadata[METADATA], where)
    check_known(found, PART, where, tuple(PART))
    return found


def token_paths(folder: Path) -> list[Path]:
    """The token files in a folder, in the order of their names; parts in that of their numbers."""
    return sorted(folder.glob("*.parquet"), key=_order)


def _order(path: Path) -> tuple[int, str]:
    """A hundred thousand parts have longer names."""
    if path.name.startswith("part-"):
        return len(path.name), path.name
    return 0, path.name


def read_mark(folder: Path) -> Complete | None:
    """What complete.json says; None where there is none. Raises UserError for a damaged one."""
    path = folder / MARK
    return read_json_as(path, Complete) if path.exists() else None


def write_mark(folder: Path, complete: Complete) -> None:
    """Say that a set is whole."""
    write_text(folder / MARK, json.dumps(vars(complete), indent=1) + "\n")


def check_whole(folder: Path, paths: Sequence[Path], metadata: Sequence[Mapping]) -> None:
    """Raise UserError where a folder's token files are parts, but not all of them.

    metadata: of each file's schema.
    """
    keys = {
        _parsed(path, found)["key"]
        for path, found in zip(paths, metadata, strict=True)
        if METADATA in found
    }
    if not keys:
        return
    mark = read_mark(folder)
    if mark is None:
        raise UserError(
            f"{folder}: its token files are not all made yet; the command that makes them goes on"
            " when it is called again"
        )
    if keys != {mark.key} or len(paths) != mark.parts:
        raise UserError(
            f"{folder}: it has {len(paths)} token files, and {MARK} says {mark.parts} of one set:"
            " remove the folder and tokenise again"
        )
