"""A run's samples as its report finds them, and what the sections of all modalities share.

Samples are found by the names that `evaluate` and `sample` give:
samples/TARGET_from_INPUT/PROMPT-NUMBER.SUFFIX, listed in an index.json beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmtok.commands.sample import INDEX, read_index
from mmtok.commands.trajectories import named_prompt, trajectory_path
from mmtok.data.image_preparation import read_image
from mmtok.errors import UserError
from mmtok.io.filenames import inside
from mmtok.model.trajectory import N_STATES
from mmtok.report.html import Markup, tag, thumbnail
from mmtok.run.run import Run

N_PROMPTS = 24  # shown at most


@dataclass(frozen=True)
class Sample:
    """A file of samples.

    Attributes:
        path: of the file.
        prompt: what its samples were asked for with.
        stops: how each of them stopped, "end" or "cap"; empty where it is not noted.
        modality: of the samples; None where it is not noted.
        vocoder: what spoke, of speech; "" where it is not noted.
    """

    path: Path
    prompt: str
    stops: tuple[str, ...] = ()
    modality: str | None = None
    vocoder: str = ""


def find_samples(folder: Path) -> list[Sample]:
    """The files that a folder's index.json lists, in its order; without one, all there are.

    Raises UserError for a file outside the folder.
    """
    found: dict[str, Sample] = {}
    for row in read_index(folder) or _unlisted(folder):
        path = inside(folder, row["file"])
        sample = found.get(path.name)
        if sample is None:
            prompt = row.get("prompt", named_prompt(path))
            modality = row.get("modality")
            sample = Sample(path, prompt, modality=modality, vocoder=row.get("vocoder", ""))
        if "stop" in row:
            sample = replace(sample, stops=(*sample.stops, row["stop"]))
        found[path.name] = sample
    return [sample for sample in found.values() if sample.path.is_file()]


def _unlisted(folder: Path) -> list[dict[str, str]]:
    """Rows of an index for all files of a folder."""
    return [{"file": p.name} for p in sorted(folder.glob("[!.]*.*")) if p.name != INDEX]


def task_fields(run: Run, modality: str) -> tuple[str | None, str]:
    """(input, target) fields of the first task text -> modality, with numbers or without.

    Without such a task, None and the target field of any that makes the modality.
    """
    fields = run.recipe.fields
    tasks = [task for task in run.recipe.tasks if fields[task.targets[0]] == modality]
    if not tasks:
        raise UserError(f"no task of this run makes {modality}")
    for task in tasks:
        inputs = [f for f in task.inputs if fields[f] not in run.recipe.numbers]
        if [fields[f] for f in inputs] == ["text"]:
            return inputs[0], task.targets[0]
    return None, tasks[0].targets[0]


def title_of(name: str) -> str:
    """A heading for samples/NAME or for the figures of that name."""
    if name == "asked":
        return "Asked for with mmtok sample"
    return name.replace("_", " ").capitalize()


def not_there_yet(run: Run, what: str) -> list[Markup]:
    """A paragraph that says what is missing and which command makes it."""
    return [tag("p", f"{what}: run ", tag("code", f"mmtok evaluate {run.folder}"), cls="soft")]


def more_prompts(prompts: Mapping[str, object], n_shown: int) -> list[Markup]:
    """A paragraph that says how many prompts are not shown; [] when all are."""
    n_more = len(prompts) - n_shown
    if n_more <= 0:
        return []
    return [tag("p", f"{n_more} more prompts are in the run's samples folder.", cls="soft")]


def named_files_section(run: Run, prompts: Mapping[str, Sequence[Sample]]) -> list[Markup]:
    """Samples of a modality that brings no section: the names of their files."""
    names = [sample.path.name for samples in prompts.values() for sample in samples]
    shown = ", ".join(names[:N_PROMPTS])
    if len(names) > N_PROMPTS:
        shown += f" and {len(names) - N_PROMPTS} more"
    return [tag("p", f"Files of samples that no section of this report shows: {shown}.")]


def trajectories(samples: Sequence[Path], remark: str = "") -> list[Markup]:
    """The trajectories that were written for some of these samples, under a heading.

    remark: Added to the explanation. [] where no sample has a trajectory.
    """
    with_trajectory = [path for path in samples if trajectory_path(path).is_file()]
    if not with_trajectory:
        return []
    explanation = (
        "After evenly spaced steps, from the first on the left to the sample on the right. Codes"
        " that are not drawn yet are white; frames that were drawn one after another are all shown"
        " after as many steps of their own. "
    )
    figures = []
    for path in with_trajectory:
        image = read_image(trajectory_path(path))
        strip = thumbnail(image, f"trajectory of {path.stem}", "trajectory", N_STATES)
        figures.append(tag("figure", strip, tag("figcaption", named_prompt(path))))
    return [
        tag("h3", "Trajectories"),
        tag("p", explanation + remark),
        tag("div", *figures, cls="trajectories"),
    ]
