"""RUN/report.html: one page with a run's curves, figures and samples, which needs no other file.

SECTIONS is the table of how samples are shown, by modality. What a run's tasks promise and is not
there yet has a section too, which says so.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from mmtok.commands.prompts import modality_of
from mmtok.commands.show import n_numbers
from mmtok.errors import UserError
from mmtok.evaluation.evaluate import evaluated_tasks
from mmtok.io.filenames import inside
from mmtok.io.files import remove_leftovers_of, write_text
from mmtok.io.serialize import read_json_as
from mmtok.io.terminal import print_status
from mmtok.report import html, plots
from mmtok.report.classification import classification_charts
from mmtok.report.cleaning import cleaning_charts
from mmtok.report.conformers import conformer_section
from mmtok.report.curves import training_section
from mmtok.report.figures import figure_section, trained
from mmtok.report.html import Markup, number, tag
from mmtok.report.images import image_section
from mmtok.report.jets import jet_section
from mmtok.report.restoration import (
    completion_section,
    infilling_section,
    restoration_section,
)
from mmtok.report.samples import (
    Sample,
    find_samples,
    named_files_section,
    not_there_yet,
    title_of,
)
from mmtok.report.speech import speech_section
from mmtok.report.text import Reading, reading_section, text_section
from mmtok.report.video import video_section
from mmtok.run.folder import read_fidelity, read_fingerprint
from mmtok.run.run import Run
from mmtok.sources.signal_files import SIGNAL_FILES
from mmtok.tokenizers.base import counting

# (run, prompt -> its samples) -> what is shown of them
SampleSection = Callable[[Run, Mapping[str, list[Sample]]], Sequence[object]]

# modality -> how its samples are shown. A tokenizer's config from outside the package may bring a
# section for its own modality: the method `report_section`.
SECTIONS: dict[str, SampleSection] = {
    "text": text_section,
    "speech": speech_section,
    "image": image_section,
    "jets": jet_section,
    "video": video_section,
    "conformer": conformer_section,
}
# name of a folder of samples -> how these are shown, where not as others of their modality
TASK_SECTIONS: dict[str, SampleSection] = {
    "image_from_image": restoration_section,
    "image_from_text_completed": completion_section,
    "image_from_nothing_completed": completion_section,
    "image_from_text_infilled": infilling_section,
    "image_from_nothing_infilled": infilling_section,
}


def write_report(run: Run, force: bool = False) -> Path:
    """Write RUN/report.html and return its path.

    One of the same weights that is newer than all else in the run is kept, unless `force`.

    Raises UserError without matplotlib, and where the run was opened at a checkpoint that is not
    there.
    """
    path = run.folder / "report.html"
    remove_leftovers_of([path])
    if run.step is not None:
        run.trained  # noqa: B018 - raises where the checkpoint is not there
    if not force and _stands(run, path):
        print_status(f"{path} stands")
        return path
    plots.need_matplotlib()
    sections = _sections(run)
    links = [tag("a", title, href=f"#{_anchor(title)}") for title, _ in sections]
    body = [_header(run, tag("nav", *links))]
    for title, build in sections:
        content = _content(build, run)
        body.append(tag("section", tag("h2", title), *content, id=_anchor(title)))
    write_text(path, html.page(f"{run.recipe.name}: report", body))
    os.utime(path)  # the renaming itself touched the folder
    return path


def _stands(run: Run, path: Path) -> bool:
    """Whether a report is newer than all else in the run, and of what is opened.

    That is the weights, and the vocoder.
    """
    if not path.exists():
        return False
    newest = max(p.stat().st_mtime_ns for p in (run.folder, *run.folder.rglob("*")))
    if path.stat().st_mtime_ns < newest:
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    return _weights_text(run) in text and (not run.vocoder or tag("dd", run.vocoder) in text)


# ---- sections


def _sections(run: Run) -> list[tuple[str, Callable[[Run], Sequence[object]]]]:
    """Titles, each with what builds its section's content."""
    return [
        ("Training", training_section),
        ("Figures", figure_section),
        ("Tokenizers", _tokenizer_section),
        *((title_of(name), partial(sample_section, name=name)) for name in sample_names(run)),
        ("Recipe", _recipe_section),
    ]


def _content(build: Callable[[Run], Sequence[object]], run: Run) -> Sequence[object]:
    """A section's content; where the run's files or data do not allow it, the reason."""
    try:
        return build(run)
    except (UserError, OSError) as error:
        return [tag("p", str(error), cls="soft")]


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def sample_names(run: Run) -> list[str]:
    """Names of what is in samples/: those of the tasks, each with its variants, then all others.

    The names of tasks are listed also where their samples are not there yet.
    """
    there = _names_there(run.folder / "samples")
    names: list[str] = []
    for task, _ in evaluated_tasks(run):
        names += [task.name, *(name for name in there if name.startswith(f"{task.name}_"))]
    return list(dict.fromkeys([*names, *there]))


def _names_there(folder: Path) -> list[str]:
    """The folders and the readings (NAME.json) in samples/."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.is_dir() or path.suffix == ".json"]
    return sorted({path.name.removesuffix(".json") for path in paths})


def sample_section(run: Run, name: str) -> Sequence[object]:
    """What is shown of samples/NAME or samples/NAME.json.

    Raises UserError for what cannot be read.
    """
    folder = inside(run.folder / "samples", name)
    readings = inside(run.folder / "samples", f"{name}.json")
    if charts := cleaning_charts(run, name):
        return charts
    if readings.exists():
        rows = read_json_as(readings, tuple[Reading, ...])
        return [*classification_charts(run, name), *reading_section(run, name, rows)]
    prompts_of: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    own_sections = _own_sections(run)
    target = name.partition("_from_")[0]
    for sample in find_samples(folder):
        modality = sample.modality
        if modality is None:
            modality = target if target in own_sections else modality_of(sample.path)
        prompts_of[modality][sample.prompt].append(sample)
    if not prompts_of:
        return not_there_yet(run, "no samples yet")
    with ExitStack() as stack:
        if prompts_of.keys() & {"speech", "jets"}:  # these sections encode real signals too
            stack.enter_context(counting(run.tokenizers.values(), quiet=True))
        return [
            part
            for m, prompts in prompts_of.items()
            for part in (own_sections.get(m) or _section_of(m, prompts, name))(run, prompts)
        ]


def _section_of(modality: str, prompts: Mapping[str, Sequence[Sample]], name: str) -> SampleSection:
    """What shows samples/NAME of a modality; of one without a section, strings are texts."""
    if name in TASK_SECTIONS:
        return TASK_SECTIONS[name]
    if modality in SECTIONS:
        return SECTIONS[modality]
    suffixes = {sample.path.suffix for samples in prompts.values() for sample in samples}
    if suffixes == {SIGNAL_FILES["text"].written}:
        return text_section
    return named_files_section


def _own_sections(run: Run) -> dict[str, SampleSection]:
    """Modality -> the section that its tokenizer's config brings along."""
    found = {m: config.report_section() for m, config in run.recipe.tokenizers.items()}
    return {m: section for m, section in found.items() if section is not None}


def _tokenizer_section(run: Run) -> list[Markup]:
    """The fidelity of each tokenizer."""
    facts = {}
    for m, config in run.recipe.tokenizers.items():
        fidelity = read_fidelity(run.folder / "tokenizers" / m)
        words = [f"{key.replace('_', ' ')} {number(value)}" for key, value in fidelity.items()]
        kind = type(config).__name__.removesuffix("Config")
        facts[f"{m} ({kind})"] = ", ".join(words) or "not fitted yet"
    return [tag("p", "The round trip of held-out signals, without the decoder:"), _facts(facts)]


def _recipe_section(run: Run) -> list[Markup]:
    summary = tag("summary", "recipe.json")
    return [tag("details", summary, tag("pre", run.recipe.to_json()))]


# ---- the header


def _header(run: Run, links: Markup) -> Markup:
    """The run's name, what it is, and links to the sections."""
    weights = run.folder / "model.safetensors"
    vocabulary = run.folder / "vocabulary.json"
    facts = {
        "run": str(run.folder),
        "weights of": _weights_text(run),
        "vocabulary": "not laid out yet",
    }
    if run.vocoder:
        facts["vocoder"] = run.vocoder
    if weights.exists():
        facts["parameters"] = f"{n_numbers(weights):,}"
    if vocabulary.exists():
        facts["vocabulary"] = read_fingerprint(vocabulary)
    facts["tasks"] = ", ".join(str(task).replace("->", "→") for task in run.recipe.tasks)
    return tag("header", tag("h1", run.recipe.name), _facts(facts), links)


def _weights_text(run: Run) -> str:
    """When the weights were written, or of which checkpoint they are."""
    weights = run.folder / "model.safetensors"
    if run.step is None and weights.exists():
        return f"{datetime.fromtimestamp(weights.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"
    steps = trained(run)
    if steps is None:
        return "not trained to the end yet"
    return f"the checkpoint at step {steps['step']:,} of {steps['of']:,}"


def _facts(facts: Mapping[str, str]) -> Markup:
    """Names and values, as a list of definitions."""
    parts = [part for name, value in facts.items() for part in (tag("dt", name), tag("dd", value))]
    return tag("dl", *parts)
