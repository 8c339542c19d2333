"""From files to token files and back: what `mmtok tokenize` and `detokenize` do, as functions."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtok.core.segment import Segment
from mmtok.data.mapped import width_of
from mmtok.data.tokens import TokenFile, groups, is_tokens, read_tokens, write_tokens
from mmtok.errors import UserError
from mmtok.io.filenames import file_names, inside, is_name, tree_names
from mmtok.io.files import atomic_write, remove_leftovers_of
from mmtok.io.messages import counted
from mmtok.io.progress import Progress
from mmtok.io.tally import Tally
from mmtok.io.terminal import lines_text
from mmtok.io.walk import files_among
from mmtok.preparation import Preparer, chosen_preparation, preparer
from mmtok.sources import images, speech
from mmtok.sources.screen import Screen, Screened, remembered
from mmtok.tokenizers import MODALITIES, default, load
from mmtok.tokenizers.base import counting, encode_named

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Tokenizer

SUFFIXES = {
    "text": (".txt",),
    "speech": speech.SUFFIXES,
    "image": images.SUFFIXES,
    "jets": (".npz", ".npy", ".parquet", ".h5", ".hdf5"),
}
BATCH = 64  # signals encoded at once, at most, and decoded again by `check`
MOST_FOLDERS = 8  # one in another, of what is decoded: paths have a longest length too
MANY_FRAMES = 65_536
LONG_IMAGE = (
    f"made into more than {MANY_FRAMES:,} tokens, one for each pixel and colour: a tokenizer that"
    " has learned patches makes fewer (--tokenizer RUN/tokenizers/image, of recipes/image.py), and"
    " so do smaller pictures"
)
WRITTEN = {
    "text": ".txt",
    "speech": ".wav",
    "image": ".png",
    "jets": ".npz",
}  # the suffix of what is decoded


@dataclass
class Tokenised:
    """What became of a call: the file written, how many rows and frames, the tokenizer's
    fingerprint, and, if asked, the fidelity of the first signals.
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
        return lines_text(
            lines + [f"    {name} {value:.4g}" for name, value in self.fidelity.items()]
        )


# ---- files -> tokens


def tokenize_files(
    modality: str,
    files: Sequence[Path],
    out: Path,
    tokenizer: Path | None = None,
    shard: str | None = None,
    check: bool = False,
    prepare: Sequence[str] = (),
    allow_clipping: bool = False,
) -> Tokenised:
    """Write the token file `out`: field `modality`, one row per signal (a file, also below a
    folder; in a file of jets, a jet), prepared as the tokenizer's folder says.

    tokenizer: a folder; None: the training-free default. shard: "i/n", this call's share of the
    rows (see `shard_of`).
    prepare: choices of the preparation, ["channel=left"], where the folder has none.
    allow_clipping: write jets of which much lies outside the tokenizer's ranges.
    check: decode the signals of the first batch again, which is one signal where that is large, and
    measure the fidelity. Raises UserError, naming the file, for a bad signal, and where `out` is a
    file that is there and is none of tokens: it may be what the tokens would be made from.
    """
    used = _tokenizer(modality, tokenizer)
    if allow_clipping:
        used = _allowing(used)
    prepared = preparer(
        modality, getattr(used, "config", None), chosen_preparation(tokenizer, modality, prepare)
    )
    index, count = shard_of(shard)
    path = out if shard is None else shard_name(out, index, count)
    _check_place(path)
    names = named_files(files, modality)
    files = list(names)
    if modality != "jets":  # a row is a jet there, and a file is read as a whole
        look_at(modality, files[index::count])
    done = Tokenised(path, used.signature.fingerprint)
    kept: list[Any] = []
    remove_leftovers_of([path])

    def rows() -> Iterator[tuple[str, dict[str, Segment]]]:
        """The rows to write, each with its file's name, BATCH signals at a time, which counts their
        frames and keeps the first batch for
        the check: so this takes no more memory than encoding does.
        """
        n = None if modality == "jets" else len(files[index::count])  # a file of jets holds many
        with (
            Progress(f"tokenize {modality}", n, "rows") as progress,
            counting([used]),
            Tally(f"{modality} files") as tally,
        ):
            for batch in groups(signals_of(files, prepared, index, count), BATCH, _size_of):
                if check and not kept:
                    kept.extend(signal for _, signal in batch)
                for (file, _), segment in zip(batch, encode_named(used, batch)):
                    done.frames += len(segment)
                    tally.count()
                    if modality == "image" and len(segment) > MANY_FRAMES:
                        tally.add(LONG_IMAGE, f"{file}, {len(segment):,} tokens")
                    yield names[file], {modality: segment}
                progress.advance(len(batch))

    done.rows = write_tokens(path, {modality: used.signature}, rows(), named=True)
    if kept:
        done.fidelity, done.checked = used.fidelity(kept), len(kept)
    return done


def _check_place(path: Path) -> None:
    """Raise UserError where a token file would take the place of anything else."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: name a token file in it, such as -o {path / 'tokens.parquet'}"
        )
    if path.exists() and not is_tokens(path):
        raise UserError(
            f"{path} is there already and is no token file, so it is not replaced: "
            "choose another -o"
        )


def named_files(places: Sequence[Path], modality: str) -> dict[Path, str]:
    """Files as they are named and those below folders, each with its name: below the folder that
    was named, or its own.

    Where several places are named, the name of a file below a folder begins with the folder's own.
    A file that is named more than once is taken once, which is said.
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
                name = above + file.relative_to(place).as_posix() if place.is_dir() else file.name
                names[file] = os.fsencode(name).decode(errors="replace")
    return names


def look_at(modality: str, files: Sequence[Path]) -> None:
    """Raise UserError, naming the first ten, for files that are not there or whose headers say that
    they cannot be read.
    """
    look = {"speech": speech.sound_seconds, "image": images.picture_size}.get(
        modality, remembered(lambda path: 0)
    )

    def sizes(path: Path) -> dict[str, float]:
        look(path)
        return {}

    Screen(files, sizes, Screened(max_error_share=0.0), "files")


def _tokenizer(modality: str, folder: Path | None) -> Tokenizer:
    used = default(modality) if folder is None else load(folder)
    if used.signature.modality != modality:
        raise UserError(f"{folder} is a tokenizer of {used.signature.modality}, not of {modality}")
    return used


def _allowing(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, which encodes whatever is clipped."""
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
    """tokens.parquet -> tokens-00002-of-00008.parquet; a folder of these reads as one token file."""
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}")


def signals_of(
    files: Sequence[Path], prepare: Preparer, index: int = 0, count: int = 1
) -> Iterator[tuple[Path, Any]]:
    """(file, prepared signal) for every count-th signal from `index` on, in the order of the files;
    others' files are not opened.
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
    """Reads one file as one raw signal."""
    match modality:
        case "text":
            from mmtok.sources.text import read_text as read
        case "speech":
            from mmtok.sources.speech import open_sound as read
        case "image":
            from mmtok.sources.images import open_image as read
        case _:
            raise UserError(
                f"no reader for files of modality {modality!r}; one of {', '.join(MODALITIES)}"
            )
    return read


def _size_of(read: tuple[Path, Any]) -> int:
    """How many numbers or letters a signal has."""
    _, signal = read
    return len(signal) if isinstance(signal, str) else np.size(signal)


# ---- tokens -> files


def detokenize_file(tokens: Path, out: Path, tokenizer: Path | None = None) -> list[Path]:
    """Decode every field of a token file into `out`: a file for each row, under the name of the
    file that it was made from, with the suffix of what is written; FIELD-000000.png and so on where
    that is not noted. The jets of one file are one file again.

    Names are made safe and unlike each other (`file_names`), and nothing is written outside `out`.
    Returns the paths written. Raises UserError when a field was made by another tokenizer than the
    one given, or (without one) than its modality's training-free default, and where a file of such
    a name is there already: it may be the one that the tokens were made from. `tokenizer` may also
    hold one folder per field or modality.
    """
    file = read_tokens(tokens)
    used = {name: _decoder(file, name, tokenizer) for name in file.fields}
    stems = {name: _stems(file, name, out) for name in file.fields}
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in file.fields:
        with Progress(f"detokenize {name}", len(file), "rows") as progress:
            paths += _decode_field(file, name, used[name], stems[name], progress)
    return paths


def _stems(file: TokenFile, field: str, out: Path) -> list[Path]:
    """Where each row of a field goes, without suffix; rows of jets that share a file share it
    again.
    """
    modality, own = (
        file.signatures[field].modality,
        file_names(file.fields)[file.fields.index(field)],
    )
    suffix, above = WRITTEN.get(modality, ""), [own] * (len(file.fields) > 1)
    names = file.files(field)
    one_file = modality == "jets"  # of many rows
    words: list[list[str]] = []
    for row, name in enumerate(names):
        numbered = own if one_file else f"{own}-{row:06d}"
        words.append(
            [numbered]
            if name is None
            else [*above, *_parts(name, SUFFIXES.get(modality, ()), suffix)]
        )
    sources = Counter(
        tuple(parts)
        for parts, _ in {
            (tuple(parts), name if one_file else row): None
            for row, (parts, name) in enumerate(zip(words, names))
        }
    )
    for row, (parts, name) in enumerate(zip(words, names)):
        if (
            sources[tuple(parts)] > 1
        ):  # of several files, as a.jpg and a.png: told apart by what no file has in its name
            parts[-1] += f"/{name if one_file else row}"
    stems = [out.joinpath(*parts) for parts in tree_names(words)]
    targets = [
        inside(out, stem.with_name(stem.name + suffix).relative_to(out).as_posix())
        for stem in stems
    ]
    for name, target in zip(names, targets):
        if name is not None and os.path.lexists(target):
            raise UserError(
                f"{target} is there already, and may be what the tokens were made from: choose"
                " another -o"
            )
    remove_leftovers_of(set(targets))
    return stems


def _parts(name: str, suffixes: Sequence[str], written: str) -> list[str]:
    """The folders and the stem of a file's name, as words for names.

    suffixes: of files that were read, and are left out; written: the suffix of what is written,
    which a folder may not have.
    """
    *folders, stem = [part for part in name.split("/") if part] or [""]
    suffix = next((suffix for suffix in suffixes if stem.lower().endswith(suffix)), "")
    if len(folders) > MOST_FOLDERS:
        folders = ["/".join(folders[:-MOST_FOLDERS]), *folders[-MOST_FOLDERS:]]
    folders = [
        folder + "/" if written and folder.lower().endswith(written) else folder
        for folder in folders
    ]
    return [*folders, stem[: len(stem) - len(suffix)]]


def _decoder(file: TokenFile, name: str, folder: Path | None) -> Tokenizer:
    signature = file.signatures[name]
    if (
        folder is not None and not (folder / "tokenizer.json").exists()
    ):  # a run's tokenizers/: one folder for each
        folder = next(
            (
                folder / sub
                for sub in (name, signature.modality)
                if is_name(sub) and (folder / sub).is_dir()
            ),
            folder,
        )
    used = _tokenizer(signature.modality, folder)
    if used.signature.fingerprint != signature.fingerprint:
        hint = (
            "name its folder with --tokenizer"
            if folder is None
            else "use the tokenizer it was made with"
        )
        raise UserError(
            f"{file.path}: field {name!r} was made by the {signature.modality} tokenizer"
            f" {signature.fingerprint}, but {folder or 'the training-free default'} is"
            f" {used.signature.fingerprint}; {hint}"
        )
    return used


def _decode_field(
    file: TokenFile, name: str, tokenizer: Tokenizer, stems: Sequence[Path], progress: Progress
) -> list[Path]:
    modality = file.signatures[name].modality
    paths: list[Path] = []
    jets: dict[Path, list[np.ndarray]] = {}
    sizes = file.lengths(name) * width_of(file.signatures[name])
    for rows in groups(np.flatnonzero(file.has(name)).tolist(), BATCH, lambda row: sizes[row]):
        segments = [file.segment(name, row) for row in rows]
        try:
            signals = tokenizer.decode_batch(segments)
        except UserError as error:
            raise UserError(
                f"{file.path}: field {name!r}, rows {rows[0]} to {rows[-1]}: {error}"
            ) from None
        for row, signal in zip(rows, signals):
            stems[row].parent.mkdir(parents=True, exist_ok=True)
            if modality == "jets":
                jets.setdefault(stems[row], []).append(signal)
            else:
                paths.append(write_signal(stems[row], modality, signal, tokenizer))
        progress.advance(len(rows))
    return paths + [write_signal(stem, modality, mine, tokenizer) for stem, mine in jets.items()]


def named_signal(stem: Path, modality: str, signal: Any) -> Path:
    """A signal's file: the stem with its modality's customary suffix; of a modality from outside
    the package .txt for strings and .npy for arrays. Raises UserError for any other.
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


def write_signal(stem: Path, modality: str, signal: Any, tokenizer: Tokenizer) -> Path:
    """Write a signal under the name that `named_signal` gives; returns the path."""
    path = named_signal(stem, modality, signal)
    match path.suffix:
        case ".txt":
            from mmtok.sources.text import write_text

            write_text(path, signal)
        case ".wav":
            from mmtok.sources.speech import write_sound

            write_sound(path, signal, tokenizer.config.mel.rate_hz)
        case ".png":
            from mmtok.sources.images import write_image

            write_image(path, signal)
        case ".npz":
            from mmtok.sources.jets import write_jets

            write_jets(path, signal, tokenizer.config.features)
        case _:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, signal, allow_pickle=False)
    return path
