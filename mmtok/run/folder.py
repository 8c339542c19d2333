"""The small files of a run folder: notes, vocabulary, fidelity, figures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.serialize import check_known, read_json_as
from mmtok.io.strict_json import read_json

NOTES = "notes.txt"


@contextmanager
def record_notes(folder: Path) -> Iterator[None]:
    """Also write the user warnings of the block to the run folder's notes.txt, each line once.

    They are about the data: what was cut, resampled or left out. Nothing is written until the
    folder has a recipe.json.
    """
    show = warnings.showwarning
    notes: list[str] = []

    def show_and_record(
        message: Warning | str, category: type[Warning], *rest: Any, **more: Any
    ) -> None:
        show(message, category, *rest, **more)
        if issubclass(category, UserWarning):
            notes.append(" ".join(str(message).split()))
            _write_notes(folder, notes)

    warnings.showwarning = show_and_record
    try:
        yield
    finally:
        warnings.showwarning = show
        _write_notes(folder, notes)


def _write_notes(folder: Path, notes: list[str]) -> None:
    if notes and (folder / "recipe.json").exists():
        lines = dict.fromkeys([*read_notes(folder), *notes])
        write_text(folder / NOTES, "".join(f"{line}\n" for line in lines))


def read_notes(folder: Path) -> list[str]:
    """The lines of a run's notes.txt; [] without one."""
    path = folder / NOTES
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def training_has_begun(folder: Path) -> bool:
    """Whether the folder has a trained model or a checkpoint."""
    return (folder / "model.safetensors").exists() or any((folder / "checkpoints").glob("step-*"))


# ---- JSON files


@dataclass(frozen=True)
class VocabularyFile:
    """The content of a run's vocabulary.json.

    Attributes:
        fingerprint: of the vocabulary's ids.
        signatures: of the tokenizers, in order.
    """

    fingerprint: str
    signatures: tuple[Signature, ...]


def read_fingerprint(path: Path) -> str:
    """The vocabulary's fingerprint in a vocabulary.json.

    Raises UserError, naming file and field, if the file is not valid.
    """
    try:
        return read_json_as(path, VocabularyFile).fingerprint
    except UserError as error:
        raise UserError(
            f"{path} is damaged: {str(error).removeprefix(f'{path}: ')}; remove it if the"
            " tokenizers are as they were"
        ) from None


def read_sha256(path: Path) -> str | None:
    """The SHA-256 of the weights in a run's config.json; None if it has none.

    Raises UserError if the file is not valid.
    """
    config = read_json(path) if path.exists() else {}
    check_known(config, {"sha256": str}, str(path))
    return config.get("sha256")


def read_fidelity(folder: Path) -> dict[str, float]:
    """The fidelity of a fitted tokenizer on held-out signals; {} if it was not measured.

    Raises UserError if the file is not valid.
    """
    path = folder / "fidelity.json"
    return read_json_as(path, dict[str, float], nan=True) if path.exists() else {}


def read_figures(path: Path) -> dict[str, Any]:
    """The figures in an evaluation.json: by name a number, or a table of them.

    "score" is a table of modality -> costs by unit. Raises UserError if the file is not valid.
    """
    again = f"compute it again with `mmtok evaluate {path.parent} --force`"
    try:
        figures = read_json(path, nan=True)
    except UserError as error:
        raise UserError(f"{error}; {again}") from None
    if not _is_table(figures) or not _has_costs(figures.get("score", {})):
        raise UserError(f"{path} is damaged: it holds no table of figures; {again}")
    return figures


def _is_table(value: Any) -> bool:
    """Whether a value is a mapping that holds only numbers, words and such mappings."""
    return isinstance(value, dict) and all(
        isinstance(x, (int, float, str)) or _is_table(x) for x in value.values()
    )


def _has_costs(scores: Any) -> bool:
    """Whether every modality's row of scores has a cost, and costs are numbers."""
    if not isinstance(scores, dict):
        return False
    for row in scores.values():
        costs = [x for key, x in row.items() if "_per_" in key] if isinstance(row, dict) else []
        if not costs or not all(isinstance(x, (int, float)) for x in costs):
            return False
    return True
