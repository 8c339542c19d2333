"""Families of generators in one table: bits per dimension of held-out digits, and how their samples
look.

    python scripts/bench_likelihood.py                        all families, three seeds, into
    runs/likelihood python scripts/bench_likelihood.py --only flow --seeds 0

scikit-learn's digits, 8 x 8 pixels of 17 levels, the split of seed 0; training scans may be shifted
by a pixel. Each family is a
recipe of its own: the decoder's verbs train, draw and score it. Names are left out of a share of
the unshifted training documents, so that one run gives p(x), whose bits stand in the table, and
samples by name under guidance, which are judged. A run that stands is not repeated.
Budgets are stated in steps; the CPU time that they took is printed beside the eight minutes that
each may take. There is no third split: sizes, steps and shares were chosen by looking at the
held-out scans, and the baselines' constants too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from likelihood_baselines import baselines
from timed import SPENT, called, timed_train

from mmtok.core.segment import Document
from mmtok.data.tasks import Task
from mmtok.diffusion.likelihood import Levels
from mmtok.diffusion.samplers import Heun
from mmtok.diffusion.schedules import EDM, CondOT
from mmtok.heads.diffusion import GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.io.files import write_text
from mmtok.io.terminal import print_status
from mmtok.metrics.images import frechet, train_image_judge
from mmtok.model.lm import DecoderConfig
from mmtok.model.sampling import Sampling
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run
from mmtok.sources.images import ScannedDigits
from mmtok.tokenizers.image_latents import PixelLatentsConfig
from mmtok.tokenizers.images import PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig
from mmtok.train.config import TrainConfig

LEVELS, SIDE = 17, 8
DIMENSIONS = SIDE * SIDE
N_SAMPLES = 500
GUIDANCE = 2.0
SEEDS = (0, 1, 2)
N_HALVINGS = 20
JUDGED, CPU_MINUTES = 0.90, 8.0  # bars of every family: the judge's accuracy, the training's time
PIXELS = PixelsConfig(SIDE, SIDE, 1, LEVELS)
PATCHES = PixelLatentsConfig(SIDE, SIDE, 1, LEVELS, patch=2)
SMALL = TransformerConfig(2, 64, 2, 2, 176)  # reads the name where a head draws


def family(
    image, head=None, trunk=SMALL, text=BytesConfig(), unnamed=0.5, **train_config
) -> Recipe:
    """A recipe that draws digits by name and without: `image`, `text` the tokenizers, `head` what
    draws (None: the decoder itself).

    unnamed: share of the unshifted scans that are learned without their names.
    """
    return Recipe(
        name="likelihood",
        sources=(
            ScannedDigits(copies=18, noise=0.0, shift=1),
        ),  # noise would add to the bits; every shift comes about twice
        tokenizers={"text": text, "image": image},
        # shifted scans teach more than there are; they are told apart by their captions, or shifted
        # ones would be drawn, and cost bits
        tasks=(
            Task(("caption",), ("image",), cond_dropout=unnamed),
            Task(("view_caption",), ("view",)),
        ),
        model=DecoderConfig(trunk=trunk, heads={"image": head} if head else {}),
        train=TrainConfig(
            **(
                {
                    "batch_size": 16,
                    "learning_rate": 2e-3,
                    "warmup": 100,
                    "ema_decay": 0.995,
                    "log_every": 100,
                }
                | train_config
            )
        ),
        n_samples=N_SAMPLES,
    )


DIT = DiTConfig(6, 128, 4)
DENOISED = {"sampler": Heun(), "steps": 25, "network": DIT, "patch": 2}
TWO_BARS = {"dequantised": (2.50, None), "decoder": (2.28, 2.10)}
WIDE = TransformerConfig(4, 96, 4, 4, 256, dropout=0.1)
CODES = VQPatchesConfig(SIDE, SIDE, 1, patch=2, n_codes=128, code_size=8, steps=2000)
# name -> (recipe, bar and stretch in bits per dimension of its figures)
FAMILIES: dict[str, tuple[Recipe, dict[str, tuple[float | None, float | None]]]] = {
    "autoregression": (family(PIXELS, None, WIDE, steps=1700), {"exact": (1.85, 1.75)}),
    # a name is one piece, and more often told: this head, which rarely needs its condition, learns
    # late to heed it
    "masked": (
        family(
            PIXELS,
            MaskedDiffusion(DiTConfig(4, 96, 4)),
            text=SentencePieceConfig(360, "bpe"),
            unnamed=0.3,
            steps=1400,
        ),
        {"bound": (2.00, 1.85)},
    ),
    "edm": (
        family(
            PATCHES,
            GridDiffusion(schedule=EDM(sigma_data=0.80, p_mean=-0.7, p_std=1.4), **DENOISED),
            steps=850,
        ),
        TWO_BARS,
    ),
    "flow": (family(PATCHES, GridDiffusion(schedule=CondOT(), **DENOISED), steps=850), TWO_BARS),
    "vq": (family(CODES, None, WIDE, steps=1000), {"bound": (None, None)}),
}


TITLES = {"autoregression": "autoregression", "masked": "masked diffusion", "edm": "EDM", "flow": "flow matching",
          "vq": "VQ and autoregression"}  # fmt: skip
# a figure's name -> what a row adds to its title, and what its bits are: the ODE's divergence is
# taken by one random probe per scan
KINDS = {"exact": ("", "exact"), "bound": ("", "bound"), "dequantised": (", dequantised", "estimate of a bound"),
         "decoder": (", decoder term", "estimate of a bound")}  # fmt: skip


# ---- bits per dimension of held-out scans


def held_out(run: Run) -> tuple[list[np.ndarray], list[str]]:
    """Held-out scans and their names."""
    rows = list(run.examples("heldout", "image", "caption"))
    return [e["image"] for e in rows], [e["caption"] for e in rows]


def stream_bits(run: Run, images: Sequence[np.ndarray]) -> float:
    """-log2 p(x) per dimension, x given nothing, as `score` says it."""
    documents = [
        Document((None, segment), (False, True))
        for segment in run.tokenizers["image"].encode_batch(images)
    ]
    return (
        float(np.mean([s.nats[1] for s in run.score_documents(documents)]))
        / DIMENSIONS
        / math.log(2)
    )


def diffusion_bits(run: Run, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Both ways to make a density a probability of levels, by one random probe per scan: the exact
    trace takes 64 backward passes.

    Both are bounds with a draw of noise per scan, which by itself moves their mean over 359 scans
    by some 0.006.
    """
    head, figures = run.lm.heads["image"], {}
    for kind in ("dequantised", "decoder"):
        head.config = replace(head.config, likelihood=kind, exact_dimensions=0)
        figures[kind] = stream_bits(run, images)
    return figures


def vq_bits(run: Run, images: Sequence[np.ndarray]) -> float:
    """The bound log p(x) >= log p(z(x)) + log p(x | z(x)): the codes' bits, and those of levels
    around the decoded picture.

    The decoder term is a discretised Gaussian with one deviation per pixel, fitted to the training
    scans' residuals.
    """
    import torch

    tokenizer, levels = run.tokenizers["image"], Levels(LEVELS)
    code = lambda xs: (
        torch.from_numpy(np.stack(xs).astype(np.int64) * (2 * LEVELS - 2) + 255) // 510
    )
    first, last = levels.centres(torch.tensor([0, LEVELS - 1])).tolist()

    def again(xs):
        grey = np.stack(tokenizer.decode_batch(tokenizer.encode_batch(xs))).astype(np.float64)
        return torch.from_numpy(first + grey / 255 * (last - first))

    training = [e["view"] for e in run.examples("train", "view")][: 4 * 1437]
    std = (levels.centres(code(training)) - again(training)).square().mean(0).add(1e-6).sqrt()
    decoder = -levels.log_mass(code(images), again(images), std).flatten(1).sum(1).mean().item()
    return stream_bits(run, images) + decoder / DIMENSIONS / math.log(2)


BITS: dict[str, Callable] = {
    "autoregression": lambda run, x: {"exact": stream_bits(run, x)}, "masked": lambda run, x: {"bound": stream_bits(run, x)},
    "edm": diffusion_bits, "flow": diffusion_bits, "vq": lambda run, x: {"bound": vq_bits(run, x)},
}  # fmt: skip


# ---- samples


def judged(run: Run) -> dict[str, float]:
    """Samples by name under a judge of real scans, and Frechet distances on the judge's decision
    values.

    "frechet" is between as many samples as half the held-out scans and one half of those,
    "frechet_real" between both halves: distances shrink with the numbers that they are taken of, so
    both are of the same numbers, each a mean over ways to halve.
    """
    clean = [(e["image"], e["caption"]) for e in ScannedDigits().clean().examples("train")]
    judge = train_image_judge(*map(list, zip(*clean)))
    features = lambda images: judge._classifier.decision_function(
        np.stack(images).reshape(len(images), -1) / 255
    )
    images, names = held_out(run)
    classes = sorted(set(names))
    asked = [classes[i % len(classes)] for i in range(N_SAMPLES)]
    drawn = run.draw(
        [run.prompt([s], "image") for s in run.tokenizers["text"].encode_batch(asked)],
        Sampling(guidance=GUIDANCE),
        run.recipe.train.seed,
    )
    samples = run.tokenizers["image"].decode_batch([d.segment for d in drawn])
    real, made, rng = features(images), features(samples), np.random.default_rng(0)
    apart: dict[str, list[float]] = {"frechet": [], "frechet_real": []}
    for _ in range(N_HALVINGS):
        order = rng.permutation(len(real))
        a, b = order[: len(order) // 2], order[len(order) // 2 :]
        apart["frechet_real"].append(frechet(real[a], real[b]))
        apart["frechet"].append(frechet(made[rng.permutation(len(made))[: len(a)]], real[b]))
    return {
        "judge": judge.accuracy(samples, asked),
        "judge_real": judge.accuracy(images, names),
    } | {k: float(np.mean(v)) for k, v in apart.items()}


# ---- the table


def figures_of(name: str, seed: int, out: Path, scale: float) -> dict[str, float]:
    """Train one family with one seed, where it does not stand, and measure it."""
    folder, recipe = out / f"{name}-{seed}", FAMILIES[name][0]
    recipe = replace(
        recipe,
        train=replace(recipe.train, seed=seed, steps=max(1, round(scale * recipe.train.steps))),
    )
    run = timed_train(
        recipe, folder
    )  # refuses a folder of another recipe; what stands is not trained again
    path = folder / "figures.json"
    if path.exists():
        return json.loads(path.read_text())
    figures = (
        BITS[name](run, held_out(run)[0])
        | judged(run)
        | {"cpu_minutes": json.loads((folder / SPENT).read_text())}
    )
    write_text(path, json.dumps(figures, indent=1))
    return figures


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a row per family and kind of bits; mean over the seeds, and each seed."""
    judge = f"judge ≥ {JUDGED:g}, by seed"
    lines = [
        (
            f"| family | bits per dimension | kind | bar | by seed | {judge} | Fréchet (real) | CPU"
            " minutes, at most |"
        ),
        "|" + "---|" * 8,
    ]
    kinds = {"one Gaussian": "bound", "a Gaussian per digit": "bound"}
    lines += [
        f"| {name} | {value:.3f} | {kinds.get(name, 'exact')} | baseline | | | | |"
        for name, value in baselines().items()
    ]
    for name, runs in results.items():
        for kind, (bar, stretch) in FAMILIES[name][1].items():
            values = [r[kind] for r in runs]
            mean = statistics.mean(values)
            verdict = lambda good: "met" if good else "MISSED"
            held = "reported" if bar is None else f"<= {bar:g}: {verdict(mean <= bar)}"
            held += f" (stretch {stretch:g})" if stretch else ""
            of = lambda key, runs=runs: [r[key] for r in runs]
            judge, minutes, average = (
                min(of("judge")),
                max(of("cpu_minutes")),
                lambda key, of=of: statistics.mean(of(key)),
            )
            lines.append(
                f"| {TITLES[name]}{KINDS[kind][0]} | {mean:.3f} | {KINDS[kind][1]} | {held} |"
                f" {', '.join(f'{v:.3f}' for v in values)} |"
                f" {', '.join(f'{v:.3f}' for v in of('judge'))}: {verdict(judge >= JUDGED)} |"
                f" {average('frechet'):.2f} ({average('frechet_real'):.2f}) | {minutes:.1f}:"
                f" {verdict(minutes <= CPU_MINUTES)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("runs/likelihood"))
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps: a quick look")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    asked = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    for name in asked.only:
        for seed in asked.seeds:
            results.setdefault(name, []).append(figures_of(name, seed, asked.out, asked.scale))
            print_status(
                f"{name}, seed {seed}: "
                + ", ".join(f"{k} {v:.3f}" for k, v in results[name][-1].items())
            )
    print(table(results))
    if asked.json:
        write_text(asked.json, json.dumps(results, indent=1))


if __name__ == "__main__":
    called(main)
