"""What `mmtok show` says of a recipe and of a run."""

from __future__ import annotations

from pathlib import Path

from mmtok.recipe import Recipe
from mmtok.train.fit_lm import read_log
from mmtok.vocabulary import Vocabulary


def describe(recipe: Recipe) -> str:
    """A recipe as text: its parts, tasks and sizes."""
    lines = [f"recipe {recipe.name}" + (f", starting from {recipe.start}" if recipe.start else "")]
    lines += [f"  {m}: {config}" for m, config in recipe.tokenizers.items()]
    lines += [f"  source {source}" for source in recipe.sources]
    lines += [f"  task {task}, weight {task.weight:g}" for task in recipe.tasks]
    return "\n".join([*lines, f"  {recipe.model}", f"  {recipe.train}"])


def describe_run(folder: Path, recipe: Recipe, vocabulary: Vocabulary | None, n_parameters: int | None) -> str:
    """A run as text. vocabulary: None before the tokenizers are fitted; n_parameters: None before the training is through."""
    lines = [describe(recipe), f"run {folder}"]
    if vocabulary:
        lines.append(f"  vocabulary {vocabulary.fingerprint}: {vocabulary.size} ids")
        lines += [f"  {m}: {s.levels[:3] if len(s.levels) > 3 else s.levels}{'...' if len(s.levels) > 3 else ''} levels, tokenizer {s.fingerprint}"
                  for m, s in vocabulary.signatures.items()]
    steps = read_log(folder / "log.jsonl")
    at = f"step {steps[-1]['step']} of {recipe.train.steps}" if steps else "not started"
    lines.append(f"  training: done, {at}, {n_parameters} parameters" if n_parameters else f"  training: {at}")
    return "\n".join(lines)
