"""What a run can do, in figures: RUN/evaluation.json, and the samples behind them in RUN/samples/.

TASK_FIGURES is the table of what is measured of a task, by the modalities of its input and target.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from mmtok.commands.sample import NOTHING
from mmtok.errors import UserError
from mmtok.evaluation import (
    classification,
    cleaning,
    conformers,
    images,
    jets,
    speech,
    text,
    vectors,
)
from mmtok.evaluation.completion import completed_figures
from mmtok.evaluation.embedding import embedding_figures
from mmtok.evaluation.likelihood import held_out_scores, zero_shot
from mmtok.evaluation.restoration import restored_figures
from mmtok.evaluation.speech_judged import judged_speech
from mmtok.evaluation.task import TaskEvaluation
from mmtok.evaluation.video import video_from_text
from mmtok.io.files import remove_leftovers_of, write_text
from mmtok.io.terminal import print_status
from mmtok.run.folder import read_figures
from mmtok.run.run import Run
from mmtok.tokenizers.base import counting

TaskFigures = Callable[[TaskEvaluation], dict[str, Any]]

# (input modality, target modality) -> its figures. A tokenizer's config from outside the package
# may bring a table for its own modality: the method `task_figures`.
TASK_FIGURES: dict[tuple[str, ...], TaskFigures] = {
    ("text", "image"): images.image_from_text,
    ("image", "text"): text.text_from_image,
    ("text", "speech"): speech.speech_from_text,
    ("speech", "text"): text.text_from_speech,
    ("text", "jets"): jets.jets_from_text,
    ("image", "image"): restored_figures,
    ("jets", "text"): classification.class_figures,
    ("jets", "jets"): cleaning.cleaning_figures,
    ("text", "video"): video_from_text,
    ("molecule", "conformer"): conformers.conformers_from_molecule,
    (NOTHING, "image"): images.image_from_nothing,
    (NOTHING, "speech"): speech.speech_from_nothing,
    (NOTHING, "jets"): jets.jets_from_nothing,
}

COMPLETABLE = (("text", "image"), (NOTHING, "image"))  # pictures whose upper halves are given, too


def task_figures(run: Run) -> dict[tuple[str, ...], TaskFigures]:
    """TASK_FIGURES, with what the configs of the run's tokenizers bring along."""
    table = dict(TASK_FIGURES)
    for config in run.recipe.tokenizers.values():
        table.update(config.task_figures())
    for task in run.recipe.tasks:
        modalities = TaskEvaluation(run, task).modalities
        if modalities[-1] in run.recipe.vectors and len(task.targets) == 1:
            table.setdefault(modalities, vectors.posterior_figures)
    return table


def evaluated_tasks(run: Run) -> Iterator[tuple[TaskEvaluation, TaskFigures]]:
    """The recipe's tasks that have figures, each with the function that computes them."""
    table = task_figures(run)
    for task in run.recipe.tasks:
        evaluation = TaskEvaluation(run, task)
        # a task that trains on the first frames of its targets alone never learns how they end
        if evaluation.modalities in table and not task.max_target_frames:
            yield evaluation, table[evaluation.modalities]


def evaluate(run: Run, force: bool = False, guidances: Sequence[float] = ()) -> dict[str, Any]:
    """Compute every figure that the recipe's tasks have and write RUN/evaluation.json.

    guidances: under which pictures by name are drawn too, beside the recipe's; what is there of
    them is made anew.

    One of the same weights and vocoder is kept unless `force`. Its entry "weights" says after which
    step of how many the weights are, as `Run.trained` does; "vocoder", what spoke, of a run with
    speech; "members", what else scored, of an ensemble.
    """
    path = run.folder / "evaluation.json"
    remove_leftovers_of([path])
    guided = _guided(run, guidances)
    if path.exists() and not force:
        figures = read_figures(path)
        if figures.get("weights") != run.trained:
            print_status(f"{path} is of other weights, so it is made again")
        elif figures.get("vocoder", "") != run.vocoder:
            print_status(f"{path} is of another vocoder, so it is made again")
        elif figures.get("members", {}) != run.members:
            print_status(f"{path} is of another ensemble, so it is made again")
        else:
            print_status(f"{path} stands")
            return _with_guidance(run, figures, guided, guidances)
    run.lm  # noqa: B018 - fails here, not after the judges are trained, where there is no model
    # what is clipped was said when the sources were tokenised
    with counting(run.tokenizers.values(), quiet=True):
        figures = {"weights": run.trained, **_vocoder(run), **_figures(run)}
    if run.members:
        figures["members"] = run.members
    write_text(path, json.dumps(figures, indent=1) + "\n")
    return _with_guidance(run, figures, guided, guidances)


def _guided(run: Run, guidances: Sequence[float]) -> list[TaskEvaluation]:
    """The tasks that make pictures of names with guidance; [] where none is asked for.

    Raises UserError where there is no such task.
    """
    if not guidances:
        return []
    for guidance in guidances:
        run.sampling("image", guidance=guidance)  # raises for a value that is none
    tasks = [TaskEvaluation(run, task) for task in run.recipe.tasks if task.cond_dropout]
    found = [task for task in tasks if task.modalities == ("text", "image")]
    if not found:
        raise UserError(
            f"--guidance: {run.folder} has no task text -> image that was trained with"
            " cond_dropout; leave it out"
        )
    return found


def _with_guidance(
    run: Run,
    figures: dict[str, Any],
    tasks: Sequence[TaskEvaluation],
    guidances: Sequence[float],
) -> dict[str, Any]:
    """The figures with those of guidances, TASK_guidance, which are written too.

    "chosen" among them is the one to take.
    """
    for task in tasks:
        with counting(run.tokenizers.values(), quiet=True):
            swept: dict[str, Any] = images.guidance_figures(task, guidances)
        chosen = images.chosen_guidance(swept)
        swept["chosen"] = chosen
        print_status(f"{task}: guidance {chosen:g} is the one to take (sampling.image.guidance)")
        figures = {**figures, f"{task.name}_guidance": swept}
        write_text(run.folder / "evaluation.json", json.dumps(figures, indent=1) + "\n")
    return figures


def _figures(run: Run) -> dict[str, Any]:
    """A task's name, "score", "zero_shot" or "embedding" -> its figures."""
    figures: dict[str, Any] = {}
    for task, compute in evaluated_tasks(run):
        if task.name in figures:
            print_status(f"not evaluating {task}: another task's figures have the name {task.name}")
            continue
        print_status(f"evaluating {task}")
        figures[task.name] = compute(task)
        if task.modalities[-1] == "speech":
            figures[task.name] |= _vocoder(run)
        if task.modalities in COMPLETABLE:
            figures |= completed_figures(task)
    figures |= judged_speech(run)
    print_status("scoring held-out documents")
    figures["score"] = held_out_scores(run)
    for task in map(partial(TaskEvaluation, run), run.recipe.tasks):
        if task.modalities == ("text", "image") and not task.numbers:
            figures["zero_shot"] = zero_shot(task)
            break
    if run.recipe.contrasts:
        print_status("looking for the nearest vectors")
        figures["embedding"] = embedding_figures(run)
    return figures


def _vocoder(run: Run) -> dict[str, str]:
    """{"vocoder": what spoke}; {} where no vocoder makes sound."""
    if not run.vocoder:
        return {}
    return {"vocoder": run.vocoder}
