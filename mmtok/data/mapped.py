"""Fields of token files as flat arrays: in main memory where they are small, else mapped from a
file beside them.

What is mapped is read through the system's page cache, which all processes of a machine share; of
its own a process keeps next to
nothing. The Parquet file stays the authority: it is read and checked once, when the flat file is
written, batch by batch.

    FOLDER/t.parquet  ->  FOLDER/.flat/t.parquet/FIELD.flat       (for a folder of token files that
                      is opened as one, likewise)

A flat file belongs to the names, sizes, times of change and numbers of rows of its Parquet files;
it is written anew when one of these is another, or when it is not whole. So it may be deleted at
any time. It begins with JSON in HEAD bytes, then come the arrays of a Column.
"""

from __future__ import annotations

import json
import mmap
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtok.core.segment import Signature
from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.filenames import file_names
from mmtok.io.files import atomic_write
from mmtok.io.messages import listed
from mmtok.io.progress import Progress
from mmtok.io.strict_json import parse_json

MAP_FROM = (
    2**26
)  # bytes of all fields opened: token files that take less are read into memory, and nothing is written beside them
FORMAT = 1
HEAD, ALIGNED = 4096, 64  # bytes
BATCH = (
    2**20
)  # bytes of frames at once, about, while a file is read: Arrow's reader takes many times that, some 90 MB for dMel
COPIES = 3  # of the frames in memory, at most, while they are read and joined
BLOCK, N_BLOCKS = (
    4096,
    64,
)  # of a flat file, spread evenly: what its checksum is over, so that opening it reads no more
PER_ROW = {
    "offsets": np.int64,
    "starts": np.int64,
    "sizes": np.int32,
    "present": np.bool_,
    "truncated": np.bool_,
}
ROW_BYTES = sum(np.dtype(kind).itemsize for kind in PER_ROW.values())


@dataclass(frozen=True, eq=False)
class Column:
    """One field of n rows, N frames in all.

    offsets    (n + 1,): row i has the frames offsets[i] to offsets[i + 1]
    starts, sizes  (n,): where in `texts` its info stands, and how many bytes of it; rows with the
                   same info share it, within a batch
    present    (n,): the row has the field
    truncated  (n,): its frames were cut off at a cap
    texts      (t,) bytes: JSON in UTF-8
    values     (N, C) or (N, D), in the narrowest type that holds them
    """

    offsets: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    present: np.ndarray
    truncated: np.ndarray
    texts: np.ndarray
    values: np.ndarray

    def info(self, i: int) -> bytes:
        """Row i's info; empty where it has none."""
        return self.texts[self.starts[i] : self.starts[i] + self.sizes[i]].tobytes()


@dataclass(frozen=True)
class Part:
    """A Parquet file of tokens, as it was found: its size in bytes, its time of change, its rows,
    the bytes that its frames take here.
    """

    path: Path
    size: int
    mtime_ns: int
    n_rows: int
    n_bytes: int


def read_columns(
    path: Path, parts: Sequence[Part], signatures: Mapping[str, Signature], map_from: int | None
) -> dict[str, Column]:
    """The fields of all rows of `parts`, which were opened together as `path`; mapped where they
    take `map_from` bytes or more.

    Raises UserError for rows that are no sound tokens: at the first opening where they are mapped.
    """
    n_bytes = sum(part.n_bytes + part.n_rows * ROW_BYTES * len(signatures) for part in parts)
    if map_from is None or n_bytes < map_from:
        memory_budget.check(COPIES * n_bytes, path, "its frames")
        return {name: _in_memory(parts, name, signature) for name, signature in signatures.items()}
    stems = file_names(list(signatures))
    return {
        name: _mapped(path, parts, name, signature, stem)
        for (name, signature), stem in zip(signatures.items(), stems)
    }


# ---- in memory, or mapped


def _in_memory(parts: Sequence[Part], name: str, signature: Signature) -> Column:
    found: dict[str, list[np.ndarray]] = {}
    for section, array in _pieces(parts, name, signature):
        found.setdefault(section, []).append(array)
    return Column(**{section: np.concatenate(found.pop(section)) for section in list(found)})


def _mapped(
    path: Path, parts: Sequence[Part], name: str, signature: Signature, stem: str
) -> Column:
    """stem: of the flat file's name."""
    path = Path(os.path.abspath(path))
    flat = path.parent / ".flat" / path.name / f"{stem}.flat"
    about = [
        FORMAT,
        name,
        signature.as_dict(),
        [[part.path.name, part.size, part.mtime_ns, part.n_rows] for part in parts],
    ]
    key = sha256(json.dumps(about).encode()).hexdigest()
    column, why = _open(flat, key, signature), "it is gone again"
    if column is None:
        try:
            _write(flat, key, parts, name, signature)
        except OSError as error:
            why = error.strerror or str(error)
        column = _open(flat, key, signature)
    if column is None:
        where = f"as no flat copy of it can be kept in {flat.parent} ({why})"
        warnings.warn(
            f"{path}: every process reads it into its own main memory, {where}", stacklevel=2
        )
        return _in_memory(parts, name, signature)
    return column


def _write(flat: Path, key: str, parts: Sequence[Part], name: str, signature: Signature) -> None:
    """Write a field's flat file, which appears when it is whole and on the disk.

    What several write at once is the same.
    """
    n_rows, end, start = sum(part.n_rows for part in parts), HEAD, {}
    for section, kind in PER_ROW.items():
        start[section] = end
        end = _aligned(end + (n_rows + 1) * np.dtype(kind).itemsize)
    stop = dict(start)
    with (
        atomic_write(flat) as temporary,
        open(temporary, "w+b") as file,
        Progress(f"map {name}", n_rows, "rows") as progress,
    ):
        for section, array in _pieces(parts, name, signature):
            if section not in start:  # texts, then values, whose sizes show as they come
                start[section] = stop[section] = end = _aligned(end)
            file.seek(stop[section])
            file.write(array.tobytes())
            stop[section] += array.nbytes
            end = max(end, stop[section])
            progress.advance(len(array) * (section == "present"))
        file.truncate(end)
        sections = {section: (start[section], stop[section]) for section in start}
        head = {"key": key, "sections": sections, "size": end, "crc": _checksum(file, end)}
        file.seek(0)
        file.write(json.dumps(head).encode().ljust(HEAD))
        file.flush()
        os.fsync(
            file.fileno()
        )  # else a machine that stops could leave the name without all of the bytes


def _open(flat: Path, key: str, signature: Signature) -> Column | None:
    """A field's flat file as a read-only map, or None unless it is whole and has this key."""
    try:
        with open(flat, "rb") as file:
            head = parse_json(file.read(HEAD), str(flat))
            if (
                head["key"] != key
                or head["size"] != os.fstat(file.fileno()).st_size
                or head["crc"] != _checksum(file, head["size"])
            ):
                return None
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        kinds = PER_ROW | {"texts": np.uint8, "values": number_of(signature)}
        arrays = {
            section: data[slice(*head["sections"][section])].view(kind)
            for section, kind in kinds.items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Column(**arrays | {"values": arrays["values"].reshape(-1, width_of(signature))})


def _checksum(file: BinaryIO, size: int) -> int:
    """Over some blocks of what follows the head, the first and the last among them."""
    crc = 0
    for position in np.linspace(HEAD, max(HEAD, size - BLOCK), N_BLOCKS).astype(int).tolist():
        file.seek(position)
        crc = zlib.crc32(file.read(BLOCK), crc)
    return crc


def _aligned(position: int) -> int:
    return -(-position // ALIGNED) * ALIGNED


# ---- reading Parquet


def _pieces(
    parts: Sequence[Part], name: str, signature: Signature
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a Column, piece by piece, each in its own order: all texts before all values.

    Raises UserError for unsound ones.
    """
    _check_makers(parts, name, signature)
    yield "texts", np.empty(0, np.uint8)
    n_bytes = 0
    for _, batch in _batches(parts, name + ".info"):
        coded = batch.column(name + ".info").fill_null("").dictionary_encode()
        texts = [text.encode() for text in coded.dictionary.to_pylist()]
        sizes, of_row = np.array([len(text) for text in texts], np.int32), coded.indices.to_numpy()
        yield "starts", (n_bytes + np.cumsum(sizes, dtype=np.int64) - sizes)[of_row]
        yield "sizes", sizes[of_row]
        yield "texts", np.frombuffer(b"".join(texts), np.uint8)
        n_bytes += int(sizes.sum())
    n_frames = 0
    yield "values", np.empty((0, width_of(signature)), number_of(signature))
    yield "offsets", np.zeros(1, np.int64)
    yield from ((section, np.empty(0, kind)) for section, kind in PER_ROW.items())
    for path, batch in _batches(parts, name, name + ".truncated"):
        frames, truncated = (
            batch.column(name),
            batch.column(name + ".truncated").fill_null(False).to_numpy(zero_copy_only=False),
        )
        present = frames.is_valid().to_numpy(zero_copy_only=False)
        lengths = frames.value_lengths().fill_null(0).to_numpy().astype(np.int64)
        yield "values", _values(path, name, frames, signature)
        if (
            signature.frames is not None
            and (lengths[present & ~truncated] != signature.frames).any()
        ):
            raise UserError(
                f"{path}: field {name!r} has segments that are not of {signature.frames} frames;"
                " the file is damaged"
            )
        yield "offsets", n_frames + np.cumsum(lengths)
        yield "present", present
        yield "truncated", truncated
        n_frames += int(lengths.sum())


def _batches(parts: Sequence[Part], *columns: str) -> Iterator[tuple[Path, pa.RecordBatch]]:
    """Rows of some columns, of each file in turn; page checksums are verified."""
    for part in parts:
        n_rows = min(2**16, max(1, BATCH * part.n_rows // max(1, part.n_bytes)))
        with sound(part.path), pq.ParquetFile(part.path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(n_rows, columns=list(columns)):
                yield part.path, batch


def _check_makers(parts: Sequence[Part], name: str, signature: Signature) -> None:
    for part in parts:
        batches = (
            batch.column(name + ".tokenizer") for _, batch in _batches([part], name + ".tokenizer")
        )
        made_by = sorted(
            {
                str(maker)
                for made in batches
                for maker in made.unique().to_pylist()
                if maker is not None
            }
        )
        if made_by and made_by != [signature.fingerprint]:
            raise UserError(
                f"{part.path}: field {name!r} was made by the {signature.modality} tokenizers"
                f" {listed(made_by)}, but {signature.fingerprint} is expected; tokenise again or"
                " use the tokenizer it was made with"
            )


def _values(path: Path, name: str, rows: pa.ListArray, signature: Signature) -> np.ndarray:
    """(N, C) or (N, D) frames of some rows, checked."""
    frames = rows.flatten()
    numbers = frames.flatten() if pa.types.is_fixed_size_list(frames.type) else frames
    if frames.null_count or numbers.null_count:
        raise UserError(f"{path}: field {name!r} has nulls among its frames; the file is damaged")
    values = numbers.to_numpy().reshape(-1, width_of(signature))
    if signature.levels and not within(values, signature):
        raise UserError(
            f"{path}: field {name!r} has codes outside its tokenizer's levels; the file is damaged"
        )
    return values.astype(number_of(signature), copy=False)


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Around Arrow's calls alone: whatever it finds wrong with a Parquet file as UserError that
    names it.
    """
    try:
        yield
    except (UserError, PermissionError):
        raise
    except (
        Exception
    ) as error:  # its own, OSError, UnicodeDecodeError of names, MemoryError of sizes
        raise UserError(
            f"{path}: not a Parquet file, or a damaged one ({reason_of(error)})"
        ) from None


# ---- what a signature says of frames


def number_of(signature: Signature) -> type[np.number]:
    """The narrowest type that holds every number of a frame."""
    if signature.latent_size:
        return np.float32
    top = max(signature.levels)
    return np.uint8 if top <= 2**8 else np.uint16 if top <= 2**16 else np.int32


def width_of(signature: Signature) -> int:
    """How many numbers a frame has."""
    return len(signature.levels) or signature.latent_size


def within(codes: np.ndarray, signature: Signature) -> bool:
    """Whether all codes (T, C) are within their levels."""
    return len(codes) == 0 or (
        codes.min() >= 0 and bool((codes.max(axis=0) < np.array(signature.levels)).all())
    )
