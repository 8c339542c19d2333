"""The words of a command line as segments: files of any modality by their suffixes, else text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtok.commands.tokenize import SUFFIXES, signals_of
from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.io.walk import files_among
from mmtok.preparation import Preparer
from mmtok.run.run import Run
from mmtok.sources.text import TextFileConfig, passages, read_text
from mmtok.sources.transcripts import caption_of
from mmtok.tokenizers.base import counting


def modality_of(path: Path) -> str:
    """By the file's suffix. Raises UserError for one that belongs to no modality."""
    for modality, suffixes in SUFFIXES.items():
        if path.suffix.lower() in suffixes:
            return modality
    raise UserError(
        f"{path}: the suffix {path.suffix!r} belongs to no modality; known are"
        f" {', '.join(s for x in SUFFIXES.values() for s in x)}"
    )


def spread(words: Sequence[str]) -> list[str]:
    """The words; a folder, written as a path, stands for the files below it of all modalities."""
    known = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes]
    spread: list[str] = []
    for word in words:
        spread += map(str, files_among([Path(word)], known)) if _is_folder(word) else [word]
    return spread


def read_segments(run: Run, word: str) -> list[Segment]:
    """A prompt's word as segments: a file of any modality, else text.

    A file of jets gives one segment per jet, and a text longer than the passages that the run was
    trained on one per passage.
    """
    path = Path(word)
    if not is_file(word):
        if path.suffix.lower() in [s for suffixes in SUFFIXES.values() for s in suffixes]:
            raise UserError(f"no file at {word}")
        if word.endswith("/") or _is_folder(word):
            raise UserError(f"{word} is a folder; name a file in it, or give words")
        return run.encode("text", [word])
    modality = modality_of(path)
    tokenizer = tokenizer_of(run, modality)
    try:
        with counting([tokenizer]):
            return tokenizer.encode_batch(_signals(run, modality, path))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _signals(run: Run, modality: str, path: Path) -> list[Any]:
    """The prepared signals of a file; a text in the passages that the run was trained on, each
    prepared by itself as they were, or, where it was on captions only, as one of these.
    """
    prepare = run.preparer(modality)
    longest = max(
        (s.chunk_chars for s in run.recipe.sources if isinstance(s, TextFileConfig)), default=None
    )
    if modality != "text":
        return [signal for _, signal in signals_of([path], prepare)]
    if longest is None:
        return [_caption(path, prepare)]
    with Tally("passages") as tally:
        return [
            prepare(passage, str(path), tally) for passage in passages(read_text(path), longest)
        ]


def _caption(path: Path, prepare: Preparer) -> str:
    """A file's text as the captions and transcripts of the training were read."""
    text = read_text(path)
    caption = caption_of(text)
    if not caption:
        raise UserError(f"{path}: holds nothing but white space")
    with Tally(prepare.unit) as tally:
        if caption != text:
            tally.add("taken without the white space around it, as captions are", path)
        return prepare(caption, str(path), tally)


def first_segment(run: Run, word: str) -> Segment:
    """The segment that a prompt's word stands for.

    Of a file of jets the first is taken, with a note.

    Raises UserError for a text longer than the passages that the run was trained on: what follows
    the first would be lost.
    """
    segments = read_segments(run, word)
    if len(segments) > 1 and segments[0].modality == "text":
        raise UserError(
            f"{word} makes {len(segments)} passages of the length that this run was trained on;"
            " give a text of one"
        )
    if len(segments) > 1:
        warnings.warn(
            f"{word} holds {len(segments)} {segments[0].modality}: the first is taken", stacklevel=2
        )
    if not segments:
        raise UserError(f"{word} holds nothing to go by; give another file, or words")
    return segments[0]


def is_file(word: str) -> bool:
    """Whether a word names a file.

    Words may happen to name one too (`seven`): without a suffix only what is written as a path
    counts.
    """
    try:
        return ("/" in word or Path(word).suffix != "") and Path(word).is_file()
    except OSError:  # a text too long for a file's name
        return False


def _is_folder(word: str) -> bool:
    """Words may happen to name a folder too (`digits`): only what is written as a path counts."""
    try:
        return "/" in word and Path(word).is_dir()
    except OSError:
        return False


def tokenizer_of(run: Run, modality: str) -> Any:
    """The run's tokenizer of a modality.

    Raises UserError, naming those there are, where there is none.
    """
    if modality not in run.tokenizers:
        raise UserError(f"this run knows no {modality}, only {', '.join(run.tokenizers)}")
    return run.tokenizers[modality]
