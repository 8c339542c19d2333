"""Two badly scaled tasks in one training: equal weights, a learned sigma, and each task alone.

    python scripts/bench_tasks.py --seeds 0

A number x gives two numbers by squared errors: a, which x almost decides (a noise of QUIET standard
deviations), and b, of which it tells little. Their losses end a factor of some hundred apart, and
equal weights hear b's noise alone. What is compared is the error of each over what noise leaves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from posteriors import draws
from side_by_side import called
from timed import timed_train, verdict

from mmtok.data.tasks import Task
from mmtok.heads.quantiles import SquaredError
from mmtok.heads.regression import Regression
from mmtok.io.files import write_text
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run
from mmtok.sources.base import Source
from mmtok.tokenizers.vectors import VectorConfig
from mmtok.train.config import TrainConfig

QUIET = 0.1
LOUD = 3.0
N_TEST = 4000
TASKS = {"a": QUIET, "b": LOUD}
BARS = {"learned": 0.03, "equal": 0.10}


@dataclass(frozen=True)
class TwoTasks(Source):
    """Examples of x (1,) of U(-1, 1), a and b (1,)."""

    n: int = 20_000
    seed: int = 0

    @property
    def fields(self) -> dict[str, str]:
        """Each is a modality of its own."""
        return {"x": "x", "a": "a", "b": "b"}

    def mean(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Of a and b at x (N,)."""
        return {"a": np.sin(4 * x), "b": np.cos(3 * x)}

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The examples of a split."""
        n = self.count(split, cache)
        rng = np.random.default_rng((self.seed, self.splits.index(split)))
        x = rng.uniform(-1, 1, n)
        y = {m: mean + TASKS[m] * rng.normal(size=n) for m, mean in self.mean(x).items()}
        for i in range(n):
            yield {"x": x[i], "a": y["a"][i], "b": y["b"][i]}

    def count(self, split: str, cache: Path) -> int:
        """As the settings say; a tenth of it is held out."""
        return self.n if split == "train" else self.n // 10


def recipe_of(tasks: str, learned: bool, seed: int, steps: int) -> Recipe:
    """A recipe with some of the tasks."""
    return Recipe(
        name="tasks",
        sources=(TwoTasks(),),
        tokenizers={m: VectorConfig() for m in ("x", *tasks)},
        tasks=tuple(Task(("x",), (m,)) for m in tasks),
        model=DecoderConfig(
            trunk=TransformerConfig(1, 32, 2, 2, 64),
            heads={m: Regression(SquaredError()) for m in tasks},
            learned_sigma=learned,
        ),
        train=TrainConfig(
            # as many examples of each task as it has alone
            steps=steps,
            batch_size=4 * len(tasks),
            seq_len=64,
            learning_rate=3e-3,
            log_every=100,
            precision="float32",
            seed=seed,
        ),
    )


def loss_of(run: Run, task: int) -> float:
    """The mean squared error of held-out truths: what noise leaves, and the mean's own error."""
    (m,) = run.recipe.tasks[task].targets
    x = -1 + 2 * (np.arange(N_TEST) + 0.5) / N_TEST
    examples = [{"x": one, m: 0.0} for one in x]
    error = draws(run, examples, 1, task=task)[:, 0, 0] - TwoTasks().mean(x)[m]
    return float(np.square(error).mean()) + TASKS[m] ** 2


def figures_of(tasks: str, learned: bool, seed: int, steps: int, out: Path) -> dict[str, Any]:
    """Trains and measures a run, unless its figures are there already.

    Refuses a folder that holds another recipe's run.
    """
    folder = out / f"{tasks}-{'learned' if learned else 'equal'}-{seed}"
    run = timed_train(recipe_of(tasks, learned, seed, steps), folder)
    path = folder / "figures.json"
    if path.exists():
        return json.loads(path.read_text())
    figures: dict[str, Any] = {m: loss_of(run, k) for k, m in enumerate(tasks)}
    if run.lm.variances is not None:
        found = run.lm.variances()
        scales = {m: float(run.tokenizers[m].scale[0]) for m in tasks}
        figures["sigma"] = {m: float(found[m].detach().exp()) ** 0.5 * scales[m] for m in tasks}
    write_text(path, json.dumps(figures, indent=1))
    return figures


def main() -> None:
    """Losses of both tasks over those that each has alone, by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    args = parser.parse_args()
    print("| training | loss of a, over alone | loss of b, over alone | bar |")
    print("|---|---|---|---|")
    for seed in args.seeds:
        alone = {m: figures_of(m, False, seed, args.steps, args.out)[m] for m in TASKS}
        for name in ("equal", "learned"):
            found = figures_of("ab", name == "learned", seed, args.steps, args.out)
            over = [found[m] / alone[m] for m in TASKS]
            held = f"≤ 1.03: {verdict(max(over) <= 1 + BARS['learned'])}"
            if name == "equal":
                held = f"≥ 1.10: {verdict(max(over) >= 1 + BARS['equal'])}"
            cells = [f"{found[m]:.5f}, {x:.3f}" for m, x in zip(TASKS, over, strict=True)]
            print(f"| {name}, seed {seed} | {cells[0]} | {cells[1]} | {held} |", flush=True)
            if "sigma" in found:
                print(f"sigma {found['sigma']}, noise {TASKS}")


if __name__ == "__main__":
    called(main)
