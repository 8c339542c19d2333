"""Figures of images: does a classifier see what was asked for, and are the samples new?

The classifier is trained on real training images only and shares nothing with the tokenizer. Its
accuracy on real held-out images, raw and after the tokenizer's round trip, is given too: a figure
of samples is read against these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from mmtok.commands.sample import NOTHING
from mmtok.evaluation.task import (
    MAX_CLASSES,
    TaskEvaluation,
    can_be_classified,
    random_labelled,
)
from mmtok.io.terminal import print_status
from mmtok.metrics.distance_tests import frechet_test, share_test
from mmtok.metrics.images import (
    FITTED_ROWS,
    ImageJudge,
    copied,
    frechet,
    of_one_size,
    principal_components,
    psnr_db,
    train_image_judge,
)
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run

MAX_JUDGED = 5_000  # images that the classifier learns from; an SVM takes the square of them
# A run's judges by the name of the task, None where there can be none: training one takes longer
# than most figures.
_judges: WeakKeyDictionary[Run, dict[str, ImageJudge | None]] = WeakKeyDictionary()


class Reality:
    """Real images that a task's samples are held against, and a judge of what they show.

    Attributes:
        prompts: n_samples of the training images' names, equally many of each.
    """

    def __init__(self, task: TaskEvaluation):
        self._task = task
        names, images, all_names = random_labelled(task.clean_rows(), FITTED_ROWS, task.seed)
        self._training = _comparable(task, images)
        self._heldout_names, self._heldout = task.examples("heldout")
        classes = sorted(all_names)[:MAX_CLASSES]
        self.prompts = [classes[i % len(classes)] for i in range(task.run.recipe.n_samples)]
        self._names = names
        self._all_names = all_names

    def figures(self, sampled: Sequence[Sampled]) -> dict[str, float]:
        """Do samples for `prompts` show what was asked for, and are they new?"""
        task = self._task
        figures, samples, round_trip = novelty(task, self._training, self._heldout, sampled)
        judge = self.judge()
        if judge is None:
            return figures
        right = judge.right(samples, self.prompts)
        right_heldout = judge.right(_comparable(task, self._heldout), self._heldout_names)
        return {
            "judge_accuracy": float(np.mean(right)),
            **share_test(right, right_heldout).named("judge_accuracy"),
            "judge_heldout": float(np.mean(right_heldout)),
            "judge_round_trip": judge.accuracy(round_trip, self._heldout_names),
            **figures,
        }

    def judge(self) -> ImageJudge | None:
        """Trained when a run's task first asks for it; None where no classifier can be."""
        judges = _judges.setdefault(self._task.run, {})
        if self._task.name not in judges:
            judges[self._task.name] = self._trained_judge()
        return judges[self._task.name]

    def _trained_judge(self) -> ImageJudge | None:
        chosen = _evenly_spread(len(self._training), MAX_JUDGED)
        names = [self._names[i] for i in chosen]
        if not can_be_classified(self._task, self._all_names, names):
            return None
        print_status("training the judge of images on real ones")
        return train_image_judge([self._training[i] for i in chosen], names)


def judge_of(task: TaskEvaluation) -> ImageJudge | None:
    """The judge of a task's pictures, see `Reality.judge`."""
    judges = _judges.get(task.run, {})
    if task.name in judges:
        return judges[task.name]
    return Reality(task).judge()


def image_from_text(task: TaskEvaluation) -> dict[str, float]:
    """Do samples show what was asked for, and are they new?"""
    reality = Reality(task)
    sampled = task.sample(reality.prompts)
    task.save_samples(task.name, reality.prompts, sampled)
    return reality.figures(sampled)


def guidance_figures(
    task: TaskEvaluation, guidances: Sequence[float]
) -> dict[str, dict[str, float]]:
    """The same under each guidance, by its value as text; from the same random numbers.

    More guidance shows the name better, and less of all that goes by it: accuracy and distance grow
    together, and one chooses between them. Samples are in samples/NAME_guidance_VALUE.
    """
    reality = Reality(task)
    found = {}
    for guidance in guidances:
        print_status(f"evaluating {task}, guidance {guidance:g}")
        sampled = task.sample(reality.prompts, guidance=guidance)
        task.save_samples(f"{task.name}_guidance_{guidance:g}", reality.prompts, sampled)
        found[f"{guidance:g}"] = reality.figures(sampled)
    return found


def chosen_guidance(swept: Mapping[str, Mapping[str, float]]) -> float:
    """Which of several guidances to take, by the figures of each.

    That of the least Fréchet distance, among those under which the judge sees the name as often as
    in real pictures after the tokenizer's round trip, as far as so many samples can tell: where
    that lies in the interval, or below it. That with the most names where there is none.
    """

    def distance(guidance: str) -> float:
        return swept[guidance].get("frechet", 0.0)

    def named(guidance: str) -> float:
        return swept[guidance].get("judge_accuracy", 0.0)

    good = [g for g, x in swept.items() if x.get("judge_accuracy_high", 1) >= _aim(x)]
    if good:
        return float(min(good, key=distance))
    return float(max(swept, key=named))


def _aim(figures: Mapping[str, float]) -> float:
    return figures.get("judge_round_trip", 0.0)


def image_from_nothing(task: TaskEvaluation) -> dict[str, float]:
    """Are samples new, and distributed as real images are?"""
    sampled = task.sample_unconditional(task.run.recipe.n_samples)
    task.save_samples(task.name, [NOTHING] * len(sampled), sampled)
    _, images, _ = random_labelled(task.clean_rows(), FITTED_ROWS, task.seed)
    images = _comparable(task, images)
    _, heldout = task.examples("heldout")
    figures, _, _ = novelty(task, images, heldout, sampled)
    return figures


def novelty(
    task: TaskEvaluation, training: Sequence, heldout: Sequence, sampled: Sequence[Sampled]
) -> tuple[dict[str, float], list, list]:
    """Share of copies, Fréchet distances to held-out images, and the tokenizer's own error.

    Args:
        task: Copies are sought among all of its training images.
        training: Real training images, (Y, X) or (Y, X, 3), for the axes of the Fréchet distance;
            comparable.
        heldout: Real held-out images, as they are.
        sampled: What was drawn.

    Returns:
        The figures, the samples as images, and the held-out images after the round trip; both
        comparable: of one size where the tokenizer takes any.
    """
    tokenizer = task.target_tokenizer
    encoded = tokenizer.encode_batch(heldout)
    samples = task.decode(sampled)
    round_trip = tokenizer.decode_batch(encoded)
    n = len(sampled)
    figures = {"round_trip_psnr_db": psnr_db(heldout, round_trip)}
    if tokenizer.signature.levels:
        codes = [s.values for s in [*(d.segment for d in sampled), *encoded]]
        copies = copied(codes, task.training_codes())
        in_use = np.unique(np.concatenate(codes[n:]))
        n_codes = tokenizer.signature.levels[0]  # a row mark is none of them
        figures["codebook_use"] = int((in_use < n_codes).sum()) / n_codes
    else:  # equal images may have latents that differ in their last bits, so images are compared
        copies = copied(np.stack([*samples, *round_trip]), task.training_round_trips())
    heldout, samples, round_trip = (
        _comparable(task, images) for images in (heldout, samples, round_trip)
    )
    figures["copies"] = float(copies[:n].mean())
    figures |= share_test(copies[:n], copies[n:]).named("copies")
    figures["copies_heldout"] = float(copies[n:].mean())
    n_compared = min(n, len(heldout) // 2)
    if n_compared >= 2:  # a covariance needs two
        order = np.random.default_rng(task.seed).permutation(len(heldout))  # folders come sorted
        real = [heldout[i] for i in order[:n_compared]]
        other_real = [heldout[i] for i in order[n_compared : 2 * n_compared]]
        ours, other, reference = principal_components(
            training, samples[:n_compared], other_real, real
        )
        figures["frechet"] = frechet(ours, reference)
        figures |= frechet_test(ours, reference).named("frechet")
        figures["frechet_real"] = frechet(other, reference)
    return figures, samples, round_trip


def _comparable(task: TaskEvaluation, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images of one size: those of a tokenizer of any size as large as the tiles it learned from.

    Pixels are compared at that size, so proportions do not count, and copies are looked for in
    codes.
    """
    tokenizer = task.target_tokenizer
    if not tokenizer.signature.rows:
        return list(images)
    return of_one_size(images, tokenizer.config.height, tokenizer.config.width)


def _evenly_spread(n: int, n_max: int) -> np.ndarray:
    """At most `n_max` of n indices, evenly spread: a sorted folder has some of every class."""
    return np.unique(np.linspace(0, n - 1, min(n, n_max)).astype(int))
