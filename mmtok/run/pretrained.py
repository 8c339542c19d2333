"""Recipes that start from a pretrained language model.

Its trunk becomes the trunk, its tokenizer the text tokenizer. The recipe's other modalities are
added untrained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmtok.errors import UserError
from mmtok.model.llama import check_llama, exported_vocabulary, llama_sizes, load_llama
from mmtok.model.lm import LM, DecoderConfig
from mmtok.run.folder import training_has_begun
from mmtok.run.recipe import Recipe, kinds_of, read_recipe
from mmtok.tokenizers.pretrained import PretrainedTextConfig, checkpoint_folder


def resolve_start(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the sizes and the text tokenizer of the checkpoint that it starts from.

    Dropout stays the recipe's. If a run with the same start was trained in `out`, its recipe.json
    has the sizes, and the checkpoint is not read again. Raises UserError if the checkpoint is no
    Llama, has no tokenizer, is broken, or has weights that its config does not describe.
    """
    if recipe.start is None:
        return recipe
    text = PretrainedTextConfig(recipe.start)
    own = recipe.tokenizers.get("text")
    if isinstance(own, PretrainedTextConfig):
        text = replace(own, start=recipe.start)
    model = _stored_model(recipe, out / "recipe.json") if training_has_begun(out) else None
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


def _stored_model(recipe: Recipe, path: Path) -> DecoderConfig | None:
    """The recipe's model with the trunk of a run's recipe.json; None unless it has the same start.

    A recipe.json that cannot be read is reported elsewhere.
    """
    if not path.exists():
        return None
    try:
        stored = read_recipe(path, tuple(kinds_of(recipe)))
    except UserError:
        return None
    if stored.start != recipe.start:
        return None
    trunk = replace(stored.model.trunk, dropout=recipe.model.trunk.dropout)
    return replace(recipe.model, trunk=trunk, untied=stored.model.untied)


def load_start(lm: LM, recipe: Recipe) -> None:
    """Load the weights that the recipe starts from, if any, into its untrained decoder."""
    if recipe.start is not None:
        load_llama(lm, checkpoint_folder(recipe.start))
