"""Token files: tokenised signals as Parquet, one format for one file and for a billion.

A row is an example, a field is a signal of it (`caption`, `image`). The columns of a field F:

    F            the frames: list<int32> (one channel), list<fixed_size_list<uint8 or uint16>[C]>
                 (channels), list<fixed_size_list<float>[D]> (latents); null where the row lacks the
                 field
    F.info       string, JSON: what decoding needs beyond the frames
    F.truncated  bool: the frames were cut off at a cap
    F.tokenizer  string: the fingerprint of the tokenizer that made them; the authority
    F.predict    list<bool>: which frames carry loss where a task predicts the field (of a chat the
                 assistant's turns); null: all. A column that may be missing
    F.file       string: the file that the signal was read from; a column that may be missing

The schema's metadata holds each field's signature as JSON under `mmtok`. Any reader of Parquet
reads these files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtok.core.interleaved import INTERLEAVED, part_field, split_segments
from mmtok.core.segment import Segment, Signature
from mmtok.data.mapped import (
    Column,
    Part,
    number_of,
    read_columns,
    sound,
    width_of,
    within,
)
from mmtok.data.parts import check_whole, part_path, token_paths
from mmtok.data.token_writer import MOST_VALUES, ROW_GROUP, token_writer
from mmtok.errors import UserError
from mmtok.io.messages import listed, shown
from mmtok.io.serialize import Within, check_known, from_plain
from mmtok.io.strict_json import parse_json

FORMAT = 1
# the info of this package's own tokenizers; others may have more
INFO = {
    "n_samples": Annotated[int, Within(0)],
    "rate_hz": Annotated[int, Within(1)],
    "height": Annotated[int, Within(1)],
    "width": Annotated[int, Within(1)],
    "channels": Annotated[int, Within(1)],
}
COLUMNS = ("", ".info", ".truncated", ".tokenizer")
FILE = ".file"
PREDICT = ".predict"

T = TypeVar("T")


def frame_type(signature: Signature) -> pa.DataType:
    """The Arrow type of one frame."""
    if signature.one_channel:
        return pa.int32()
    if signature.latent_size:
        return pa.list_(pa.float32(), signature.latent_size)
    return pa.list_(pa.from_numpy_dtype(number_of(signature)), len(signature.levels))


def schema_of(signatures: Mapping[str, Signature], named: bool = False) -> pa.Schema:
    """The columns of a token file, and its metadata.

    named: with the files that signals were read from.
    """
    columns = []
    for name, signature in signatures.items():
        types = (
            pa.list_(frame_type(signature)),
            pa.string(),
            pa.bool_(),
            pa.dictionary(pa.int32(), pa.string()),
        )
        columns += [
            pa.field(name + suffix, kind) for suffix, kind in zip(COLUMNS, types, strict=True)
        ]
        columns.append(pa.field(name + PREDICT, pa.list_(pa.bool_())))
        if named:
            columns.append(pa.field(name + FILE, pa.string()))
    about = {
        "format": FORMAT,
        "fields": {name: signature.as_dict() for name, signature in signatures.items()},
    }
    return pa.schema(columns, metadata={"mmtok": json.dumps(about)})


# ---- writing


def write_tokens(
    path: Path,
    signatures: Mapping[str, Signature],
    rows: Iterable[Mapping[str, Segment]] | Iterable[tuple[str, Mapping[str, Segment]]],
    row_group: int = ROW_GROUP,
    named: bool = False,
) -> int:
    """Write rows (field -> segment; a field may be missing) atomically; returns how many.

    Args:
        path: The file to write.
        signatures: Field -> the signature of its tokenizer.
        rows: Field -> segment, for each row.
        row_group: At most so many rows are written at a time, fewer where they are long.
        named: Each row comes with the name of the file that it was read from, which is written too.

    Raises:
        ValueError: A segment does not fit its field's signature. That is a mistake of the
            tokenizer, not of the user.
    """
    schema = schema_of(signatures, named)
    n_rows = 0
    with token_writer(Path(path), schema) as writer:
        for group in groups(_named(rows, named), row_group, lambda row: size_of_row(row[1])):
            files = [file for file, _ in group] if named else None
            writer.add(0, table_of([row for _, row in group], signatures, schema, files))
            writer.flush()
            n_rows += len(group)
    return n_rows


def _named(rows: Iterable[Any], named: bool) -> Iterator[tuple[str, Mapping[str, Segment]]]:
    """(file, row) of every row; "" where rows come without their files."""
    for row in rows:
        yield row if named else ("", row)


def groups(items: Iterable[T], most: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in order, in groups of at most `most`, fewer where their sizes exceed MOST_VALUES."""
    group: list[T] = []
    total = 0
    for item in items:
        own = size(item)
        if group and (len(group) == most or total + own > MOST_VALUES):
            yield group
            group = []
            total = 0
        group.append(item)
        total += own
    if group:
        yield group


def size_of_row(row: Mapping[str, Segment]) -> int:
    """How many numbers a row has."""
    return sum(segment.values.size for segment in row.values())


def table_of(
    rows: Sequence[Mapping[str, Segment]],
    signatures: Mapping[str, Signature],
    schema: pa.Schema,
    files: Sequence[str] | None,
) -> pa.Table:
    """Rows as a table of a token file.

    files: that the rows were read from, where the schema has them.

    Raises ValueError for a segment that does not fit its field's signature.
    """
    unknown = {name for row in rows for name in row} - set(signatures)
    if unknown:
        raise ValueError(
            f"rows have the field(s) {sorted(unknown)}, but signatures are given for"
            f" {sorted(signatures)}"
        )
    arrays = []
    for name, signature in signatures.items():
        segments = [row.get(name) for row in rows]
        missing = np.array([s is None for s in segments], bool)
        infos = [s if s is None else json.dumps(dict(s.info), default=_plain) for s in segments]
        truncated = [s if s is None else bool(s.truncated) for s in segments]
        makers = np.full(len(segments), signature.fingerprint, object)
        arrays += [
            _frames_column(name, segments, signature),
            pa.array(infos, pa.string()),
            pa.array(truncated, pa.bool_()),
            pa.array(makers, pa.string(), mask=missing).dictionary_encode(),
            pa.array([_mask(s) for s in segments], pa.list_(pa.bool_())),
        ]
        if files is not None:
            arrays.append(pa.array(np.array(files, object), pa.string(), mask=missing))
    return pa.Table.from_arrays(arrays, schema=schema)


def _frames_column(name: str, segments: list[Segment | None], signature: Signature) -> pa.ListArray:
    kind = frame_type(signature)
    width = width_of(signature)
    number = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    values = np.concatenate(
        [np.empty((0, width), np.uint8)]
        + [_checked(name, s, signature, width) for s in segments if s is not None]
    )
    frames = pa.array(np.ascontiguousarray(values, dtype=number.to_pandas_dtype()).reshape(-1))
    if pa.types.is_fixed_size_list(kind):
        frames = pa.FixedSizeListArray.from_arrays(frames, width)
    offsets = np.cumsum([0] + [0 if s is None else len(s) for s in segments])
    missing = pa.array([s is None for s in segments], pa.bool_())
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), frames, type=pa.list_(kind), mask=missing
    )


def _mask(segment: Segment | None) -> np.ndarray | None:
    """Which frames of a segment carry loss; None: all."""
    return None if segment is None else segment.predict


def _checked(name: str, segment: Segment, signature: Signature, width: int) -> np.ndarray:
    values = segment.latents if signature.latent_size else segment.codes
    if segment.modality != signature.modality or values is None or values.shape[1] != width:
        raise ValueError(
            f"field {name!r}: a {segment.modality} segment of shape {segment.values.shape} does not"
            f" fit {signature}"
        )
    if segment.infill_spans:
        raise ValueError(
            f"field {name!r}: spans to infill are chosen in training and are not stored"
        )
    if signature.levels and not within(values, signature):
        raise ValueError(f"field {name!r}: codes outside the levels of {signature.modality}")
    return values


def _plain(value: Any) -> Any:
    """A numpy scalar as JSON's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"info holds a {type(value).__name__}; only scalars can be stored")


# ---- reading


def is_tokens(path: Path) -> bool:
    """Whether the metadata of a file are those of a token file; it may be damaged otherwise."""
    if not path.is_file():
        return False
    try:
        with sound(path), pq.ParquetFile(path) as file:
            return b"mmtok" in (file.schema_arrow.metadata or {})
    except UserError:
        return False


def read_tokens(
    path: Path,
    expect: Mapping[str, Signature] | None = None,
    map_from: int | None = None,
    n_parts: int | None = None,
) -> TokenFile:
    """Open a token file, or a folder of them (its *.parquet files in order of name).

    A folder that is made part by part (`mmtok.data.parts`) is read once it is complete.

    expect: field -> signature of the tokenizer that the caller will use; only these fields are
    read, and a file made by another tokenizer is refused. Without it, all fields of the file are
    read.
    map_from: fields that take so many bytes or more are read through a map of a copy beside the
    file, which is written where there is none (`mmtok.data.mapped`); without it they are read into
    memory.
    n_parts: read the first parts alone, of a folder that need not be complete.

    Raises UserError for whatever is not a sound token file.
    """
    path = Path(path)
    if n_parts is None:
        paths = token_paths(path) if path.is_dir() else [path]
    else:
        paths = [part_path(path, k) for k in range(n_parts)]
    if not paths:
        raise UserError(f"{path}: no token files (*.parquet) in this folder")
    found, parts, metadata = zip(*(_look_at(p, expect) for p in paths), strict=True)
    if path.is_dir() and n_parts is None:
        check_whole(path, paths, metadata)
    for p, signatures in zip(paths, found, strict=True):
        if signatures != found[0]:
            raise UserError(
                f"{p}: its fields or tokenizers differ from those of {paths[0]}; keep them in"
                " separate folders"
            )
    signatures = dict(expect) if expect is not None else found[0]
    columns = read_columns(path, parts, signatures, map_from)
    return TokenFile(
        path, signatures, sum(part.n_rows for part in parts), columns, [part.path for part in parts]
    )


def _look_at(
    path: Path, expect: Mapping[str, Signature] | None
) -> tuple[dict[str, Signature], Part, Mapping[bytes, bytes]]:
    """The signatures and sizes in a Parquet file's metadata, and these; no row is read."""
    if not path.is_file():
        raise UserError(f"{path}: no such token file")
    with sound(path), pq.ParquetFile(path) as file:
        types = {column.name: column.type for column in file.schema_arrow}
        about = file.metadata
        metadata = file.schema_arrow.metadata or {}
    found = _signatures(path, metadata)
    wanted = found if expect is None else expect
    for name, signature in wanted.items():
        if name not in found:
            raise UserError(
                f"{path}: has no field {name!r}; its fields are {listed(list(found)) or 'none'}"
            )
        _check_columns(path, name, signature, types)
    with sound(path):
        n_bytes = _frame_bytes(about, wanted)
        masked = tuple(name for name in wanted if _has_values(about, name + PREDICT))
    status = path.stat()
    part = Part(path, status.st_size, status.st_mtime_ns, about.num_rows, n_bytes, masked)
    return {name: found[name] for name in wanted}, part, about.metadata or {}


def _signatures(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Signature]:
    if b"mmtok" not in metadata:
        raise UserError(
            f"{path}: a Parquet file, but not one of tokens (no mmtok metadata); make one with"
            " mmtok tokenize"
        )
    about = parse_json(metadata[b"mmtok"], f"{path}: its mmtok metadata")
    check_known(about, {"format": int}, f"{path}: its mmtok metadata", ("format", "fields"))
    if about["format"] != FORMAT:
        raise UserError(
            f"{path}: token file format {about['format']}, this mmtok reads format {FORMAT};"
            " tokenise again"
        )
    try:
        return from_plain(about["fields"], dict[str, Signature], "fields")
    except UserError as error:
        raise UserError(f"{path}: its mmtok metadata: {error}") from None


def _check_columns(
    path: Path, name: str, signature: Signature, types: Mapping[str, pa.DataType]
) -> None:
    """Raise UserError for a field whose columns are missing or of other types.

    The tokenizer that made its rows is checked when they are read.
    """
    for suffix, kind in zip((*COLUMNS, PREDICT), schema_of({name: signature}).types, strict=True):
        if name + suffix not in types:
            if suffix == PREDICT:
                continue
            raise UserError(f"{path}: the column {name + suffix!r} is missing")
        if types[name + suffix] != kind:
            raise UserError(
                f"{path}: the column {name + suffix!r} holds {types[name + suffix]}, expected"
                f" {kind}"
            )


def _frame_bytes(about: pq.FileMetaData, signatures: Mapping[str, Signature]) -> int:
    """The bytes of all frames in the narrowest types; an empty segment counts as one number."""
    size = {
        f"{name}.list.": np.dtype(number_of(signature)).itemsize
        for name, signature in signatures.items()
    }
    columns = (
        about.row_group(g).column(c)
        for g in range(about.num_row_groups)
        for c in range(about.num_columns)
    )
    return sum(
        column.num_values * size[prefix]
        for column in columns
        for prefix in size
        if column.path_in_schema.startswith(prefix)
    )


def _has_values(about: pq.FileMetaData, column: str) -> bool:
    """Whether a column of lists is there and has a value, as far as the file's statistics tell."""
    for g in range(about.num_row_groups):
        for c in range(about.num_columns):
            chunk = about.row_group(g).column(c)
            if chunk.path_in_schema.startswith(f"{column}.list."):
                counts = chunk.statistics
                if counts is None or counts.null_count is None or counts.num_values:
                    return True
    return False


class TokenFile:
    """A token file as flat arrays and offsets per field, so that rows come out fast.

    Attributes:
        fields: their names.
        signatures: field -> Signature.
    """

    def __init__(
        self,
        path: Path,
        signatures: Mapping[str, Signature],
        n: int,
        columns: Mapping[str, Column],
        parts: Sequence[Path] = (),
    ) -> None:
        self.path = path
        self.parts = tuple(parts)
        self.signatures = dict(signatures)
        self.fields = tuple(self.signatures)
        self._n = n
        self._columns = columns

    def __len__(self) -> int:
        return self._n

    def has(self, field: str) -> np.ndarray:
        """(n,) bool: which rows have this field."""
        return self._columns[field].present

    def lengths(self, field: str) -> np.ndarray:
        """(n,) frames of this field in every row; 0 where it is missing."""
        return np.diff(self._columns[field].offsets)

    def truncated(self, field: str) -> np.ndarray:
        """(n,) bool: which rows of this field were cut off at a cap."""
        column = self._columns[field]
        return column.truncated & column.present

    def n_truncated(self, field: str) -> int:
        """How many rows of this field were cut off at a cap."""
        return int(self.truncated(field).sum())

    def infos(self, field: str) -> list[tuple[Mapping, int]]:
        """The info of this field's rows, and how many rows have it; equal ones may come twice."""
        column = self._columns[field]
        rows = np.flatnonzero(column.present)
        places = np.stack([column.starts[rows], column.sizes[rows]], 1)
        _, first, n = np.unique(places, axis=0, return_index=True, return_counts=True)
        return [
            (_info(column.info(i)), k)
            for i, k in zip(rows[first].tolist(), n.tolist(), strict=True)
        ]

    def segment(self, field: str, i: int) -> Segment:
        """Row i's segment of a field, a copy. Raises KeyError where the row lacks it."""
        if not -self._n <= i < self._n:
            raise IndexError(f"row {i} of {self._n}")
        i %= self._n
        column = self._columns[field]
        signature = self.signatures[field]
        if not column.present[i]:
            raise KeyError(f"row {i} has no field {field!r}")
        frames = column.values[column.offsets[i] : column.offsets[i + 1]]
        try:
            info = _info(column.info(i))
        except UserError as error:
            raise UserError(f"{self.path}: field {field!r}, row {i}: {error}") from None
        more: dict[str, Any] = {
            "info": info,
            "truncated": bool(column.truncated[i]),
            "predict": column.mask(i),
        }
        if signature.latent_size:
            return Segment(signature.modality, latents=frames.astype(np.float32), **more)
        codes = frames.astype(np.int32)  # a wide type, so that arithmetic on codes cannot wrap
        return Segment(signature.modality, codes=codes, **more)

    def modalities_of(self, field: str) -> list[str]:
        """The modalities of an interleaved field by their numbers; [] of any other."""
        if self.signatures[field].modality != INTERLEAVED:
            return []
        start = part_field(field, "")
        return [name.removeprefix(start) for name in self.fields if name.startswith(start)]

    def n_segments(self, field: str) -> np.ndarray:
        """(n,) segments of this field in every row: 1, but of an interleaved one any number."""
        if self.signatures[field].modality == INTERLEAVED:
            return self.lengths(field)
        return np.ones(self._n, np.int64)

    def n_frames(self, field: str) -> np.ndarray:
        """(n,) frames of all segments of this field in every row."""
        modalities = self.modalities_of(field)
        if not modalities:
            return self.lengths(field)
        return np.sum([self.lengths(part_field(field, m)) for m in modalities], 0)

    def segments(self, field: str, i: int) -> list[tuple[Segment, bool]]:
        """The segments of row i's field, in order, and whether each is predicted.

        It is one and predicted, but of an interleaved field any number.
        """
        modalities = self.modalities_of(field)
        if not modalities:
            return [(self.segment(field, i), True)]
        joined = {
            m: self.segment(part_field(field, m), i)
            for m in modalities
            if self._columns[part_field(field, m)].present[i]
        }
        name = f"{self.path}: field {field!r}, row {i}"
        return split_segments(self.segment(field, i), joined, modalities, name)

    def files(self, field: str) -> list[str | None]:
        """The file that each row's signal of a field was read from; None where it is unknown.

        Names are not checked: they may be anything.

        Raises UserError for a damaged file.
        """
        found: list[str | None] = []
        for part in self.parts:
            with sound(part), pq.ParquetFile(part, page_checksum_verification=True) as file:
                schema = file.schema_arrow
                if field + FILE in schema.names and schema.field(field + FILE).type == pa.string():
                    found += file.read([field + FILE]).column(field + FILE).to_pylist()
                else:
                    found += [None] * file.metadata.num_rows
        return found

    def row(self, i: int) -> dict[str, Segment]:
        """Row i: the fields that it has."""
        return {
            name: self.segment(name, i) for name in self.fields if self._columns[name].present[i]
        }


@lru_cache(maxsize=4096)
def _info(text: bytes) -> Mapping:
    """The info in a JSON text, parsed once: rows with the same text share the mapping.

    Raises UserError for what is no info.
    """
    found = {}
    if text:
        found = parse_json(text, "info")
    check_known(found, INFO, "info")
    for name, value in found.items():
        if isinstance(value, (dict, list)):
            raise UserError(f"info.{name} must be a single value, got {shown(value)}")
    return found
