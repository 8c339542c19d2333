"""The report's section of figures: evaluation.json as tables, one per task."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mmtok.errors import UserError
from mmtok.report import conformers, images, jets, restoration, speech, text, video
from mmtok.report.curves import held_out_scores
from mmtok.report.html import Markup, join, number, table, tag
from mmtok.report.samples import not_there_yet, title_of
from mmtok.run.folder import read_figures
from mmtok.run.run import Run

LABELS = {
    "judge_accuracy": "samples that the judge names as asked",
    "judge_heldout": "the judge on real held-out signals",
    "judge_round_trip": "the judge on real ones through the tokenizer",
    "n": "number of signals",
    "stopped": "samples that end by themselves",
    "at_cap": "samples cut at the cap",
    "vocoder": "what made the sound",
    **text.LABELS,
    **speech.LABELS,
    **images.LABELS,
    **restoration.LABELS,
    **jets.LABELS,
    **video.LABELS,
    **conformers.LABELS,
}
LOW = "_low"  # the ends of a figure's interval
HIGH = "_high"
P_VALUE = "_p"  # of a figure that compares two sets
HALVES = "_halves"  # what two halves of real signals stay below
REMARKS = {
    "jets_from_text": jets.REMARK,
    "jets_from_nothing": jets.REMARK,
    "image_from_image": restoration.REMARK,
    "image_from_text_completed": restoration.REMARK_COMPLETED,
    "image_from_nothing_completed": restoration.REMARK_COMPLETED,
    "image_from_text_infilled": restoration.REMARK_INFILLED,
    "image_from_nothing_infilled": restoration.REMARK_INFILLED,
    "image_from_text_guidance": restoration.REMARK_GUIDANCE,
    "score": (
        "Negative log-likelihood of held-out signals; lower is better. The unigram model of latents"
        " is a Gaussian for each of a frame's numbers, or, where these are cells of an axis, a"
        " table of them."
    ),
    **speech.REMARKS,
    "zero_shot": "Held-out images named by the caption under which they are likeliest.",
}
SCORE_COLUMNS = {  # key of the scores -> heading
    "model": "this run",
    "without_condition": "without condition",
    "unigram": "unigram",
    "untrained": "untrained",
}


def figure_section(run: Run) -> list[Markup]:
    """evaluation.json as tables, one per task, and one of likelihoods."""
    path = run.folder / "evaluation.json"
    if not path.exists():
        return not_there_yet(run, "not evaluated yet")
    figures = read_figures(path)
    weights = figures.pop("weights", None)
    figures.pop("vocoder", None)  # each table of sound says it
    figures.pop("members", None)  # and each of classes who was asked
    blocks = []
    for name, values in figures.items():
        remark = [tag("p", REMARKS[name], cls="soft")] if name in REMARKS else []
        title = tag("h3", title_of(name))
        blocks.append(tag("div", title, *remark, _figures_of(run, name, values)))
    return [*_weights_remark(run, weights), tag("div", *blocks, cls="columns")]


def trained(run: Run) -> dict[str, int] | None:
    """`Run.trained`, or None where the run has no weights yet."""
    try:
        return run.trained
    except (UserError, OSError):
        return None


def _weights_remark(run: Run, weights: object) -> list[Markup]:
    """Which weights the figures are of, unless they are those of the finished run."""
    if not isinstance(weights, Mapping):
        return []
    current = weights == trained(run)
    if current and weights["step"] == weights["of"]:
        return []
    words = (
        f"These figures are of the weights after step {weights.get('step')} of {weights.get('of')}"
    )
    if current:
        return [tag("p", f"{words}: the run is not trained to its end.")]
    command = tag("code", f"mmtok evaluate {run.folder}")
    return [tag("p", f"{words}, which are not those of this page; made again by ", command)]


def _figures_of(run: Run, name: str, values: object) -> Markup:
    """The figures of one task, in a column for each class where it has classes."""
    if not isinstance(values, Mapping):
        return tag("p", number(values))
    if name == "score":
        return _score_table(held_out_scores(run), values)
    classes = {key: figures for key, figures in values.items() if isinstance(figures, Mapping)}
    chosen = number(values.get("chosen", math.nan))
    if chosen in classes:
        classes = {_marked(key, key == chosen): figures for key, figures in classes.items()}
    return _figure_table(classes or {"": values})


def _marked(heading: str, chosen: bool) -> str:
    if chosen:
        return f"{heading} (chosen)"
    return heading


def _score_table(
    scores: Mapping[str, Mapping[str, float]], values: Mapping[str, Mapping[str, object]]
) -> Markup:
    rows = []
    for m, by_model in scores.items():
        columns = [number(by_model.get(key, math.nan)) for key in SCORE_COLUMNS]
        rows.append((_score_label(m, values[m]), *columns))
    return table(("", *SCORE_COLUMNS.values()), rows)


def _score_label(m: str, values: Mapping[str, object]) -> str:
    """A modality with its unit and, where p is not exact, what it is and of how many signals."""
    unit = min((key for key in values if "_per_" in key), key=len).replace("_per_", "/")
    label = f"{m}, {unit}"
    if values.get("kind", "exact") != "exact":
        label += f" ({values['kind']}; {values['n']} signals)"
    return label


def _figure_table(columns: Mapping[str, Mapping[str, float]]) -> Markup:
    """Heading -> figures, as a table with a row per key of the figures."""
    keys = dict.fromkeys(key for figures in columns.values() for key in figures)
    ends = {f"{key}{end}" for key in keys for end in (LOW, HIGH, P_VALUE, HALVES)}
    rows = []
    for key in keys:
        if key in ends:
            continue
        label = LABELS.get(key, key.replace("_", " "))
        cells = [_with_interval(figures, key) for figures in columns.values()]
        rows.append((join(label, " ", tag("code", key)), *cells))
    return table(("", *columns), rows)


def _with_interval(figures: Mapping[str, float], key: str) -> str:
    """A figure with what it has beside it: 0.12 (0.1 to 0.15), real halves below 1.2, p 0.04."""
    text = number(figures.get(key, math.nan))  # a word as it is
    if f"{key}{LOW}" in figures:
        text += f" ({number(figures[key + LOW])} to {number(figures[key + HIGH])})"
    if f"{key}{HALVES}" in figures:
        text += f", real halves below {number(figures[key + HALVES])}"
    if f"{key}{P_VALUE}" in figures:
        text += f", p {number(figures[key + P_VALUE])}"
    return text
