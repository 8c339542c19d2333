"""A run folder: one process at a time writes into it, and its JSON is read with an error in one
line.
"""

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
def noted(folder: Path) -> Iterator[None]:
    """Keep what users are told meanwhile of their data in a run folder too, each line once; nothing
    in a folder that is no run yet.
    """
    show = warnings.showwarning
    told: list[str] = []

    def show_and_keep(
        message: Warning | str, category: type[Warning], *rest: Any, **more: Any
    ) -> None:
        show(message, category, *rest, **more)
        if issubclass(category, UserWarning):
            told.append(" ".join(str(message).split()))
            _keep(folder, told)

    warnings.showwarning = show_and_keep
    try:
        yield
    finally:
        warnings.showwarning = show
        _keep(folder, told)


def _keep(folder: Path, told: list[str]) -> None:
    if told and (folder / "recipe.json").exists():
        lines = dict.fromkeys([*read_notes(folder), *told])
        write_text(folder / NOTES, "".join(f"{line}\n" for line in lines))


def read_notes(folder: Path) -> list[str]:
    """What users were told while a run was made, a line each; [] where nothing was."""
    path = folder / NOTES
    return path.read_text(errors="replace").splitlines() if path.exists() else []


@dataclass(frozen=True)
class VocabularyFile:
    """What a run's vocabulary.json says: the signatures of its tokenizers in order, and the
    fingerprint of the ids laid out by them.
    """

    fingerprint: str
    signatures: tuple[Signature, ...]


def read_fingerprint(path: Path) -> str:
    """The vocabulary's fingerprint in a vocabulary.json.

    Raises UserError, naming file and field, when it is not as it should be.
    """
    try:
        return read_json_as(path, VocabularyFile).fingerprint
    except UserError as error:
        raise UserError(
            f"{path} is damaged: {str(error).removeprefix(f'{path}: ')}; remove it if the"
            " tokenizers are as they were"
        ) from None


def read_sha256(path: Path) -> str | None:
    """The SHA-256 of the weights in a run's config.json; None where it says none.

    Raises UserError for what is no such file.
    """
    config = read_json(path) if path.exists() else {}
    check_known(config, {"sha256": str}, str(path))
    return config.get("sha256")


def read_fidelity(folder: Path) -> dict[str, float]:
    """What was measured of a fitted tokenizer on held-out signals; {} where nothing was.

    Raises UserError for what is no such table.
    """
    path = folder / "fidelity.json"
    return read_json_as(path, dict[str, float], nan=True) if path.exists() else {}


def read_figures(path: Path) -> dict[str, Any]:
    """The figures in an evaluation.json: by name a number, or a table of them; "score" is one of
    modality -> costs by unit.

    Raises UserError, naming the file, when it holds anything else.
    """
    again = f"compute it again with `mmtok evaluate {path.parent} --force`"
    try:
        figures = read_json(path, nan=True)
    except UserError as error:
        raise UserError(f"{error}; {again}") from None
    score = figures.get("score", {}) if isinstance(figures, dict) else None
    whole = (
        _is_table(figures)
        and isinstance(score, dict)
        and all(isinstance(row, dict) and _costs(row) for row in score.values())
    )
    if not whole:
        raise UserError(f"{path} is damaged: it holds no table of figures; {again}")
    return figures


def _is_table(value: Any) -> bool:
    """Whether a value is a mapping that holds nothing but numbers, words and such mappings."""
    return isinstance(value, dict) and all(
        isinstance(x, (int, float, str)) or _is_table(x) for x in value.values()
    )


def _costs(row: dict[str, Any]) -> bool:
    """Whether a modality's row of scores has a cost at all, and costs are numbers."""
    costs = [x for key, x in row.items() if "_per_" in key]
    return bool(costs) and all(isinstance(x, (int, float)) for x in costs)


def is_begun(folder: Path) -> bool:
    """Whether anything was trained in a run folder."""
    return (folder / "model.safetensors").exists() or any((folder / "checkpoints").glob("step-*"))
