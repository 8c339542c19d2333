"""How the signals of a modality lie in files: which are read, what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmtok.errors import UserError


@dataclass(frozen=True)
class SignalFiles:
    """The files of one modality.

    Both functions get what the tokenizer's config says of its signals (`TokenizerConfig.takes`):
    the rate of a sound, the features of a jet.

    Attributes:
        suffixes: of the files that are read, in lower case and with their dots.
        written: the suffix of the files that are written.
        read: a function (path, takes) -> the signal in a file, not prepared yet; its signals, one
            after another, where a file holds many. Raises UserError, naming the file, for what
            cannot be read.
        write: a function (path, signal, takes) that writes a file, whole or not at all
            (`mmtok.io.files.atomic_write`); a list of signals where a file holds many.
        many: whether a file holds many signals.
        unit: what signals are called where they are counted, in the plural.
        check: a function of a path that looks at the file's header, and raises UserError for one
            that cannot be read; None looks only whether the file is there.
        options: what a user may say of how files are read, which `read` then finds among the takes:
            a layout, the names of columns.
        of_folder: a function (folder, its files, takes) -> those that are read together; raises
            UserError where they are of several kinds. None: all.
    """

    suffixes: tuple[str, ...]
    written: str
    read: Callable[[Path, Mapping[str, Any]], Any]
    write: Callable[[Path, Any, Mapping[str, Any]], None]
    many: bool = False
    unit: str = "signals"
    check: Callable[[Path], object] | None = None
    options: tuple[str, ...] = ()
    of_folder: Callable[[Path, Sequence[Path], Mapping[str, Any]], list[Path]] | None = None

    def reading(self, options: Mapping[str, Any]) -> SignalFiles:
        """The same files, read as these options say.

        Raises UserError for options that these files do not have.
        """
        unknown = [name for name in options if name not in self.options]
        if unknown:
            there = ", ".join(self.options)
            none = "none: a corpus is read by a recipe, mmtok fit RECIPE --path PLACE -o RUN"
            raise UserError(
                f"--{unknown[0]} is no option of reading {self.unit}; there are {there or none}"
            )
        if not options:
            return self
        of_folder = self.of_folder
        if of_folder is not None:
            of_folder = partial(_with_options, of_folder, options)
        return replace(self, read=_Reading(self.read, options), of_folder=of_folder)

    def named(self, stem: Path) -> Path:
        """The path of the file that is written: the stem with the suffix."""
        return stem.with_name(stem.name + self.written)


def _with_options(
    of_folder: Callable[[Path, Sequence[Path], Mapping[str, Any]], list[Path]],
    options: Mapping[str, Any],
    folder: Path,
    files: Sequence[Path],
    takes: Mapping[str, Any],
) -> list[Path]:
    return of_folder(folder, files, {**takes, **options})


@dataclass(frozen=True)
class _Reading:
    """A reader with options; picklable where the reader is."""

    read: Callable[[Path, Mapping[str, Any]], Any]
    options: Mapping[str, Any]

    def __call__(self, path: Path, takes: Mapping[str, Any]) -> Any:
        return self.read(path, {**takes, **self.options})
