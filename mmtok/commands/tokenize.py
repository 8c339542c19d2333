"""From files to a token file: what `mmtok tokenize` does, as functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtok.commands.signal_files import (
    check_headers,
    configs_of,
    files_of,
    named_files,
    signals_of,
    tokenizer_in,
)
from mmtok.core.segment import Segment
from mmtok.data.preparation import chosen_preparation, preparer
from mmtok.data.tokens import groups, is_tokens, write_tokens
from mmtok.errors import UserError
from mmtok.io.files import remove_leftovers_of
from mmtok.io.messages import counted
from mmtok.io.progress import Progress
from mmtok.io.tally import Tally
from mmtok.io.terminal import lines_text
from mmtok.tokenizers.base import counting, encode_named

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Tokenizer

BATCH = 64  # the most signals that are encoded at once, and decoded again by `check`
MANY_FRAMES = 65_536


@dataclass
class Tokenised:
    """What `tokenize_files` did.

    Attributes:
        path: the file written.
        fingerprint: of the tokenizer.
        rows: how many rows the file has.
        frames: how many frames they have together.
        fidelity: of the signals that were decoded again, name -> value.
        checked: how many these were.
    """

    path: Path
    fingerprint: str
    rows: int = 0
    frames: int = 0
    fidelity: dict[str, float] = field(default_factory=dict)
    checked: int = 0

    def summary(self) -> str:
        """The same as lines of text."""
        lines = [
            f"{self.path}: {counted(self.rows, 'row')}, {counted(self.frames, 'frame')}, tokenizer"
            f" {self.fingerprint}"
        ]
        if self.checked:
            lines.append(f"  decoded again, {counted(self.checked, 'signal')}:")
        lines += [f"    {name} {value:.4g}" for name, value in self.fidelity.items()]
        return lines_text(lines)


def tokenize_files(
    modality: str,
    files: Sequence[Path],
    out: Path,
    tokenizer: Path | None = None,
    shard: str | None = None,
    check: bool = False,
    prepare: Sequence[str] = (),
    allow_clipping: bool = False,
    recipe_file: Path | None = None,
    reading: Mapping[str, Any] = MappingProxyType({}),
) -> Tokenised:
    """Write the token file `out`: field `modality`, one row per signal.

    Signals are prepared as the tokenizer's folder says. Raises UserError, naming the file, for a
    bad signal, and if `out` exists and is no token file: the tokens might be made from it.

    Args:
        modality: of the signals.
        files: files of one signal each, or of many (jets), or folders of such files.
        out: the token file.
        tokenizer: a folder; None is the training-free default.
        shard: "i/n", this call's share of the rows (see `shard_of`).
        check: decode the signals of the first batch again and measure the fidelity. The batch is
            one signal where signals are large.
        prepare: choices of the preparation, ["channel=left"], where the folder has none.
        allow_clipping: write jets even if much of them lies outside the tokenizer's ranges.
        recipe_file: a recipe whose tokenizer is taken instead of the default; it may be of a
            modality from outside the package.
        reading: how the files are read, where that is a choice: see `SignalFiles.options`.
    """
    used = tokenizer_in(tokenizer, modality, configs_of(recipe_file))
    if allow_clipping:
        used = _with_clipping(used)
    chosen = chosen_preparation(tokenizer, modality, prepare)
    prepared = preparer(modality, used.config, chosen)
    index, count = shard_of(shard)
    path = out
    if shard is not None:
        path = shard_name(out, index, count)
    _check_place(path)
    of_modality = files_of(used.config).reading(reading)
    names = named_files(files, modality, of_modality)
    n_rows = None  # not known where a file holds many signals
    if not of_modality.many:
        of_this_shard = list(names)[index::count]
        check_headers(of_modality, of_this_shard)
        n_rows = len(of_this_shard)
    remove_leftovers_of([path])
    signals = signals_of(of_modality, list(names), prepared, index, count)
    return _write(path, used, signals, names, n_rows, check)


def _write(
    path: Path,
    tokenizer: Tokenizer,
    signals: Iterable[tuple[Path, Any]],
    names: Mapping[Path, str],
    n_rows: int | None,
    check: bool,
) -> Tokenised:
    """Write a token file of signals; at most BATCH of them are in memory at once.

    Args:
        path: the token file.
        tokenizer: encodes the signals.
        signals: with the files that they are from.
        names: of the files, which their rows bear.
        n_rows: how many signals there are, where that is known.
        check: as of `tokenize_files`.
    """
    signature = tokenizer.signature
    modality = signature.modality
    done = Tokenised(path, signature.fingerprint)
    first_batch: list[Any] = []
    too_long = f"made into more than {MANY_FRAMES:,} tokens, {tokenizer.fewer_frames}"

    def rows() -> Iterator[tuple[str, dict[str, Segment]]]:
        """The rows with their files' names."""
        with (
            Progress(f"tokenize {modality}", n_rows, "rows") as progress,
            counting([tokenizer]),
            Tally(f"{modality} files") as tally,
        ):
            for batch in groups(signals, BATCH, _size_of):
                if check and not first_batch:
                    first_batch.extend(signal for _, signal in batch)
                for (file, _), segment in zip(batch, encode_named(tokenizer, batch), strict=True):
                    done.frames += len(segment)
                    tally.count()
                    if tokenizer.fewer_frames and len(segment) > MANY_FRAMES:
                        tally.add(too_long, f"{file}, {len(segment):,} tokens")
                    yield names[file], {modality: segment}
                progress.advance(len(batch))

    done.rows = write_tokens(path, {modality: signature}, rows(), named=True)
    if first_batch:
        done.fidelity = tokenizer.fidelity(first_batch)
        done.checked = len(first_batch)
    return done


def _check_place(path: Path) -> None:
    """Raise UserError if a token file would replace anything else."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: name a token file in it, such as -o {path / 'tokens.parquet'}"
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
    """(i, n) of "i/n", i from 0: row r of all signals belongs to shard r mod n. None is 0/1."""
    if shard is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard {shard!r} must be I/N with I from 0 to N - 1, e.g. 0/8")
    return int(match[1]), int(match[2])


def shard_name(path: Path, index: int, count: int) -> Path:
    """tokens.parquet -> tokens-00002-of-00008.parquet; a folder of these reads as one file."""
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}")


def _size_of(item: tuple[Path, Any]) -> int:
    """How many numbers or letters a signal has."""
    _, signal = item
    if isinstance(signal, str):
        return len(signal)
    return np.size(signal)
