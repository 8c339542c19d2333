"""From a token file to files: what `mmtok detokenize` does, as functions."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtok.commands.piped import PIPE, check_stdout
from mmtok.commands.signal_files import configs_of, files_of, tokenizer_in, write_signal
from mmtok.core.segment import Signature
from mmtok.data.mapped import width_of
from mmtok.data.tokens import TokenFile, groups, read_tokens
from mmtok.errors import UserError
from mmtok.io import terminal
from mmtok.io.filenames import file_names, inside, is_name, tree_names
from mmtok.io.files import check_folder_fits, remove_leftovers_of
from mmtok.io.messages import counted
from mmtok.io.progress import Progress
from mmtok.io.signal_files import SignalFiles
from mmtok.tokenizers import PRESETS, preset

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Tokenizer, TokenizerConfig

BATCH = 64  # the most signals that are decoded at once
MOST_FOLDERS = 8  # one in another, of what is written: paths have a longest length too


def detokenize_file(
    tokens: Path,
    out: Path,
    tokenizer: Path | None = None,
    recipe_file: Path | None = None,
    vocoder: Path | None = None,
    most: int | None = None,
) -> list[Path]:
    """Decode every field of a token file into `out`, a file for each row; return the paths.

    A file gets the name of the one that its tokens were made from, with the suffix of what is
    written; if the token file does not hold it, FIELD-000000.png and so on. Where a file holds many
    signals (jets), those of one file are one file again. Names are made safe and distinct
    (`file_names`), and nothing is written outside `out`.

    Raises UserError if a field was made by another tokenizer, if a file of such a name exists (it
    may be the one that the tokens were made from), and for more files than `most`.

    Args:
        tokens: the token file.
        out: the folder.
        tokenizer: a tokenizer's folder, a preset, or a folder that holds one for each field or
            modality; None is the preset or the training-free default that made each field.
        recipe_file: a recipe whose tokenizers are taken instead of the defaults; they may be of
            modalities from outside the package.
        vocoder: what speech is heard with instead of its tokenizer's own, see `with_vocoder`.
        most: files, None any number.
    """
    check_folder_fits(out)
    file = read_tokens(tokens)
    configs = configs_of(recipe_file)
    tokenizers = {name: _tokenizer_of(file, name, tokenizer, configs) for name in file.fields}
    if vocoder is not None:
        _take_vocoder(file, tokenizers, vocoder)
    stems = {
        name: _stems(file, name, files_of(used.config), out) for name, used in tokenizers.items()
    }
    if most is not None:
        _check_number(file, stems, most)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in file.fields:
        with Progress(f"detokenize {name}", len(file), "rows") as progress:
            paths += _decode_field(file, name, tokenizers[name], stems[name], progress)
    return paths


def detokenize_to(
    out: Path,
    tokens: Path,
    tokenizer: Path | None = None,
    recipe_file: Path | None = None,
    vocoder: Path | None = None,
) -> None:
    """Decode a token file into a folder, which is said, or where `out` is "-" to standard output.

    Raises UserError as `detokenize_file` and `detokenize_to_stdout` do.
    """
    if out == PIPE:
        detokenize_to_stdout(tokens, tokenizer, recipe_file, vocoder)
        return
    paths = detokenize_file(tokens, out, tokenizer, recipe_file, vocoder)
    terminal.print_answer(f"{counted(len(paths), 'file')} in {out}")


def detokenize_to_stdout(
    tokens: Path,
    tokenizer: Path | None = None,
    recipe_file: Path | None = None,
    vocoder: Path | None = None,
) -> None:
    """Write the one file that a token file stands for to standard output; see `detokenize_file`.

    Raises UserError as that does, for tokens of several files, and for a terminal.
    """
    check_stdout()
    with tempfile.TemporaryDirectory(prefix="mmtok-") as folder:
        paths = detokenize_file(tokens, Path(folder), tokenizer, recipe_file, vocoder, most=1)
        for path in paths:
            terminal.write_raw(path.read_bytes())


def _check_number(file: TokenFile, stems: Mapping[str, Sequence[Path]], most: int) -> None:
    """Raise UserError where the rows of all fields are more files than `most`."""
    found = {
        (name, stems[name][row])
        for name in file.fields
        for row in np.flatnonzero(file.has(name)).tolist()
    }
    if len(found) > most:
        raise UserError(
            f"{file.path}: stands for {len(found):,} files, and -o - is for one; name a folder"
        )


def _take_vocoder(file: TokenFile, tokenizers: dict[str, Tokenizer], vocoder: Path) -> None:
    """Give the tokenizers of speech another vocoder.

    Raises UserError where no field is speech.
    """
    names = [name for name in file.fields if file.signatures[name].modality == "speech"]
    if not names:
        raise UserError(f"--vocoder: {file.path} holds no speech; leave it out")
    from mmtok.tokenizers.other_vocoder import with_vocoder

    for name in names:
        tokenizers[name] = with_vocoder(tokenizers[name], vocoder)


def _tokenizer_of(
    file: TokenFile, name: str, folder: Path | None, configs: Mapping[str, TokenizerConfig]
) -> Tokenizer:
    """The tokenizer that made a field. Raises UserError if it is not the one in the folder."""
    signature = file.signatures[name]
    if folder is not None and not (folder / "tokenizer.json").exists():
        # a run's tokenizers/ has a folder for each modality
        for sub in (name, signature.modality):
            if is_name(sub) and (folder / sub).is_dir():
                folder = folder / sub
                break
    if folder is None and signature.modality not in configs:
        folder = _preset_of(signature)
    tokenizer = tokenizer_in(folder, signature.modality, configs)
    found = tokenizer.signature.fingerprint
    if found != signature.fingerprint:
        hint = "use the tokenizer it was made with"
        if folder is None:
            hint = "name its folder with --tokenizer"
        raise UserError(
            f"{file.path}: field {name!r} was made by the {signature.modality} tokenizer"
            f" {signature.fingerprint}, but {folder or 'the training-free default'} is {found};"
            f" {hint}"
        )
    return tokenizer


def _preset_of(signature: Signature) -> Path | None:
    """The name of the preset that made a field; None where none did."""
    for name, (modality, _) in PRESETS.items():
        if modality == signature.modality and preset(name).signature == signature:
            return Path(name)
    return None


def _stems(file: TokenFile, field: str, files: SignalFiles, out: Path) -> list[Path]:
    """Where each row of a field goes, without suffix; many signals of one file share one."""
    names = file.files(field)
    words = _words(file, field, files, names)
    stems = [out.joinpath(*parts) for parts in tree_names(words)]
    targets = []
    for name, stem in zip(names, stems, strict=True):
        target = inside(out, files.named(stem).relative_to(out).as_posix())
        targets.append(target)
        if name is not None and os.path.lexists(target):
            raise UserError(
                f"{target} is there already, and may be what the tokens were made from: choose"
                " another -o"
            )
    remove_leftovers_of(set(targets))
    return stems


def _words(
    file: TokenFile, field: str, files: SignalFiles, names: Sequence[str | None]
) -> list[list[str]]:
    """The folders and the stem of each row's file, before they are made safe."""
    own = file_names(file.fields)[file.fields.index(field)]
    above = []
    if len(file.fields) > 1:
        above = [own]
    words: list[list[str]] = []
    for row, name in enumerate(names):
        if name is not None:
            parts = _parts(name, files.suffixes, files.written)
            words.append([*above, *parts])
        elif files.many:
            words.append([own])
        else:
            words.append([f"{own}-{row:06d}"])
    # two files, such as a.jpg and a.png, may come to the same words
    origins: Sequence[object] = range(len(names))
    if files.many:
        origins = names
    pairs = {(tuple(parts), origin) for parts, origin in zip(words, origins, strict=True)}
    n_origins = Counter(parts for parts, _ in pairs)
    for parts, origin in zip(words, origins, strict=True):
        if n_origins[tuple(parts)] > 1:
            parts[-1] += f"/{origin}"  # no file's name has a slash
    return words


def _parts(name: str, suffixes: Sequence[str], written: str) -> list[str]:
    """The folders and the stem of a file's name.

    Args:
        name: of the file, as a path with slashes.
        suffixes: of files that are read; they are left out.
        written: the suffix of what is written, which no folder may have.
    """
    *folders, stem = [part for part in name.split("/") if part] or [""]
    suffix = next((suffix for suffix in suffixes if stem.lower().endswith(suffix)), "")
    if len(folders) > MOST_FOLDERS:
        folders = ["/".join(folders[:-MOST_FOLDERS]), *folders[-MOST_FOLDERS:]]
    for i, folder in enumerate(folders):
        if written and folder.lower().endswith(written):
            folders[i] = folder + "/"
    return [*folders, stem[: len(stem) - len(suffix)]]


def _decode_field(
    file: TokenFile, name: str, tokenizer: Tokenizer, stems: Sequence[Path], progress: Progress
) -> list[Path]:
    """Decode the rows of one field and write them; return the files."""
    files = files_of(tokenizer.config)
    paths: list[Path] = []
    many: dict[Path, list[Any]] = {}
    sizes = file.lengths(name) * width_of(file.signatures[name])
    for rows in groups(np.flatnonzero(file.has(name)).tolist(), BATCH, lambda row: sizes[row]):
        segments = [file.segment(name, row) for row in rows]
        try:
            signals = tokenizer.decode_batch(segments)
        except UserError as error:
            raise UserError(
                f"{file.path}: field {name!r}, rows {rows[0]} to {rows[-1]}: {error}"
            ) from None
        for row, signal in zip(rows, signals, strict=True):
            stems[row].parent.mkdir(parents=True, exist_ok=True)
            if files.many:
                many.setdefault(stems[row], []).append(signal)
            else:
                paths.append(write_signal(stems[row], files, signal, tokenizer.config))
        progress.advance(len(rows))
    for stem, signals in many.items():
        paths.append(write_signal(stem, files, signals, tokenizer.config))
    return paths
