"""What the benchmarks that train share: training with its cost noted, and one-line errors."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run

SPENT = "cpu_minutes.json"


def timed_train(recipe: Recipe, folder: Path) -> Run:
    """Trains a run, or opens it where it is trained already.

    FOLDER/cpu_minutes.json gets the CPU minutes, tokenizers included; NaN where the training was
    not done in one go.
    """
    before = cpu_minutes()
    begun = (folder / "recipe.json").exists()
    run = train(recipe, folder)
    if not (folder / SPENT).exists():
        spent = math.nan if begun else cpu_minutes() - before
        write_text(folder / SPENT, json.dumps(spent))
    return run


def cpu_minutes() -> float:
    """CPU minutes of this process so far, over all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) / 60


def called(main: Callable[[], None]) -> None:
    """Calls a script's main; wrong input is answered in one line, with exit status 2."""
    try:
        main()
    except (UserError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
