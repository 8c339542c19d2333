"""The tokenising of a source: its chunks become token files, by as many processes as pay.

They are one file (`write_file`), or a folder of parts (`PartSet`; see `mmtok.data.parts`).
What is written does not depend on the number of processes, to the last byte: a chunk is encoded by
itself and in one thread, chunks come in order, and what processes count is merged and said once.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from mmtok.data.encoder import Counts, Encoded, Encoder, Job
from mmtok.data.parts import (
    METADATA,
    Complete,
    chunks_per_part,
    key_of,
    part_metadata,
    part_path,
    stamp_of,
    standing_parts,
    write_mark,
)
from mmtok.data.token_writer import TokenWriter, token_writer
from mmtok.data.tokens import schema_of
from mmtok.io.files import remove_leftovers_of
from mmtok.io.progress import Progress
from mmtok.io.workers import Workers, n_workers
from mmtok.sources.base import CHUNK, Items, Listing, Made, Unusable

PAY_S = 10.0  # seconds of work that are worth the start of worker processes, some 3 s each


# ---- encoding


def encode_jobs(
    encoder: Encoder, jobs: Iterable[Job], n: int | None, workers: Workers | int | None = None
) -> Iterator[Encoded]:
    """The chunks of some jobs as rows, in order.

    Args:
        encoder: makes the rows.
        jobs: the chunks.
        n: about how many examples they have, where that is known.
        workers: processes of this encoder that share the work, or how many to start; by default
            one per core, once the first chunks have shown that the work is long.
    """
    jobs = iter(jobs)
    if isinstance(workers, Workers):
        yield from _encode_by(workers, encoder, jobs)
        return
    most = workers or n_workers()
    if workers is None or most == 1:
        spent_s = 0.0
        done = 0
        for job in jobs:
            began = time.perf_counter()
            encoded = encoder(job)
            spent_s += time.perf_counter() - began
            done += encoded.counts["rows"]
            yield encoded
            if most > 1 and _is_long(spent_s, done, n):
                break
        else:
            return
    with Workers(encoder, most) as pool:
        yield from _encode_by(pool, encoder, jobs)


def _encode_by(pool: Workers, encoder: Encoder, jobs: Iterator[Job]) -> Iterator[Encoded]:
    if pool.are_ready():
        yield from pool.map(jobs, _read_here)
    else:  # its classes cannot be imported elsewhere
        yield from map(encoder, jobs)


@contextmanager
def started(encoder: Encoder, n: int | None) -> Iterator[Workers | int | None]:
    """The worker processes that a user asks for, which get ready while files are looked at."""
    if n is None or n == 1:
        yield n
        return
    with Workers(encoder, n) as pool:
        yield pool


def _is_long(spent_s: float, done: int, n: int | None) -> bool:
    """Whether what is left is worth the start of processes, judged by what was done."""
    if n is None:
        return spent_s > PAY_S
    return spent_s / max(1, done) * (n - done) > PAY_S


def _read_here(job: Job) -> Job:
    """The same job with its examples read, for a chunk whose classes a worker cannot import."""
    return replace(job, chunk=Made(list(job.chunk.read())))


def jobs_of(listing: Listing, per_part: int) -> Iterator[Job]:
    """All chunks of a listing, without stamps; `per_part` of them make a part."""
    first = 0
    for i, chunk in enumerate(listing.chunks):
        is_last = (i + 1) % per_part == 0
        yield Job(i // per_part, first, chunk, is_last)
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


def _opened(path: Path, encoder: Encoder) -> AbstractContextManager[TokenWriter]:
    return token_writer(path, schema_of(encoder.signatures, encoder.of_files))


def _add(writer: TokenWriter, encoded: Encoded) -> None:
    """Write a chunk's rows."""
    for n_values, rows in encoded.rows:
        writer.add(n_values, rows)


def write_file(
    path: Path,
    listing: Listing,
    encoder: Encoder,
    progress: Progress,
    workers: Workers | int | None = None,
) -> Counts:
    """Write all examples of a listing as one token file, and report what was counted.

    Raises UserError for a signal that is refused, where too many examples cannot be read, and where
    too much was clipped; then there is no file.
    """
    counts = encoder.counts()
    with _opened(path, encoder) as writer:
        for encoded in encode_jobs(encoder, jobs_of(listing, 1), listing.n, workers):
            _meet(listing, encoded.counts)
            _add(writer, encoded)
            counts.merge(encoded.counts)
            progress.advance(encoded.counts["rows"])
        counts.refuse()
    listing.report(counts.n_rows)
    counts.report()
    return counts


class Monitor:
    """Follows what is counted while parts are made, so that too much of it stops the work early.

    Attributes:
        counts: of the parts so far.
        listing: what could not be read is met there; None: nowhere.
        progress: counts rows.
    """

    def __init__(self, counts: Counts, listing: Listing | None, progress: Progress) -> None:
        self.counts = counts
        self.listing = listing
        self.progress = progress

    def add_chunk(self, plain: dict[str, Any]) -> None:
        """Count a chunk. Raises UserError where too many examples could not be read."""
        if self.listing is not None:
            _meet(self.listing, plain)
        self.progress.advance(plain["rows"])

    def add_part(self, plain: dict[str, Any]) -> None:
        """Count a part. Raises UserError where too much was clipped."""
        self.counts.merge(plain)
        self.counts.refuse()


def write_part(
    path: Path, key: str, k: int, encoder: Encoder, chunks: Iterable[Encoded], monitor: Monitor
) -> dict[str, Any]:
    """Write part k of the set `key`, and return what was counted; it stands in the metadata too.

    Raises UserError as the encoder and the monitor do; then there is no file.
    """
    remove_leftovers_of([path])
    counts = encoder.counts()
    stamps = []
    with _opened(path, encoder) as writer:
        for encoded in chunks:
            stamps.append(encoded.job.stamp)
            monitor.add_chunk(encoded.counts)
            _add(writer, encoded)
            counts.merge(encoded.counts)
        plain = counts.as_plain()
        monitor.add_part(plain)
        about = {"key": key, "part": k, "stamp": key_of(stamps), "counts": plain}
        writer.metadata[METADATA.decode()] = json.dumps(about)
    return plain


def _ignore(part: int) -> None:
    pass  # with a docstring, the reference would list it beside the attribute


@dataclass
class PartSet:
    """A folder of parts to make.

    Attributes:
        folder: of the parts.
        listing: gives the examples; its chunks are gone through once.
        encoder: makes the rows.
        made_from: what decides over the rows, as JSON values: a set that was begun goes on only if
            it is the same.
        on_made: called with the number of every part that is made, or that was looked at and
            stands.
        n_parts: how many there are, known once all jobs were gone through.
    """

    folder: Path
    listing: Listing
    encoder: Encoder
    made_from: Any
    on_made: Callable[[int], None] = _ignore
    n_parts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.per_part = chunks_per_part(self.listing.n, CHUNK)
        signatures = {f: s.as_dict() for f, s in self.encoder.signatures.items()}
        self.key = key_of(self.made_from, signatures, self.per_part, self.listing.n)

    def write(
        self,
        progress: Progress,
        workers: Workers | int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Make the parts that do not stand; share (i, n): only every n-th from part i on.

        Raises UserError as `write_file` does; what was made by then stands.
        """
        n = None
        if self.listing.n is not None:
            n = self.listing.n // share[1]
        monitor = self.monitor(progress)
        encoded = encode_jobs(self.encoder, self.jobs(progress, share), n, workers)
        for k, chunks in _by_part(encoded):
            write_part(part_path(self.folder, k), self.key, k, self.encoder, chunks, monitor)
            self.on_made(k)
        self.end(monitor, share)

    def look(self) -> None:
        """Look at the parts that stand; see `on_made`."""
        last = max(standing_parts(self.folder, self.key), default=-1)
        for job in self.jobs(Progress("", quiet=True), (0, 1)):
            if job.part > last:
                return

    def begin(self, progress: Progress) -> None:
        """Make the first part alone. Raises UserError as `write` does.

        The listing is used up by that, as by all that goes through it.
        """
        jobs = takewhile(_is_of_first, self._all_jobs())
        encoded = encode_jobs(self.encoder, jobs, self.per_part * CHUNK)
        monitor = self.monitor(progress)
        write_part(part_path(self.folder, 0), self.key, 0, self.encoder, encoded, monitor)
        self.on_made(0)

    def jobs(self, progress: Progress, share: tuple[int, int]) -> Iterator[Job]:
        """The jobs of the parts to make; `n_parts` is known at their end."""
        index, count = share
        standing = standing_parts(self.folder, self.key)
        own = {k: about for k, about in standing.items() if k % count == index}
        progress.done = sum(about["counts"]["rows"] for about in own.values())
        held: list[Job] = []  # of a part that stands, to compare it once all of them were seen
        unknown = -1  # the part that has a chunk without files, so that it cannot be compared
        for job in self._all_jobs():
            self.n_parts = job.part + 1
            if held and held[0].part != job.part:
                yield from self._changed(held, own)
                held = []
            if job.part in own:
                if not job.stamp:
                    unknown = job.part
                    held = []
                elif job.part != unknown:
                    held.append(job)
                if job.is_last and job.part == unknown:
                    self.on_made(job.part)
            elif job.part % count == index:
                yield job
        if held:
            yield from self._changed(held, own)

    def _all_jobs(self) -> Iterator[Job]:
        for job in jobs_of(self.listing, self.per_part):
            yield replace(job, stamp=stamp_of(job.chunk))

    def _changed(self, jobs: list[Job], standing: Mapping[int, Mapping]) -> list[Job]:
        """The jobs of a part that stands; none where its files are those that it was made from."""
        k = jobs[0].part
        if standing[k]["stamp"] == key_of([job.stamp for job in jobs]):
            self.on_made(k)
            return []
        warnings.warn(
            f"{part_path(self.folder, k)} is made anew: files that it was made from have changed",
            stacklevel=2,
        )
        return jobs

    def monitor(self, progress: Progress) -> Monitor:
        """Follows a share of the parts; what is too much only of all shows in `finish`."""
        faults = copy.deepcopy(self.listing.faults)
        return Monitor(self.encoder.counts(), Listing((), faults), progress)

    def end(self, monitor: Monitor, share: tuple[int, int]) -> None:
        """Write an empty part where there is no example at all, so that the files say so."""
        path = part_path(self.folder, 0)
        if not self.n_parts:
            self.n_parts = 1
            if share[0] == 0 and not path.exists():
                write_part(path, self.key, 0, self.encoder, (), monitor)

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
        self.listing.report(counts.n_rows)
        counts.report()
        return counts


def _is_of_first(job: Job) -> bool:
    return job.part == 0


def _by_part(encoded: Iterator[Encoded]) -> Iterator[tuple[int, Iterator[Encoded]]]:
    """(part, its chunks), in order; a part ends with its last chunk, whatever comes of the next."""
    for first in encoded:
        yield first.job.part, _to_last(first, encoded)


def _to_last(first: Encoded, others: Iterator[Encoded]) -> Iterator[Encoded]:
    yield first
    if first.job.is_last:
        return
    for encoded in others:
        yield encoded
        if encoded.job.is_last:
            return
