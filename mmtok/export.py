"""A run as a folder that `transformers` opens: AutoModelForCausalLM with equal logits, AutoTokenizer with equal ids."""

from __future__ import annotations

from pathlib import Path

from mmtok.layout import NAMED
from mmtok.model.interop import to_llama
from mmtok.run import Run
from mmtok.segment import BadInput
from mmtok.tokenizers.autotokenizer import write_autotokenizer
from mmtok.vocabulary import Vocabulary


def export(run: Run, folder: Path) -> Path:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json; returns the folder.

    Without text there is no tokenizer to write. Raises BadInput for a run with many-channel modalities, which a Llama has no place
    for, and for a folder that holds a run.
    """
    folder = Path(folder)
    if (folder / "recipe.json").exists():
        raise BadInput(f"{folder} is a run folder: choose another -o")
    vocabulary = run.vocabulary
    to_llama(run.lm, folder)
    if "text" in run.tokenizers:
        names = id_names(vocabulary)
        name = lambda id: names[id - len(vocabulary.span("text"))]
        document, begin, end = map(name, (vocabulary.document_mark, vocabulary.begin("text"), vocabulary.end("text")))
        special = {"bos_token": document, "eos_token": end, "pad_token": name(vocabulary.pad)}
        write_autotokenizer(run.tokenizers["text"], folder, names, [document, begin], special)
    return folder


def id_names(vocabulary: Vocabulary) -> list[str]:
    """A name for every id after the text's: marks, then the codes of the other modalities; reserved ids are numbered."""
    first = len(vocabulary.span("text"))
    named = {getattr(vocabulary, "document_mark" if mark == "document" else mark): mark for mark in NAMED}
    for m in vocabulary.signatures:
        named |= {vocabulary.begin(m): f"begin_{m}", vocabulary.end(m): f"end_{m}"}
        if m != "text":
            named |= {id: f"{m}_{code}" for code, id in enumerate(vocabulary.span(m))}
    return [f"<|{named.get(id, f'reserved_{id - first}')}|>" for id in range(first, vocabulary.size)]
