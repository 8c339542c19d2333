"""Raw signals from files of any modality, and signals written to files.

`mmtok.sources.signal_files` has the table of the package's own modalities. The config of a
tokenizer from outside the package may bring its own (`signal_files`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtok.data.preparation import Preparer
from mmtok.errors import UserError
from mmtok.io.compressed import COMPRESSED
from mmtok.io.patterns import is_pattern, named_places
from mmtok.io.signal_files import SignalFiles
from mmtok.io.tables import LINES, SEPARATORS
from mmtok.io.tally import Tally
from mmtok.io.walk import corpus_among, walk
from mmtok.sources.screen import Screen, Tolerance
from mmtok.sources.signal_files import ARRAYS, CONDITION_FILES, SIGNAL_FILES
from mmtok.tokenizers import MODALITIES, default, is_preset, load
from mmtok.tokenizers.base import naming

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Tokenizer, TokenizerConfig

# what holds many signals where a file of a modality is one
CORPORA = (*LINES, *SEPARATORS, ".parquet", ".tar", *COMPRESSED)


# ---- which tokenizer, which files


def tokenizer_in(
    folder: Path | None, modality: str, configs: Mapping[str, TokenizerConfig] | None = None
) -> Tokenizer:
    """The tokenizer in a folder; None is the modality's training-free default.

    Raises UserError for a tokenizer of another modality.

    Args:
        folder: of a fitted tokenizer, or the name of a preset.
        modality: that it must be of.
        configs: modality -> config, of a recipe; they take the place of the package's defaults, and
            open folders of classes from outside the package.
    """
    config = (configs or {}).get(modality)
    if folder is not None and is_preset(folder):
        tokenizer = load(folder)
    elif config is not None:
        tokenizer = _of_config(config, folder)
    elif folder is not None:
        tokenizer = load(folder)
    elif modality in MODALITIES:
        tokenizer = default(modality)
    elif modality in SIGNAL_FILES:
        raise UserError(
            f"{modality} has no tokenizer without training: name the folder of one that was fitted"
            f" (--tokenizer RUN/tokenizers/{modality})"
        )
    else:
        raise UserError(
            f"{modality!r} is no modality that mmtok knows: it is one of {', '.join(MODALITIES)},"
            " or one that a recipe brings (--recipe FILE)"
        )
    found = tokenizer.signature.modality
    if found != modality:
        raise UserError(f"{folder} is a tokenizer of {found}, not of {modality}")
    return tokenizer


def _of_config(config: TokenizerConfig, folder: Path | None) -> Tokenizer:
    """A recipe's tokenizer, fitted in the folder, or without one where nothing is learned."""
    if folder is not None:
        with naming(folder):
            return config.load(folder)
    if config.learns:
        raise UserError(
            f"the recipe's tokenizer of {config.modality} is learned: name the folder where it was"
            f" fitted (--tokenizer RUN/tokenizers/{config.modality})"
        )
    return config.build()


def configs_of(recipe_file: Path | None) -> dict[str, TokenizerConfig]:
    """Modality -> config of the tokenizers that a recipe's file names; {} without a file."""
    if recipe_file is None:
        return {}
    from mmtok.run.recipe import load_recipe  # brings torch

    return dict(load_recipe(recipe_file).tokenizers)


def files_of(config: TokenizerConfig) -> SignalFiles:
    """The files of a tokenizer's signals.

    Raises UserError for a modality from outside the package that brings none.
    """
    own = SIGNAL_FILES | CONDITION_FILES
    found = config.signal_files() or own.get(config.modality)
    if found is None:
        raise UserError(
            f"{config.modality} has no files: give its {type(config).__name__} the method"
            " signal_files, which says how they are read and written"
        )
    return found


def all_files(configs: Iterable[TokenizerConfig]) -> dict[str, SignalFiles]:
    """Modality -> its files, of these tokenizers, then of the package's other modalities."""
    configs = list(configs)
    brought = {config.modality: config.signal_files() for config in configs}
    own = {m: files for m, files in brought.items() if files is not None}
    mine = [config.modality for config in configs if config.modality in SIGNAL_FILES]
    own |= {m: SIGNAL_FILES[m] for m in mine if m not in own}
    return own | {m: files for m, files in SIGNAL_FILES.items() if m not in own}


# ---- reading


def named_files(places: Sequence[Path], modality: str, files: SignalFiles) -> dict[Path, str]:
    """The given files and those below the given folders, each with its name.

    The name of a file below a folder is its path from there. If several places are given, it begins
    with the folder's own name. A file that is given more than once is taken once, with a note.
    """
    names: dict[Path, str] = {}
    if any(is_pattern(str(place)) for place in places):
        every = (named_places(str(place), f"{modality} files", "signals") for place in places)
        places = [place for some in every for place in some]
    _check_single(places, modality, files)
    seen: set[object] = set()
    with Tally(f"{modality} files") as tally:
        for place in places:
            above = f"{place.resolve().name}/" if len(places) > 1 else ""
            files_here = _files_below(place, modality, files)
            below = len(place.joinpath("_").as_posix()) - 1  # letters before a name in the folder
            for file in files_here:
                tally.count()
                if len(places) > 1:  # in one folder none is met twice
                    identity = _identity(file)
                    if identity in seen:
                        tally.add("named more than once and taken once", file)
                        continue
                    seen.add(identity)
                name = file.name
                if file != place:
                    name = above + file.as_posix()[below:]
                names[file] = os.fsencode(name).decode(errors="replace")
    return names


def _identity(file: Path) -> object:
    """The same for all names of one file; the path of one that is not there."""
    try:
        status = file.stat()
    except OSError:
        return file
    return status.st_dev, status.st_ino


def _check_single(places: Sequence[Path], modality: str, files: SignalFiles) -> None:
    """Raise UserError for tables, packed files and tars where a file is one signal."""
    if files.many:
        return
    for place in places:
        name = place.name.lower()
        if place.is_file() and name.endswith(CORPORA) and not name.endswith(files.suffixes):
            raise _is_corpus(place, modality, files)


def _is_corpus(place: Path, modality: str, files: SignalFiles) -> UserError:
    return UserError(
        f"{place}: holds many signals, or packed ones, and here a file is one of"
        f" {', '.join(files.suffixes)}; a corpus is read by a recipe: mmtok fit"
        f" recipes/{modality}.py --path {place} -o RUN, then mmtok tokenize RUN"
    )


def _files_below(place: Path, modality: str, files: SignalFiles) -> list[Path]:
    """The files of a place.

    Raises UserError for a folder of tables, packed files or tars alone, and for files of two kinds.
    """
    try:
        found = corpus_among([place], files.suffixes)
    except UserError:
        if not files.many and walk(place, CORPORA).files:
            raise _is_corpus(place, modality, files) from None
        raise
    if files.of_folder is not None and place.is_dir():
        return files.of_folder(place, found, {})
    return found


def check_headers(files: SignalFiles, paths: Sequence[Path]) -> None:
    """Raise UserError for files that are missing or whose headers say they cannot be read.

    The error names the first ten.
    """
    check = files.check or _check_is_there

    def sizes(path: Path) -> dict[str, float]:
        check(path)
        return {}

    Screen(paths, sizes, Tolerance(max_error_share=0.0), "files")


def _check_is_there(path: Path) -> None:
    """What is looked at in a file without a known header; as `looks_once` does, in one call."""
    try:
        status = path.stat()
    except OSError:
        raise UserError(f"{path}: no such file") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: no such file")
    if not status.st_size:
        raise UserError(f"{path}: the file is empty")


def signals_of(
    files: SignalFiles, paths: Sequence[Path], prepare: Preparer, index: int = 0, count: int = 1
) -> Iterator[tuple[Path, Any]]:
    """(path, prepared signal) for every count-th signal from `index` on, in the files' order.

    Files of other signals are not opened, where a file holds one signal.
    """
    with Tally(prepare.unit) as tally:
        for path, signal in _every(files, paths, prepare.takes, index, count):
            yield path, prepare(signal, str(path), tally)


def _every(
    files: SignalFiles, paths: Sequence[Path], takes: Mapping[str, Any], index: int, count: int
) -> Iterator[tuple[Path, Any]]:
    """As `signals_of`, not prepared."""
    if files.many:
        found = ((path, signal) for path in paths for signal in files.read(path, takes))
        yield from islice(found, index, None, count)
        return
    for path in islice(paths, index, None, count):
        yield path, files.read(path, takes)


# ---- writing


def files_for(config: TokenizerConfig, signal: Any) -> SignalFiles:
    """As `files_of`; of a modality without files, strings are texts and arrays .npy.

    Raises UserError for any other signal.
    """
    if config.signal_files() is None and config.modality not in SIGNAL_FILES:
        if isinstance(signal, str):
            return SIGNAL_FILES["text"]
        if isinstance(signal, np.ndarray):
            return ARRAYS
    return files_of(config)


def write_signal(stem: Path, files: SignalFiles, signal: Any, config: TokenizerConfig) -> Path:
    """Write a signal (a list where a file holds many) with the suffix of its files.

    Returns:
        The path.
    """
    path = files.named(stem)
    files.write(path, signal, config.takes)
    return path
