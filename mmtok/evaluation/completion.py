"""Figures of pictures of which the upper half is given: what is drawn below it.

Letters: N pictures, K draws of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmtok.core.segment import Document, Segment, segment_of
from mmtok.data.subset import random_subset
from mmtok.evaluation.restoration import coverage_figures, error_figures
from mmtok.evaluation.task import TaskEvaluation
from mmtok.metrics.images import FITTED_ROWS

N_DRAWS = 4  # of each picture
N_PICTURES = 50
N_SAVED = 12  # whose draws are written
COMPLETED = "_completed"  # at the end of the name of figures and samples


@dataclass(frozen=True)
class Halves:
    """Where a picture of patches in rows is cut.

    Attributes:
        n_frames: of the upper half.
        n_pixels: its height.
    """

    n_frames: int
    n_pixels: int


def halves(task: TaskEvaluation) -> Halves | None:
    """Where pictures of a task are cut; None where none can be completed.

    They can where codes or latents are drawn one after another, and codes in any order too.
    """
    signature = task.target_tokenizer.signature
    height = getattr(task.target_tokenizer.config, "height", None)
    autoregressive = task.run.lm.autoregressive(signature.modality)
    if not height or not signature.frames or (signature.latent_size and not autoregressive):
        return None
    patch = getattr(task.target_tokenizer.config, "patch", 1)
    n_rows = height // patch
    if n_rows < 2 or signature.frames % n_rows:
        return None
    n_kept = n_rows // 2
    return Halves(n_kept * signature.frames // n_rows, n_kept * patch)


def held_out_examples(task: TaskEvaluation) -> list[dict[str, Any]]:
    """Random held-out examples, the same for a seed."""
    n = min(N_PICTURES, task.run.recipe.n_samples)
    examples = task.run.examples("heldout", *task.task.inputs, task.target_field)
    return random_subset(examples, n, task.seed)


def completed_figures(task: TaskEvaluation) -> dict[str, dict[str, float]]:
    """Figures of the lower halves, by their name; {} where none can be drawn.

    Given the inputs of the task and the upper half, N_DRAWS draws of each; keys are those of
    `error_figures` and `coverage_figures`, of the lower half alone. The baseline is the mean of
    training pictures. Draws are in samples/NAME.
    """
    cut = halves(task)
    if cut is None or not (examples := held_out_examples(task)):
        return {}
    name = task.name + COMPLETED
    prompts = prompts_of(task, examples, cut)
    sampling = task.run.sampling(task.run.recipe.fields[task.target_field])
    repeated = [prompt for prompt in prompts for _ in range(N_DRAWS)]
    sampled = task.run.draw(repeated, sampling, task.seed)
    stems = [(i, k) for i in range(min(N_SAVED, len(prompts))) for k in range(N_DRAWS)]
    task.save_samples(
        name,
        [f"heldout-{i}" for i, _ in stems],
        [sampled[i * N_DRAWS + k] for i, k in stems],
        [f"heldout-{i}-{k}" for i, k in stems],
    )
    pictures = np.stack(task.decode(sampled))
    draws = pictures.reshape(len(examples), N_DRAWS, *pictures.shape[1:])[:, :, cut.n_pixels :]
    truth = [example[task.target_field][cut.n_pixels :] for example in examples]
    training = random_subset((y for _, y in task.clean_rows()), FITTED_ROWS, task.seed)
    mean: np.ndarray = np.mean(np.stack(training), 0)
    baseline = np.round(mean[cut.n_pixels :])
    errors = error_figures(truth, draws, [baseline] * len(truth))
    covered = coverage_figures(truth, draws, task.seed)
    return {name: {"n": len(examples), "n_draws": N_DRAWS, **errors, **covered}}


def prompts_of(
    task: TaskEvaluation, examples: Sequence[dict[str, Any]], cut: Halves
) -> list[Document]:
    """Open documents of the inputs and of the upper halves."""
    fields = task.run.recipe.fields
    modality = fields[task.target_field]
    columns = [
        task.run.tokenizers[fields[f]].encode_batch([example[f] for example in examples])
        for f in (*task.task.inputs, task.target_field)
    ]
    found = []
    for *condition, picture in zip(*columns, strict=True):
        known = upper_half(task, picture, cut)
        found.append(task.run.prompt(condition, modality, known))
    return found


def upper_half(task: TaskEvaluation, picture: Segment, cut: Halves) -> Segment:
    """What is known of a picture: its first frames, or all with those to infill marked."""
    if not task.run.lm.autoregressive(picture.modality):
        return replace(picture, infill_spans=((cut.n_frames, len(picture)),))
    signature = task.target_tokenizer.signature
    return segment_of(signature, picture.values[: cut.n_frames], info=picture.info)
