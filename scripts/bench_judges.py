"""Judges of pictures on held-out handwritten digits: how often each is right, and what it costs.

    python scripts/bench_judges.py [--seeds 0 1]

The 500 digits of `HandwrittenDigits` that are held out, by judges of its other 4,500: the network
that `mmtok evaluate` trains, once per seed, and the support vector machine of pixels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from mmtok.metrics.images import ImageJudge, train_image_judge, train_pixel_judge
from mmtok.metrics.intervals import mean_estimate
from mmtok.sources.handwritten import load_handwritten
from mmtok.sources.images import DIGIT_NAMES

Pictures = tuple[Sequence[np.ndarray], Sequence[str]]


def row(name: str, train: Callable[..., ImageJudge], training: Pictures, heldout: Pictures) -> str:
    """A line of the table: the judge, its share of right names with its interval, CPU seconds."""
    start = time.process_time()
    judge = train(*training)
    seconds = time.process_time() - start
    share = mean_estimate(judge.right(*heldout))
    return f"| {name} | {share} | {seconds:.0f} |"


def named(split: str) -> Pictures:
    """The digits of a split, and their names."""
    images, labels = load_handwritten(split)
    return images, [DIGIT_NAMES[k] for k in labels]


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    training = named("train")
    heldout = named("heldout")
    print("| judge | right | CPU seconds of training |\n|---|---|---|")
    for seed in args.seeds:
        judge = partial(train_image_judge, seed=seed)
        print(row(f"convolutional network, seed {seed}", judge, training, heldout), flush=True)
    print(row("support vector machine of pixels", train_pixel_judge, training, heldout))


if __name__ == "__main__":
    main()
