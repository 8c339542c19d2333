"""The report's section of images: samples by prompt, nearest training images, round trips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mmtok.data.image_preparation import read_image
from mmtok.data.subset import random_subset
from mmtok.errors import UserError
from mmtok.metrics.images import nearest, of_one_size
from mmtok.report.html import PNG_SIDE, Markup, tag, thumbnail
from mmtok.report.samples import N_PROMPTS, Sample, more_prompts, task_fields, trajectories
from mmtok.run.run import Run

N_IMAGES = 12  # shown per prompt
N_COMPARED = 100  # held-out images whose nearest training images are looked for
TRAINING_VALUES = 50_000_000  # pixel values of the training images that are compared

LABELS = {
    "copies": "samples equal to a training image, in codes or decoded",
    "copies_heldout": "the same for real held-out images",
    "frechet": "Fréchet distance to real held-out images",
    "frechet_real": "the same between two real sets",
    "round_trip_psnr_db": "round trip PSNR [dB]",
    "codebook_use": "share of codes in use",
}


@dataclass(frozen=True)
class Neighbours:
    """The training image nearest to each of some images, and how far it is.

    Attributes:
        images: Of the training.
        distances: Root mean squares of the differences in grey values.
        remark: What the reader should know of them.
    """

    images: Sequence[np.ndarray | None]
    distances: Sequence[float]
    remark: str


def image_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Samples by prompt, each above the training image nearest to it; held-out ones as copies."""
    shown = {
        prompt: [read_image(sample.path) for sample in samples[:N_IMAGES]]
        for prompt, samples in islice(prompts.items(), N_PROMPTS)
    }
    images = [image for some in shown.values() for image in some]
    try:
        near = _nearest_training_images(run, images)
    except UserError as error:
        near = Neighbours([None] * len(images), [0.0] * len(images), str(error))
    unused = zip(near.images, near.distances, strict=True)
    blocks = []
    for prompt, some in shown.items():
        figures = [_figure(image, *next(unused), prompt) for image in some]
        strip = tag("div", *figures, cls="strip")
        blocks.append(tag("div", tag("h3", prompt), strip, cls="prompt"))
    longest_side = max(max(image.shape[:2]) for image in images)
    size = " large" if longest_side > PNG_SIDE else ""
    return [
        tag("p", near.remark),
        tag("div", *blocks, cls="prompts" + size),
        *more_prompts(prompts, len(shown)),
        *_round_trips(run),
        *trajectories([sample.path for prompt in shown for sample in prompts[prompt]]),
    ]


def _figure(image: np.ndarray, neighbour: np.ndarray | None, distance: float, alt: str) -> Markup:
    if neighbour is None:
        return tag("figure", thumbnail(image, alt))
    below = thumbnail(neighbour, "nearest training image", "near")
    return tag("figure", thumbnail(image, alt), below, tag("figcaption", f"{distance:.0f}"))


def _round_trips(run: Run) -> list[Markup]:
    """Held-out images, each above its copy by the tokenizer; [] where copies are equal.

    Where the images or the tokenizer are not there, the reason.
    """
    try:
        images = _held_out(run, N_IMAGES)
        copies = run.tokenizers["image"].decode_batch(run.encode("image", images))
    except (UserError, OSError) as error:
        return [tag("p", str(error), cls="soft")]
    pairs = list(zip(images, copies, strict=True))
    if all(np.array_equal(a, b) for a, b in pairs):
        return []
    figures = [
        tag("figure", thumbnail(a, "held-out image"), thumbnail(b, "its copy")) for a, b in pairs
    ]
    return [
        tag("h3", "Copies by the tokenizer"),
        tag("p", "Above: held-out images. Below each: what the decoder can show of it at best."),
        tag("div", tag("div", *figures, cls="strip"), cls="prompt"),
    ]


def _held_out(run: Run, n: int) -> list[np.ndarray]:
    """At most n random held-out images, as the tokenizer takes them."""
    _, target = task_fields(run, "image")
    rows = random_subset(run.examples("heldout", target), n, run.recipe.train.seed)
    return [example[target] for example in rows]


def _nearest_training_images(run: Run, images: Sequence[np.ndarray]) -> Neighbours:
    """The training image nearest to each image, without augmentation.

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
        " the distance of the pixels, whose root mean square in grey values is below."
    )
    heldout = _held_out(run, N_COMPARED)
    if len({image.shape for image in (*images, *training, *heldout)}) == 1:
        chosen, distances = _nearest(images, training)
        _, usual = _nearest(heldout, training)
        remark += f" For held-out images it is {np.median(usual):.0f}, their median."
        return Neighbours([training[i] for i in chosen], distances, remark)
    tokenizer = run.tokenizers["image"]
    if not tokenizer.signature.rows:
        raise UserError("Training images and samples differ in size, so no nearest ones are shown.")
    side = (tokenizer.config.height, tokenizer.config.width)
    scaled = (of_one_size(some, *side) for some in (images, training))
    remark += f" Pixels are compared at {side[0]} x {side[1]} (height x width)."
    chosen, distances = _nearest(*scaled)
    return Neighbours([training[i] for i in chosen], distances, remark)


def _nearest(
    images: Sequence[np.ndarray], training: Sequence[np.ndarray]
) -> tuple[np.ndarray, list[float]]:
    """Indices of the nearest training images (N,), and their distances in grey values."""
    chosen = nearest(images, training)
    differences = [
        np.subtract(a, training[i], dtype=float) for a, i in zip(images, chosen, strict=True)
    ]
    return chosen, [float(np.square(d).mean() ** 0.5) for d in differences]
