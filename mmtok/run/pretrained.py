"""Recipes that start from a pretrained language model.

Its trunk becomes the trunk, its tokenizer the text tokenizer. The recipe's other modalities are
added untrained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmtok.errors import UserError
from mmtok.model.llama import check_llama, exported_vocabulary, llama_sizes, load_llama
from mmtok.model.lm import LM
from mmtok.run.finetune import check_start, load_run, starts_from_run
from mmtok.run.folder import training_has_begun
from mmtok.run.recipe import Recipe, kinds_of, read_recipe
from mmtok.sources.text import TextFile
from mmtok.tokenizers.pretrained import PretrainedTextConfig, checkpoint_folder


def resolve_start(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the sizes and the text tokenizer of the checkpoint that it starts from.

    Dropout stays the recipe's. If a run with the same start was trained in `out`, its recipe.json
    has the sizes, and the checkpoint is not read again. Raises UserError if the checkpoint is no
    Llama, has no tokenizer, is broken, or has weights that its config does not describe.
    """
    if recipe.start is None:
        return recipe
    if starts_from_run(recipe):
        if not training_has_begun(out):
            check_start(recipe)
        return recipe
    if recipe.model.trunk.odd_blocks:
        raise UserError(
            f"--start {recipe.start}: a checkpoint has plain blocks, and the recipe's trunk has"
            f" {recipe.model.trunk.odd_blocks}; leave them out, or start from a run"
        )
    stored = _stored(recipe, out / "recipe.json") if training_has_begun(out) else None
    text = _text_config(recipe, stored)
    if stored is not None:
        trunk = replace(stored.model.trunk, dropout=recipe.model.trunk.dropout)
        model = replace(
            recipe.model,
            trunk=trunk,
            untied=stored.model.untied,
            model_type=stored.model.model_type,
        )
    else:
        folder = checkpoint_folder(recipe.start)
        if exported_vocabulary(folder):
            raise UserError(
                f"{recipe.start} was exported from a run, so its ids are not those of a text alone:"
                " go on with that run, or open the folder with mmtok.model.llama.from_llama"
            )
        model = llama_sizes(folder, recipe.model)
        model.trunk.check_length(recipe.train.seq_len)
        check_llama(folder, model, text.build().signature)  # before anything is written
    return replace(recipe, tokenizers={**recipe.tokenizers, "text": text}, model=model)


def _text_config(recipe: Recipe, stored: Recipe | None) -> PretrainedTextConfig:
    """The config of the checkpoint's tokenizer; with conversations where the data holds some."""
    for known in (recipe, stored):
        own = known and known.tokenizers.get("text")
        if isinstance(own, PretrainedTextConfig):
            return replace(own, start=str(recipe.start))
    texts = [source for source in recipe.sources if isinstance(source, TextFile)]
    return PretrainedTextConfig(str(recipe.start), any(source.is_chat() for source in texts))


def _stored(recipe: Recipe, path: Path) -> Recipe | None:
    """The recipe in a run's recipe.json; None unless it has the same start.

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
    return stored


def load_start(lm: LM, recipe: Recipe) -> None:
    """Load the weights that the recipe starts from, if any, into its untrained decoder."""
    if starts_from_run(recipe):
        load_run(lm, recipe)
    elif recipe.start is not None:
        load_llama(lm, checkpoint_folder(recipe.start))
