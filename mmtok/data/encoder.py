"""From examples to rows of tokens: a chunk is read, prepared and encoded, wherever that is done.

An `Encoder` and its results can be pickled, so worker processes use it just as this one does.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mmtok.core.segment import Segment, Signature
from mmtok.data.interleaved import Interleaver
from mmtok.data.preparation import Preparer
from mmtok.data.token_writer import encoded_rows
from mmtok.data.tokens import groups, schema_of, size_of_row, table_of
from mmtok.io.tally import Tally
from mmtok.sources.base import CHUNK, Chunk, Interleaved, Made, Unusable
from mmtok.tokenizers.base import EncodingCount, Tokenizer, encode_named

NO_CHUNK = Made(())
REMARKS = "remarks"  # among a count's tallies: what is said of segments


class Counts:
    """What is counted while examples are encoded; those of several processes can be merged.

    Attributes:
        n_rows, n_frames: of the rows that were made.
        tallies: field -> what its preparation did; and REMARKS.
        clipped: modality -> what its tokenizer clipped or cut.
        unusable: examples that could not be read.
        notes: other warnings, each once.
    """

    def __init__(
        self, tallies: Mapping[str, Tally], clipped: Mapping[str, EncodingCount | None]
    ) -> None:
        self.n_rows = 0
        self.n_frames = 0
        self.tallies = tallies
        self.clipped = {m: count for m, count in clipped.items() if count is not None}
        self.unusable: list[Unusable] = []
        self.notes: dict[str, None] = {}

    def as_plain(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            "rows": self.n_rows,
            "frames": self.n_frames,
            "tallies": {name: tally.as_plain() for name, tally in self.tallies.items()},
            "clipped": {m: count.as_plain() for m, count in self.clipped.items()},
            "unusable": [[unusable.name, unusable.error] for unusable in self.unusable],
            "notes": list(self.notes),
        }

    def merge(self, plain: Mapping[str, Any]) -> None:
        """Add counts that `as_plain` gave, of examples that come after these."""
        self.n_rows += plain["rows"]
        self.n_frames += plain["frames"]
        for name, tally in plain["tallies"].items():
            self.tallies[name].merge(tally)
        for m, count in plain["clipped"].items():
            self.clipped[m].merge_plain(count)
        self.unusable += [Unusable(*unusable) for unusable in plain["unusable"]]
        self.notes.update(dict.fromkeys(plain["notes"]))

    def refuse(self) -> None:
        """Raise UserError where too much was clipped."""
        for count in self.clipped.values():
            count.refuse()

    def report(self) -> None:
        """Say all of it, once. Raises UserError where too much was clipped."""
        for note in self.notes:
            warnings.warn(note, stacklevel=2)
        for count in self.clipped.values():
            count.report()
        for tally in self.tallies.values():
            tally.report()


@dataclass(frozen=True)
class Job:
    """A chunk to encode.

    Attributes:
        part: that it belongs to.
        first: the number of its first example.
        chunk: is read.
        is_last: whether it ends a full part; False of the last chunk of a listing that ends within
            one.
        stamp: changes where the files of the chunk change; "" where that is not known.
    """

    part: int
    first: int
    chunk: Chunk
    is_last: bool = False
    stamp: str = ""


@dataclass(frozen=True)
class Encoded:
    """A chunk as rows of tokens.

    Attributes:
        job: what it was made from, without the chunk.
        rows: (how many numbers they hold, some rows as a table or an encoded group).
        counts: of the chunk, as `Counts.as_plain` gives them.
    """

    job: Job
    rows: list[tuple[int, pa.Table | pa.Buffer]]
    counts: dict[str, Any]


@dataclass(frozen=True)
class Encoder:
    """Makes rows of tokens.

    Attributes:
        tokenizers: field -> tokenizer; other fields of the examples are left out.
        preparers: field -> what makes its signals ready.
        of: which examples these are, in reports.
        of_files: an example is one file: rows bear its name (`example.file`), messages only that.
        remark: what is said of a segment, or ""; counted as of `remark_unit`.
    """

    tokenizers: Mapping[str, Tokenizer | Interleaver]
    preparers: Mapping[str, Preparer]
    of: str = ""
    of_files: bool = False
    remark: Callable[[Segment], str] | None = None
    remark_unit: str = "files"

    @property
    def signatures(self) -> dict[str, Signature]:
        """Field -> signature."""
        found: dict[str, Signature] = {}
        for f, tokenizer in self.tokenizers.items():
            if isinstance(tokenizer, Interleaver):
                found |= tokenizer.signatures(f)
            else:
                found[f] = tokenizer.signature
        return found

    def get_ready(self) -> None:
        """Do what the first chunk would wait for: at its first list, pyarrow imports pandas."""
        pa.array([0])

    def counts(self, reported: set[tuple[str, str]] | None = None) -> Counts:
        """Nothing counted yet; what is in `reported` will not be reported again."""
        with ExitStack() as stack:
            return self._counts(stack, reported)

    def _counts(self, stack: ExitStack, reported: set[tuple[str, str]] | None = None) -> Counts:
        """Counts that the tokenizers fill until the stack is closed."""
        tallies = {
            f: Tally(f"{self.of} {preparer.unit}".strip(), reported)
            for f, preparer in self.preparers.items()
        }
        if self.remark is not None:
            tallies[REMARKS] = Tally(self.remark_unit, reported)
        clipped = {}
        for tokenizer in self._each_tokenizer():
            m = tokenizer.signature.modality
            if m not in clipped:
                quiet = _can_merge(tokenizer)
                clipped[m] = stack.enter_context(tokenizer.counting(quiet))
        return Counts(tallies, clipped)

    def _each_tokenizer(self) -> Iterator[Tokenizer]:
        """The tokenizers, also those of the parts of interleaved documents."""
        for tokenizer in self.tokenizers.values():
            if isinstance(tokenizer, Interleaver):
                yield from tokenizer.tokenizers.values()
            else:
                yield tokenizer

    def __call__(self, job: Job) -> Encoded:
        """Read, prepare and encode a chunk.

        Raises UserError, naming field and origin, for a signal that is refused.
        """
        with one_thread(), warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            with ExitStack() as stack:
                counts = self._counts(stack)
                encoded = [self._encoded(*group) for group in self._rows(job, counts)]
        counts.notes = dict.fromkeys(str(warning.message) for warning in noted)
        return Encoded(replace(job, chunk=NO_CHUNK), encoded, counts.as_plain())

    def prepared(self, job: Job, counts: Counts) -> Iterator[tuple[str, dict[str, Any]]]:
        """(origin, example) of a chunk, with signals ready for their tokenizers."""
        for i, example in enumerate(job.chunk.read()):
            if isinstance(example, Unusable):
                counts.unusable.append(example)
                continue
            origin = getattr(example, "name", f"example {job.first + i}")
            ready = copy(example)
            for f in example:
                if f in self.preparers:
                    label = self._label(f, origin)
                    ready[f] = self.preparers[f](example[f], label, counts.tallies[f])
            yield origin, ready

    def _rows(
        self, job: Job, counts: Counts
    ) -> Iterator[tuple[list[dict[str, Segment]], list[str]]]:
        """Some rows and the names of their files, as many as may be in memory at once."""
        for group in groups(self.prepared(job, counts), CHUNK, size_of_example):
            rows: list[dict[str, Segment]] = [{} for _ in group]
            for f, tokenizer in self.tokenizers.items():
                having = [i for i, (_, example) in enumerate(group) if f in example]
                named = [(self._label(f, group[i][0]), group[i][1][f]) for i in having]
                if isinstance(tokenizer, Interleaver):
                    for i, row in zip(having, tokenizer.rows(f, named), strict=True):
                        rows[i] |= row
                        counts.n_frames += sum(len(s) for g, s in row.items() if g != f)
                    continue
                segments = encode_named(tokenizer, named)
                for i, segment in zip(having, segments, strict=True):
                    rows[i][f] = segment
                    counts.n_frames += len(segment)
                    self._remark(segment, group[i][0], counts)
            counts.n_rows += len(rows)
            yield rows, [getattr(example, "file", "") for _, example in group]

    def _label(self, f: str, origin: str) -> str:
        if self.of_files:
            return origin
        return f"{f} of {origin}"

    def _remark(self, segment: Segment, origin: str, counts: Counts) -> None:
        if self.remark is None:
            return
        tally = counts.tallies[REMARKS]
        tally.count()
        if said := self.remark(segment):
            tally.add(said, f"{origin}, {len(segment):,} tokens")

    def _encoded(
        self, rows: list[dict[str, Segment]], files: list[str]
    ) -> tuple[int, pa.Table | pa.Buffer]:
        """How many numbers some rows hold, and the rows as they are sent and written."""
        schema = schema_of(self.signatures, self.of_files)
        table = table_of(rows, self.signatures, schema, files if self.of_files else None)
        n_values = sum(map(size_of_row, rows))
        return n_values, encoded_rows(n_values, table)


def _can_merge(tokenizer: Tokenizer) -> bool:
    """Whether what a tokenizer counts can be merged; else it reports by itself, chunk by chunk."""
    with tokenizer.counting(quiet=True) as count:
        return count is not None


def size_of_example(named: tuple[str, dict[str, Any]]) -> int:
    """How many numbers or letters an example has."""
    _, example = named
    return sum(map(_size_of_signal, example.values()))


def _size_of_signal(signal: Any) -> int:
    """How many numbers or letters a signal has."""
    if isinstance(signal, Interleaved):
        return sum(_size_of_signal(part.signal) for part in signal.parts)
    if isinstance(signal, str):
        return len(signal)
    return np.size(signal)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, as sums of several may differ in their last bits."""
    torch = sys.modules.get("torch")
    if torch is not None:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, if it is imported now
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
