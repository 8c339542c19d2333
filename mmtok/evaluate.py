"""What a run can do, as figures: RUN/evaluation.json, with the samples it was judged by under RUN/samples/."""

from __future__ import annotations

import json
from typing import Any

from mmtok.files import write_text
from mmtok.likelihoods import held_out_scores, zero_shot
from mmtok.progress import say
from mmtok.questions import QUESTIONS, Setting
from mmtok.run import Run
from mmtok.segment import BadInput


def evaluate(run: Run, force: bool = False) -> dict[str, Any]:
    """Every metric that the recipe's tasks have, written to RUN/evaluation.json; an evaluation that stands is kept unless `force`."""
    path = run.folder / "evaluation.json"
    if path.exists() and not force:
        try:
            figures = json.loads(path.read_text())
        except ValueError as error:  # not JSON, or no text at all
            raise BadInput(f"{path} cannot be read ({error}): compute it again with --force") from None
        say(f"{path} stands")
        return figures
    fields, figures = run.recipe.fields, {}
    run.lm  # noqa: B018 - before the judges are trained: is there a model at all?
    for task in run.recipe.tasks:
        if len(task.given) == len(task.make) == 1 and not task.first:
            pair = (fields[task.given[0]], fields[task.make[0]])
            name = f"{pair[1]}_from_{pair[0]}"
            if name in figures:
                say(f"not evaluating {task}: another task's figures have the name {name}")
            elif pair in QUESTIONS:
                say(f"evaluating {task}")
                figures[name] = QUESTIONS[pair](Setting(run, task))
    say("scoring held-out documents")
    figures["score"] = held_out_scores(run)
    task = next((t for t in run.recipe.tasks if [fields[f] for f in (*t.given, *t.make)] == ["text", "image"]), None)
    if task is not None:
        figures["zero_shot"] = zero_shot(Setting(run, task))
    write_text(path, json.dumps(figures, indent=1) + "\n")
    return figures
