"""The report's sections of pictures restored or made whole: what was given, draws, the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np

from mmtok.data.image_preparation import read_image
from mmtok.evaluation.completion import (
    COMPLETED,
    INFILLED,
    given_frames,
    given_pixels,
    held_out_examples,
)
from mmtok.evaluation.evaluate import COMPLETABLE
from mmtok.evaluation.restoration import held_out
from mmtok.evaluation.task import TaskEvaluation
from mmtok.report.html import PNG_SIDE, Markup, tag, thumbnail
from mmtok.report.samples import Sample
from mmtok.run.run import Run
from mmtok.sources.degraded import GREY

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
REMARK_COMPLETED = (
    "Held-out pictures whose upper half was given; figures of pixels are of the lower half, and the"
    " baseline is the mean of training pictures."
)
REMARK_INFILLED = (
    "Held-out pictures of which any half of the codes was given; figures of pixels are of the"
    " others, and the baseline is the mean of training pictures."
)
REMARK_GUIDANCE = (
    "By guidance. More of it shows the name better and less of all that goes by it. The one to take"
    " has the least distance among those under which the judge sees the name as often as in real"
    " pictures through the tokenizer, as far as so many samples can tell."
)


def restoration_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Draws of held-out pictures, each row between what was given and the truth."""
    (task,) = islice(_tasks(run, {("image", "image")}), 1)
    found = held_out(task)
    given = "the picture as it was given, draws of what it may have been, the truth"
    return _triptychs(found.degraded, prompts, found.truth, given)


def completion_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Pictures whose upper half was given, each row between this and the truth."""
    given = "the upper half, which was given, draws that go on from it, the truth"
    return _made_whole(run, prompts, COMPLETED, given)


def infilling_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Pictures of which any half of the codes was given, between this and the truth."""
    given = "the half of the codes that was given, draws of the others, the truth"
    return _made_whole(run, prompts, INFILLED, given)


def _made_whole(
    run: Run, prompts: Mapping[str, list[Sample]], part: str, what: str
) -> list[Markup]:
    (task,) = islice(_tasks(run, set(COMPLETABLE)), 1)
    truth = [example[task.target_field] for example in held_out_examples(task)]
    frames = given_frames(task, part, len(truth))
    known = []
    for i, picture in enumerate(truth):
        shown = picture.copy()
        if frames is not None:
            shown[~given_pixels(task, frames[i])] = GREY
        known.append(shown)
    return _triptychs(known, prompts, truth, what)


def _tasks(run: Run, wanted: set[tuple[str, ...]]) -> Iterator[TaskEvaluation]:
    """The tasks of these modalities, as `evaluate` takes them."""
    for task in map(partial(TaskEvaluation, run), run.recipe.tasks):
        if task.modalities in wanted:
            yield task


def _triptychs(
    given: Sequence[np.ndarray],
    prompts: Mapping[str, list[Sample]],
    truth: Sequence[np.ndarray],
    what: str,
) -> list[Markup]:
    """Rows of pictures with the draws of their prompts; what: is said of a row."""
    rows = []
    for known, samples, picture in zip(given, prompts.values(), truth, strict=False):
        draws = [read_image(sample.path) for sample in samples]
        rows.append(triptych(known, draws, picture, "given"))
    return [
        tag("p", f"Each row: {what}."),
        tag("div", *rows, cls="prompts" + size_class(truth)),
    ]


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
