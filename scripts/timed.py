"""What the benchmarks that train share: a run is trained where it does not stand, what that cost is
noted; wrong input gets one line.
"""

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
    """The trained run; FOLDER/cpu_minutes.json holds the CPU minutes, tokenizers included, or NaN
    where it was not trained in one go.
    """
    before, begun = cpu_minutes(), (folder / "recipe.json").exists()
    run = train(recipe, folder)
    if not (folder / SPENT).exists():
        write_text(folder / SPENT, json.dumps(math.nan if begun else cpu_minutes() - before))
    return run


def cpu_minutes() -> float:
    """Of this process, over all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) / 60


def called(main: Callable[[], None]) -> None:
    """Call a script's main; wrong input is answered in one line, with exit status 2."""
    try:
        main()
    except (UserError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
