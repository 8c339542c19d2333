"""Recipes that start from a run: its tokenizers and weights, whatever else the recipe adds.

The recipe's vocabulary must contain the run's. It may add modalities, heads, adapters and other
tasks; what is new starts untrained. A trunk of parameter tokens (tokenformer.py) may grow.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmtok.errors import UserError
from mmtok.io.terminal import print_status
from mmtok.model.lm import LM
from mmtok.model.transfer import transfer
from mmtok.run.folder import read_sha256
from mmtok.run.recipe import Recipe, kinds_of, read_recipe
from mmtok.run.run import Run

GROWING = ("attn_tokens", "ffn_tokens")
FREE = ("dropout",)  # fields of a trunk that change no weight


def starts_from_run(recipe: Recipe) -> bool:
    """Whether what a recipe starts from is a run's folder, not a checkpoint of `transformers`."""
    return recipe.start is not None and (Path(recipe.start) / "recipe.json").is_file()


def check_start(recipe: Recipe) -> None:
    """Raise UserError unless all that the recipe shares with the run it starts from is the same."""
    problem = next(_problems(_opened(recipe).recipe, recipe), "")
    if problem:
        raise UserError(f"--start {recipe.start}: {problem}")


def _problems(first: Recipe, recipe: Recipe) -> Iterator[str]:
    """What does not fit, in words; nothing where all does."""
    for m, config in first.tokenizers.items():
        if m not in recipe.tokenizers:
            yield (
                f"that run has ids of {m}, and the recipe has no tokenizer of it; add"
                f" tokenizers.{m} as its recipe.json has it"
            )
        elif recipe.tokenizers[m] != config:
            yield (
                f"that run has another tokenizer of {m}; set tokenizers.{m} as its recipe.json"
                " has it"
            )
        elif recipe.preparation.get(m) != first.preparation.get(m):
            yield (
                f"that run prepares {m} in another way; set preparation.{m} as its recipe.json"
                " has it"
            )
    yield from _trunk_problems(first, recipe)
    old = first.model
    model = recipe.model
    for name in ("channel_size", "untied", "model_type"):
        if getattr(old, name) != getattr(model, name):
            yield (
                f"its model.{name} is {getattr(old, name)}, the recipe's {getattr(model, name)};"
                " set it as its recipe.json has it"
            )
    totals = {m: model.totals.get(m, 0) for m in first.tokenizers}
    if totals != {m: old.totals.get(m, 0) for m in first.tokenizers}:
        yield "its model.totals are others than the recipe's; set them as its recipe.json has them"
    parts: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = (
        ("heads", old.heads, model.heads),
        ("encoders", old.encoders, model.encoders),
        ("embedding", {"": old.embedding}, {"": model.embedding}),
    )
    for name, theirs, mine in parts:
        for m in theirs.keys() & mine.keys():
            if theirs[m] is not None and mine[m] is not None and theirs[m] != mine[m]:
                field = f"model.{name}.{m}".removesuffix(".")
                yield f"that run has another {field}; set it as its recipe.json has it"


def _trunk_problems(first: Recipe, recipe: Recipe) -> Iterator[str]:
    trunk = recipe.model.trunk
    old = first.model.trunk
    for name in GROWING:
        sizes: Sequence[int] = getattr(trunk, name)
        begun: Sequence[int] = getattr(old, name)
        if sizes[: len(begun)] != begun or (sizes and not begun):
            yield (
                f"its trunk's {name} are {list(begun)}, the recipe's {list(sizes)}; growth adds"
                " numbers behind those that are there"
            )
    alike = {name: getattr(trunk, name) for name in (*GROWING, *FREE)}
    if replace(old, **alike) != trunk:
        yield (
            "its trunk has other sizes or switches than the recipe's; set model.trunk as its"
            f" recipe.json has it (only {' and '.join(GROWING)} can grow)"
        )


def copy_tokenizer(recipe: Recipe, modality: str, folder: Path) -> bool:
    """Take a tokenizer of the run that a recipe starts from; False where that has none of it."""
    if not starts_from_run(recipe):
        return False
    fitted = Path(recipe.start or "") / "tokenizers" / modality
    if not (fitted / "tokenizer.json").exists():
        if modality not in _recipe_of_start(recipe).tokenizers:
            return False
        raise UserError(f"--start {recipe.start}: that run has no fitted tokenizer of {modality}")
    temporary = folder.with_name(f".{modality}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(fitted, temporary)
    temporary.rename(folder)
    print_status(f"{modality} tokenizer is that of {recipe.start}")
    return True


def load_run(lm: LM, recipe: Recipe) -> None:
    """Copy the weights of the run that a recipe starts from; `lm.origin` says what came of it.

    Raises UserError where the run's ids mean something else, or its weights do not fit.
    """
    run = _opened(recipe)
    try:
        found = transfer(run.lm, lm)
    except UserError as error:
        raise UserError(f"--start {recipe.start}: {error}") from None
    sha256 = read_sha256(run.folder / "config.json")
    lm.origin = replace(found, run=str(recipe.start), sha256=sha256)
    print_status(str(lm.origin))


def _recipe_of_start(recipe: Recipe) -> Recipe:
    return read_recipe(Path(recipe.start or "") / "recipe.json", tuple(kinds_of(recipe)))


def _opened(recipe: Recipe) -> Run:
    folder = Path(recipe.start or "")
    if not (folder / "model.safetensors").exists():
        raise UserError(f"--start {folder}: that run is not trained to its end; train it first")
    return Run(folder, _recipe_of_start(recipe), torch.device("cpu"))
