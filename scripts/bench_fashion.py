"""Fashion-MNIST, drawn by its classes' names in three ways: how the samples look, and how many
evaluations of the network they need.

    python scripts/bench_fashion.py FOLDER                    all families into runs/fashion; FOLDER
    holds MNIST's four files python scripts/bench_fashion.py FOLDER --only pixel

Diffusion in latents, flow matching in pixels and a cascade 7 -> 14 -> 28, each at most 30 CPU
minutes of training. A judge of real training pictures names samples; the Frechet distance to
held-out ones is on the judge's decision values. Beside each distance stands the standard error that
a bootstrap over the samples gives. All solvers start from the same noise, so that two of their
distances are
compared by the bootstrap of their difference: "as good" is no further apart than 5 %, and than two
standard errors of that. A run that stands is not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from timed import SPENT, called, timed_train

from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import DPMSolver2M, Euler, Heun
from mmtok.diffusion.schedules import EDM, CondOT
from mmtok.heads.cascade import Cascade, Stage
from mmtok.heads.diffusion import GridDiffusion
from mmtok.io.files import write_text
from mmtok.io.terminal import print_status
from mmtok.metrics.images import ImageJudge, flat_pixels, frechet, train_image_judge
from mmtok.model.lm import DecoderConfig
from mmtok.model.sampling import Sampling
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
SIDE, N_SAMPLES, N_JUDGE, N_BOOTSTRAP = 28, 1000, 20_000, 200
GUIDANCE = (1.0, 2.0)
EVALUATIONS = (9, 17, 35, 71)
# Heun's last step, to no noise at all, is one of Euler: 2 n - 1 evaluations for n steps
SOLVERS = {
    "Euler": (Euler(), lambda n: n),
    "Heun": (Heun(), lambda n: (n + 1) // 2),
    "DPM++(2M)": (DPMSolver2M(), lambda n: n),
}
LEVELS = (0.0, 0.1, 0.2, 0.4)
JUDGE_REAL, JUDGE_DRAWN, BUDGET = 0.88, 0.80, 30.0


# ---- the recipes


def family(folder: Path, image, head, **train_config) -> Recipe:
    """A recipe that draws pictures by name: the trunk only reads the name, `head` draws."""
    return Recipe(
        name="fashion",
        sources=(IdxImages(str(folder), NAMES),),
        tokenizers={"text": BytesConfig(), "image": image},
        tasks=(Task(("caption",), ("image",), cond_dropout=0.1),),
        model=DecoderConfig(trunk=TransformerConfig(2, 64, 2, 2, 176), heads={"image": head}),
        train=TrainConfig(
            **(
                {"learning_rate": 2e-3, "warmup": 100, "ema_decay": 0.998, "log_every": 100}
                | train_config
            )
        ),
    )


PIXELS = PixelLatentsConfig(
    SIDE, SIDE, 1, 256, patch=14
)  # few frames: the trunk reads them too, for nothing here
LATENTS = KLPatchesConfig(
    SIDE, SIDE, 1, patch=4, latent_size=4, hidden=64, blocks=1, steps=2000, kl_weight=1e-3
)
SMALL_ROWS, LATENT_ROWS = (
    {"batch_size": 12, "seq_len": 160},
    {
        "batch_size": 24,
        "seq_len": 256,
    },
)  # some 96 pictures each
FINE = UNetConfig((16, 32, 64), blocks=1)
FAMILIES: dict[str, Callable[[Path], Recipe]] = {
    "latent": lambda folder: family(
        folder, LATENTS, GridDiffusion(schedule=EDM(sigma_data=1.0, p_mean=-0.5), network=UNetConfig((96, 96), blocks=2)),
        steps=1800, **LATENT_ROWS),
    "pixel": lambda folder: family(folder, PIXELS, GridDiffusion(schedule=CondOT(), network=FINE, patch=14), steps=1800, **SMALL_ROWS),
    "cascade": lambda folder: family(
        folder, PIXELS,
        Cascade(stages=(Stage(network=UNetConfig((64, 64), blocks=1)), Stage(network=UNetConfig((32, 64), blocks=1), aug_noise=0.1),
                        Stage(network=FINE, aug_noise=0.1)), patch=14),
        steps=1200, **SMALL_ROWS),
}  # fmt: skip


# ---- drawing


def drawn(
    run: Run, guidance: float = 1.0, level: float | None = None
) -> tuple[list[np.ndarray], list[str]]:
    """Pictures, each class as often, and the names that they were asked by.

    Always from the same noise.
    """
    asked = [NAMES[i % len(NAMES)] for i in range(n_samples(run))]
    prompts = [run.prompt([s], "image") for s in run.tokenizers["text"].encode_batch(asked)]
    samples = run.draw(prompts, Sampling(guidance=guidance, aug_noise=level), seed=0)
    return run.tokenizers["image"].decode_batch([d.segment for d in samples]), asked


def n_samples(run: Run) -> int:
    """Half as many of a cascade, whose stages take three times as long."""
    return N_SAMPLES // min(2, len(denoisers(run)))


def denoisers(run: Run) -> list:
    """The heads that walk from noise to data: a cascade's stages, or the one."""
    head = run.lm.heads["image"]
    return list(getattr(head, "stages", [head]))


@contextmanager
def solved_by(run: Run, solver: str, n_evaluations: int) -> Iterator[Callable[[], float]]:
    """With this solver in as many steps as take n evaluations; yields what says how many each
    sample took in each stage.
    """
    sampler, steps = SOLVERS[solver]
    heads, rows, hooks, before = denoisers(run), [], [], [h.config for h in denoisers(run)]
    for head in heads:
        head.config = replace(head.config, sampler=sampler, steps=steps(n_evaluations))
        hooks.append(
            head.network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        )
    try:
        yield lambda: sum(rows) / len(heads) / n_samples(run)
    finally:
        for head, config, hook in zip(heads, before, hooks):
            head.config = config
            hook.remove()


# ---- the figures


class Judged:
    """Samples against held-out pictures, by a judge that saw real training pictures only."""

    def __init__(self, source: IdxImages):
        images, labels = source.load("train")
        chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:N_JUDGE])
        self.judge: ImageJudge = train_image_judge(
            list(images[chosen]), [NAMES[k] for k in labels[chosen]]
        )
        images, labels = source.load("heldout")
        self.accuracy_real = self.judge.accuracy(images, [NAMES[k] for k in labels])
        features = self.features(images)
        self.other, self.reference = features[::2], features[1::2]

    def floor(self, n: int) -> float:
        """The distance of n held-out pictures from the others: distances grow as samples get fewer."""
        return frechet(self.other[:n], self.reference)

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, 10): the judge's decision values."""
        return self.judge._classifier.decision_function(flat_pixels(images))

    def distance(self, images: Sequence[np.ndarray]) -> tuple[float, float]:
        """Frechet distance and its standard error."""
        features = self.features(images)
        return frechet(features, self.reference), float(np.std(self.resampled(features)))

    def resampled(self, features: np.ndarray) -> np.ndarray:
        """Distances of samples drawn again from these, the same rows whenever there are as many."""
        rng = np.random.default_rng(0)
        return np.array(
            [
                frechet(features[rng.integers(0, len(features), len(features))], self.reference)
                for _ in range(N_BOOTSTRAP)
            ]
        )


def measured(run: Run, judged: Judged, sheet: Path) -> dict:
    """All figures of a trained family; a sheet of samples, a class per row, beside them."""
    figures: dict = {"accuracy": {}, "distance": {}, "apart": {}, "level": {}}
    for guidance in GUIDANCE:
        images, asked = drawn(run, guidance)
        figures["accuracy"][f"{guidance:g}"] = [
            judged.judge.accuracy(images, asked),
            *judged.distance(images),
        ]
    rows = np.stack(images[:160]).reshape(16, len(NAMES), SIDE, SIDE)  # of the strongest guidance
    write_image(sheet, rows.transpose(1, 2, 0, 3).reshape(len(NAMES) * SIDE, -1))
    for solver in SOLVERS:
        again = {}
        for n in EVALUATIONS:
            with solved_by(run, solver, n) as taken:
                images, _ = drawn(run)
                figures["distance"].setdefault(solver, {})[str(n)] = [
                    *judged.distance(images),
                    taken(),
                ]
                again[n] = judged.resampled(judged.features(images))
                print_status(
                    f"{solver}, {n} evaluations ({taken():g} counted):"
                    f" {figures['distance'][solver][str(n)][0]:.3f}"
                )
        figures["apart"][solver] = float(np.std(again[35] - again[71]))
    if len(denoisers(run)) > 1:
        for level in LEVELS:
            images, asked = drawn(run, aug_noise=level)
            figures["level"][f"{level:g}"] = [
                judged.judge.accuracy(images, asked),
                *judged.distance(images),
            ]
    return figures


def figures_of(
    name: str, folder: Path, out: Path, scale: float, judged: Callable[[], Judged]
) -> dict:
    """Train one family, where it does not stand, and measure it."""
    recipe, path = FAMILIES[name](folder.resolve()), out / name / "figures.json"
    recipe = replace(
        recipe, train=replace(recipe.train, steps=max(1, round(scale * recipe.train.steps)))
    )
    run = timed_train(
        recipe, out / name
    )  # refuses a folder of another recipe; what stands is not trained again
    if path.exists():
        return json.loads(path.read_text())
    figures = {"cpu_minutes": json.loads((out / name / SPENT).read_text())}
    figures |= measured(run, judged(), out / f"{name}.png") | {
        "real": [judged().accuracy_real, judged().floor(n_samples(run))]
    }
    write_text(path, json.dumps(figures, indent=1))
    return figures


def lines_of(name: str, figures: dict) -> Iterator[str]:
    """What is printed of a family."""
    verdict = lambda held: "met" if held else "MISSED"
    accuracy, floor = figures["real"]
    yield (
        f"## {name}: {figures['cpu_minutes']:.1f} CPU minutes of training (at most {BUDGET:g}:"
        f" {verdict(figures['cpu_minutes'] <= BUDGET)})"
    )
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
        half, most, error = by["35"][0], by["71"][0], figures["apart"][solver]
        words = f"{half - most:+.4f} ± {error:.4f}, {abs(half - most) / most:.1%}"
        held = (
            ""
            if solver == "Euler"
            else f": {verdict(abs(half - most) <= min(0.05 * most, 2 * error))}"
        )
        yield (
            f"| {solver} | "
            + " | ".join(f"{d:.3f} ± {e:.3f}" for d, e, _ in by.values())
            + f" | {words}{held} |"
        )
    for level, (share, distance, error) in figures["level"].items():
        yield f"level {level}: judge {share:.3f}, Fréchet {distance:.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with MNIST's four files, plain, .gz or .xz")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--out", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps: a quick look")
    asked = parser.parse_args()
    source, made = IdxImages(str(asked.folder), NAMES), []
    source.check()

    def judged() -> Judged:
        if not made:
            made.append(Judged(source))
        return made[0]

    for name in asked.only:
        print(
            *lines_of(name, figures_of(name, asked.folder, asked.out, asked.scale, judged)),
            sep="\n",
            flush=True,
        )


if __name__ == "__main__":
    called(main)
