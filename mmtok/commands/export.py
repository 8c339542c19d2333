"""A run as a folder that `transformers` opens.

AutoModelForCausalLM gives equal logits, AutoTokenizer equal ids.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmtok.core.interleaved import INTERLEAVED
from mmtok.core.vocabulary import NAMED_CONTROLS, Vocabulary
from mmtok.data.text_preparation import TextPreparation
from mmtok.errors import UserError
from mmtok.io.files import (
    atomic_folder,
    check_folder_fits,
    is_temporary,
    recover_folder,
    temporary_path,
    write_text,
)
from mmtok.io.locks import LOCK, folder_lock
from mmtok.io.strict_json import read_json
from mmtok.model import adapter as adapter_files
from mmtok.model.adapter import is_exported_adapter, to_adapter
from mmtok.model.llama import check_one_channel, to_llama
from mmtok.model.llama_folder import CONFIG, FINGERPRINT, WEIGHTS
from mmtok.run.run import Run
from mmtok.tokenizers.autotokenizer import free_name, taken_names, write_autotokenizer

OURS = (  # all files that an export may write
    CONFIG,
    "generation_config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    adapter_files.CONFIG,
    adapter_files.WEIGHTS,
)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(run: Run, folder: Path, to: str | None = None, adapter: bool = False) -> Path:
    """Write a run as a folder that `transformers` opens; return the folder.

    The files are config.json, generation_config.json, model.safetensors, and, if the run has text,
    tokenizer.json and tokenizer_config.json.

    The exported model may read all modalities, but writes one. Its other ids, except its end mark,
    are suppressed in generation_config.json, and the weights put them out of reach: for them the
    logits are not the run's.

    The folder is made under a temporary name and takes its place by one renaming; other files of a
    former export's folder are kept. So a refused, interrupted or killed export leaves a former one
    byte for byte, and no half-written folder. The next export removes what a killed one left.

    Args:
        run: the opened run.
        folder: new, empty, or a former export.
        to: the modality that the exported model writes; by default text if a task has it as its
            target, else the last target of the first task.
        adapter: of a run trained with adapters, write these alone, as `peft` reads them:
            adapter_config.json and adapter_model.safetensors. Else they are merged into the
            weights.

    Raises:
        UserError: `adapter` of a run that learned more than adapters; the run has modalities with
            several channels or latents, which a Llama has no place for; no task makes `to`, or a
            head of its own draws it; AutoTokenizer cannot hold the text tokenizer; the folder
            holds anything but a former export, is the current one, or is being written by another
            process.
    """
    place = Path(folder).resolve()  # the target of a link is exchanged, not the link
    if not place.name:
        raise UserError(f"{folder} is the root of the file system: choose another -o")
    recover_folder(place)
    _check_place(place, folder)
    check_one_channel(run.vocabulary)
    if adapter and to is not None:
        raise UserError("export: --to is of a model, and --adapter is none: leave one of them out")
    written = ""
    if not adapter:
        written = _written_modality(run, to)
    with (
        folder_lock(place),
        _errors_name(folder, place),
        atomic_folder(place, OURS) as temporary,
    ):
        if adapter:
            to_adapter(run.lm, temporary, _base_of(run))
        else:
            _write(run, temporary, written)
    return Path(folder)


def _base_of(run: Run) -> str:
    """The checkpoint that a run started from; a folder in full."""
    start = str(run.recipe.start)
    if Path(start).is_dir():
        return str(Path(start).resolve())
    return start


def _written_modality(run: Run, to: str | None) -> str:
    """The modality that an exported model writes; warns of others that tasks make."""
    made = list(dict.fromkeys(run.recipe.fields[task.targets[-1]] for task in run.recipe.tasks))
    if INTERLEAVED in made:
        made = list(run.recipe.tokenizers)  # documents may end with any
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
    """The ids that no segment of a modality has: all but its allowed codes and its end mark."""
    span = vocabulary.span(written)
    banned = {span[code] for code in vocabulary.signatures[written].banned}
    reached = {*span, vocabulary.end(written)} - banned
    return [id for id in range(vocabulary.size) if id not in reached]


def _write(run: Run, folder: Path, written: str) -> None:
    vocabulary = run.vocabulary
    suppressed = unreachable(vocabulary, written)
    if "text" in run.tokenizers:
        _write_tokenizer(run, folder)
    to_llama(run.lm, folder, suppressed)
    config = read_json(folder / CONFIG)
    # `generate` stops at these ids: transformers reads them from config.json only if there is no
    # generation_config.json
    settings = {key: config[key] for key in SPECIAL} | {"suppress_tokens": suppressed}
    write_text(folder / "generation_config.json", json.dumps(settings, indent=2) + "\n")


def _write_tokenizer(run: Run, folder: Path) -> None:
    vocabulary = run.vocabulary
    tokenizer = run.tokenizers["text"]
    if run.recipe.preparation["text"] != TextPreparation():
        warnings.warn(
            "the run's texts were prepared (recipe.json: preparation.text), which the exported"
            " tokenizer does not do: prepare its input in the same way",
            stacklevel=2,
        )
    names = id_names(vocabulary, taken_names(tokenizer))
    n_text = len(vocabulary.span("text"))
    document = names[vocabulary.document_mark - n_text]
    begin = names[vocabulary.begin("text") - n_text]
    special = {
        "bos_token": document,
        "eos_token": names[vocabulary.end("text") - n_text],
        "pad_token": names[vocabulary.pad - n_text],
    }
    write_autotokenizer(tokenizer, folder, names, [document, begin], special)


@contextmanager
def _errors_name(folder: Path, place: Path) -> Iterator[None]:
    """Make an OSError in the temporary folder name the file that the user asked for."""
    try:
        yield
    except OSError as error:
        temporary = temporary_path(place)
        if error.filename is None or not Path(error.filename).is_relative_to(temporary):
            raise
        named = folder / Path(error.filename).relative_to(temporary)
        raise OSError(error.errno, error.strerror, str(named)) from error


def _check_place(place: Path, folder: Path) -> None:
    """Raise UserError unless the folder is new, empty or a former export.

    An export's config.json has the vocabulary's fingerprint, or else its file of adapters has. A
    folder that transformers saved again has it too, but also the version of transformers.
    """
    check_folder_fits(Path(folder))
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
    is_export = is_exported_adapter(place) or (
        isinstance(config, dict) and FINGERPRINT in config and "transformers_version" not in config
    )
    if names and not is_export:
        what = "is not empty and no export of a run"
        if CONFIG in names:
            what = "holds a model that is no export of a run"
        raise UserError(f"{folder} {what}, and an export would overwrite it: choose another -o")


def id_names(vocabulary: Vocabulary, taken: Iterable[str] = ()) -> list[str]:
    """A name for every id after the text's: marks, then the codes of the other modalities.

    Reserved ids are numbered. `taken` are names of the text's own pieces, such as a pretrained
    model's <|pad|>; ours then is <|mmtok_pad|>.
    """
    first = len(vocabulary.span("text"))
    named = {}
    for mark in NAMED_CONTROLS:
        attribute = "document_mark" if mark == "document" else mark
        named[getattr(vocabulary, attribute)] = mark
    for m in vocabulary.signatures:
        named |= {vocabulary.begin(m): f"begin_{m}", vocabulary.end(m): f"end_{m}"}
        if m != "text":
            named |= {id: f"{m}_{code}" for code, id in enumerate(vocabulary.span(m))}
    used = dict.fromkeys(taken)
    for id in range(first, vocabulary.size):  # a modality's name must not give two ids one name
        used[free_name(named.get(id, f"reserved_{id - first}"), used)] = None
    return list(used)[first - vocabulary.size :]
