"""A run as a folder that `transformers` opens: AutoModelForCausalLM with equal logits,
AutoTokenizer with equal ids.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmtok.core.vocabulary import NAMED_CONTROLS, Vocabulary
from mmtok.errors import UserError
from mmtok.io.files import (
    atomic_folder,
    is_temporary,
    recover_folder,
    temporary_path,
    write_text,
)
from mmtok.io.locks import LOCK, folder_lock
from mmtok.io.strict_json import read_json
from mmtok.model.llama import CONFIG, FINGERPRINT, WEIGHTS, check_one_channel, to_llama
from mmtok.preparation.text import TextPreparation
from mmtok.run.run import Run
from mmtok.tokenizers.autotokenizer import free_name, taken_names, write_autotokenizer

OURS = (
    CONFIG,
    "generation_config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
)  # all that an export may write
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(run: Run, folder: Path, to: str | None = None) -> Path:
    """Write config.json, generation_config.json, model.safetensors, tokenizer.json and
    tokenizer_config.json; returns the folder.

    to: the modality that the folder's model writes, which it may read along with all others; by
    default text where a task makes text, else what the first task makes last. All other ids but its
    end mark are out of the model's reach, and generation_config.json suppresses them too. For them
    the logits are not the run's. Without text there is no tokenizer to write. The folder is made
    whole beside a former one and takes its place by one renaming, with
    whatever else lay in that: an export that is refused, interrupted or killed leaves a former one
    byte for byte, and of a new folder nothing that counts. What a killed one left beside it is
    swept by the next. Raises UserError for a run with many-channel modalities, which a Llama has no
    place for, for a modality that no task makes or that is drawn by a head, which a Llama has no
    place for either, for a text tokenizer that AutoTokenizer could not have, for a folder that
    holds anything but a former export, for the one that this process is in, and while another
    process writes it.
    """
    place = Path(folder).resolve()  # what a link leads to is exchanged, not the link
    if not place.name:
        raise UserError(f"{folder} is the root of the file system: choose another -o")
    recover_folder(place)
    _check_place(place, folder)
    check_one_channel(run.vocabulary)
    written = _written(run, to)
    with (
        folder_lock(place),
        _named_as_asked(place, folder),
        atomic_folder(place, OURS) as temporary,
    ):
        _write(run, temporary, written)
    return Path(folder)


def _written(run: Run, to: str | None) -> str:
    """The modality that an exported model writes; says what it does not, where tasks make more than
    one.
    """
    made = list(dict.fromkeys(run.recipe.fields[task.targets[-1]] for task in run.recipe.tasks))
    written = to or ("text" if "text" in made else made[0])
    if written not in made:
        raise UserError(
            f"export: no task of this run makes {written}; --to is one of {', '.join(made)}"
        )
    if written in run.lm.heads and run.vocabulary.signatures[written].one_channel:
        raise UserError(
            f"export: {written} is drawn by a head of its own"
            f" ({type(run.lm.config.heads[written]).__name__}), which a Llama has no place for"
        )
    others = [m for m in made if m != written]
    if others and to is None:
        warnings.warn(
            f"export: this model writes {written}; for one that writes {' or '.join(others)} name"
            " it with --to",
            stacklevel=3,
        )
    return written


def unreachable(vocabulary: Vocabulary, written: str) -> list[int]:
    """The ids that no segment of a modality has: all but its codes that are not banned, and its end
    mark.
    """
    span, banned = vocabulary.span(written), vocabulary.signatures[written].banned
    reached = {*span, vocabulary.end(written)} - {span[code] for code in banned}
    return [id for id in range(vocabulary.size) if id not in reached]


def _write(run: Run, folder: Path, written: str) -> None:
    vocabulary, out_of_reach = run.vocabulary, unreachable(run.vocabulary, written)
    if "text" in run.tokenizers:
        if run.recipe.preparation["text"] != TextPreparation():
            warnings.warn(
                "the run's texts were prepared (recipe.json: preparation.text), which the exported"
                " tokenizer does not do: prepare what it is given alike",
                stacklevel=2,
            )
        names = id_names(vocabulary, taken_names(run.tokenizers["text"]))
        name = lambda id: names[id - len(vocabulary.span("text"))]
        document, begin, end = map(
            name, (vocabulary.document_mark, vocabulary.begin("text"), vocabulary.end("text"))
        )
        special = {"bos_token": document, "eos_token": end, "pad_token": name(vocabulary.pad)}
        write_autotokenizer(run.tokenizers["text"], folder, names, [document, begin], special)
    to_llama(run.lm, folder, out_of_reach)
    config = read_json(folder / CONFIG)
    # where `generate` stops: transformers reads it from the config only where this file is missing
    settings = {key: config[key] for key in SPECIAL} | {"suppress_tokens": out_of_reach}
    write_text(folder / "generation_config.json", json.dumps(settings, indent=2) + "\n")


@contextmanager
def _named_as_asked(place: Path, folder: Path) -> Iterator[None]:
    """What finds no room in the temporary folder is told by the name that it was to have."""
    try:
        yield
    except OSError as error:
        temporary = temporary_path(place)
        if error.filename is None or not Path(error.filename).is_relative_to(temporary):
            raise
        raise OSError(
            error.errno, error.strerror, str(folder / Path(error.filename).relative_to(temporary))
        ) from error


def _check_place(place: Path, folder: Path) -> None:
    """Raise UserError for a folder with anything in it, unless `export` wrote it: what transformers
    saves names its version.
    """
    if not place.exists():
        return
    if Path.cwd().is_relative_to(place):
        raise UserError(
            f"{folder} is where this command was called, and an export takes the folder's place:"
            " call it from outside"
        )
    names = {path.name for path in place.iterdir() if path.name != LOCK and not is_temporary(path)}
    if "recipe.json" in names:
        raise UserError(f"{folder} is a run folder: choose another -o")
    try:
        config = read_json(place / CONFIG) if CONFIG in names else {}
    except UserError:
        config = {}
    if names and not (
        isinstance(config, dict) and FINGERPRINT in config and "transformers_version" not in config
    ):
        what = (
            "holds a model that is no export of a run"
            if CONFIG in names
            else "is not empty and no export of a run"
        )
        raise UserError(f"{folder} {what}, and an export would overwrite it: choose another -o")


def id_names(vocabulary: Vocabulary, taken: Iterable[str] = ()) -> list[str]:
    """A name for every id after the text's: marks, then the codes of the other modalities; reserved
    ids are numbered.

    taken: names of the text's own pieces, such as a pretrained model's <|pad|>: before these ours
    give way, as <|mmtok_pad|>.
    """
    first = len(vocabulary.span("text"))
    named = {
        getattr(vocabulary, "document_mark" if mark == "document" else mark): mark
        for mark in NAMED_CONTROLS
    }
    for m in vocabulary.signatures:
        named |= {vocabulary.begin(m): f"begin_{m}", vocabulary.end(m): f"end_{m}"}
        if m != "text":
            named |= {id: f"{m}_{code}" for code, id in enumerate(vocabulary.span(m))}
    used = dict.fromkeys(taken)
    for id in range(first, vocabulary.size):  # nor may a modality's name make two alike
        used[free_name(named.get(id, f"reserved_{id - first}"), used)] = None
    return list(used)[first - vocabulary.size :]
