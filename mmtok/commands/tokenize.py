"""From files to a token file: what `mmtok tokenize` does, as functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mmtok.commands.signal_files import (
    check_headers,
    configs_of,
    files_of,
    named_files,
    tokenizer_in,
)
from mmtok.core.segment import Segment
from mmtok.data.encoder import Encoder, Job, size_of_example
from mmtok.data.parts import MARK
from mmtok.data.preparation import Preparer, chosen_preparation, preparer
from mmtok.data.tokenise import PartSet, started, write_file
from mmtok.data.tokens import groups, is_tokens
from mmtok.errors import UserError
from mmtok.io.files import is_temporary, remove_leftovers_of
from mmtok.io.messages import counted
from mmtok.io.progress import Progress
from mmtok.io.serialize import to_plain
from mmtok.io.signal_files import SignalFiles
from mmtok.io.terminal import lines_text
from mmtok.io.workers import Workers
from mmtok.sources.base import CHUNK, Example, Listing, Unusable

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Tokenizer

BATCH = 64  # the most signals that are decoded again by `check`
MANY_FRAMES = 65_536
CHUNK_BYTES = 2**24  # of the files of a chunk, which is one file where that is larger


@dataclass
class Tokenised:
    """What `tokenize_files` did.

    Attributes:
        path: the file or folder written.
        fingerprint: of the tokenizer.
        rows: how many rows it has.
        frames: how many frames they have together.
        fidelity: of the signals that were decoded again, name -> value.
        checked: how many these were.
        unfinished: of a folder, parts are left to others.
    """

    path: Path
    fingerprint: str
    rows: int = 0
    frames: int = 0
    fidelity: dict[str, float] = field(default_factory=dict)
    checked: int = 0
    unfinished: bool = False

    def summary(self) -> str:
        """The same as lines of text."""
        lines = [
            f"{self.path}: {counted(self.rows, 'row')}, {counted(self.frames, 'frame')}, tokenizer"
            f" {self.fingerprint}"
        ]
        if self.unfinished:
            lines = [f"{self.path}: this share is made; the last one to end marks the whole"]
        if self.checked:
            lines.append(f"  decoded again, {counted(self.checked, 'signal')}:")
        lines += [f"    {name} {value:.4g}" for name, value in self.fidelity.items()]
        return lines_text(lines)


@dataclass(frozen=True)
class How:
    """How files are tokenised; none of it changes the rows.

    Attributes:
        parts: write a folder of parts, which goes on where it was interrupted.
        shard: "i/n", this call's share of the rows or parts (see `shard_of`).
        workers: how many processes; None: as many as there are cores, where the work is long.
        ray: address of a Ray cluster that makes the parts; "" is one of this machine.
        check: decode the signals of the first batch again and measure the fidelity. The batch is
            one signal where signals are large.
    """

    parts: bool = False
    shard: str | None = None
    workers: int | None = None
    ray: str | None = None
    check: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"tokenize: --workers is {self.workers}; it must be at least 1")
        if self.ray is not None and not self.parts:
            raise UserError(
                "tokenize: --ray makes a folder of parts, so name one with its slash: -o FOLDER/"
            )

    @property
    def own_workers(self) -> int | None:
        """How many processes of this call's own are asked for; Ray has others."""
        if self.ray is not None:
            return 1
        return self.workers


def tokenize_files(
    modality: str,
    files: Sequence[Path],
    out: Path,
    tokenizer: Path | None = None,
    prepare: Sequence[str] = (),
    allow_clipping: bool = False,
    recipe_file: Path | None = None,
    reading: Mapping[str, Any] = MappingProxyType({}),
    how: How | None = None,
) -> Tokenised:
    """Write the token file `out`, or a folder of parts: field `modality`, one row per signal.

    Signals are prepared as the tokenizer's folder says. Raises UserError, naming the file, for a
    bad signal, and if `out` exists and is no token file: the tokens might be made from it.

    Args:
        modality: of the signals.
        files: files of one signal each, or of many (jets), or folders of such files.
        out: the token file, or the folder.
        tokenizer: a folder; None is the training-free default.
        prepare: choices of the preparation, ["channel=left"], where the folder has none.
        allow_clipping: write jets even if much of them lies outside the tokenizer's ranges.
        recipe_file: a recipe whose tokenizer is taken instead of the default; it may be of a
            modality from outside the package.
        reading: how the files are read, where that is a choice: see `SignalFiles.options`.
        how: what does not change the rows.
    """
    how = how or How()
    used = tokenizer_in(tokenizer, modality, configs_of(recipe_file))
    if allow_clipping:
        used = _with_clipping(used)
    prepared = preparer(modality, used.config, chosen_preparation(tokenizer, modality, prepare))
    share = shard_of(how.shard)
    path = out
    if how.shard is not None and not how.parts:
        path = shard_name(out, *share)
    if how.parts:
        _check_folder(path)
    else:
        _check_place(path)
    of_modality = files_of(used.config).reading(reading)
    encoder = _encoder(used, prepared)
    done = Tokenised(path, used.signature.fingerprint)
    with started(encoder, how.own_workers) as workers:
        names = named_files(files, modality, of_modality)
        own = names
        if not how.parts and not of_modality.many:
            own = dict(islice(names.items(), share[0], None, share[1]))
        check_headers(of_modality, list(own))
        if how.check and own:
            first = _first_signals(encoder, next(_chunks(own, of_modality, prepared)))
            done.checked = len(first)
            done.fidelity = used.fidelity(first)
        of_signals = share
        if how.parts:
            of_signals = (0, 1)  # parts are shared instead
        listing = _listing(own, of_modality, prepared, of_signals)
        preparation = to_plain(prepared.preparation)
        made_from = [list(names.values()), preparation, allow_clipping, dict(reading)]
        _write(done, listing, encoder, made_from, how, workers)
    return done


def needed_out(out: str | None) -> str:
    """The place that the user names. Raises UserError where none is named."""
    if out is None:
        raise UserError("tokenize: say where the tokens go: -o TOKENS.parquet, or -o FOLDER/")
    return out


def tokenize_run(folder: str, given: Sequence[str], recipe_file: Path | None, how: How) -> str:
    """Make the token files of a run's sources, or a share of them; returns what was done.

    Args:
        folder: of the run, whose tokenizers are fitted.
        given: names of the options that are for files, which a run cannot have.
        recipe_file: the run's recipe, if it has classes of its own.
        how: who makes them.

    Raises:
        UserError: the folder is no such run, or a signal is refused.
    """
    from mmtok.run.run import open_run
    from mmtok.run.tokenise import tokenise_share

    if not (Path(folder) / "recipe.json").is_file():
        raise UserError(
            f"tokenize: {folder} is no run's folder, and without one FILE is needed: mmtok tokenize"
            " MODALITY FILE... -o TOKENS, or mmtok tokenize RUN"
        )
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"tokenize: {folder} is a run, whose recipe says all that; without {options}"
        )

    def write(parts: PartSet, progress: Progress, share: tuple[int, int]) -> None:
        _write_parts(parts, progress, how, share, how.workers)

    run = open_run(folder, recipe_file)
    if tokenise_share(run, write, shard_of(how.shard)):
        return f"{folder}: all token files are made; mmtok train goes on from here"
    return f"{folder}: this share is made; the last one to end marks the whole"


def _write_parts(
    parts: PartSet,
    progress: Progress,
    how: How,
    share: tuple[int, int],
    workers: Workers | int | None,
) -> None:
    if how.ray is None:
        parts.write(progress, workers, share)
        return
    from mmtok.data.on_ray import write_on_ray

    write_on_ray(parts, progress, how.ray, share)


def _write(
    done: Tokenised,
    listing: Listing,
    encoder: Encoder,
    made_from: Any,
    how: How,
    workers: Workers | int | None,
) -> None:
    """Write the file or the parts, and fill in how much that was."""
    label = f"tokenize {next(iter(encoder.tokenizers))}"
    n = listing.n
    with Progress(label, n, "rows") as progress:
        if not how.parts:
            remove_leftovers_of([done.path])
            counts = write_file(done.path, listing, encoder, progress, workers)
        else:
            parts = PartSet(done.path, listing, encoder, made_from)
            _write_parts(parts, progress, how, shard_of(how.shard), workers)
            found = parts.finish()
            if found is None:
                done.unfinished = True
                return
            counts = found
    done.rows = counts.n_rows
    done.frames = counts.n_frames


# ---- what is read


class FileExample(Example):
    """An example that is, or is in, one file.

    Attributes:
        file: the name that its row bears.
    """

    def __init__(self, fields: Mapping[str, Any], name: object, file: str) -> None:
        super().__init__(fields, name)
        self.file = file


@dataclass(frozen=True)
class _FileChunk:
    """Some files, not read yet.

    Attributes:
        names: file -> the name that its rows bear.
        modality: of their signals.
        of_modality: says how they are read.
        takes: what the tokenizer takes.
        share: (i, n), every n-th signal from i on; where files hold many.
    """

    names: Mapping[str, str]
    modality: str
    of_modality: SignalFiles
    takes: Mapping[str, Any]
    share: tuple[int, int] = (0, 1)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(map(Path, self.names))

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The signals. Raises UserError for a file that cannot be read."""
        signals = ((path, signal) for path in self.files for signal in self._signals(path))
        for path, signal in islice(signals, self.share[0], None, self.share[1]):
            yield FileExample({self.modality: signal}, path, self.names[str(path)])

    def _signals(self, path: Path) -> Sequence[Any]:
        found = self.of_modality.read(path, self.takes)
        if self.of_modality.many:
            return found
        return [found]


def _listing(
    names: Mapping[Path, str], files: SignalFiles, prepared: Preparer, share: tuple[int, int]
) -> Listing:
    """The files as chunks, made when they are asked for; share: of files that hold many signals."""
    chunks = _chunks(names, files, prepared)
    if files.many:
        return Listing(_share_of(list(chunks), *share))
    return Listing(chunks, n=len(names))


def _chunks(
    names: Mapping[Path, str], files: SignalFiles, prepared: Preparer
) -> Iterator[_FileChunk]:
    """Files in order, so many at a time as may be in memory at once; one where it holds many."""
    chunk: dict[str, str] = {}  # strings are sent to worker processes faster than paths
    size = 0
    most = 1 if files.many else CHUNK
    for path, name in names.items():
        own = _size_of(path)
        if chunk and (len(chunk) == most or size + own > CHUNK_BYTES):
            yield _FileChunk(chunk, prepared.modality, files, prepared.takes)
            chunk = {}
            size = 0
        chunk[str(path)] = name
        size += own
    if chunk:
        yield _FileChunk(chunk, prepared.modality, files, prepared.takes)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # what is wrong with it is said where it is read
        return 0


def _share_of(chunks: list[_FileChunk], index: int, count: int) -> list[_FileChunk]:
    """Every count-th file of many signals; every count-th signal where there are fewer files."""
    if len(chunks) >= count:
        return chunks[index::count]
    if not chunks:
        return []
    names = {path: name for chunk in chunks for path, name in chunk.names.items()}
    return [replace(chunks[0], names=names, share=(index, count))]


def _first_signals(encoder: Encoder, chunk: _FileChunk) -> list[Any]:
    """The first signals, prepared, as many as may be in memory at once."""
    examples = encoder.prepared(Job(0, 0, chunk), encoder.counts())
    first = next(groups(examples, BATCH, size_of_example), [])
    return [example[chunk.modality] for _, example in first]


# ---- rows


@dataclass(frozen=True)
class _TooLong:
    """Says of a segment with many frames what makes fewer."""

    text: str

    def __call__(self, segment: Segment) -> str:
        if len(segment) > MANY_FRAMES:
            return self.text
        return ""


def _encoder(tokenizer: Tokenizer, prepared: Preparer) -> Encoder:
    modality = prepared.modality
    remark = None
    if tokenizer.fewer_frames:
        remark = _TooLong(f"made into more than {MANY_FRAMES:,} tokens, {tokenizer.fewer_frames}")
    return Encoder(
        {modality: tokenizer},
        {modality: prepared},
        of_files=True,
        remark=remark,
        remark_unit=f"{modality} files",
    )


# ---- where it is written


def _check_folder(path: Path) -> None:
    """Raise UserError for a folder that holds anything but parts."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: leave the slash out, or choose another -o")
    for found in sorted(path.iterdir()) if path.exists() else ():
        is_ours = found.suffix == ".parquet" or found.name in (MARK, ".flat")
        if not is_ours and not is_temporary(found):
            raise UserError(
                f"{path} holds {found.name}, which is no token file: choose a folder for these"
                " token files alone"
            )


def _check_place(path: Path) -> None:
    """Raise UserError if a token file would replace anything else."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: name a token file in it, such as -o {path / 'tokens.parquet'}, or"
            f" a folder of parts with its slash: -o {path}/"
        )
    if path.exists() and not is_tokens(path):
        raise UserError(
            f"{path} is there already and is no token file, so it is not replaced: "
            "choose another -o"
        )


def _with_clipping(tokenizer: Any) -> Tokenizer:
    """The same tokenizer, which encodes jets however much of them is clipped."""
    if not hasattr(getattr(tokenizer, "config", None), "allow_clipping"):
        raise UserError(
            f"--allow-clipping is for jets: nothing of {tokenizer.signature.modality} is refused"
            " for being clipped"
        )
    return type(tokenizer)(replace(tokenizer.config, allow_clipping=True))


def shard_of(shard: str | None) -> tuple[int, int]:
    """(i, n) of "i/n", i from 0; None is 0/1.

    Of a token file, row r of all signals belongs to shard r mod n, or file r where files hold many
    and there are n of them; of a folder, part r.
    """
    if shard is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard {shard!r} must be I/N with I from 0 to N - 1, e.g. 0/8")
    return int(match[1]), int(match[2])


def shard_name(path: Path, index: int, count: int) -> Path:
    """tokens.parquet -> tokens-00002-of-00008.parquet; a folder of these reads as one file."""
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}")
