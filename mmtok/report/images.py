"""The report's section of images: samples by prompt, each above its nearest training image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from mmtok.data.image_preparation import read_image
from mmtok.errors import UserError
from mmtok.metrics.images import nearest, of_one_size
from mmtok.report.html import PNG_SIDE, Markup, tag, thumbnail
from mmtok.report.samples import N_PROMPTS, Sample, more_prompts, task_fields, trajectories
from mmtok.run.run import Run

N_IMAGES = 12  # shown per prompt
TRAINING_VALUES = 50_000_000  # pixel values of the training images that are compared

LABELS = {
    "copies": "samples equal to a training image, in codes or decoded",
    "copies_heldout": "the same for real held-out images",
    "frechet": "Fréchet distance to real held-out images",
    "frechet_real": "the same between two real sets",
    "round_trip_psnr_db": "round trip PSNR [dB]",
    "codebook_use": "share of codes in use",
}


def image_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Samples by prompt, each above the training image nearest to it."""
    shown = {
        prompt: [read_image(sample.path) for sample in samples[:N_IMAGES]]
        for prompt, samples in islice(prompts.items(), N_PROMPTS)
    }
    images = [image for some in shown.values() for image in some]
    neighbours: Sequence[np.ndarray | None]
    try:
        neighbours, remark = _nearest_training_images(run, images)
    except UserError as error:
        neighbours = [None] * len(images)
        remark = str(error)
    unused = iter(neighbours)
    blocks = []
    for prompt, some in shown.items():
        figures = [_figure(image, next(unused), prompt) for image in some]
        strip = tag("div", *figures, cls="strip")
        blocks.append(tag("div", tag("h3", prompt), strip, cls="prompt"))
    longest_side = max(max(image.shape[:2]) for image in images)
    size = " large" if longest_side > PNG_SIDE else ""
    return [
        tag("p", remark),
        tag("div", *blocks, cls="prompts" + size),
        *more_prompts(prompts, len(shown)),
        *trajectories([sample.path for prompt in shown for sample in prompts[prompt]]),
    ]


def _figure(image: np.ndarray, neighbour: np.ndarray | None, alt: str) -> Markup:
    if neighbour is None:
        return tag("figure", thumbnail(image, alt))
    below = thumbnail(neighbour, "nearest training image", "near")
    return tag("figure", thumbnail(image, alt), below)


def _nearest_training_images(
    run: Run, images: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], str]:
    """The training image nearest to each image, without augmentation, and a remark on them.

    Raises UserError where training images and samples differ in size.
    """
    _, target = task_fields(run, "image")
    rows = (
        example[target]
        for source in run.recipe.sources
        if target in source.fields
        for example in run.examples_of(source.clean(), "train")
        if target in example
    )
    training = list(islice(rows, max(1, TRAINING_VALUES // images[0].size)))
    remark = (
        f"Large: samples. Small, below each: the nearest of {len(training):,} training images, by"
        " the distance of the pixels."
    )
    if len({image.shape for image in (*images, *training)}) == 1:
        return [training[i] for i in nearest(images, training)], remark
    tokenizer = run.tokenizers["image"]
    if not tokenizer.signature.rows:
        raise UserError("Training images and samples differ in size, so no nearest ones are shown.")
    side = (tokenizer.config.height, tokenizer.config.width)
    scaled = (of_one_size(some, *side) for some in (images, training))
    remark += f" Pixels are compared at {side[0]} x {side[1]} (height x width)."
    return [training[i] for i in nearest(*scaled)], remark
