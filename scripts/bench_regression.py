"""Coverage of every head that gives posteriors over numbers, on toys whose noise is known.

    python scripts/bench_regression.py            all heads, three seeds, into runs/regression_toys
    python scripts/bench_regression.py --only Gaussian flow --seeds 0
    python scripts/bench_regression.py --posterior      recipes/regression.py beside the exact form

Two numbers y given one x: means that bend, noise that grows threefold with x, and correlated; and
two counts. Heads called "few" have FEW examples instead of 20,000. A head's central intervals come
from N_DRAWS draws at N_X values of x. What they cover is computed, not counted: by the noise
itself, or of counts by many truths. A finished run is not repeated. `--steps` is of every training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from posteriors import draws, nll
from scipy import stats
from side_by_side import called
from timed import SPENT, timed_train, verdict

from mmtok.data.tasks import Task
from mmtok.heads.base import HeadConfig
from mmtok.heads.densities import (
    Gaussian,
    GaussianMixture,
    GeneralisedNormal,
    NegativeBinomial,
    Poisson,
    Student,
)
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.epistemic import BayesianLastLayer, DropoutEnsemble
from mmtok.heads.flows import NormalisingFlow
from mmtok.heads.quantiles import AbsoluteError, Quantiles, SquaredError
from mmtok.heads.regression import Regression
from mmtok.io.files import write_text
from mmtok.metrics.calibration import pit, pulls, tarp, uniformity
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import Run
from mmtok.sources.base import Source
from mmtok.sources.linear_gaussian import LinearGaussian
from mmtok.tokenizers.vectors import VectorConfig
from mmtok.train.config import TrainConfig

RECIPE = Path(__file__).parent.parent / "recipes" / "regression.py"
LEVELS = np.array([0.5, 0.68, 0.9, 0.95])
BAR = 0.02
N_X = 200
N_DRAWS = 500
N_TRUTHS = 100  # of counts, at every x
CORRELATION = 0.6
DISPERSION = 3.0


# ---- the toys


@dataclass(frozen=True)
class Toy(Source):
    """Examples of x (1,) of U(-1, 1) and y (2,).

    Attributes:
        noise: "normal", "poisson" or "negative binomial".
        n: examples to train on.
        seed: of the examples.
    """

    noise: str = "normal"
    n: int = 20_000
    seed: int = 0

    @property
    def fields(self) -> dict[str, str]:
        """Both are modalities of their own."""
        return {"x": "x", "y": "y"}

    def mean(self, x: np.ndarray) -> np.ndarray:
        """(N, 2), of x (N,)."""
        if self.noise == "normal":
            return np.stack([np.sin(3 * x), x**2], 1)
        return np.exp(np.stack([1.5 + x, 2.5 - np.square(x)], 1))

    def sd(self, x: np.ndarray) -> np.ndarray:
        """(N, 2): of the normal noise."""
        return (0.2 + 0.1 * x)[:, None] * np.array([1.0, 2.0])

    def draw(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Y (N, 2) for x (N,)."""
        mean = self.mean(x)
        if self.noise == "poisson":
            return rng.poisson(mean).astype(float)
        if self.noise == "negative binomial":
            return rng.poisson(rng.gamma(DISPERSION, mean / DISPERSION)).astype(float)
        e = rng.normal(size=mean.shape)
        e[:, 1] = CORRELATION * e[:, 0] + np.sqrt(1 - CORRELATION**2) * e[:, 1]
        return mean + self.sd(x) * e

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The examples of a split."""
        rng = np.random.default_rng((self.seed, self.splits.index(split)))
        x = rng.uniform(-1, 1, self.count(split, cache))
        for one, two in zip(x, self.draw(x, rng), strict=True):
            yield {"x": one, "y": two}

    def count(self, split: str, cache: Path) -> int:
        """As the settings say; a tenth of it is held out."""
        return self.n if split == "train" else self.n // 10


FEW = 200  # examples of the heads "few ..."
HEADS: dict[str, tuple[HeadConfig, str]] = {
    "Gaussian": (Regression(Gaussian()), "normal"),
    "GeneralisedNormal": (Regression(GeneralisedNormal()), "normal"),
    "Student": (Regression(Student()), "normal"),
    "GaussianMixture": (Regression(GaussianMixture()), "normal"),
    "Quantiles": (Regression(Quantiles()), "normal"),
    "flow": (NormalisingFlow(), "normal"),
    "coupling": (NormalisingFlow(order="coupling"), "normal"),
    "affine": (NormalisingFlow("affine"), "normal"),
    "matching": (FrameDiffusion(network=TokenMLPConfig(2, 64)), "normal"),
    "Poisson": (Regression(Poisson()), "poisson"),
    "NegativeBinomial": (Regression(NegativeBinomial()), "negative binomial"),
    "few certain": (Regression(Gaussian()), "normal"),
    "few dropout": (Regression(Gaussian(), weights=DropoutEnsemble(0.2)), "normal"),
    "few Bayesian": (Regression(Gaussian(), weights=BayesianLastLayer(FEW)), "normal"),
    "SquaredError": (Regression(SquaredError()), "normal"),
    "AbsoluteError": (Regression(AbsoluteError()), "normal"),
}


def recipe_of(name: str, seed: int, steps: int) -> Recipe:
    """A head's recipe."""
    head, noise = HEADS[name]
    source = Toy(noise)
    if name.startswith("few"):
        source = Toy(noise, n=FEW)
    return Recipe(
        name="toys",
        sources=(source,),
        tokenizers={"x": VectorConfig(), "y": VectorConfig(size=2, counts=noise != "normal")},
        tasks=(Task(("x",), ("y",)),),
        model=DecoderConfig(trunk=TransformerConfig(1, 32, 2, 2, 64), heads={"y": head}),
        train=TrainConfig(
            steps=steps,
            batch_size=8,
            seq_len=64,
            learning_rate=3e-3,
            log_every=100,
            precision="float32",
            seed=seed,
        ),
    )


# ---- coverage


def covered(run: Run, noise: str) -> np.ndarray:
    """How often central intervals hold the truth: (levels, 2)."""
    toy = Toy(noise)
    x = -1 + 2 * (np.arange(N_X) + 0.5) / N_X
    # the truth is not read for the state before it
    examples = [{"x": one, "y": np.zeros(2)} for one in x]
    drawn = draws(run, examples, N_DRAWS)
    if noise == "normal":
        return exact_coverage(drawn, toy.mean(x), toy.sd(x))
    rng = np.random.default_rng(1)
    places = [pit(toy.draw(x, rng), drawn, seed) for seed in range(N_TRUTHS)]
    off = 2 * np.abs(np.stack(places) - 0.5)
    return (off[None] <= LEVELS[:, None, None, None]).mean((1, 2))


def exact_coverage(drawn: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Of intervals from draws (N, L, 2), under normal noise of mean and sd (N, 2)."""
    low = np.quantile(drawn, (1 - LEVELS) / 2, axis=1)
    high = np.quantile(drawn, (1 + LEVELS) / 2, axis=1)
    inside = stats.norm.cdf((high - mean) / sd) - stats.norm.cdf((low - mean) / sd)
    return inside.mean(1)


def with_constant_width(run: Run) -> np.ndarray:
    """Coverage (levels, 2, 2) of a mean with one width: of the lower half of x, then the upper.

    The width is the training residuals', the same for all x.
    """
    toy = Toy()
    some = list(run.examples("train"))[:2000]
    residual = np.stack([e["y"] for e in some]) - draws(run, some, 1)[:, 0]
    x = -1 + 2 * (np.arange(N_X) + 0.5) / N_X
    mean = draws(run, [{"x": one, "y": np.zeros(2)} for one in x], 1)[:, 0]
    half = stats.norm.ppf((1 + LEVELS) / 2)[:, None, None] * residual.std(0)
    inside = stats.norm.cdf((mean + half - toy.mean(x)) / toy.sd(x))
    inside -= stats.norm.cdf((mean - half - toy.mean(x)) / toy.sd(x))
    return np.stack([inside[:, : N_X // 2].mean(1), inside[:, N_X // 2 :].mean(1)], 1)


def figures_of(name: str, seed: int, steps: int, out: Path) -> dict[str, Any]:
    """Trains and measures one head with one seed, unless its figures are there already.

    Refuses a folder that holds another recipe's run.
    """
    folder = out / f"{name.replace(' ', '-')}-{seed}"
    run = timed_train(recipe_of(name, seed, steps), folder)
    path = folder / "figures.json"
    if path.exists():
        return json.loads(path.read_text())
    found = covered(run, HEADS[name][1])
    figures: dict[str, Any] = {
        "coverage": found.mean(1).tolist(),
        "worst": float(np.abs(found - LEVELS[:, None]).max()),
        "cpu_minutes": json.loads((folder / SPENT).read_text()),
    }
    if name == "SquaredError":
        figures["constant_width"] = with_constant_width(run).mean(2).tolist()
    write_text(path, json.dumps(figures, indent=1))
    return figures


# ---- a posterior that is known


def posterior_figures(seed: int, out: Path) -> dict[str, Any]:
    """Of recipes/regression.py with another seed of its training, beside the exact posterior."""
    path = out / f"posterior-{seed}" / "figures.json"
    recipe = load_recipe(RECIPE)
    recipe = replace(recipe, train=replace(recipe.train, seed=seed))
    run = timed_train(recipe, path.parent)
    if path.exists():
        return json.loads(path.read_text())
    examples = list(run.examples("heldout"))
    x = np.stack([e["x"] for e in examples])
    theta = np.stack([e["theta"] for e in examples])
    source = recipe.sources[0]
    assert isinstance(source, LinearGaussian)
    mean, covariance = source.posterior(x)
    sd = np.sqrt(np.diag(covariance))
    drawn = draws(run, examples, N_DRAWS, seed)
    centre = draws(run, examples, 1, temperature=0.0)[:, 0]
    off = drawn - centre[:, None]
    found = np.einsum("nli,nlj->ij", off, off) / off[..., 0].size
    exact = -stats.multivariate_normal(np.zeros(2), covariance).logpdf(theta - mean)
    z = pulls(theta.ravel(), centre.ravel(), np.tile(np.sqrt(np.diag(found)), len(theta)))
    test = tarp(theta, drawn, levels=LEVELS.tolist(), seed=seed)
    figures: dict[str, Any] = {
        "nats_above_exact": float((nll(run, examples) - exact).mean()),
        "mean_off_in_sd": float(np.sqrt(np.square((centre - mean) / sd).mean())),
        "covariance_off": float(np.abs((found - covariance) / np.outer(sd, sd)).max()),
        "coverage_off": float(
            np.abs(exact_coverage(drawn, mean, np.tile(sd, (len(mean), 1))) - LEVELS[:, None]).max()
        ),
        "pit_p": [uniformity(pit(theta, drawn, seed)[:, k]).ks_p for k in range(2)],
        "pull_mean": [z.mean, z.mean_error],
        "pull_sd": [z.sd, z.sd_error],
        "pull_p": z.p_value,
        "tarp_off_in_errors": float(
            np.abs((test.coverage.observed - LEVELS) / test.coverage.error).max()
        ),
        "tarp_p": test.p_value,
        "cpu_minutes": json.loads((path.parent / SPENT).read_text()),
    }
    write_text(path, json.dumps(figures, indent=1))
    return figures


def main() -> None:
    """Markdown with a row per head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/regression_toys"))
    parser.add_argument("--posterior", action="store_true", help="the recipe's, instead of toys")
    args = parser.parse_args()
    if args.posterior:
        for seed in args.seeds:
            print(f"seed {seed}: {json.dumps(posterior_figures(seed, args.out))}", flush=True)
        return
    print(
        f"| head | coverage at {', '.join(map(str, LEVELS))} | largest error by seed | bar | CPU |"
    )
    print("|---|---|---|---|---|")
    for name in args.only:
        runs = [figures_of(name, seed, args.steps, args.out) for seed in args.seeds]
        mean = np.mean([run["coverage"] for run in runs], 0)
        worst = [run["worst"] for run in runs]
        cells = (
            name,
            ", ".join(f"{c:.3f}" for c in mean),
            ", ".join(f"{w:.3f}" for w in worst),
            f"{BAR}: {verdict(max(worst) <= BAR)}",
            f"{np.mean([run['cpu_minutes'] or np.nan for run in runs]):.1f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
        for run in runs:
            if "constant_width" in run:
                print(f"constant width, lower and upper half of x: {run['constant_width']}")


if __name__ == "__main__":
    called(main)
