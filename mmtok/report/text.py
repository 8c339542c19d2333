"""The report's sections of text: samples, and readings of held-out signals with mistakes marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmtok.errors import UserError
from mmtok.report.html import Markup, one_line, table, tag, thumbnail
from mmtok.report.samples import Sample, not_there_yet
from mmtok.run.run import Run

N_ROWS = 40  # of samples, or of readings, shown at most
MIN_ROWS = 10  # of a table that stands beside others

LABELS = {
    "accuracy": "read as their name says",
    "cross_entropy": "-log p of the true class, nats",
    "ece": "expected calibration error",
    "brier": "mean squared error of p",
    "ensemble": "runs whose p is averaged with this one's",
    "dropout_members": "dropout masks of each",
    "unseen_voice_word_error_rate": "word error rate, unseen voices",
}


@dataclass(frozen=True)
class Reading:
    """A row of samples/NAME.json: a held-out signal's true text and what the run read."""

    truth: str
    read: str


def text_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Samples as a table of prompts and texts."""
    rows = []
    for prompt, samples in prompts.items():
        for sample in samples:
            text = sample.path.read_text(encoding="utf-8", errors="replace")
            rows.append((prompt, one_line(text)))
    return [tag("div", table(("prompt", "text"), rows[:N_ROWS], "words"), cls="readings")]


def reading_section(run: Run, name: str, readings: Sequence[Reading]) -> list[Markup]:
    """Readings of held-out signals, in their order: the first ones, then further mistakes.

    Readings of images show the image too.
    """
    if not readings:
        return not_there_yet(run, "no readings yet")
    n_right = sum(reading.read == reading.truth for reading in readings)
    images: list[np.ndarray] = []
    if name == "text_from_image":
        images = _heldout_images(run, len(readings))
    n_first = N_ROWS // 2
    shown = [i for i, r in enumerate(readings) if i < n_first or r.read != r.truth][:N_ROWS]
    rows: list[tuple[object, ...]] = [(readings[i].truth, _marked(readings[i])) for i in shown]
    head: tuple[str, ...] = ("truth", "read")
    if images:
        rows = [(thumbnail(images[i], ""), *row) for i, row in zip(shown, rows, strict=True)]
        head = ("", *head)
    remark = (
        f"{n_right:,} of {len(readings):,} held-out signals are read exactly. Shown: the first"
        f" {n_first}, then further mistakes."
    )
    n_rows = max(MIN_ROWS, -(-len(rows) // 4))
    starts = range(0, len(rows), n_rows)
    tables = (table(head, rows[start : start + n_rows], "words") for start in starts)
    return [tag("p", remark), tag("div", *tables, cls="readings")]


def _marked(reading: Reading) -> Markup:
    cls = "right" if reading.read == reading.truth else "wrong"
    return tag("span", one_line(reading.read), cls=cls)


def _heldout_images(run: Run, n: int) -> list[np.ndarray]:
    """The held-out images that were read; [] where they are gone, or not `n` any more."""
    fields = run.recipe.fields
    for task in run.recipe.tasks:
        if task.modalities(fields) != (("image",), ("text",)):
            continue
        try:
            examples = run.examples("heldout", *task.fields)
            images = [example[task.inputs[0]] for example in examples]
        except UserError:
            return []
        return images if len(images) == n else []
    return []
