"""The words of a command line as segments: files of any modality by their suffixes, else text."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmtok.commands.documents import documents_in, is_documents
from mmtok.commands.signal_files import all_files, files_of, signals_of
from mmtok.core.segment import Segment
from mmtok.data.preparation import Preparer
from mmtok.errors import UserError
from mmtok.io.conversations import looks_like_conversation, read_conversation
from mmtok.io.numbers import NUMBER, as_number
from mmtok.io.signal_files import SignalFiles
from mmtok.io.tally import Tally
from mmtok.io.walk import corpus_among
from mmtok.run.prompt_format import format_fields, parse_prompt
from mmtok.run.run import Run
from mmtok.sources.signal_files import CONDITION_FILES, SIGNAL_FILES
from mmtok.sources.text import TextFile, chunks, read_text
from mmtok.sources.transcripts import caption_of
from mmtok.tokenizers.base import counting

CHAT = ".json"  # a conversation, which belongs to text


def modality_of(path: Path, files: Mapping[str, SignalFiles] = SIGNAL_FILES) -> str:
    """The modality of a file, by its suffix. Raises UserError for an unknown suffix.

    files: modality -> its files; where two have a suffix, the first counts.
    """
    for modality, of_modality in files.items():
        if path.name.lower().endswith(of_modality.suffixes):
            return modality
    raise UserError(
        f"{path}: the suffix {path.suffix!r} belongs to no modality; known are"
        f" {', '.join(_suffixes(files))}"
    )


def _suffixes(files: Mapping[str, SignalFiles]) -> list[str]:
    return list(dict.fromkeys(s for of_modality in files.values() for s in of_modality.suffixes))


def run_files(run: Run) -> dict[str, SignalFiles]:
    """Modality -> its files, of the run's modalities first, then of all others."""
    return all_files(run.recipe.tokenizers.values())


def expand_folders(run: Run, words: Sequence[str]) -> list[str]:
    """The words, with a folder (written as a path) replaced by the files below it."""
    expanded: list[str] = []
    for word in words:
        if _is_folder(word):
            expanded += map(str, corpus_among([Path(word)], _suffixes(run_files(run))))
        else:
            expanded.append(word)
    return expanded


def read_segments(
    run: Run, word: str, reading: Mapping[str, Any] = MappingProxyType({})
) -> list[Segment]:
    """A prompt's word as segments: a file of any modality, else text.

    A file of jets gives one segment per jet. A .json file holds a conversation or jets. A text
    file longer than the chunks that the run was trained on gives one per chunk.

    reading: how a file is read, instead of as the run's own were; see `SignalFiles.options`.
    """
    path = Path(word)
    if given := _given_field(run, word):
        name, value = given
        return [_field_segment(run, name, value)]
    is_json = path.suffix.lower() == CHAT and is_file(word)
    is_json = is_json and CHAT not in _suffixes(run_files(run))
    holds_jets = is_json and _holds_jets(run, path)
    if is_json and not holds_jets:
        return tokenizer_of(run, "text").encode_batch([read_conversation(path)])
    if not is_file(word):
        if word.lower().endswith(tuple(_suffixes(run_files(run)))):
            raise UserError(f"no file at {word}")
        if word.endswith("/") or _is_folder(word):
            raise UserError(f"{word} is a folder; name a file in it, or give words")
        worded = [m for m, config in run.recipe.tokenizers.items() if config.reads_words]
        if "text" not in run.tokenizers and worded:
            return run.encode(worded[0], [word])
        if "text" not in run.tokenizers:
            hint = "".join(f"; a number is given as {m}=600" for m in run.recipe.numbers[:1])
            hint += "".join(f"; a vector is given as {m}=0.5,-1" for m in run.recipe.vectors[:1])
            raise UserError(
                f"{word}: this run knows no text, only {', '.join(run.tokenizers)}{hint}"
            )
        SIGNAL_FILES["text"].reading(reading)  # refuses what texts do not have
        return run.encode("text", [word])
    modality = "jets" if holds_jets else modality_of(path, run_files(run))
    tokenizer = tokenizer_of(run, modality)
    try:
        with counting([tokenizer]):
            return tokenizer.encode_batch(_signals(run, modality, path, reading))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _holds_jets(run: Run, path: Path) -> bool:
    """Whether a .json file is read as jets: the run knows them, and it is no conversation."""
    if "jets" not in run.tokenizers:
        return False
    return "text" not in run.tokenizers or not looks_like_conversation(path)


def condition_segments(run: Run, words: Sequence[str], to: str = "") -> list[Segment]:
    """The segments that words and files give: those of a condition, in its order.

    A single text is taken apart by the recipe's `prompt_format`, where it has one.

    to: the modality that is asked for; "": any.

    Raises UserError for a text that is not of that form.
    """
    recipe = run.recipe
    if not recipe.prompt_format or len(words) != 1 or not is_text(run, words[0]):
        return [segment for word in words for segment in _word_segments(run, word)]
    numbers = [f for f, m in recipe.fields.items() if m in recipe.numbers]
    values = parse_prompt(words[0], recipe.prompt_format, numbers)
    for task in recipe.tasks:
        targets = [recipe.fields[f] for f in task.targets]
        if set(task.inputs) == set(values) and to in ("", *targets):
            return [_field_segment(run, name, values[name]) for name in task.inputs]
    return [_field_segment(run, name, value) for name, value in values.items()]


def _word_segments(run: Run, word: str) -> list[Segment]:
    """What a word gives to a condition: a segment, or all those of a document."""
    if not is_documents(run, word):
        return [first_segment(run, word)]
    (name, document), *others = documents_in(run, Path(word))
    if others:
        warnings.warn(f"{word} holds {len(others) + 1} documents: {name} is taken", stacklevel=2)
    return [segment for segment in document.segments if segment is not None]


def is_text(run: Run, word: str) -> bool:
    """Whether a word is neither FIELD=VALUE nor a file or folder, nor could have been meant so."""
    suffix = Path(word).suffix.lower()
    names_file = is_file(word) or suffix in _suffixes(run_files(run)) or word.endswith("/")
    return not (_given_field(run, word) or names_file or _is_folder(word))


def _given_field(run: Run, word: str) -> tuple[str, str] | None:
    """The field and the value of a word FIELD=VALUE; None for any other word.

    The fields are those of numbers and vectors, those that files give and that are only read (a
    voice), and those that the recipe's `prompt_format` names.

    Raises UserError for a number of a field that is misspelt.
    """
    name, equals, value = word.partition("=")
    name = name.strip()
    if not equals or not name:
        return None
    recipe = run.recipe
    words = (*recipe.numbers, *recipe.vectors)
    names = {f for f, m in recipe.fields.items() if m in words}
    names |= set(fields_of_files(run))
    if recipe.prompt_format:
        names |= set(format_fields(recipe.prompt_format))
    if name in names:
        return name, value.strip()
    near = [f for f in sorted(names) if f.startswith(name)]
    near += difflib.get_close_matches(name, names, 1)
    if near and re.fullmatch(NUMBER, value.strip()):
        raise UserError(f"{word}: this run has no field {name!r}; did you mean {near[0]}={value}?")
    return None


def fields_of_files(run: Run) -> dict[str, str]:
    """Field -> modality, of those that are only read and that a file gives, such as a voice."""
    tokenizers = run.recipe.tokenizers
    return {
        f: m
        for f, m in run.recipe.fields.items()
        if m in CONDITION_FILES and m in tokenizers and tokenizers[m].is_input_only
    }


def prompts_in(path: Path) -> list[str]:
    """The prompts of a text file, one on each line; how many lines are empty is said.

    Raises UserError for a file that cannot be read, or without any.
    """
    found = []
    with Tally("lines") as tally:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            tally.count()
            if line.strip():
                found.append(line.strip())
            else:
                tally.add("left out, as it is empty", f"{path}:{number}")
    if not found:
        raise UserError(f"{path}: holds no prompt; write one on each line")
    return found


def with_voice(run: Run, words: Sequence[str], voice: Path | None) -> list[str]:
    """The words of a prompt with the clip of who is to speak, where the run's task reads it.

    Raises UserError for a run without a field of voices, and for words that name a voice already.
    """
    if voice is None:
        return list(words)
    named = [f for f, m in fields_of_files(run).items() if m == "voice"]
    if not named:
        raise UserError(
            f"--voice {voice}: this run reads no voices, only {', '.join(run.recipe.fields)}; leave"
            " it out, or train a recipe with a field of voices (recipes/sentences.py)"
        )
    if any(word.startswith(f"{f}=") for f in named for word in words):
        raise UserError(f"--voice {voice}: the prompt names a voice already; give one of them")
    word = f"{named[0]}={voice}"
    n_before = max(
        (
            task.inputs.index(named[0])
            for task in run.recipe.tasks
            if named[0] in task.inputs and len(task.inputs) == len(words) + 1
        ),
        default=0,
    )
    return [*words[:n_before], word, *words[n_before:]]


def _field_segment(run: Run, name: str, value: str) -> Segment:
    """A field's value, as a user writes it, as a segment."""
    modality = run.recipe.fields[name]
    tokenizer = tokenizer_of(run, modality)
    if name in fields_of_files(run):
        return _file_segment(run, modality, value, f"{name}={value}")
    if modality == "text":
        return run.encode("text", [value])[0]
    if modality in run.recipe.vectors:
        return tokenizer.encode(value)
    with counting([tokenizer]):
        return tokenizer.encode(as_number(value, name))


def _file_segment(run: Run, modality: str, value: str, word: str) -> Segment:
    """The segment of a file of a field that is only read.

    Raises UserError for what is no such file.
    """
    path = Path(value)
    if not path.is_file():
        raise UserError(f"{word}: there is no file at {value}; name a clip of the voice")
    try:
        return tokenizer_of(run, modality).encode_batch(_signals(run, modality, path, {}))[0]
    except UserError as error:
        raise UserError(str(error) if value in str(error) else f"{value}: {error}") from None


def _signals(run: Run, modality: str, path: Path, reading: Mapping[str, Any]) -> list[Any]:
    """The prepared signals of a file.

    A text is cut into chunks as in training, and each is prepared by itself. If the run was trained
    on captions only, the text is read as one caption.
    """
    prepare = run.preparer(modality)
    if modality != "text":
        ways = (source.reading(modality, path) for source in run.recipe.sources)
        options = reading or next((way for way in ways if way), {})
        files = files_of(run.recipe.tokenizers[modality]).reading(options)
        return [signal for _, signal in signals_of(files, [path], prepare)]
    SIGNAL_FILES["text"].reading(reading)
    sizes = [s.chunk_chars for s in run.recipe.sources if isinstance(s, TextFile)]
    if not sizes:
        return [_caption(path, prepare)]
    with Tally("chunks") as tally:
        return [prepare(chunk, str(path), tally) for chunk in chunks(read_text(path), max(sizes))]


def _caption(path: Path, prepare: Preparer) -> str:
    """A file's text, read as captions and transcripts are in training."""
    text = read_text(path)
    caption = caption_of(text)
    if not caption:
        raise UserError(f"{path}: holds nothing but white space")
    with Tally(prepare.unit) as tally:
        if caption != text:
            tally.add("taken without the white space around it, as captions are", path)
        return prepare(caption, str(path), tally)


def are_chunks(run: Run, segments: Sequence[Segment]) -> bool:
    """Whether the segments of one word are chunks of one signal, not signals of their own."""
    return len(segments) > 1 and not run_files(run)[segments[0].modality].many


def first_segment(run: Run, word: str) -> Segment:
    """The segment that a prompt's word stands for; the first jet of a file of jets, with a note.

    Raises UserError for a text of several chunks, of which all but the first would be lost.
    """
    segments = read_segments(run, word)
    if are_chunks(run, segments):
        raise UserError(
            f"{word} makes {len(segments)} chunks of the length that this run was trained on;"
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

    A text may happen to name one too (`seven`), so a word without a suffix counts only if it is
    written as a path.
    """
    try:
        return ("/" in word or Path(word).suffix != "") and Path(word).is_file()
    except OSError:  # a text too long for a file's name
        return False


def _is_folder(word: str) -> bool:
    """Whether a word names a folder; it counts only if it is written as a path."""
    try:
        return "/" in word and Path(word).is_dir()
    except OSError:
        return False


def tokenizer_of(run: Run, modality: str) -> Any:
    """The run's tokenizer of a modality. Raises UserError if there is none."""
    if modality not in run.tokenizers:
        raise UserError(f"this run knows no {modality}, only {', '.join(run.tokenizers)}")
    return run.tokenizers[modality]
