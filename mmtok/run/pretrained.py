"""A recipe that starts from a pretrained language model: what the checkpoint fixes, and its
weights.

The language model's trunk becomes the trunk, its tokenizer the text tokenizer; the recipe's other
modalities are added untrained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmtok.errors import UserError
from mmtok.model.llama import check_llama, exported_vocabulary, llama_sizes, load_llama
from mmtok.model.lm import LM, DecoderConfig
from mmtok.run.folder import is_begun
from mmtok.run.recipe import Recipe, kinds_of, read_recipe
from mmtok.tokenizers.pretrained import PretrainedTextConfig, checkpoint_folder


def settled(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with what its `start` fixes filled in: the trunk's sizes (dropout stays the
    recipe's) and the text tokenizer.

    A run in `out` that was trained from the same place has it all, and the checkpoint is not looked
    at again. Raises UserError when the checkpoint is no Llama's, or has no tokenizer, or when its
    weights are broken files or not what its config says.
    """
    if recipe.start is None:
        return recipe
    text = PretrainedTextConfig(recipe.start)
    model = _kept(recipe, out / "recipe.json") if is_begun(out) else None
    if model is None:
        folder = checkpoint_folder(recipe.start)
        if exported_vocabulary(folder):
            raise UserError(
                f"{recipe.start} was exported from a run, so its ids are not those of a text alone:"
                " go on with that run, or open the folder with mmtok.model.llama.from_llama"
            )
        model = llama_sizes(folder, recipe.model)
        check_llama(folder, model, text.build().signature)  # before anything is written
    return replace(recipe, tokenizers={**recipe.tokenizers, "text": text}, model=model)


def _kept(recipe: Recipe, path: Path) -> DecoderConfig | None:
    """The recipe's model with the trunk of a run's stored recipe that has the same start, or None."""
    try:
        stored = read_recipe(path, tuple(kinds_of(recipe))) if path.exists() else None
    except UserError:  # damaged, or another recipe: the run says so in its own words
        stored = None
    if stored is None or stored.start != recipe.start:
        return None
    trunk = replace(stored.model.trunk, dropout=recipe.model.trunk.dropout)
    return replace(recipe.model, trunk=trunk, untied=stored.model.untied)


def load_start(lm: LM, recipe: Recipe) -> None:
    """Put the weights of the recipe's start, if it has one, into its untrained decoder."""
    if recipe.start is not None:
        load_llama(lm, checkpoint_folder(recipe.start))
