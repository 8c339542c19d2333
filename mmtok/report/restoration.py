"""The report's section of restored pictures: what was given, draws, and the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from mmtok.data.image_preparation import read_image
from mmtok.evaluation.restoration import held_out
from mmtok.evaluation.task import TaskEvaluation
from mmtok.report.html import PNG_SIDE, Markup, tag, thumbnail
from mmtok.report.samples import N_PROMPTS, Sample
from mmtok.run.run import Run

LABELS = {
    "n_draws": "draws of each picture",
    "psnr_mean_db": "PSNR of the mean of the draws [dB]",
    "psnr_draw_db": "PSNR of single draws [dB]",
    "psnr_baseline_db": "PSNR of the degraded pictures as a viewer shows them [dB]",
    "psnr_gain_db": "the mean of the draws above these [dB]",
    "error": "error of the mean of the draws [grey values]",
    "spread": "standard deviation of the draws [grey values]",
    "spread_over_error": "spread over error; 1 of a calibrated posterior",
    "coverage_50": "values within the central 50 % of the draws",
    "coverage_90": "values within the central 90 % of the draws",
    "coverage_50_coded": "the same of the tokenizer's copies, 50 %",
    "coverage_90_coded": "the same of the tokenizer's copies, 90 %",
    "settled": "values that all draws have right",
    "frechet_baseline": "the same of the degraded pictures",
}
REMARK = "Held-out pictures restored: draws of what may have been there."


def restoration_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Draws of held-out pictures, each row between what was given and the truth."""
    task = _task(run)
    found = held_out(task)
    pairs = zip(found.degraded, found.truth, strict=True)
    rows = []
    for (degraded, truth), samples in zip(pairs, islice(prompts.values(), N_PROMPTS), strict=False):
        draws = [read_image(sample.path) for sample in samples]
        rows.append(triptych(degraded, draws, truth, "given"))
    return [
        tag(
            "p", "Each row: the picture as it was given, draws of what it may have been, the truth."
        ),
        tag("div", *rows, cls="prompts" + size_class(found.truth)),
    ]


def _task(run: Run) -> TaskEvaluation:
    """The first task that makes pictures of pictures, as `evaluate` takes it."""
    tasks = (TaskEvaluation(run, task) for task in run.recipe.tasks)
    return next(task for task in tasks if task.modalities == ("image", "image"))


def triptych(
    given: np.ndarray, draws: Sequence[np.ndarray], truth: np.ndarray, what: str
) -> Markup:
    """A row: what was given, draws, the truth."""
    figures = [_captioned(given, what), *(_captioned(draw, "drawn") for draw in draws)]
    return tag("div", tag("div", *figures, _captioned(truth, "truth"), cls="strip"), cls="prompt")


def size_class(pictures: Sequence[np.ndarray]) -> str:
    """The class of a list of pictures that are shown large: " large", or ""."""
    longest_side = max(max(picture.shape[:2]) for picture in pictures)
    if longest_side > PNG_SIDE:
        return " large"
    return ""


def _captioned(picture: np.ndarray, what: str) -> Markup:
    return tag("figure", thumbnail(picture, what), tag("figcaption", what))
