"""Recipes that start from a run: its tokenizers and weights, with more parameter tokens if asked.

A run of parameter tokens (tokenformer.py) grows: the new generations' keys are zero at first, so
that the grown decoder gives what the run's gave, to the last bit, until it learns.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mmtok.errors import UserError
from mmtok.io.terminal import print_status
from mmtok.model.lm import LM
from mmtok.nn.tokenformer import Pattention
from mmtok.run.recipe import Recipe, kinds_of, read_recipe
from mmtok.run.run import Run

GROWING = ("attn_tokens", "ffn_tokens")


def starts_from_run(recipe: Recipe) -> bool:
    """Whether what a recipe starts from is a run's folder, not a checkpoint of `transformers`."""
    return recipe.start is not None and (Path(recipe.start) / "recipe.json").is_file()


def check_start(recipe: Recipe) -> None:
    """Raise UserError unless the decoder is that of the run that it starts from, or a grown one."""
    first = _opened(recipe).recipe
    if list(first.tokenizers) != list(recipe.tokenizers):
        raise UserError(
            f"--start {recipe.start}: that run has tokenizers for {', '.join(first.tokenizers)},"
            f" the recipe for {', '.join(recipe.tokenizers)}; they must be the same"
        )
    for m, config in recipe.tokenizers.items():
        if first.tokenizers[m] != config:
            raise UserError(
                f"--start {recipe.start}: that run has another tokenizer of {m}; set"
                f" tokenizers.{m} as its recipe.json has it"
            )
    trunk = recipe.model.trunk
    old = first.model.trunk
    for name in GROWING:
        sizes: Sequence[int] = getattr(trunk, name)
        begun: Sequence[int] = getattr(old, name)
        if sizes[: len(begun)] != begun or (sizes and not begun):
            raise UserError(
                f"--start {recipe.start}: its trunk's {name} are {list(begun)}, the recipe's"
                f" {list(sizes)}; growth adds numbers behind those that are there"
            )
    alike = {name: getattr(trunk, name) for name in (*GROWING, "dropout")}
    if replace(old, **alike) != trunk:
        raise UserError(
            f"--start {recipe.start}: its trunk has other sizes or switches than the recipe's; only"
            f" {' and '.join(GROWING)} can grow"
        )
    if replace(first.model, trunk=trunk) != recipe.model:
        raise UserError(
            f"--start {recipe.start}: its model has other heads or fields than the recipe's; set"
            " model as its recipe.json has it"
        )


def copy_tokenizer(recipe: Recipe, modality: str, folder: Path) -> bool:
    """Take a tokenizer of the run that a recipe starts from; False where it starts from none."""
    if not starts_from_run(recipe):
        return False
    fitted = Path(recipe.start or "") / "tokenizers" / modality
    if not (fitted / "tokenizer.json").exists():
        raise UserError(f"--start {recipe.start}: that run has no fitted tokenizer of {modality}")
    temporary = folder.with_name(f".{modality}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(fitted, temporary)
    temporary.rename(folder)
    print_status(f"{modality} tokenizer is that of {recipe.start}")
    return True


def load_run(lm: LM, recipe: Recipe) -> None:
    """Load the weights of the run that a recipe starts from; what was added is silent.

    Raises UserError where the run's ids mean something else, or its weights do not fit.
    """
    run = _opened(recipe)
    lm.vocabulary.check(run.vocabulary.fingerprint, str(run.folder))
    found = lm.load_state_dict(run.lm.state_dict(), strict=False)
    added = {name.rpartition(".")[0] for name in found.missing_keys}
    modules = dict(lm.named_modules())
    if found.unexpected_keys or not all(isinstance(modules[m], Pattention) for m in added):
        raise UserError(f"--start {recipe.start}: its weights do not fit this recipe's model")
    for name in added:
        of_run = f"{name}.key_"
        n_before = sum(key.startswith(of_run) for key in run.lm.state_dict())
        module = modules[name]
        assert isinstance(module, Pattention)
        module.silence(n_before)
    n_new = sum(lm.get_parameter(name).numel() for name in found.missing_keys)
    print_status(f"weights of {recipe.start}, and {n_new:,} that are added")


def _opened(recipe: Recipe) -> Run:
    folder = Path(recipe.start or "")
    if not (folder / "model.safetensors").exists():
        raise UserError(f"--start {folder}: that run is not trained to its end; train it first")
    own = read_recipe(folder / "recipe.json", tuple(kinds_of(recipe)))
    return Run(folder, own, torch.device("cpu"))
