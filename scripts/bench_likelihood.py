"""Families of generators in one table: bits per dimension of held-out digits, and sample quality.

    python scripts/bench_likelihood.py           all families, three seeds, into runs/likelihood
    python scripts/bench_likelihood.py --only flow --seeds 0

The data are scikit-learn's digits, 8 x 8 pixels of 17 levels, with the split of seed 0; training
scans may be shifted by a pixel. Each family is a recipe: the package's own verbs train, sample and
score it. A share of the unshifted training documents has no name, so that one run gives p(x), whose
bits are in the table, and samples by name under guidance, which are judged. A finished run is not
repeated. Budgets are in steps; the CPU time is printed next to the eight minutes that each may
take. There is no third split: sizes, steps and shares, and the baselines' constants, were chosen by
looking at the held-out scans.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from likelihood_baselines import baselines
from side_by_side import called
from timed import SPENT, minutes_verdict, timed_train, verdict

from mmtok.core.segment import Document
from mmtok.data.tasks import Task
from mmtok.diffusion.likelihood import Bins
from mmtok.diffusion.samplers import Heun
from mmtok.diffusion.schedules import EDM, CondOT
from mmtok.heads.diffusion import GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.io.files import write_text
from mmtok.io.terminal import print_status
from mmtok.metrics.images import frechet, train_image_judge
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run
from mmtok.sources.images import ScannedDigits
from mmtok.tokenizers.image_latents import PixelLatentsConfig
from mmtok.tokenizers.images import PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig
from mmtok.train.config import TrainConfig

LEVELS = 17
SIDE = 8
DIMENSIONS = SIDE * SIDE
N_SAMPLES = 500
GUIDANCE = 2.0
SEEDS = (0, 1, 2)
N_HALVINGS = 20
# bars of every family
JUDGED = 0.90  # the judge's accuracy
CPU_MINUTES = 8.0  # of training
PIXELS = PixelsConfig(SIDE, SIDE, 1, LEVELS)
PATCHES = PixelLatentsConfig(SIDE, SIDE, 1, LEVELS, patch=2)
SMALL = TransformerConfig(2, 64, 2, 2, 176)  # reads the name where a head draws


def family(
    image: Any,
    head: Any = None,
    trunk: TransformerConfig = SMALL,
    text: Any = None,
    unnamed: float = 0.5,
    **settings: Any,
) -> Recipe:
    """A recipe for digits with and without a name.

    Args:
        image: The tokenizer of the scans.
        head: What samples them; None: the decoder itself.
        trunk: The decoder's transformer.
        text: The tokenizer of the names; bytes where it is None.
        unnamed: The share of unshifted scans that are trained on without their names.
        settings: Fields of the training that differ from this script's own.
    """
    defaults = {
        "batch_size": 16,
        "learning_rate": 2e-3,
        "warmup": 100,
        "ema_decay": 0.995,
        "log_every": 100,
    }
    return Recipe(
        name="likelihood",
        # Noise would add to the bits; every shift comes about twice.
        sources=(ScannedDigits(copies=18, noise=0.0, shift=1),),
        tokenizers={"text": text or BytesConfig(), "image": image},
        # Shifted scans add training data. Captions mark them as shifted: otherwise they would be
        # sampled too, and cost bits.
        tasks=(
            Task(("caption",), ("image",), cond_dropout=unnamed),
            Task(("view_caption",), ("view",)),
        ),
        model=DecoderConfig(trunk=trunk, heads={"image": head} if head else {}),
        train=TrainConfig(**(defaults | settings)),
        n_samples=N_SAMPLES,
    )


DIT = DiTConfig(6, 128, 4)
DENOISED = {"sampler": Heun(), "steps": 25, "network": DIT, "patch": 2}
WIDE = TransformerConfig(4, 96, 4, 4, 256, dropout=0.1)
CODES = VQPatchesConfig(SIDE, SIDE, 1, patch=2, quantizer=VQ(128, 8), steps=2000)


@dataclass(frozen=True)
class Family:
    """A kind of generator.

    Attributes:
        title: Its name in the table.
        recipe: Its recipe.
        bars: By kind of bits: what is good enough, and what would be nice, in bits per dimension.
    """

    title: str
    recipe: Recipe
    bars: dict[str, tuple[float | None, float | None]]


# Two ways to turn a density into a probability of levels.
TWO_BARS = {"dequantised": (2.50, None), "decoder": (2.28, 2.10)}
FAMILIES = {
    "autoregression": Family(
        "autoregression", family(PIXELS, None, WIDE, steps=1700), {"exact": (1.85, 1.75)}
    ),
    # This head rarely needs its condition, and learns late to use it. So the name is one piece, and
    # left out less often.
    "masked": Family(
        "masked diffusion",
        family(
            PIXELS,
            MaskedDiffusion(DiTConfig(4, 96, 4)),
            text=SentencePieceConfig(360, "bpe"),
            unnamed=0.3,
            steps=1400,
        ),
        {"bound": (2.00, 1.85)},
    ),
    # a block is a row of the scan; a step costs some 1.8 times that of "masked"
    "blocks": Family(
        "masked diffusion in rows",
        family(
            PIXELS,
            MaskedDiffusion(DiTConfig(4, 96, 4), block=SIDE),
            text=SentencePieceConfig(360, "bpe"),
            unnamed=0.3,
            steps=900,
        ),
        {"bound": (1.925, None)},
    ),
    "edm": Family(
        "EDM",
        family(
            PATCHES,
            GridDiffusion(schedule=EDM(sigma_data=0.80, p_mean=-0.7, p_std=1.4), **DENOISED),
            steps=850,
        ),
        TWO_BARS,
    ),
    "flow": Family(
        "flow matching",
        family(PATCHES, GridDiffusion(schedule=CondOT(), **DENOISED), steps=850),
        TWO_BARS,
    ),
    "vq": Family(
        "VQ and autoregression", family(CODES, None, WIDE, steps=1000), {"bound": (None, None)}
    ),
}

# Kind of bits -> what a row adds to its title, and what its bits are. The ODE's divergence is
# estimated by one random probe per scan.
KINDS = {
    "exact": ("", "exact"),
    "bound": ("", "bound"),
    "dequantised": (", dequantised", "estimate of a bound"),
    "decoder": (", decoder term", "estimate of a bound"),
}


# ---- bits per dimension of held-out scans


def held_out(run: Run) -> tuple[list[np.ndarray], list[str]]:
    """Held-out scans and their names."""
    rows = list(run.examples("heldout", "image", "caption"))
    return [e["image"] for e in rows], [e["caption"] for e in rows]


def stream_bits(run: Run, images: Sequence[np.ndarray]) -> float:
    """-log2 p(x) per dimension without a condition, as `mmtok score` computes it."""
    segments = run.tokenizers["image"].encode_batch(images)
    documents = [Document((None, segment), (False, True)) for segment in segments]
    nats = np.mean([scored.nats[1] for scored in run.score_documents(documents)])
    return float(nats) / DIMENSIONS / math.log(2)


def discrete_bits(kind: str, run: Run, images: Sequence[np.ndarray]) -> dict[str, float]:
    """The bits of a family whose likelihood is its decoder's or head's own."""
    return {kind: stream_bits(run, images)}


def diffusion_bits(run: Run, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Both ways to turn a density into a probability of levels, by one random probe per scan.

    The exact trace would take 64 backward passes. Both are bounds with one draw of noise per scan,
    which by itself moves their mean over 359 scans by some 0.006.
    """
    head = run.lm.heads["image"]
    figures = {}
    for kind in ("dequantised", "decoder"):
        head.config = replace(head.config, likelihood=kind, exact_dimensions=0)
        figures[kind] = stream_bits(run, images)
    return figures


def vq_bits(run: Run, images: Sequence[np.ndarray]) -> dict[str, float]:
    """The bound log p(x) >= log p(z(x)) + log p(x | z(x)) with the codes z.

    The decoder term is a discretised Gaussian around the decoded picture, with one deviation per
    pixel, fitted to the residuals of the training scans.
    """
    import torch

    tokenizer = run.tokenizers["image"]
    levels = Bins(LEVELS)
    first, last = levels.centres(torch.tensor([0, LEVELS - 1])).tolist()

    def to_levels(scans: Sequence[np.ndarray]) -> torch.Tensor:
        grey = np.stack(scans).astype(np.int64)
        return torch.from_numpy(grey * (2 * LEVELS - 2) + 255) // 510

    def reconstructed(scans: Sequence[np.ndarray]) -> torch.Tensor:
        grey = np.stack(tokenizer.decode_batch(tokenizer.encode_batch(scans))).astype(np.float64)
        return torch.from_numpy(first + grey / 255 * (last - first))

    training = [e["view"] for e in run.examples("train", "view")][: 4 * 1437]
    residuals = levels.centres(to_levels(training)) - reconstructed(training)
    std = residuals.square().mean(0).add(1e-6).sqrt()
    log_p = levels.log_mass(to_levels(images), reconstructed(images), std)
    decoder = -log_p.flatten(1).sum(1).mean().item()
    return {"bound": stream_bits(run, images) + decoder / DIMENSIONS / math.log(2)}


BITS: dict[str, Callable[[Run, Sequence[np.ndarray]], dict[str, float]]] = {
    "autoregression": partial(discrete_bits, "exact"),
    "masked": partial(discrete_bits, "bound"),
    "blocks": partial(discrete_bits, "bound"),
    "edm": diffusion_bits,
    "flow": diffusion_bits,
    "vq": vq_bits,
}


# ---- samples


def judged(run: Run) -> dict[str, float]:
    """Samples by name under a judge of real scans, and Fréchet distances on its decision values.

    "frechet" is between half the held-out scans and as many samples, "frechet_real" between both
    halves. Distances shrink with the number of scans, so both take equally many, and each is a mean
    over random halves.
    """
    clean = list(ScannedDigits().clean().examples("train"))
    judge = train_image_judge([e["image"] for e in clean], [e["caption"] for e in clean])
    features = judge.decision_values
    images, names = held_out(run)
    classes = sorted(set(names))
    asked = [classes[i % len(classes)] for i in range(N_SAMPLES)]
    prompts = [run.prompt([s], "image") for s in run.tokenizers["text"].encode_batch(asked)]
    drawn = run.draw(prompts, Sampling(guidance=GUIDANCE), run.recipe.train.seed)
    samples = run.tokenizers["image"].decode_batch([d.segment for d in drawn])
    real = features(images)
    made = features(samples)
    rng = np.random.default_rng(0)
    distances: dict[str, list[float]] = {"frechet": [], "frechet_real": []}
    for _ in range(N_HALVINGS):
        order = rng.permutation(len(real))
        a = order[: len(order) // 2]
        b = order[len(order) // 2 :]
        distances["frechet_real"].append(frechet(real[a], real[b]))
        distances["frechet"].append(frechet(made[rng.permutation(len(made))[: len(a)]], real[b]))
    return {
        "judge": judge.accuracy(samples, asked),
        "judge_real": judge.accuracy(images, names),
        **{name: float(np.mean(values)) for name, values in distances.items()},
    }


# ---- the table


def figures_of(name: str, seed: int, out: Path, scale: float) -> dict[str, float]:
    """Trains and measures one family with one seed, unless its figures are there already.

    Refuses a folder that holds another recipe's run.
    """
    folder = out / f"{name}-{seed}"
    recipe = FAMILIES[name].recipe
    steps = max(1, round(scale * recipe.train.steps))
    run = timed_train(replace(recipe, train=replace(recipe.train, seed=seed, steps=steps)), folder)
    path = folder / "figures.json"
    if path.exists():
        return json.loads(path.read_text())
    images, _ = held_out(run)
    figures = {
        **BITS[name](run, images),
        **judged(run),
        "cpu_minutes": json.loads((folder / SPENT).read_text()),
    }
    write_text(path, json.dumps(figures, indent=1))
    return figures


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown with a row per family and kind of bits: mean over the seeds, and each seed."""
    columns = (
        "family",
        "bits per dimension",
        "kind",
        "bar",
        "by seed",
        f"judge ≥ {JUDGED:g}, by seed",
        "Fréchet (real)",
        "CPU minutes, at most",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, value in baselines().items():
        kind = "bound" if "Gaussian" in name else "exact"
        lines.append(f"| {name} | {value:.3f} | {kind} | baseline | | | | |")
    for name, runs in results.items():
        lines += [row(name, kind, runs) for kind in FAMILIES[name].bars]
    return "\n".join(lines)


def row(name: str, kind: str, runs: list[dict[str, float]]) -> str:
    """The row of one family and kind of bits, over the runs of its seeds."""
    by_figure = {key: [run[key] for run in runs] for key in runs[0]}
    bits = statistics.mean(by_figure[kind])
    bar, stretch = FAMILIES[name].bars[kind]
    bar_text = "reported"
    if bar is not None:
        bar_text = f"<= {bar:g}: {verdict(bits <= bar)}"
    if stretch:
        bar_text += f" (stretch {stretch:g})"
    distance, real = (statistics.mean(by_figure[key]) for key in ("frechet", "frechet_real"))
    suffix, meaning = KINDS[kind]
    cells = (
        f"{FAMILIES[name].title}{suffix}",
        f"{bits:.3f}",
        meaning,
        bar_text,
        ", ".join(f"{x:.3f}" for x in by_figure[kind]),
        ", ".join(f"{x:.3f}" for x in by_figure["judge"])
        + f": {verdict(min(by_figure['judge']) >= JUDGED)}",
        f"{distance:.2f} ({real:.2f})",
        minutes_verdict(most_minutes(by_figure["cpu_minutes"]), CPU_MINUTES),
    )
    return f"| {' | '.join(cells)} |"


def most_minutes(minutes: list[float | None]) -> float | None:
    """The most of several runs; None where those of any run are not known."""
    known = [x for x in minutes if x is not None]
    return max(known) if len(known) == len(minutes) else None


def _short(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def main() -> None:
    """Trains and measures the families that the command line names, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    add("--seeds", nargs="+", type=int, default=SEEDS)
    add("--out", type=Path, default=Path("runs/likelihood"))
    add("--scale", type=float, default=1.0, help="times the steps: a quick look")
    add("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    for name, runs in results.items():
        for seed in options.seeds:
            figures = figures_of(name, seed, options.out, options.scale)
            runs.append(figures)
            shown = ", ".join(f"{key} {_short(value)}" for key, value in figures.items())
            print_status(f"{name}, seed {seed}: {shown}")
    print(table(results))
    if options.json:
        write_text(options.json, json.dumps(results, indent=1))


if __name__ == "__main__":
    called(main)
