"""The tokenising of a source: its chunks become token files, by one process for each core.

They are one file (`write_file`), or a folder of parts (`PartSet`; see `mmtok.data.parts`).
What is written does not depend on the number of processes, to the last byte: a chunk is encoded by
itself and in one thread, chunks come in order, and what processes count is merged and said once.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmtok.data.encoder import Counts, Encoded, Encoder, Job
from mmtok.data.parts import (
    METADATA,
    Complete,
    chunks_per_part,
    key_of,
    part_metadata,
    part_path,
    standing_parts,
    write_mark,
)
from mmtok.data.tokens import MOST_VALUES, schema_of
from mmtok.io.files import atomic_write, remove_leftovers_of
from mmtok.io.progress import Progress
from mmtok.io.workers import Workers, n_workers
from mmtok.sources.base import CHUNK, Items, Listing, Made, Unusable

ROW_GROUP = 4096  # rows that are written at once
PAY_S = 10.0  # seconds of work that are worth the start of worker processes, some 3 s each


# ---- encoding


def encode_jobs(
    encoder: Encoder, jobs: Iterable[Job], n_jobs: int | None, workers: int | None = None
) -> Iterator[Encoded]:
    """The chunks of some jobs as rows, in order.

    Args:
        encoder: makes the rows.
        jobs: the chunks.
        n_jobs: about how many there are, where that is known.
        workers: how many processes share the work, started at once; by default one per core, once
            the first chunks have shown that the work is long.
    """
    jobs = iter(jobs)
    n = workers or n_workers()
    if workers is None or n == 1:
        spent_s = 0.0
        for done, job in enumerate(jobs, 1):
            began = time.perf_counter()
            encoded = encoder(job)
            spent_s += time.perf_counter() - began
            yield encoded
            if n > 1 and _is_long(spent_s, done, n_jobs):
                break
        else:
            return
    with Workers(encoder, n) as pool:
        if pool.load():
            yield from pool.map(jobs, _read_here)
            return
    yield from map(encoder, jobs)  # its classes cannot be imported elsewhere


def _is_long(spent_s: float, done: int, n_jobs: int | None) -> bool:
    """Whether what is left is worth the start of processes, judged by what was done."""
    if n_jobs is None:
        return spent_s > PAY_S
    return spent_s / done * (n_jobs - done) > PAY_S


def _read_here(job: Job) -> Job:
    """The same job with its examples read, for a chunk whose classes a worker cannot import."""
    return Job(job.part, job.first, Made(list(job.chunk.read())))


def jobs_of(listing: Listing, per_part: int) -> Iterator[Job]:
    """All chunks of a listing; `per_part` of them make a part."""
    first = 0
    for i, chunk in enumerate(listing.chunks):
        yield Job(i // per_part, first, chunk)
        if isinstance(chunk, Made):
            first += len(chunk.made)
        elif isinstance(chunk, Items):
            first += len(chunk.items)
        else:
            first += CHUNK


def _meet(listing: Listing, plain: dict[str, Any]) -> None:
    """Count what a chunk or part could not read. Raises UserError where that is too much."""
    found = (Unusable(*unusable) for unusable in plain["unusable"])
    for _ in listing.usable(found):
        pass


# ---- writing


class _Rows:
    """Writes tables to an open file in groups of rows that depend on the rows alone."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self.writer = writer
        self._group: list[pa.Table] = []
        self._n_rows = 0
        self._n_values = 0

    def add(self, encoded: Encoded) -> None:
        """Add a chunk's rows."""
        for n_values, table in encoded.tables:
            if self._n_values + n_values > MOST_VALUES:
                self.flush()
            self._group.append(table)
            self._n_rows += len(table)
            self._n_values += n_values
            if self._n_rows >= ROW_GROUP:
                self.flush()

    def flush(self) -> None:
        """Write what is left."""
        if self._n_rows:
            self.writer.write_table(pa.concat_tables(self._group))
        self._group = []
        self._n_rows = 0
        self._n_values = 0


@contextmanager
def _opened(path: Path, encoder: Encoder) -> Iterator[_Rows]:
    """A token file to write rows to; it appears when the block is left without an error."""
    schema = schema_of(encoder.signatures, encoder.of_files)
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        rows = _Rows(writer)
        yield rows
        rows.flush()


def write_file(
    path: Path,
    listing: Listing,
    encoder: Encoder,
    progress: Progress,
    workers: int | None = None,
) -> Counts:
    """Write all examples of a listing as one token file, and report what was counted.

    Raises UserError for a signal that is refused, where too many examples cannot be read, and where
    too much was clipped; then there is no file.
    """
    counts = encoder.counts()
    n_jobs = None if listing.n is None else -(-listing.n // CHUNK)
    with _opened(path, encoder) as rows:
        for encoded in encode_jobs(encoder, jobs_of(listing, 1), n_jobs, workers):
            _meet(listing, encoded.counts)
            rows.add(encoded)
            counts.merge(encoded.counts)
            progress.advance(encoded.counts["rows"])
        counts.refuse()
    listing.report()
    counts.report()
    return counts


@dataclass
class PartSet:
    """A folder of parts to make.

    Attributes:
        folder: of the parts.
        listing: gives the examples; its chunks are gone through once.
        encoder: makes the rows.
        made_from: what decides over the rows, as JSON values: a set that was begun goes on only if
            it is the same.
    """

    folder: Path
    listing: Listing
    encoder: Encoder
    made_from: Any
    n_parts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.per_part = chunks_per_part(self.listing.n, CHUNK)
        signatures = {f: s.as_dict() for f, s in self.encoder.signatures.items()}
        self.key = key_of(self.made_from, signatures, self.per_part, self.listing.n)

    def write(
        self, progress: Progress, workers: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        """Make the parts that do not stand; share (i, n): only every n-th from part i on.

        Raises UserError as `write_file` does; what was made by then stands.
        """
        standing = standing_parts(self.folder, self.key)
        progress.done = sum(n for k, n in standing.items() if k % share[1] == share[0])
        n_jobs = None
        if self.listing.n is not None:
            n_jobs = max(1, -(-self.listing.n // CHUNK) // share[1])
        counts = self.encoder.counts()
        faults = copy.deepcopy(self.listing.faults)  # those of all shares count at the end
        own = Listing((), faults)
        jobs = self._jobs(standing, share, progress)
        encoded = encode_jobs(self.encoder, jobs, n_jobs, workers)
        for k, chunks in groupby(encoded, key=_part_of):
            self._write_part(k, chunks, counts, own, progress)
        if not self.n_parts:
            self.n_parts = 1  # an empty part says so
            if share[0] == 0 and 0 not in standing:
                self._write_part(0, (), counts, own, progress)

    def _jobs(
        self, standing: Collection[int], share: tuple[int, int], progress: Progress
    ) -> Iterator[Job]:
        """The jobs of the parts to make; on the way all parts are counted."""
        index, count = share
        for job in jobs_of(self.listing, self.per_part):
            self.n_parts = job.part + 1
            if job.part % count == index and job.part not in standing:
                yield job

    def _write_part(
        self,
        k: int,
        chunks: Iterable[Encoded],
        counts: Counts,
        own: Listing,
        progress: Progress,
    ) -> None:
        path = part_path(self.folder, k)
        remove_leftovers_of([path])
        of_part = self.encoder.counts()
        with _opened(path, self.encoder) as rows:
            for encoded in chunks:
                _meet(own, encoded.counts)
                rows.add(encoded)
                of_part.merge(encoded.counts)
                progress.advance(encoded.counts["rows"])
            plain = of_part.as_plain()
            counts.merge(plain)
            counts.refuse()
            about = {"key": self.key, "part": k, "counts": plain}
            rows.writer.add_key_value_metadata({METADATA: json.dumps(about)})

    def finish(self, reported: set[tuple[str, str]] | None = None) -> Counts | None:
        """Mark the set as complete, and report what was counted in all parts; None: parts miss.

        reported: what was reported before, see `Tally`.

        Raises UserError where too many examples could not be read, or too much was clipped.
        """
        counts = self.encoder.counts(reported)
        for k in range(self.n_parts):
            path = part_path(self.folder, k)
            about = part_metadata(path) if path.exists() else None
            if about is None:
                return None
            _meet(self.listing, about["counts"])
            counts.merge(about["counts"])
        counts.refuse()
        write_mark(self.folder, Complete(self.key, self.n_parts, counts.n_rows))
        self.listing.report()
        counts.report()
        return counts


def _part_of(encoded: Encoded) -> int:
    return encoded.part
