"""Figures of videos: does every picture show what was asked for, and does a beginning go on?

The judge is a classifier of pictures, trained on those of real training videos only. Its accuracy
on real held-out pictures, raw and after the tokenizer's round trip, is given beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmtok.core.segment import Segment
from mmtok.data.subset import random_subset
from mmtok.evaluation.task import (
    MAX_CLASSES,
    TaskEvaluation,
    can_be_classified,
    random_labelled,
    share_ended,
)
from mmtok.io.terminal import print_status
from mmtok.metrics.distance_tests import share_test
from mmtok.metrics.images import ImageJudge, psnr_db, train_image_judge
from mmtok.metrics.intervals import ratio_estimate

N_KNOWN = 3  # pictures that a continuation is given
MAX_JUDGED = 5_000  # pictures that the classifier learns from


@dataclass(frozen=True)
class Continued:
    """Videos and what became of their first N_KNOWN pictures, each a list of the pictures after.

    Attributes:
        names: what each shows.
        last: the last picture that was given.
        real: pictures.
        drawn: pictures; there may be fewer or more.
        round_trip: of the tokenizer, of the real ones.
    """

    names: Sequence[str]
    last: Sequence[np.ndarray]
    real: Sequence[np.ndarray]
    drawn: Sequence[np.ndarray]
    round_trip: Sequence[np.ndarray]


def video_from_text(task: TaskEvaluation) -> dict[str, float]:
    """Samples of names, and continuations of held-out videos by their first pictures alone.

    - judge_accuracy: share of the pictures of samples that show the name that was asked for.
    - frame_accuracy: share of the pictures after the first N_KNOWN that show what the video does;
      one that is missing does not. With a 95 % interval, over videos.
    - judge_heldout, judge_round_trip: of the same pictures, real, and after the round trip.
    - continued_psnr_db: of drawn pictures from the real ones; repeated_psnr_db, of the last picture
      that was given, and round_trip_psnr_db beside. Only where the video goes on in one way is the
      first to be near the last.
    - length_right: share of continuations of as many pictures as the video has.
    """
    names, videos, all_names = random_labelled(task.clean_rows(), MAX_JUDGED, task.seed)
    classes = sorted(all_names)[:MAX_CLASSES]
    n_samples = task.run.recipe.n_samples
    prompts = [classes[i % len(classes)] for i in range(n_samples)]
    sampled = task.sample(prompts)
    task.save_samples(task.name, prompts, sampled)
    rows = random_subset(task.rows("heldout"), n_samples, task.seed)
    found = continued(task, rows)
    figures = {"stopped": share_ended(sampled), **_distances(found)}
    if not can_be_classified(task, all_names, names):
        return figures
    print_status("training the judge of pictures on real ones")
    judge = _judge(names, videos)
    samples = task.decode(sampled)
    shown = [name for name, video in zip(prompts, samples, strict=True) for _ in video]
    right = judge.right([picture for video in samples for picture in video], shown)
    counts = [_n_right(judge, found.names, found.real, of) for of in _kinds(found).values()]
    n_pictures = [len(video) for video in found.real]
    figures |= {"judge_accuracy": float(np.mean(right))}
    for key, n_right in zip(_kinds(found), counts, strict=True):
        figures |= ratio_estimate(n_right, n_pictures).named(key)
    drawn, real, _ = counts
    all_right = [np.array(n) == n_pictures for n in (drawn, real)]
    figures["videos_right_p"] = share_test(*all_right).p_value
    return figures


def _kinds(found: Continued) -> dict[str, Sequence[np.ndarray]]:
    return {
        "frame_accuracy": found.drawn,
        "judge_heldout": found.real,
        "judge_round_trip": found.round_trip,
    }


def continued(task: TaskEvaluation, rows: Sequence[tuple[str, np.ndarray]]) -> Continued:
    """Continue the first N_KNOWN pictures of videos, given nothing else where training allows."""
    run = task.run
    tokenizer = task.target_tokenizer
    long = [(name, video) for name, video in rows if len(video) > N_KNOWN]
    names = [name for name, _ in long]
    whole = tokenizer.encode_batch([video for _, video in long])
    n_codes = N_KNOWN * (tokenizer.signature.columns + 1)
    begun = [Segment("video", codes=segment.values[:n_codes]) for segment in whole]
    given = [
        [] if task.task.cond_dropout else [s] for s in task.input_tokenizer.encode_batch(names)
    ]
    prompts = [run.prompt(g, "video", b) for g, b in zip(given, begun, strict=True)]
    drawn = run.draw(prompts, run.sampling("video"), task.seed)
    task.save_samples(f"{task.name}_continued", names, drawn)
    return Continued(
        names,
        [video[N_KNOWN - 1] for _, video in long],
        [video[N_KNOWN:] for _, video in long],
        [video[N_KNOWN:] for video in task.decode(drawn)],
        [video[N_KNOWN:] for video in tokenizer.decode_batch(whole)],
    )


def _judge(names: Sequence[str], videos: Sequence[np.ndarray]) -> ImageJudge:
    """A judge of pictures, of evenly spread ones of all videos."""
    pictures = [picture for video in videos for picture in video]
    labels = [name for name, video in zip(names, videos, strict=True) for _ in video]
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), MAX_JUDGED)).astype(int)
    return train_image_judge([pictures[i] for i in chosen], [labels[i] for i in chosen])


def _n_right(
    judge: ImageJudge,
    names: Sequence[str],
    real: Sequence[np.ndarray],
    videos: Sequence[np.ndarray],
) -> list[int]:
    """How many pictures of each video show its name, of those that the real one has."""
    found = []
    for name, truth, video in zip(names, real, videos, strict=True):
        pictures = list(video[: len(truth)])
        found.append(int(judge.right(pictures, [name] * len(pictures)).sum()))
    return found


def _distances(found: Continued) -> dict[str, float]:
    """PSNR of continuations, of standing still and of the round trip; and their lengths."""
    if not found.names:
        return {}
    pairs = list(zip(found.real, found.drawn, strict=True))
    both = [(a[: len(b)], b[: len(a)]) for a, b in pairs]
    still = [np.repeat(x[None], len(a), 0) for x, a in zip(found.last, found.real, strict=True)]
    figures = {
        "repeated_psnr_db": psnr_db(_pictures(found.real), _pictures(still)),
        "round_trip_psnr_db": psnr_db(_pictures(found.real), _pictures(found.round_trip)),
        "length_right": float(np.mean([len(a) == len(b) for a, b in pairs])),
    }
    if any(len(a) for a, _ in both):
        real = _pictures([a for a, _ in both])
        figures["continued_psnr_db"] = psnr_db(real, _pictures([b for _, b in both]))
    return figures


def _pictures(videos: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [picture for video in videos for picture in video]
