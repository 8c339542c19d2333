"""Raw signals from files of any modality, and signals written to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtok.data.preparation import Preparer
from mmtok.errors import UserError
from mmtok.io.files import atomic_write
from mmtok.io.tally import Tally
from mmtok.io.walk import files_among
from mmtok.sources import images, speech
from mmtok.sources.screen import Screen, Tolerance, remembered
from mmtok.tokenizers import MODALITIES, default, load

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Tokenizer

SUFFIXES = {  # of the files that are read
    "text": (".txt",),
    "speech": speech.SUFFIXES,
    "image": images.SUFFIXES,
    "jets": (".npz", ".npy", ".parquet", ".h5", ".hdf5"),
}
WRITTEN = {  # the suffix of the files that are written
    "text": ".txt",
    "speech": ".wav",
    "image": ".png",
    "jets": ".npz",
}


def tokenizer_in(folder: Path | None, modality: str) -> Tokenizer:
    """The tokenizer in a folder; None is the modality's training-free default.

    Raises UserError for a tokenizer of another modality.
    """
    tokenizer = default(modality) if folder is None else load(folder)
    found = tokenizer.signature.modality
    if found != modality:
        raise UserError(f"{folder} is a tokenizer of {found}, not of {modality}")
    return tokenizer


# ---- reading


def named_files(places: Sequence[Path], modality: str) -> dict[Path, str]:
    """The given files and those below the given folders, each with its name.

    The name of a file below a folder is its path from there. If several places are given, it begins
    with the folder's own name. A file that is given more than once is taken once, with a note.
    """
    names: dict[Path, str] = {}
    with Tally(f"{modality} files") as tally:
        for place in places:
            above = f"{place.resolve().name}/" if len(places) > 1 else ""
            for file in files_among([place], SUFFIXES.get(modality, ())):
                tally.count()
                if file in names:
                    tally.add("named more than once and taken once", file)
                    continue
                name = file.name
                if place.is_dir():
                    name = above + file.relative_to(place).as_posix()
                names[file] = os.fsencode(name).decode(errors="replace")
    return names


def check_headers(modality: str, files: Sequence[Path]) -> None:
    """Raise UserError for files that are missing or whose headers say they cannot be read.

    The error names the first ten.
    """
    size_of: Callable[[Path], Any] = remembered(lambda path: 0)
    if modality == "speech":
        size_of = speech.sound_seconds
    elif modality == "image":
        size_of = images.picture_size

    def sizes(path: Path) -> dict[str, float]:
        size_of(path)
        return {}

    Screen(files, sizes, Tolerance(max_error_share=0.0), "files")


def signals_of(
    files: Sequence[Path], prepare: Preparer, index: int = 0, count: int = 1
) -> Iterator[tuple[Path, Any]]:
    """(file, prepared signal) for every count-th signal from `index` on, in the files' order.

    Files of other signals are not opened.
    """
    if prepare.modality == "jets":
        from mmtok.sources.jets import read_jets

        jets = ((file, jet) for file in files for jet in read_jets(file, prepare.takes["features"]))
        yield from islice(jets, index, None, count)
        return
    read = _reader(prepare.modality)
    with Tally(prepare.unit) as tally:
        for file in islice(files, index, None, count):
            yield file, prepare(read(file), str(file), tally)


def _reader(modality: str) -> Callable[[Path], Any]:
    """The function that reads one file as one raw signal."""
    match modality:
        case "text":
            from mmtok.sources.text import read_text

            return read_text
        case "speech":
            return speech.open_sound
        case "image":
            return images.open_image
    raise UserError(f"no reader for files of modality {modality!r}; one of {', '.join(MODALITIES)}")


# ---- writing


def named_signal(stem: Path, modality: str, signal: Any) -> Path:
    """A signal's file: the stem with the customary suffix of its modality.

    For a modality from outside the package that is .txt for strings and .npy for arrays. Raises
    UserError for any other signal.
    """
    if modality in WRITTEN:
        suffix = WRITTEN[modality]
    elif isinstance(signal, str):
        suffix = WRITTEN["text"]
    elif isinstance(signal, np.ndarray):
        suffix = ".npy"
    else:
        raise UserError(
            f"no writer for files of modality {modality!r}; one of {', '.join(MODALITIES)}"
        )
    return stem.with_name(stem.name + suffix)


def write_signal(stem: Path, modality: str, signal: Any, tokenizer: Any) -> Path:
    """Write a signal under the name that `named_signal` gives; return the path."""
    path = named_signal(stem, modality, signal)
    match path.suffix:
        case ".txt":
            from mmtok.sources.text import write_text

            write_text(path, signal)
        case ".wav":
            speech.write_sound(path, signal, tokenizer.config.mel.rate_hz)
        case ".png":
            images.write_image(path, signal)
        case ".npz":
            from mmtok.sources.jet_formats import write_jets

            write_jets(path, signal, tokenizer.config.features)
        case _:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, signal, allow_pickle=False)
    return path
