"""Fashion-MNIST sampled by class name in three ways: how good samples are, and what they cost.

    python scripts/bench_fashion.py FOLDER               all families, into runs/fashion
    python scripts/bench_fashion.py FOLDER --only pixel

FOLDER holds MNIST's four files. The families are diffusion in latents, flow matching in pixels and
a cascade 7 -> 14 -> 28, each trained for at most 30 CPU minutes. A judge trained on real pictures
names samples; the Fréchet distance to held-out ones is on the judge's decision values. Each
distance comes with its standard error by a bootstrap over the samples. All solvers start from the
same noise, so two of their distances are compared by the bootstrap of their difference: "as good"
means no further apart than 5 % and than two standard errors. A finished run is not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import called
from timed import SPENT, minutes_verdict, timed_train, verdict

from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import DPMSolver2M, Euler, Heun
from mmtok.diffusion.schedules import EDM, CondOT
from mmtok.heads.cascade import Cascade, Stage
from mmtok.heads.diffusion import GridDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.io.files import write_text
from mmtok.io.terminal import print_status
from mmtok.metrics.images import ImageJudge, frechet, train_pixel_judge
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.unet import UNetConfig
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run
from mmtok.sources.idx import IdxImages
from mmtok.sources.images import write_image
from mmtok.tokenizers.image_latents import KLPatchesConfig, PixelLatentsConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SIDE = 28
N_SAMPLES = 1000
N_JUDGE = 20_000  # pictures that the judge is trained on
N_BOOTSTRAP = 200
GUIDANCE = (1.0, 2.0)
EVALUATIONS = (9, 17, 35, 71)
SOLVERS = {"Euler": Euler(), "Heun": Heun(), "DPM++(2M)": DPMSolver2M()}
AUG_NOISE = (0.0, 0.1, 0.2, 0.4)
# bars
JUDGE_REAL = 0.88
JUDGE_DRAWN = 0.80
CPU_MINUTES = 30.0


# ---- the recipes


def family(folder: Path, image: Any, head: Any, **settings: Any) -> Recipe:
    """A recipe for images by class name: the trunk only reads the name, `head` samples.

    settings: Fields of the training that differ from this script's own.
    """
    defaults = {"learning_rate": 2e-3, "warmup": 100, "ema_decay": 0.998, "log_every": 100}
    return Recipe(
        name="fashion",
        sources=(IdxImages(str(folder), NAMES),),
        tokenizers={"text": BytesConfig(), "image": image},
        tasks=(Task(("caption",), ("image",), cond_dropout=0.1),),
        model=DecoderConfig(trunk=TransformerConfig(2, 64, 2, 2, 176), heads={"image": head}),
        train=TrainConfig(**(defaults | settings)),
    )


# Few frames: the trunk reads them too, for nothing here.
PIXELS = PixelLatentsConfig(SIDE, SIDE, 1, 256, patch=14)
LATENTS = KLPatchesConfig(SIDE, SIDE, 1, patch=4, latent_size=4, steps=2000, kl_weight=1e-3)
# Some 96 pictures per step, whichever tokenizer.
PIXEL_ROWS = {"batch_size": 12, "seq_len": 160}
LATENT_ROWS = {"batch_size": 24, "seq_len": 256}
FINE = UNetConfig((16, 32, 64), blocks=1)


def latent(folder: Path) -> Recipe:
    """EDM on the latents of an autoencoder."""
    network = UNetConfig((96, 96), blocks=2)
    head = GridDiffusion(schedule=EDM(sigma_data=1.0, p_mean=-0.5), network=network)
    return family(folder, LATENTS, head, steps=1800, **LATENT_ROWS)


def pixel(folder: Path) -> Recipe:
    """Flow matching on pixels."""
    head = GridDiffusion(schedule=CondOT(), network=FINE, patch=14)
    return family(folder, PIXELS, head, steps=1800, **PIXEL_ROWS)


def cascade(folder: Path) -> Recipe:
    """Three diffusion models, each of twice the resolution of the one before."""
    stages = (
        Stage(network=UNetConfig((64, 64), blocks=1)),
        Stage(network=UNetConfig((32, 64), blocks=1), aug_noise=0.1),
        Stage(network=FINE, aug_noise=0.1),
    )
    return family(folder, PIXELS, Cascade(stages=stages, patch=14), steps=1200, **PIXEL_ROWS)


FAMILIES: dict[str, Callable[[Path], Recipe]] = {
    "latent": latent,
    "pixel": pixel,
    "cascade": cascade,
}


# ---- drawing


def draw(
    run: Run, guidance: float = 1.0, aug_noise: float | None = None
) -> tuple[list[np.ndarray], list[str]]:
    """Pictures of all classes, equally many of each, and the names they were sampled by.

    Always from the same noise.
    """
    names = [NAMES[i % len(NAMES)] for i in range(n_samples(run))]
    prompts = [run.prompt([s], "image") for s in run.tokenizers["text"].encode_batch(names)]
    samples = run.draw(prompts, Sampling(guidance=guidance, aug_noise=aug_noise), seed=0)
    return run.tokenizers["image"].decode_batch([d.segment for d in samples]), names


def n_samples(run: Run) -> int:
    """Half as many for a cascade, whose stages take three times as long."""
    return N_SAMPLES // min(2, len(denoisers(run)))


def denoisers(run: Run) -> list:
    """The heads that denoise: a cascade's stages, or the one."""
    head = run.lm.heads["image"]
    return list(getattr(head, "stages", [head]))


def n_steps(solver: str, n_evaluations: int) -> int:
    """The steps of a solver that take n network evaluations.

    Heun's last step, to no noise at all, is one of Euler: n steps take 2 n - 1 evaluations.
    """
    return (n_evaluations + 1) // 2 if solver == "Heun" else n_evaluations


@contextmanager
def solved_by(run: Run, solver: str, n_evaluations: int) -> Iterator[Callable[[], float]]:
    """Sets the solver, in as many steps as take n evaluations.

    Yields a function that counts the evaluations per sample and stage so far.
    """
    heads = denoisers(run)
    before = [head.config for head in heads]
    rows: list[int] = []
    hooks = []
    for head in heads:
        steps = n_steps(solver, n_evaluations)
        head.config = replace(head.config, sampler=SOLVERS[solver], steps=steps)
        hook = head.network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        hooks.append(hook)
    try:
        yield lambda: sum(rows) / len(heads) / n_samples(run)
    finally:
        for head, config, hook in zip(heads, before, hooks, strict=True):
            head.config = config
            hook.remove()


# ---- the figures


class Judged:
    """Samples against held-out pictures, by a judge trained on real training pictures only."""

    def __init__(self, source: IdxImages):
        images, labels = source.load("train")
        chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:N_JUDGE])
        names = [NAMES[k] for k in labels[chosen]]
        self.judge: ImageJudge = train_pixel_judge(list(images[chosen]), names)
        images, labels = source.load("heldout")
        self.accuracy_real = self.judge.accuracy(images, [NAMES[k] for k in labels])
        features = self.features(images)
        self.other = features[::2]
        self.reference = features[1::2]

    def floor(self, n: int) -> float:
        """The distance of n held-out pictures from the others: it grows as n gets smaller."""
        return frechet(self.other[:n], self.reference)

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, 10): the judge's decision values."""
        return self.judge.decision_values(images)

    def distance(self, images: Sequence[np.ndarray]) -> tuple[float, float]:
        """Fréchet distance and its standard error."""
        features = self.features(images)
        return frechet(features, self.reference), float(np.std(self.bootstrap(features)))

    def bootstrap(self, features: np.ndarray) -> np.ndarray:
        """Distances (N_BOOTSTRAP,) of resampled rows, the same rows for the same N."""
        rng = np.random.default_rng(0)
        n = len(features)
        draws = (features[rng.integers(0, n, n)] for _ in range(N_BOOTSTRAP))
        return np.array([frechet(rows, self.reference) for rows in draws])


def measured(run: Run, judged: Judged, sheet: Path) -> dict[str, Any]:
    """All figures of a trained family; writes a sheet of samples, one class per row."""

    def quality(images: Sequence[np.ndarray], names: Sequence[str]) -> list[float]:
        return [judged.judge.accuracy(images, names), *judged.distance(images)]

    figures: dict[str, Any] = {"accuracy": {}, "distance": {}, "apart": {}, "aug_noise": {}}
    for guidance in GUIDANCE:
        images, names = draw(run, guidance)
        figures["accuracy"][f"{guidance:g}"] = quality(images, names)
    write_sheet(sheet, images)  # of the strongest guidance
    for solver in SOLVERS:
        figures["distance"][solver], figures["apart"][solver] = by_evaluations(run, judged, solver)
    if len(denoisers(run)) > 1:
        for aug_noise in AUG_NOISE:
            figures["aug_noise"][f"{aug_noise:g}"] = quality(*draw(run, aug_noise=aug_noise))
    return figures


def write_sheet(path: Path, images: Sequence[np.ndarray]) -> None:
    """Writes 16 samples of each class as one picture, a class per row."""
    grid = np.stack(images[: 16 * len(NAMES)]).reshape(16, len(NAMES), SIDE, SIDE)
    write_image(path, grid.transpose(1, 2, 0, 3).reshape(len(NAMES) * SIDE, -1))


def by_evaluations(run: Run, judged: Judged, solver: str) -> tuple[dict[str, list[float]], float]:
    """One solver's distance by number of evaluations.

    Returns:
        By number: distance, its standard error, evaluations as counted; and the standard error of
        the difference between 35 and 71 evaluations.
    """
    found = {}
    resampled = {}
    for n in EVALUATIONS:
        with solved_by(run, solver, n) as evaluations:
            images, _ = draw(run)
            found[str(n)] = [*judged.distance(images), evaluations()]
        resampled[n] = judged.bootstrap(judged.features(images))
        print_status(
            f"{solver}, {n} evaluations ({found[str(n)][2]:g} counted): {found[str(n)][0]:.3f}"
        )
    return found, float(np.std(resampled[35] - resampled[71]))


def figures_of(
    name: str, folder: Path, out: Path, scale: float, judged: Callable[[], Judged]
) -> dict[str, Any]:
    """Trains and measures one family, unless its figures are there already.

    Refuses a folder that holds another recipe's run.
    """
    recipe = FAMILIES[name](folder.resolve())
    steps = max(1, round(scale * recipe.train.steps))
    run = timed_train(replace(recipe, train=replace(recipe.train, steps=steps)), out / name)
    path = out / name / "figures.json"
    if path.exists():
        return json.loads(path.read_text())
    figures = {
        "cpu_minutes": json.loads((out / name / SPENT).read_text()),
        **measured(run, judged(), out / f"{name}.png"),
        "real": [judged().accuracy_real, judged().floor(n_samples(run))],
    }
    write_text(path, json.dumps(figures, indent=1))
    return figures


def lines_of(name: str, figures: dict[str, Any]) -> Iterator[str]:
    """What is printed of a family."""
    minutes = minutes_verdict(figures["cpu_minutes"], CPU_MINUTES)
    yield f"## {name}: CPU minutes of training, at most {CPU_MINUTES:g}: {minutes}"
    accuracy, floor = figures["real"]
    yield (
        f"judge on real pictures {accuracy:.3f} (bar {JUDGE_REAL}:"
        f" {verdict(accuracy >= JUDGE_REAL)}); Fréchet of real against real {floor:.3f}"
    )
    for guidance, (share, distance, error) in figures["accuracy"].items():
        yield (
            f"guidance {guidance}: judge {share:.3f} (bar {JUDGE_DRAWN}:"
            f" {verdict(share >= JUDGE_DRAWN)}), Fréchet {distance:.3f} ± {error:.3f}"
        )
    yield "| evaluations | " + " | ".join(f"{n}" for n in EVALUATIONS) + " | 35 against 71 |"
    yield "|---" * (len(EVALUATIONS) + 2) + "|"
    for solver, by in figures["distance"].items():
        cells = [f"{distance:.3f} ± {error:.3f}" for distance, error, _ in by.values()]
        cells.append(difference(solver, by, figures["apart"][solver]))
        yield f"| {solver} | {' | '.join(cells)} |"
    for aug_noise, (share, distance, error) in figures["aug_noise"].items():
        yield (
            f"augmentation noise {aug_noise}: judge {share:.3f},"
            f" Fréchet {distance:.3f} ± {error:.3f}"
        )


def difference(solver: str, by: dict[str, list[float]], error: float) -> str:
    """How far 35 evaluations are from 71, with a verdict for the solvers of order 2."""
    few = by["35"][0]
    many = by["71"][0]
    text = f"{few - many:+.4f} ± {error:.4f}, {abs(few - many) / many:.1%}"
    if solver == "Euler":
        return text
    return f"{text}: {verdict(abs(few - many) <= min(0.05 * many, 2 * error))}"


def measure_families(
    about: str,
    families: Iterable[str],
    out: Path,
    judged_by: Callable[[IdxImages], Any],
    figures_of: Callable[..., Any],
    lines_of: Callable[[str, Any], Iterable[str]],
) -> None:
    """Trains, measures and prints the families that the command line names.

    about: what the command is for; out: where its runs lie if nothing is said; judged_by: makes
    the judges of a source, once they are needed.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="with MNIST's four files, plain, .gz or .xz")
    add("--only", nargs="+", choices=list(families), default=list(families))
    add("--out", type=Path, default=out)
    add("--scale", type=float, default=1.0, help="times the steps: a quick look")
    options = parser.parse_args()
    source = IdxImages(str(options.folder), NAMES)
    source.check()
    judged = cache(partial(judged_by, source))
    for name in options.only:
        figures = figures_of(name, options.folder, options.out, options.scale, judged)
        print(*lines_of(name, figures), sep="\n", flush=True)


def main() -> None:
    """Trains, measures and prints the families that the command line names."""
    measure_families(__doc__, FAMILIES, Path("runs/fashion"), Judged, figures_of, lines_of)


if __name__ == "__main__":
    called(main)
