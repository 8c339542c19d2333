"""Figures of pictures of which a part is given: the upper half, or any half of the codes.

Letters: N pictures, K draws of each, T frames; Y, X pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmtok.core.segment import Document, Segment, segment_of
from mmtok.data.subset import random_subset
from mmtok.evaluation.images import judge_of
from mmtok.evaluation.restoration import coverage_figures, error_figures
from mmtok.evaluation.task import TaskEvaluation
from mmtok.metrics.images import FITTED_ROWS
from mmtok.metrics.intervals import mean_estimate, paired_difference

N_DRAWS = 4  # of each picture
N_PICTURES = 100
N_SAVED = 12  # whose draws are written
COMPLETED = "_completed"  # at the end of the name of figures and samples: the upper half is given
INFILLED = "_infilled"  # any half of the frames is given


def frame_rows(task: TaskEvaluation) -> int | None:
    """In how many rows the frames of a task's pictures lie; None where none can be made whole.

    They can where codes or latents are drawn one after another, and codes in any order too.
    """
    signature = task.target_tokenizer.signature
    height = getattr(task.target_tokenizer.config, "height", None)
    autoregressive = task.run.lm.autoregressive(signature.modality)
    if not height or not signature.frames or (signature.latent_size and not autoregressive):
        return None
    n_rows = height // getattr(task.target_tokenizer.config, "patch", 1)
    if n_rows < 2 or signature.frames % n_rows:
        return None
    return n_rows


def given_frames(task: TaskEvaluation, part: str, n: int) -> np.ndarray | None:
    """Which frames of N pictures are given (N, T): bool; None where they cannot be.

    part: COMPLETED: the upper half of the rows. INFILLED: half of the frames, at random, of each
        picture others; where codes are drawn in any order.
    """
    n_rows = frame_rows(task)
    if n_rows is None:
        return None
    n_frames = task.target_tokenizer.signature.frames
    per_row = n_frames // n_rows
    given = np.zeros((n, n_frames), bool)
    if part == COMPLETED:
        given[:, : n_rows // 2 * per_row] = True
        return given
    modality = task.target_tokenizer.signature.modality
    if task.run.lm.autoregressive(modality) or task.run.lm.heads[modality].in_blocks:
        return None
    if per_row > task.target_tokenizer.config.width:
        return None  # colours of a pixel are frames of their own
    rng = np.random.default_rng(task.seed)
    order = np.argsort(rng.random(given.shape), 1)
    np.put_along_axis(given, order[:, : n_frames // 2], True, 1)
    return given


def given_pixels(task: TaskEvaluation, given: np.ndarray) -> np.ndarray:
    """Which pixels (Y, X) frames (T,) show."""
    n_rows = frame_rows(task)
    assert n_rows is not None
    config = task.target_tokenizer.config
    n_columns = min(len(given) // n_rows, config.width)
    grid = given.reshape(n_rows, n_columns, -1).all(2)
    return grid.repeat(config.height // n_rows, 0).repeat(config.width // n_columns, 1)


def held_out_examples(task: TaskEvaluation) -> list[dict[str, Any]]:
    """Random held-out examples, the same for a seed."""
    n = min(N_PICTURES, task.run.recipe.n_samples)
    examples = task.run.examples("heldout", *task.task.inputs, task.target_field)
    return random_subset(examples, n, task.seed)


def completed_figures(task: TaskEvaluation) -> dict[str, dict[str, float]]:
    """Figures of pictures made whole, by their name; {} where none can be.

    Given the inputs of the task and a part of the picture, N_DRAWS draws of each. Keys are those of
    `error_figures` and `coverage_figures`, of what was not given; the baseline is the mean of
    training pictures. Of pictures by name also `judged_figures`. Draws are in samples/NAME.
    """
    examples = held_out_examples(task)
    found = {}
    for part in (COMPLETED, INFILLED):
        given = given_frames(task, part, len(examples))
        if given is not None and len(examples):
            found[task.name + part] = _figures(task, task.name + part, examples, given)
    return found


def _figures(
    task: TaskEvaluation, name: str, examples: Sequence[dict[str, Any]], given: np.ndarray
) -> dict[str, float]:
    """Of examples of which the frames `given` (N, T) are known."""
    prompts = prompts_of(task, examples, given)
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
    draws = pictures.reshape(len(examples), N_DRAWS, *pictures.shape[1:])
    truth = [example[task.target_field] for example in examples]
    training = random_subset((y for _, y in task.clean_rows()), FITTED_ROWS, task.seed)
    mean: np.ndarray = np.mean(np.stack(training), 0).round()
    free = [~given_pixels(task, frames) for frames in given]
    wanted = [y[hole] for y, hole in zip(truth, free, strict=True)]  # (values,) or (values, 3)
    drawn = np.stack([some[:, hole] for some, hole in zip(draws, free, strict=True)])
    return {
        "n": len(examples),
        "n_draws": N_DRAWS,
        **judged_figures(task, examples, draws),
        **error_figures(wanted, drawn, [mean[hole] for hole in free]),
        **coverage_figures(wanted, drawn, task.seed),
    }


def judged_figures(
    task: TaskEvaluation, examples: Sequence[dict[str, Any]], draws: np.ndarray
) -> dict[str, float]:
    """How often a judge sees the name in draws (N, K, Y, X); {} where there is none.

    Intervals are over pictures. Keys: judge_accuracy, of the draws; judge_heldout, of the same
    pictures as they are, and the p-value of the difference of the two; judge_round_trip.
    """
    if task.modalities[0] != "text" or (judge := judge_of(task)) is None:
        return {}
    names = [example[task.input_field] for example in examples]
    truth = [example[task.target_field] for example in examples]
    n_draws = draws.shape[1]
    flat = list(draws.reshape(-1, *draws.shape[2:]))
    repeated = [name for name in names for _ in range(n_draws)]
    right = judge.right(flat, repeated).reshape(len(draws), n_draws).mean(1)  # (N,)
    right_heldout = judge.right(truth, names)
    tokenizer = task.target_tokenizer
    copies = tokenizer.decode_batch(tokenizer.encode_batch(truth))
    return {
        **mean_estimate(right).named("judge_accuracy"),
        "judge_accuracy_p": paired_difference(right, right_heldout)[1],
        "judge_heldout": float(np.mean(right_heldout)),
        "judge_round_trip": judge.accuracy(copies, names),
    }


def prompts_of(
    task: TaskEvaluation, examples: Sequence[dict[str, Any]], given: np.ndarray
) -> list[Document]:
    """Open documents of the inputs and of the frames `given` (N, T)."""
    fields = task.run.recipe.fields
    modality = fields[task.target_field]
    columns = [
        task.run.tokenizers[fields[f]].encode_batch([example[f] for example in examples])
        for f in (*task.task.inputs, task.target_field)
    ]
    found = []
    for frames, *condition, picture in zip(given, *columns, strict=True):
        known = known_part(task, picture, frames)
        found.append(task.run.prompt(condition, modality, known))
    return found


def known_part(task: TaskEvaluation, picture: Segment, given: np.ndarray) -> Segment:
    """What is known of a picture: its first frames, or all with those to infill marked."""
    if not task.run.lm.autoregressive(picture.modality):
        spans = tuple((int(i), int(i) + 1) for i in np.flatnonzero(~given))
        return replace(picture, infill_spans=spans)
    signature = task.target_tokenizer.signature
    return segment_of(signature, picture.values[: given.sum()], info=picture.info)
