"""Files of interleaved documents, as `mmtok score` and `sample` read them."""

from __future__ import annotations

from pathlib import Path

from mmtok.core.interleaved import INTERLEAVED
from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.run.run import Run
from mmtok.sources.interleaved import SUFFIXES, read_documents
from mmtok.sources.jet_formats import FEATURES
from mmtok.tokenizers.base import counting


def is_documents(run: Run, word: str) -> bool:
    """Whether a word names a file of documents; only where the run was trained on some."""
    path = Path(word)
    trained = INTERLEAVED in run.recipe.fields.values()
    try:
        return trained and path.suffix.lower() in SUFFIXES and path.is_file()
    except OSError:  # a text too long for a file's name
        return False


def documents_in(run: Run, path: Path) -> list[tuple[str, Document]]:
    """(name, document) of a JSON file's document, or of each line of a .jsonl.

    Raises UserError, naming the file, for what cannot be read.
    """
    features = FEATURES
    if "jets" in run.recipe.tokenizers:
        features = run.recipe.tokenizers["jets"].takes["features"]
    found = list(read_documents(path, features))
    if not found:
        raise UserError(f"{path}: holds no documents")
    with counting(run.tokenizers.values()):
        return [(name, run.document(signal, name)) for name, signal in found]
