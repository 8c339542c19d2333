"""Token files: tokenised signals as Parquet, one format for one file and for a billion.

A row is an example, a field is a signal of it (`caption`, `image`). Per field F there are four columns:

    F            the frames: list<int32> (one channel), list<fixed_size_list<uint8 or uint16>[C]> (channels),
                 list<fixed_size_list<float>[D]> (latents); null where the row lacks the field
    F.info       string, JSON: what decoding needs beyond the frames
    F.truncated  bool: the frames were cut off at a cap
    F.tokenizer  string: the fingerprint of the tokenizer that made them; the authority

The schema's metadata repeats each field's signature as JSON under `mmtok`. Anything that reads Parquet reads these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtok.files import in_place_when_whole
from mmtok.segment import BadInput, Segment, Signature

FORMAT = 1
COLUMNS = ("", ".info", ".truncated", ".tokenizer")


def frame_type(signature: Signature) -> pa.DataType:
    """The Arrow type of one frame."""
    if signature.one_channel:
        return pa.int32()
    if signature.latent_size:
        return pa.list_(pa.float32(), signature.latent_size)
    top = max(signature.levels)
    number = pa.uint8() if top <= 2**8 else pa.uint16() if top <= 2**16 else pa.int32()
    return pa.list_(number, len(signature.levels))


def schema_of(signatures: Mapping[str, Signature]) -> pa.Schema:
    """The columns of a token file, and its metadata."""
    columns = []
    for name, signature in signatures.items():
        types = pa.list_(frame_type(signature)), pa.string(), pa.bool_(), pa.dictionary(pa.int32(), pa.string())
        columns += [pa.field(name + suffix, kind) for suffix, kind in zip(COLUMNS, types)]
    about = {"format": FORMAT, "fields": {name: signature.as_dict() for name, signature in signatures.items()}}
    return pa.schema(columns, metadata={"mmtok": json.dumps(about)})


# ---- writing

def write_tokens(path: Path, signatures: Mapping[str, Signature], rows: Iterable[Mapping[str, Segment]], row_group: int = 4096) -> int:
    """Write rows (field -> segment; a field may be missing) to `path`, `row_group` at a time; returns how many.

    The file appears under its name only when it is whole. Raises ValueError for a segment that does not fit
    its field's signature: that is a tokenizer's mistake, not the user's.
    """
    schema, n_rows = schema_of(signatures), 0
    with in_place_when_whole(Path(path)) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer:
            for group in _groups(rows, row_group):
                writer.write_table(_table(group, signatures, schema))
                n_rows += len(group)
    return n_rows


def _groups(rows: Iterable, size: int) -> Iterator[list]:
    rows = iter(rows)
    while group := list(islice(rows, size)):
        yield group


def _table(rows: list[Mapping[str, Segment]], signatures: Mapping[str, Signature], schema: pa.Schema) -> pa.Table:
    unknown = {name for row in rows for name in row} - set(signatures)
    if unknown:
        raise ValueError(f"rows have the field(s) {sorted(unknown)}, but signatures are given for {sorted(signatures)}")
    arrays = []
    for name, signature in signatures.items():
        segments = [row.get(name) for row in rows]
        infos = [None if s is None else json.dumps(dict(s.info), default=_plain) for s in segments]
        truncated = [None if s is None else bool(s.truncated) for s in segments]
        made_by = pa.array([None if s is None else signature.fingerprint for s in segments], pa.string())
        arrays += [_frames_column(name, segments, signature), pa.array(infos, pa.string()), pa.array(truncated, pa.bool_())]
        arrays.append(made_by.dictionary_encode())
    return pa.Table.from_arrays(arrays, schema=schema)


def _frames_column(name: str, segments: list[Segment | None], signature: Signature) -> pa.ListArray:
    kind = frame_type(signature)
    width = len(signature.levels) or signature.latent_size
    number = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    values = np.concatenate([np.empty((0, width), np.uint8)] + [_checked(name, s, signature, width) for s in segments if s is not None])
    frames = pa.array(np.ascontiguousarray(values, dtype=number.to_pandas_dtype()).reshape(-1))
    if pa.types.is_fixed_size_list(kind):
        frames = pa.FixedSizeListArray.from_arrays(frames, width)
    offsets = np.cumsum([0] + [0 if s is None else len(s) for s in segments])
    missing = pa.array([s is None for s in segments], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), frames, type=pa.list_(kind), mask=missing)


def _checked(name: str, segment: Segment, signature: Signature, width: int) -> np.ndarray:
    values = segment.latents if signature.latent_size else segment.codes
    if segment.modality != signature.modality or values is None or values.shape[1] != width:
        raise ValueError(f"field {name!r}: a {segment.modality} segment of shape {segment.values.shape} does not fit {signature}")
    if segment.holes:
        raise ValueError(f"field {name!r}: holes are made while training and are not stored")
    if signature.levels and not _within(values, signature):
        raise ValueError(f"field {name!r}: codes outside the levels of {signature.modality}")
    return values


def _within(codes: np.ndarray, signature: Signature) -> bool:
    return len(codes) == 0 or (codes.min() >= 0 and bool((codes.max(axis=0) < np.array(signature.levels)).all()))


def _plain(value):
    """Numpy's scalars as JSON's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"info holds a {type(value).__name__}; only scalars can be stored")


# ---- reading

def read_tokens(path: Path, expect: Mapping[str, Signature] | None = None) -> TokenFile:
    """Open a token file, or a folder of them (its *.parquet files in order of name).

    expect: field -> signature of the tokenizer that the caller will use; only these fields are read, and a file made
    by another tokenizer is refused. Without it, all fields of the file are read.
    Raises BadInput for whatever is not a sound token file.
    """
    path = Path(path)
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not paths:
        raise BadInput(f"{path}: no token files (*.parquet) in this folder")
    parts = [_read_part(p, expect) for p in paths]
    signatures = dict(expect) if expect is not None else parts[0][0]
    for p, (found, _) in zip(paths, parts):
        if found != parts[0][0]:
            raise BadInput(f"{p}: its fields or tokenizers differ from those of {paths[0]}; keep them in separate folders")
    return TokenFile(path, signatures, [table for _, table in parts])


def _read_part(path: Path, expect: Mapping[str, Signature] | None) -> tuple[dict[str, Signature], pa.Table]:
    if not path.exists():
        raise BadInput(f"{path}: no such token file")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = _signatures(path, file.schema_arrow)
            wanted = found if expect is None else expect
            for name in wanted:
                if name not in found:
                    raise BadInput(f"{path}: has no field {name!r}; its fields are {', '.join(found) or 'none'}")
            table = file.read(columns=[name + suffix for name in wanted for suffix in COLUMNS])
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise BadInput(f"{path}: not a Parquet file, or a damaged one ({_first_line(error)})") from None
    for name, signature in wanted.items():
        _check_columns(path, name, signature, table)
    return {name: found[name] for name in wanted}, table


def _signatures(path: Path, schema: pa.Schema) -> dict[str, Signature]:
    try:
        about = json.loads(schema.metadata[b"mmtok"])
        made = {name: Signature.from_dict(fields) for name, fields in about["fields"].items()}
        version = about["format"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadInput(f"{path}: a Parquet file, but not one of tokens (no mmtok metadata); make one with mmtok tokenize") from None
    if version != FORMAT:
        raise BadInput(f"{path}: token file format {version}, this mmtok reads format {FORMAT}; tokenise again")
    return made


def _check_columns(path: Path, name: str, signature: Signature, table: pa.Table) -> None:
    absent = [name + suffix for suffix in COLUMNS if name + suffix not in table.column_names]
    if absent:
        raise BadInput(f"{path}: the column {absent[0]!r} is missing")
    column = table.column(name + ".tokenizer")
    made_by = sorted(str(f) for f in column.unique().to_pylist() if f is not None)
    if made_by and made_by != [signature.fingerprint]:
        raise BadInput(f"{path}: field {name!r} was made by the {signature.modality} tokenizer {' and '.join(made_by)}, "
                       f"but {signature.fingerprint} is expected; tokenise again or use the tokenizer it was made with")
    for suffix, kind in zip(COLUMNS, schema_of({name: signature}).types):
        if table.column(name + suffix).type != kind:
            raise BadInput(f"{path}: the column {name + suffix!r} holds {table.column(name + suffix).type}, expected {kind}")


class TokenFile:
    """A token file in memory: flat arrays and offsets per field, so that rows come out fast.

    fields      their names
    signatures  field -> Signature
    """

    def __init__(self, path: Path, signatures: Mapping[str, Signature], tables: list[pa.Table]):
        self.path = path
        self.signatures = dict(signatures)
        self.fields = tuple(self.signatures)
        self._n = sum(table.num_rows for table in tables)
        self._columns = {name: _Column(path, name, signature, tables) for name, signature in self.signatures.items()}

    def __len__(self) -> int:
        return self._n

    def has(self, field: str) -> np.ndarray:
        """(n,) bool: which rows have this field."""
        return self._columns[field].present

    def lengths(self, field: str) -> np.ndarray:
        """(n,) frames of this field in every row; 0 where it is missing."""
        return np.diff(self._columns[field].offsets)

    def segment(self, field: str, i: int) -> Segment:
        """Row i's segment of a field. Raises KeyError where the row lacks it."""
        if not -self._n <= i < self._n:
            raise IndexError(f"row {i} of {self._n}")
        return self._columns[field].segment(i % self._n)

    def row(self, i: int) -> dict[str, Segment]:
        """Row i: the fields that it has."""
        return {name: self.segment(name, i) for name in self.fields if self._columns[name].present[i]}


class _Column:
    """One field of every row: values (N, C), offsets (n + 1,) into them, info and flags per row."""

    def __init__(self, path: Path, name: str, signature: Signature, tables: list[pa.Table]):
        self.name, self.signature = name, signature
        chunks = [chunk for table in tables for chunk in table.column(name).chunks]
        width = len(signature.levels) or signature.latent_size
        self.values = _flat(path, name, chunks, width)
        self.present = ~np.concatenate([np.zeros(0, bool), *(chunk.is_null().to_numpy(zero_copy_only=False) for chunk in chunks)])
        lengths = [chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks]
        self.offsets = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
        self.info = [text for table in tables for text in table.column(name + ".info").to_pylist()]
        self.truncated = [bool(flag) for table in tables for flag in table.column(name + ".truncated").to_pylist()]
        self._check(path)

    def _check(self, path: Path) -> None:
        if self.signature.levels and not _within(self.values, self.signature):
            raise BadInput(f"{path}: field {self.name!r} has codes outside its tokenizer's levels; the file is damaged")
        if self.signature.frames is not None:
            whole = self.present & ~np.array(self.truncated, bool)
            frames = self.signature.frames
            if (np.diff(self.offsets)[whole] != frames).any():
                raise BadInput(f"{path}: field {self.name!r} has segments that are not of {frames} frames; the file is damaged")

    def segment(self, i: int) -> Segment:
        """Row i as a segment. Raises KeyError when the row lacks the field."""
        if not self.present[i]:
            raise KeyError(f"row {i} has no field {self.name!r}")
        frames = self.values[self.offsets[i] : self.offsets[i + 1]]
        info = _info(self.info[i])
        if self.signature.latent_size:
            return Segment(self.signature.modality, latents=frames, info=info, truncated=self.truncated[i])
        return Segment(self.signature.modality, codes=frames.astype(np.int32), info=info, truncated=self.truncated[i])


def _flat(path: Path, name: str, chunks: list[pa.ListArray], width: int) -> np.ndarray:
    """(N, C) in the file's own narrow type: a segment widens its few frames, so that arithmetic on them cannot wrap."""
    parts = []
    for chunk in chunks:
        frames = chunk.flatten()
        numbers = frames.flatten() if pa.types.is_fixed_size_list(frames.type) else frames
        if frames.null_count or numbers.null_count:
            raise BadInput(f"{path}: field {name!r} has nulls among its frames; the file is damaged")
        parts.append(numbers.to_numpy())
    return (np.concatenate(parts) if parts else np.empty(0, np.int32)).reshape(-1, width)


@lru_cache(maxsize=4096)
def _info(text: str | None) -> Mapping:
    """JSON once per distinct text; rows that share it share the mapping, which nobody writes to."""
    return json.loads(text) if text else {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
