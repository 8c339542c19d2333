"""What of a run's recipe may still change: a recipe compared with what its folder already holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.overrides import leaves
from mmtok.io.strict_json import read_json
from mmtok.run.folder import training_has_begun
from mmtok.run.recipe import Recipe, check_not_older, kinds_of
from mmtok.train.checkpoint import find_checkpoint

FREE_FIELDS = {  # they say how a run is computed, not what it is, so they may change at any time
    "train.fsdp",
    "train.replicas",
    "train.activation_checkpointing",
    "train.compile",
}

Changes = Mapping[str, tuple[Any, Any]]  # field -> (its value in the run folder, its new value)


def changed_fields(recipe: Recipe, folder: Path) -> Changes:
    """The fields in which a recipe differs from a run's recipe.json, without FREE_FIELDS.

    Raises UserError if recipe.json is damaged or was written by an older version.
    """
    path = folder / "recipe.json"
    stored = read_json(path)
    check_not_older(stored, path)
    old = leaves(_with_defaults(stored, recipe))
    new = leaves(json.loads(recipe.to_json()))
    return {
        field: (old.get(field, "absent"), new.get(field, "absent"))
        for field in {**old, **new}
        if field not in FREE_FIELDS and old.get(field) != new.get(field)
    }


def _with_defaults(stored: Any, recipe: Recipe) -> Any:
    """A stored recipe with defaults for the fields that it lacks; as it is if it is not valid."""
    try:
        read = Recipe.from_json(json.dumps(stored), tuple(kinds_of(recipe)))
    except UserError:
        return stored
    return json.loads(read.to_json())


def refused_changes(changes: Changes, folder: Path) -> Changes:
    """The changes that do not fit what the run folder holds.

    Once training has begun that is all of them. Before, it is those that tokenizers, vocabulary or
    tokens were already made with.
    """
    if training_has_begun(folder):
        return changes
    return {field: pair for field, pair in changes.items() if _is_used(field, folder)}


def _is_used(field: str, folder: Path) -> bool:
    """Whether something in the folder of an untrained run was made with a field of the recipe.

    A tokenizer is made with its own fields, its signals' preparation, the sources and the seed. The
    vocabulary and the token files are made with all tokenizers too.
    """
    fitted = {path.parent.name for path in folder.glob("tokenizers/*/tokenizer.json")}
    all_used = (folder / "vocabulary.json").exists() or any(folder.glob("tokens/**/*.parquet"))
    if field.startswith(("tokenizers.", "preparation.")):
        return all_used or field.split(".")[1] in fitted
    return field.startswith(("sources.", "train.seed")) and (all_used or bool(fitted))


def changes_text(changes: Changes) -> str:
    """The first five changes in words."""
    words = [f"{field}: {old} -> {new}" for field, (old, new) in changes.items()]
    if len(words) > 5:
        words = [*words[:5], f"and {len(words) - 5} more"]
    return "; ".join(words)


def extend_training(recipe: Recipe, folder: Path) -> None:
    """Let a run be trained on if the recipe differs from its own in the number of steps alone.

    A finished model is removed: its last checkpoint has its weights. Does nothing for a run whose
    training has not begun, and for other changes. Raises UserError for fewer steps than were made,
    and if there is no checkpoint to go on from.
    """
    if not (folder / "recipe.json").exists() or not training_has_begun(folder):
        return
    changes = changed_fields(recipe, folder)
    if set(changes) != {"train.steps"}:
        return
    before, steps = changes["train.steps"]
    checkpoint = find_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(
            f"{folder} cannot be trained on, as its checkpoints are gone and with them the"
            " optimiser's state: choose another --out"
        )
    model = folder / "model.safetensors"
    done = before if model.exists() else checkpoint.state["step"]
    if steps < done:
        raise UserError(
            f"{folder} has made {done} steps, which --train.steps {steps} would have to undo: say"
            f" at least {done}, or choose another --out"
        )
    # the model first: if this is interrupted, the run is unfinished, and the same call goes on
    model.unlink(missing_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    write_text(folder / "recipe.json", recipe.to_json())
