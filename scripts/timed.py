"""Trains a run where it does not stand, and notes beside it how much of the processors that took."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

from mmtok.files import write_text
from mmtok.recipe import Recipe
from mmtok.run import Run, train

SPENT = "cpu_minutes.json"


def timed_train(recipe: Recipe, folder: Path) -> Run:
    """The trained run; FOLDER/cpu_minutes.json holds the CPU minutes, tokenizers included, or NaN where it was not trained in one go."""
    before, begun = cpu_minutes(), (folder / "recipe.json").exists()
    run = train(recipe, folder)
    if not (folder / SPENT).exists():
        write_text(folder / SPENT, json.dumps(math.nan if begun else cpu_minutes() - before))
    return run


def cpu_minutes() -> float:
    """Of this process, over all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) / 60
