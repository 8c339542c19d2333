"""A run as a folder that `transformers` opens: AutoModelForCausalLM with equal logits, AutoTokenizer with equal ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mmtok.files import is_temporary, write_text
from mmtok.layout import NAMED
from mmtok.model.interop import CONFIG, FINGERPRINT, to_llama
from mmtok.run import Run
from mmtok.segment import BadInput
from mmtok.tokenizers.autotokenizer import free_name, taken_names, write_autotokenizer
from mmtok.vocabulary import Vocabulary

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(run: Run, folder: Path) -> Path:
    """Write config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json; returns the folder.

    Without text there is no tokenizer to write. Raises BadInput for a run with many-channel modalities, which a Llama has no place
    for, and for a folder that holds anything but a former export.
    """
    folder = Path(folder)
    _check_place(folder)
    vocabulary = run.vocabulary
    to_llama(run.lm, folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    # where `generate` stops: transformers reads it from the config only where this file is missing
    write_text(folder / "generation_config.json", json.dumps({key: config[key] for key in SPECIAL}, indent=2) + "\n")
    if "text" in run.tokenizers:
        names = id_names(vocabulary, taken_names(run.tokenizers["text"]))
        name = lambda id: names[id - len(vocabulary.span("text"))]
        document, begin, end = map(name, (vocabulary.document_mark, vocabulary.begin("text"), vocabulary.end("text")))
        special = {"bos_token": document, "eos_token": end, "pad_token": name(vocabulary.pad)}
        write_autotokenizer(run.tokenizers["text"], folder, names, [document, begin], special)
    else:
        for name in TOKENIZER:  # a former export's
            (folder / name).unlink(missing_ok=True)
    return folder


def _check_place(folder: Path) -> None:
    """Raise BadInput for a folder with anything in it, unless `export` wrote it: what transformers saves names its version."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir() if not is_temporary(path)}
    if "recipe.json" in names:
        raise BadInput(f"{folder} is a run folder: choose another -o")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if CONFIG in names else {}
    except ValueError:
        config = {}
    if names and not (isinstance(config, dict) and FINGERPRINT in config and "transformers_version" not in config):
        what = "holds a model that is no export of a run" if CONFIG in names else "is not empty and no export of a run"
        raise BadInput(f"{folder} {what}, and an export would overwrite it: choose another -o")


def id_names(vocabulary: Vocabulary, taken: Iterable[str] = ()) -> list[str]:
    """A name for every id after the text's: marks, then the codes of the other modalities; reserved ids are numbered.

    taken: names of the text's own pieces, such as a pretrained model's <|pad|>: before these ours give way, as <|mmtok_pad|>.
    """
    first = len(vocabulary.span("text"))
    named = {getattr(vocabulary, "document_mark" if mark == "document" else mark): mark for mark in NAMED}
    for m in vocabulary.signatures:
        named |= {vocabulary.begin(m): f"begin_{m}", vocabulary.end(m): f"end_{m}"}
        if m != "text":
            named |= {id: f"{m}_{code}" for code, id in enumerate(vocabulary.span(m))}
    used = dict.fromkeys(taken)
    for id in range(first, vocabulary.size):  # nor may a modality's name make two alike
        used[free_name(named.get(id, f"reserved_{id - first}"), used)] = None
    return list(used)[first - vocabulary.size :]
