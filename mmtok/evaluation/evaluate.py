"""What a run can do, as figures: RUN/evaluation.json, with the samples it was judged by under
RUN/samples/.
"""

from __future__ import annotations

import json
from typing import Any

from mmtok.evaluation.likelihood import held_out_scores, zero_shot
from mmtok.evaluation.questions import QUESTIONS
from mmtok.evaluation.task import Setting
from mmtok.io.files import remove_leftovers_of, write_text
from mmtok.io.terminal import print_status
from mmtok.run.folder import read_figures
from mmtok.run.run import Run
from mmtok.tokenizers.base import counting


def evaluate(run: Run, force: bool = False) -> dict[str, Any]:
    """Every metric that the recipe's tasks have, written to RUN/evaluation.json; one of the same
    weights that stands is kept unless `force`.

    "weights" in it says after which step of how many these are, as `Run.trained` does.
    """
    path = run.folder / "evaluation.json"
    remove_leftovers_of([path])
    if path.exists() and not force:
        figures = read_figures(path)
        if figures.get("weights") == run.trained:
            print_status(f"{path} stands")
            return figures
        print_status(f"{path} is of other weights, so it is made again")
    run.lm  # noqa: B018 - before the judges are trained: is there a model at all?
    with counting(
        run.tokenizers.values(), quiet=True
    ):  # what is clipped was said when the sources were tokenised
        figures = {"weights": run.trained, **_figures(run)}
    write_text(path, json.dumps(figures, indent=1) + "\n")
    return figures


def _figures(run: Run) -> dict[str, Any]:
    """Question or "score" -> its figures."""
    figures: dict[str, Any] = {}
    for s in (Setting(run, task) for task in run.recipe.tasks if not task.max_target_frames):
        if s.pair in QUESTIONS and s.name in figures:
            print_status(f"not evaluating {s.task}: another task's figures have the name {s.name}")
        elif s.pair in QUESTIONS:
            print_status(f"evaluating {s.task}")
            figures[s.name] = QUESTIONS[s.pair](s)
    print_status("scoring held-out documents")
    figures["score"] = held_out_scores(run)
    drawing = next(
        (
            s
            for s in (Setting(run, task) for task in run.recipe.tasks)
            if s.pair == ("text", "image")
        ),
        None,
    )
    if drawing is not None:
        figures["zero_shot"] = zero_shot(drawing)
    return figures
