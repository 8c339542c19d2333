"""Many jets in files, looked at stretch by stretch: which can be used, and the chunks of those."""

from __future__ import annotations

import copy
import io
import os
import warnings
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.messages import counted, listed
from mmtok.io.progress import Progress
from mmtok.io.tables import decoded
from mmtok.io.tally import Tally
from mmtok.sources.base import Example, Unusable
from mmtok.sources.jet_cleaning import Cleaned, chosen, cleaned, faults_of, n_particles_of
from mmtok.sources.jet_coordinates import jet_numbers
from mmtok.sources.jet_formats import open_jets
from mmtok.sources.jet_reader import JetReader, ReadSettings, offsets_of
from mmtok.sources.screen import SHOW_PROGRESS_FROM, Broken, Limit, Tolerance

JETS = 1024  # of one file that are read at once; a chunk
N_OPEN = 2  # readers that are kept open in a process
N_NOTES = 3  # kinds of files of which is said how they are read


@dataclass(frozen=True)
class JetPlace:
    """One of the files; small and picklable, so that any process can open it.

    Attributes:
        path: the file.
        shown: what messages call it.
        layout: how it is read.
        settings: what the user says of that.
        features: that are read.
    """

    path: Path
    shown: str
    layout: str
    settings: ReadSettings
    features: tuple[str, ...]

    def open(self) -> JetReader:
        """A reader, which stays open for later calls in this process."""
        status = self.path.stat()
        key = (os.getpid(), repr(self), status.st_size, status.st_mtime_ns)
        if key not in _READERS:
            _READERS[key] = open_jets(self.path, self.features, self.settings, self.layout)
        _READERS.move_to_end(key)
        while len(_READERS) > N_OPEN:
            (pid, *_), reader = _READERS.popitem(last=False)
            if pid == os.getpid():
                reader.close()
        return _READERS[key]

    @property
    def pt_column(self) -> int:
        """Where the pt is among the features."""
        return self.features.index("pt_gev")


_READERS: OrderedDict[tuple[Any, ...], JetReader] = OrderedDict()


@dataclass
class Screened:
    """What was found in the files.

    Attributes:
        places: the files, in order.
        firsts: the number of the first jet of each file, over all of them; at last that of all.
        is_usable: (all jets,) whether each can be used.
        broken: those that cannot.
        tally: what was left out, to be reported.
        done: what is done to the jets as they are read, to be reported.
        notes: how files are read, to be reported.
    """

    places: list[JetPlace]
    firsts: np.ndarray
    is_usable: np.ndarray
    broken: Broken
    tally: Tally
    done: Cleaned = field(default_factory=Cleaned)
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def n_jets(self) -> int:
        """How many jets all files have."""
        return int(self.firsts[-1])

    def report(self, place: object) -> None:
        """Say what was found, left out, and done."""
        for note, files in list(self.notes.items())[:N_NOTES]:
            warnings.warn(f"{listed(files, 1)}: {note}", stacklevel=2)
        copy.deepcopy(self.tally).report()
        self.done.report(place)

    def fresh_faults(self) -> Broken:
        """What counts the unusable jets, for one more pass."""
        return copy.deepcopy(self.broken)

    def name(self, f: int, i: int) -> str:
        """Jet i of file f, in messages."""
        if len(self.places) == 1:
            return f"jet {i}"
        return f"{self.places[f].shown}: jet {i}"


def screened(
    places: Sequence[JetPlace], tolerance: Tolerance, limit: Limit, labels: Labels | None
) -> Screened:
    """Look at all jets, in one pass.

    Args:
        places: the files.
        tolerance: what to do with jets that cannot be used.
        limit: of their numbers of particles.
        labels: of all jets, where captions come from a file of their own.

    Raises:
        UserError: as `Broken` does, and where no jet is left.
    """
    readers = [place.open() for place in places]
    counts = np.array([reader.n_jets for reader in readers], np.int64)
    notes: dict[str, list[str]] = {}
    for place, reader in zip(places, readers, strict=True):
        if reader.note:
            notes.setdefault(f"read as {place.layout}: {reader.note}", []).append(place.shown)
    n_jets = int(counts.sum())
    tally = Tally("jets")
    for place, reader in zip(places, readers, strict=True):
        for words, n_out in reader.left_out.items():
            tally.count(n_out)
            tally.add(words, place.shown, n_out)
    if not n_jets:
        raise UserError(no_jets(readers, places[0].shown))
    if labels is not None:
        labels.check(n_jets)
    found = Screened(
        list(places),
        offsets_of(counts),
        np.ones(n_jets, bool),
        Broken(n_jets, "jets", tolerance),
        tally,
        notes=notes,
    )
    with _progress(n_jets) as progress:
        for f, place in enumerate(places):
            place.open().verify()
            for start in range(0, int(counts[f]), JETS):
                stop = min(start + JETS, int(counts[f]))
                _look(found, f, start, stop, limit, labels)
                progress.advance(stop - start)
    found.broken.stop_if_many()
    if not found.is_usable.any():
        raise UserError(
            f"none of {n_jets:,} jets is left, such as {found.name(0, 0)}; widen the limits"
        )
    return found


def no_jets(readers: Sequence[JetReader], place: object) -> str:
    """The line of files that hold no jets: what the readers' cuts left out, and what to do."""
    left_out: dict[str, int] = {}
    for reader in readers:
        for words, n in reader.left_out.items():
            left_out[words] = left_out.get(words, 0) + n
    remedy = next((reader.if_none for reader in readers if reader.if_none), "")
    return f"{place}: holds no jets{cut_words(left_out)}{remedy}"


def cut_words(left_out: Mapping[str, int]) -> str:
    """What cuts left out, to be added to a line; "" for nothing."""
    parts = [f"{n:,} {words}" for words, n in left_out.items()]
    return f" ({'; '.join(parts)})" if parts else ""


def _progress(n_jets: int) -> Progress | nullcontext[Quiet]:
    if n_jets >= SHOW_PROGRESS_FROM:
        return Progress("checking jets", n_jets, "jets")
    return nullcontext(Quiet())


class Quiet:
    """The progress of short work."""

    def advance(self, n: int) -> None:
        """Say nothing."""


def _look(
    found: Screened, f: int, start: int, stop: int, limit: Limit, labels: Labels | None
) -> None:
    """Look at the jets start to stop of file f, and add what is found."""
    place = found.places[f]
    reader = place.open()
    values, offsets = reader.read(start, stop, place.features)
    pt_column = place.pt_column
    errors = {
        i: f"{place.shown}: jet {start + i} {fault}"
        for i, fault in faults_of(values, offsets, pt_column).items()
    }
    first = int(found.firsts[f]) + start
    if labels is not None:
        errors = labels.missing(first, stop - start) | errors
    elif reader.has_captions:
        texts = reader.captions(start, stop)
        empty = [i for i, text in enumerate(texts) if not text.strip()]
        errors = {i: f"{place.shown}: jet {start + i} has no caption" for i in empty} | errors
    sizes = n_particles_of(values, offsets, pt_column)
    is_out = (sizes < limit.least) | ((sizes > limit.most) & (limit.most > 0))
    is_out[list(errors)] = False
    found.tally.count(stop - start)
    for i in sorted([*errors, *np.flatnonzero(is_out).tolist()]):
        name = found.name(f, start + i)
        if i in errors:
            found.broken.add(name, UserError(errors[i]), found.tally)
        else:
            found.tally.add(limit.violation(float(sizes[i])), name)
    is_kept = ~is_out
    is_kept[list(errors)] = False
    found.is_usable[first : first + stop - start] = is_kept
    kept = np.flatnonzero(is_kept)
    done = cleaned(*chosen(values, offsets, kept), pt_column)[2]
    if done.empty:
        done.first_empty = found.name(f, start + int(kept[sizes[kept] == 0][0]))
    found.done.add(done)


# ---- captions from a file of their own


class Labels:
    """The lines of a text file, one for each jet; equal ones are kept once.

    Attributes:
        path: the file, plain or .gz.
        texts: the different lines.
        numbers: (n_lines,) which of them each line is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = decoded(path).replace("\r\n", "\n").removesuffix("\n")
        known: dict[str, int] = {}
        numbers = array("q")
        for line in io.StringIO(f"{text}\n", newline="\n"):
            numbers.append(known.setdefault(line.removesuffix("\n"), len(known)))
        self.texts = list(known)
        self.numbers = np.array(numbers)

    def check(self, n_jets: int) -> None:
        """Raise UserError unless there is one line per jet."""
        if len(self.numbers) != n_jets:
            raise UserError(
                f"{self.path}: {counted(len(self.numbers), 'caption')} for"
                f" {counted(n_jets, 'jet')}; give one line per jet"
            )

    def missing(self, first: int, n: int) -> dict[int, str]:
        """What is wrong with the empty ones among n lines, by their index."""
        empty = [k for k, text in enumerate(self.texts) if not text.strip()]
        at = np.flatnonzero(np.isin(self.numbers[first : first + n], empty)).tolist()
        return {
            i: (
                f"{self.path}: line {first + i + 1} is empty; write the caption of jet {first + i},"
                " or remove both"
            )
            for i in at
        }

    def of(self, jets: np.ndarray) -> tuple[str, ...]:
        """The captions of some jets."""
        return tuple(self.texts[k] for k in self.numbers[jets].tolist())


# ---- reading


@dataclass(frozen=True, eq=False)
class JetChunk:
    """Some jets of one file; see `mmtok.sources.base.Chunk`.

    Attributes:
        place: the file.
        start, stop: the jets of the file that are read.
        kept: the indices among them of those that are examples.
        texts: the captions of these, where they come from a file of their own.
        has_captions: whether the file's own captions are read.
        numbers: of each jet that are computed.
    """

    place: JetPlace
    start: int
    stop: int
    kept: np.ndarray
    texts: tuple[str, ...] | None = None
    has_captions: bool = False
    numbers: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The file alone."""
        return (self.place.path,)

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The jets with their captions."""
        numbers = (self.start + self.kept).tolist()
        try:
            jets, texts, of_name = self._read()
        except (UserError, OSError) as error:
            for i in numbers:
                yield Unusable(f"{self.place.shown}: jet {i}", str(error))
            return
        for k, i in enumerate(numbers):
            fields: dict[str, Any] = {name: column[k] for name, column in of_name.items()}
            fields["jets"] = jets[k]
            if texts is not None:
                fields = {"caption": texts[k], **fields}
            yield Example(fields, f"{self.place.shown}: jet {i}")

    def _read(
        self,
    ) -> tuple[list[np.ndarray], Sequence[str] | None, Mapping[str, Sequence[float]]]:
        """The jets, their captions, and name -> their numbers."""
        place = self.place
        reader = place.open()
        values, offsets = reader.read(self.start, self.stop, place.features)
        values, offsets, _ = cleaned(values, offsets, place.pt_column)
        begins = offsets[self.kept].tolist()
        ends = offsets[self.kept + 1].tolist()
        jets = [values[begin:end] for begin, end in zip(begins, ends, strict=True)]
        texts: Sequence[str] | None = self.texts
        if self.has_captions:
            every = reader.captions(self.start, self.stop)
            texts = [every[i] for i in self.kept.tolist()]
        of_name: Mapping[str, Sequence[float]] = {}
        if self.numbers:
            kept = chosen(values, offsets, self.kept)
            of_name = jet_numbers(*kept, place.features, self.numbers)
        return jets, texts, of_name


def chunks(
    found: Screened,
    is_chosen: np.ndarray,
    labels: Labels | None,
    has_captions: bool,
    numbers: tuple[str, ...] = (),
) -> Iterator[JetChunk]:
    """The jets that are chosen, file by file.

    Args:
        found: the files.
        is_chosen: (all jets,) whether each is.
        labels: captions from a file of their own.
        has_captions: whether captions of the jets' files are read.
        numbers: of each jet that are computed.
    """
    for f, place in enumerate(found.places):
        first = int(found.firsts[f])
        n_jets = int(found.firsts[f + 1]) - first
        for start in range(0, n_jets, JETS):
            stop = min(start + JETS, n_jets)
            kept = np.flatnonzero(is_chosen[first + start : first + stop]).astype(np.int32)
            if len(kept):
                texts = None if labels is None else labels.of(first + start + kept)
                own = has_captions and labels is None
                yield JetChunk(place, start, stop, kept, texts, own, numbers)
