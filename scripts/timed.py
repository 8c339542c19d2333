"""What the benchmarks that train share: training with its cost noted."""

from __future__ import annotations

import json
import resource
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run

SPENT = "cpu_minutes.json"


def timed_train(recipe: Recipe, folder: Path) -> Run:
    """Trains a run, or opens it where it is trained already.

    FOLDER/cpu_minutes.json gets the CPU minutes, tokenizers included; null where the training was
    not done in one go, so that they are not known.

    Raises UserError for a folder that holds a training of another number of steps: to go on with it
    would leave its figures and its minutes there.
    """
    check_steps(recipe, folder)
    before = cpu_minutes()
    begun = (folder / "recipe.json").exists()
    run = train(recipe, folder)
    if not (folder / SPENT).exists():
        spent = None
        if not begun:
            spent = cpu_minutes() - before
        write_text(folder / SPENT, json.dumps(spent))
    return run


def check_steps(recipe: Recipe, folder: Path) -> None:
    """Raise UserError where the folder holds a training of another number of steps."""
    path = folder / "recipe.json"
    if not path.exists():
        return
    steps = json.loads(path.read_text())["train"]["steps"]
    if steps != recipe.train.steps:
        raise UserError(
            f"{folder} holds a training of {steps:,} steps, not {recipe.train.steps:,}: give"
            " another folder by --out, or remove this one"
        )


def minutes_verdict(minutes: float | None, most: float) -> str:
    """CPU minutes beside the most that a family may take."""
    if minutes is None:
        return "not known: trained in several goes"
    return f"{minutes:.1f}: {verdict(minutes <= most)}"


def verdict(met: bool) -> str:
    """A bar's verdict in one word."""
    return "met" if met else "MISSED"


def cpu_minutes() -> float:
    """CPU minutes of this process so far, over all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) / 60
