"""Pile-up removed by draws of the clean jet, beside soft drop and PUPPI.

    python scripts/bench_jets_pileup.py FOLDER  train, evaluate, print

`recipes/jet_pileup.py`, smaller: top jets with 60 collisions of pile-up on average, the 160 hardest
particles of each. Figures are those of `mmtok evaluate`, of held-out jets.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from timed import timed_train

from mmtok.evaluation.cleaning import METHODS, OBSERVABLES, cleaning_figures
from mmtok.evaluation.task import TaskEvaluation
from mmtok.run.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "jet_pileup.py"
MOST = 160  # particles


def recipe_of(steps: int) -> Recipe:
    """The recipe, for minutes of one core."""
    parent = load_recipe(RECIPE)
    source = replace(parent.sources[0], n_per_class=1300, n_heldout=300, processes=1)
    head = replace(parent.model.heads["jets"], max_frames=MOST, steps=16)
    train = replace(
        parent.train, steps=steps, batch_size=4, seq_len=2 * MOST + 8, precision="float32"
    )
    return replace(
        parent,
        sources=(source,),
        tokenizers={"jets": replace(parent.tokenizers["jets"], max_constituents=MOST)},
        model=replace(parent.model, heads={"jets": head}),
        train=replace(train, ema_decay=0.99),
        n_samples=100,
    )


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    words = parser.parse_args()
    torch.set_num_threads(1)
    run = timed_train(recipe_of(words.steps), words.folder)
    figures = cleaning_figures(TaskEvaluation(run, run.recipe.tasks[0]))
    print("| observable | method | half-width | bias |\n|---|---|---|---|")
    for name in OBSERVABLES:
        of_one = figures[name]
        for method in METHODS:
            ends = f"{of_one[f'width_{method}_low']:.4f} to {of_one[f'width_{method}_high']:.4f}"
            width = f"{of_one[f'width_{method}']:.4f} ({ends})"
            print(f"| {name} | {method} | {width} | {of_one[f'bias_{method}']:.4f} |")
        kept = {k: v for k, v in of_one.items() if not k.startswith(("width", "bias"))}
        print(f"\n{name}: {kept}\n")


if __name__ == "__main__":
    main()
