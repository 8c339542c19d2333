"""Fields of token files as flat arrays: in memory where they are small, else memory-mapped.

A mapped file is read through the system's page cache, which all processes of a machine share. The
Parquet file stays the authority: it is read and checked once, batch by batch, when the flat file is
written.

    FOLDER/t.parquet  ->  FOLDER/.flat/t.parquet/FIELD.flat

A folder of token files that is opened as one has such a flat file too. A flat file belongs to the
names, sizes, times of change and numbers of rows of its Parquet files; it is written anew when one
of these changes, or when it is damaged. So it may be deleted at any time. It begins with JSON in
HEAD bytes, then come the arrays of a Column.
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

MAP_FROM = 2**26  # bytes of all fields opened; smaller token files are read into memory
FORMAT = 2
HEAD = 4096  # bytes
ALIGNMENT = 64  # bytes
# Bytes of frames that are read at once, about. Arrow's reader takes many times as much memory, some
# 90 MB for dMel.
BATCH = 2**20
COPIES = 3  # of the frames in memory, at most, while they are read and joined
# The checksum of a flat file is over so many blocks of so many bytes, spread evenly, so that
# opening the file reads no more.
N_BLOCKS = 64
BLOCK = 4096
PER_ROW = {
    "offsets": np.int64,
    "starts": np.int64,
    "sizes": np.int32,
    "present": np.bool_,
    "truncated": np.bool_,
}
MASK_OFFSETS = {"mask_offsets": np.int64}  # per row too, of fields with masks only
ROW_BYTES = sum(np.dtype(kind).itemsize for kind in PER_ROW.values())


@dataclass(frozen=True, eq=False)
class Column:
    """One field of n rows, N frames in all.

    Attributes:
        offsets: (n + 1,): row i has the frames offsets[i] to offsets[i + 1].
        starts: (n,): where in `texts` its info begins; rows with the same info share it, within a
            batch.
        sizes: (n,): how many bytes its info has.
        present: (n,): the row has the field.
        truncated: (n,): its frames were cut off at a cap.
        texts: (t,) bytes: JSON in UTF-8.
        masks: (m,): which frames carry loss, of the rows that say it.
        mask_offsets: (n + 1,) as offsets, of `masks`; () where no row has a mask.
        values: (N, C) or (N, D), in the narrowest type that holds them.
    """

    offsets: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    present: np.ndarray
    truncated: np.ndarray
    texts: np.ndarray
    masks: np.ndarray
    mask_offsets: np.ndarray
    values: np.ndarray

    def info(self, i: int) -> bytes:
        """Row i's info; empty where it has none."""
        return self.texts[self.starts[i] : self.starts[i] + self.sizes[i]].tobytes()

    def mask(self, i: int) -> np.ndarray | None:
        """(T,) bool: which frames of row i carry loss; None: all."""
        if not len(self.mask_offsets) or self.mask_offsets[i] == self.mask_offsets[i + 1]:
            return None
        return np.array(self.masks[self.mask_offsets[i] : self.mask_offsets[i + 1]])


@dataclass(frozen=True)
class Part:
    """A Parquet file of tokens as it was found.

    Attributes:
        size: of the file, in bytes.
        mtime_ns: its time of change.
        n_rows: its rows.
        n_bytes: what its frames take in a flat array.
        masked: fields of which some row says which frames carry loss.
    """

    path: Path
    size: int
    mtime_ns: int
    n_rows: int
    n_bytes: int
    masked: tuple[str, ...] = ()


def read_columns(
    path: Path, parts: Sequence[Part], signatures: Mapping[str, Signature], map_from: int | None
) -> dict[str, Column]:
    """The fields of all rows of `parts`, which were opened together as `path`.

    map_from: fields that take so many bytes or more are mapped; None maps nothing.

    Raises UserError for damaged rows; of mapped fields only when the flat file is written.
    """
    n_bytes = sum(part.n_bytes + part.n_rows * ROW_BYTES * len(signatures) for part in parts)
    if map_from is None or n_bytes < map_from:
        memory_budget.check(COPIES * n_bytes, path, "its frames")
        return {name: _in_memory(parts, name, signature) for name, signature in signatures.items()}
    stems = file_names(list(signatures))
    return {
        name: _mapped(path, parts, name, signature, stem)
        for (name, signature), stem in zip(signatures.items(), stems, strict=True)
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
    """A field as a map of its flat file, which is written if need be.

    Where it cannot be written, a warning says so and the field is read into memory.
    stem: of the flat file's name.
    """
    path = Path(os.path.abspath(path))
    flat = path.parent / ".flat" / path.name / f"{stem}.flat"
    about = [
        FORMAT,
        name,
        signature.as_dict(),
        [[part.path.name, part.size, part.mtime_ns, part.n_rows] for part in parts],
    ]
    key = sha256(json.dumps(about).encode()).hexdigest()
    column = _open(flat, key, signature)
    why = "it is gone again"
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
    """Write the flat file of a field atomically.

    Several processes may write it at once: they all write the same.
    """
    n_rows = sum(part.n_rows for part in parts)
    end = HEAD
    start = {}
    for section, kind in (PER_ROW | MASK_OFFSETS).items():
        start[section] = end  # what stays empty is a hole in the file
        end = _aligned(end + (n_rows + 1) * np.dtype(kind).itemsize)
    stop = dict(start)
    with (
        atomic_write(flat) as temporary,
        open(temporary, "w+b") as file,
        Progress(f"map {name}", n_rows, "rows") as progress,
    ):
        for section, array in _pieces(parts, name, signature):
            if section not in start:  # texts, masks, values: their sizes show as they come
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
        # else a machine that stops could leave the name without all of the bytes
        os.fsync(file.fileno())


def _open(flat: Path, key: str, signature: Signature) -> Column | None:
    """A read-only map of a field's flat file; None if it is damaged or has another key."""
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
        kinds = PER_ROW | MASK_OFFSETS | {"texts": np.uint8, "masks": np.bool_}
        kinds["values"] = number_of(signature)
        arrays: dict[str, np.ndarray] = {
            section: data[slice(*head["sections"][section])].view(kind)
            for section, kind in kinds.items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Column(**arrays | {"values": arrays["values"].reshape(-1, width_of(signature))})


def _checksum(file: BinaryIO, size: int) -> int:
    """CRC-32 over some blocks after the head, the first and the last among them."""
    crc = 0
    for position in np.linspace(HEAD, max(HEAD, size - BLOCK), N_BLOCKS).astype(int).tolist():
        file.seek(position)
        crc = zlib.crc32(file.read(BLOCK), crc)
    return crc


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


# ---- reading Parquet


def _pieces(
    parts: Sequence[Part], name: str, signature: Signature
) -> Iterator[tuple[str, np.ndarray]]:
    """(section, values) of a Column's arrays, piece by piece: texts, then masks, then values.

    Raises UserError for damaged rows.
    """
    _check_makers(parts, name, signature)
    yield from _info_pieces(parts, name)
    is_masked = any(name in part.masked for part in parts)
    yield "masks", np.empty(0, bool)
    yield "mask_offsets", np.zeros(int(is_masked), np.int64)
    if is_masked:
        yield from _mask_pieces(parts, name)
    yield from _frame_pieces(parts, name, signature)


def _info_pieces(parts: Sequence[Part], name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The infos of all rows, each text once a batch."""
    yield "texts", np.empty(0, np.uint8)
    n_bytes = 0
    for _, batch in _batches(parts, name + ".info"):
        coded = batch.column(name + ".info").fill_null("").dictionary_encode()
        texts = [text.encode() for text in coded.dictionary.to_pylist()]
        sizes = np.array([len(text) for text in texts], np.int32)
        of_row = coded.indices.to_numpy()
        yield "starts", (n_bytes + np.cumsum(sizes, dtype=np.int64) - sizes)[of_row]
        yield "sizes", sizes[of_row]
        yield "texts", np.frombuffer(b"".join(texts), np.uint8)
        n_bytes += int(sizes.sum())


def _mask_pieces(parts: Sequence[Part], name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The masks of all rows, of which most may be null. Raises UserError where one is damaged."""
    n_values = 0
    for part in parts:
        if name not in part.masked:
            yield "mask_offsets", np.full(part.n_rows, n_values)
            continue
        for path, batch in _batches([part], name, name + ".predict"):
            masks = batch.column(name + ".predict")
            values = masks.flatten()
            lengths = masks.value_lengths().fill_null(0).to_numpy().astype(np.int64)
            n_frames = batch.column(name).value_lengths().fill_null(0).to_numpy()
            if values.null_count or ((lengths > 0) & (lengths != n_frames)).any():
                raise UserError(
                    f"{path}: field {name!r} has masks that do not fit its frames; the file is"
                    " damaged"
                )
            yield "masks", values.to_numpy(zero_copy_only=False).astype(bool)
            yield "mask_offsets", n_values + np.cumsum(lengths)
            n_values += len(values)


def _frame_pieces(
    parts: Sequence[Part], name: str, signature: Signature
) -> Iterator[tuple[str, np.ndarray]]:
    """The frames of all rows, and what is known per row."""
    n_frames = 0
    yield "values", np.empty((0, width_of(signature)), number_of(signature))
    yield "offsets", np.zeros(1, np.int64)
    yield from ((section, np.empty(0, kind)) for section, kind in PER_ROW.items())
    for path, batch in _batches(parts, name, name + ".truncated"):
        frames = batch.column(name)
        truncated = batch.column(name + ".truncated").fill_null(False)
        truncated = truncated.to_numpy(zero_copy_only=False)
        present = frames.is_valid().to_numpy(zero_copy_only=False)
        lengths = frames.value_lengths().fill_null(0).to_numpy().astype(np.int64)
        yield "values", _values(path, name, frames, signature)
        complete = lengths[present & ~truncated]
        if signature.frames is not None and (complete != signature.frames).any():
            raise UserError(
                f"{path}: field {name!r} has segments that are not of {signature.frames} frames;"
                " the file is damaged"
            )
        yield "offsets", n_frames + np.cumsum(lengths)
        yield "present", present
        yield "truncated", truncated
        n_frames += int(lengths.sum())


def _batches(parts: Sequence[Part], *columns: str) -> Iterator[tuple[Path, pa.RecordBatch]]:
    """(file, rows of some columns) of each file in turn; page checksums are verified."""
    for part in parts:
        n_rows = min(2**16, max(1, BATCH * part.n_rows // max(1, part.n_bytes)))
        with sound(part.path), pq.ParquetFile(part.path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(n_rows, columns=list(columns)):
                yield part.path, batch


def _check_makers(parts: Sequence[Part], name: str, signature: Signature) -> None:
    """Raise UserError for rows that another tokenizer made."""
    for part in parts:
        makers: set[str] = set()
        for _, batch in _batches([part], name + ".tokenizer"):
            fingerprints = batch.column(name + ".tokenizer").unique().to_pylist()
            makers |= {str(maker) for maker in fingerprints if maker is not None}
        if makers and makers != {signature.fingerprint}:
            raise UserError(
                f"{part.path}: field {name!r} was made by the {signature.modality} tokenizers"
                f" {listed(sorted(makers))}, but {signature.fingerprint} is expected; tokenise"
                " again or use the tokenizer it was made with"
            )


def _values(path: Path, name: str, rows: pa.ListArray, signature: Signature) -> np.ndarray:
    """(N, C) or (N, D) frames of some rows, checked."""
    frames = rows.flatten()
    numbers = frames
    if pa.types.is_fixed_size_list(frames.type):
        numbers = frames.flatten()
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
    """Turn whatever Arrow raises for a damaged Parquet file into UserError that names it.

    Only calls of Arrow belong inside.
    """
    try:
        yield
    except (UserError, PermissionError):
        raise
    # Arrow's own, OSError, UnicodeDecodeError of names, MemoryError of sizes
    except Exception as error:
        raise UserError(
            f"{path}: not a Parquet file, or a damaged one ({reason_of(error)})"
        ) from None


# ---- what a signature says of frames


def number_of(signature: Signature) -> type[np.number]:
    """The narrowest type that holds every number of a frame."""
    if signature.latent_size:
        return np.float32
    most = max(signature.sizes)
    if most <= 2**8:
        return np.uint8
    if most <= 2**16:
        return np.uint16
    return np.int32


def width_of(signature: Signature) -> int:
    """How many numbers a frame has."""
    return len(signature.levels) or signature.latent_size


def within(codes: np.ndarray, signature: Signature) -> bool:
    """Whether all codes (T, C) are within their levels."""
    if len(codes) == 0:
        return True
    return bool(codes.min() >= 0 and (codes.max(axis=0) < np.array(signature.sizes)).all())
