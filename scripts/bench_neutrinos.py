"""Neutrinos of W bosons and top pairs: a normalising flow beside a Gaussian and a mean.

    python scripts/bench_neutrinos.py W        the recipe's flow, and a Gaussian head
    python scripts/bench_neutrinos.py ttbar    a flow, and a network of squared errors

Runs go to runs/neutrinos, and a finished one is not repeated. All figures are of held-out events.
The modes of W are counted in bins of BIN_GEV, of events whose two solutions are MIN_APART_GEV or
more apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from posteriors import draws, nll
from side_by_side import called
from timed import SPENT, timed_train, verdict

from mmtok.data.tasks import Task
from mmtok.heads.base import HeadConfig
from mmtok.heads.densities import Gaussian
from mmtok.heads.flows import NormalisingFlow
from mmtok.heads.quantiles import SquaredError
from mmtok.heads.regression import Regression
from mmtok.io.files import write_text
from mmtok.metrics.calibration import pit, uniformity
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import Run
from mmtok.sources.neutrinos import NeutrinoEvents, pz_solutions
from mmtok.tokenizers.vectors import VectorConfig
from mmtok.train.config import TrainConfig

RECIPE = Path(__file__).parent.parent / "recipes" / "neutrino.py"
LEVELS = np.array([0.5, 0.68, 0.9, 0.95])
N_DRAWS = 100
N_SHARP = 300  # events whose modes are looked for,
N_SHARP_DRAWS = 4000  # in so many draws
BIN_GEV = 20.0
MIN_APART_GEV = 80.0
BARS = {"nats": 0.5, "coverage": 0.02, "gain": 0.10}


def w_recipe(head: HeadConfig | None = None) -> Recipe:
    """The recipe in recipes/, with another head."""
    recipe = load_recipe(RECIPE)
    if head is None:
        return recipe
    return replace(recipe, model=replace(recipe.model, heads={"neutrino_pz": head}))


def ttbar_recipe(head: HeadConfig, steps: int) -> Recipe:
    """p(neutrino | lepton, missing momentum, four partons)."""
    sizes = {"lepton": 2, "met": 2, "partons": 12, "neutrino": 3}
    return Recipe(
        name="ttbar",
        sources=(NeutrinoEvents("ttbar"),),
        tokenizers={name: VectorConfig(size=n, unit="GeV") for name, n in sizes.items()},
        tasks=(Task(("lepton", "met", "partons"), ("neutrino",)),),
        model=DecoderConfig(trunk=TransformerConfig(2, 64, 2, 2, 256), heads={"neutrino": head}),
        train=TrainConfig(
            steps=steps,
            batch_size=16,
            seq_len=96,
            learning_rate=3e-3,
            warmup=50,
            precision="float32",
        ),
    )


# ---- figures


def calibration(truth: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Coverage of central intervals (levels, D), and p-values of uniform PIT."""
    places = pit(truth, drawn)
    found = (2 * np.abs(places - 0.5)[None] <= LEVELS[:, None, None]).mean(1)
    return {
        "coverage": found.round(4).tolist(),
        "off": float(np.abs(found - LEVELS[:, None]).max()),
        "pit_p": [uniformity(places[:, k]).ks_p for k in range(truth.shape[1])],
    }


def modes(drawn: np.ndarray, apart: float) -> np.ndarray:
    """The two highest maxima (2,) of a histogram of draws (L,), at least apart / 2 from each other.

    Rising.
    """
    bins = np.floor(drawn / BIN_GEV).astype(int)
    counts = np.bincount(bins - bins.min())
    centres = (np.arange(len(counts)) + bins.min() + 0.5) * BIN_GEV
    first = centres[counts.argmax()]
    others = np.where(np.abs(centres - first) >= apart / 2, counts, -1)
    return np.sort([first, centres[others.argmax()]])


def both_found(run: Run, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of how many events the two modes are within a bin of the two solutions."""
    columns = {k: np.stack([e[k] for e in examples]) for k in ("lepton", "met")}
    solutions = pz_solutions(columns["lepton"], columns["met"])
    apart = solutions[:, 1] - solutions[:, 0]
    chosen = np.flatnonzero(apart >= MIN_APART_GEV)[:N_SHARP]
    drawn = draws(run, [examples[i] for i in chosen], N_SHARP_DRAWS)[:, :, 0]
    found = np.stack([modes(y, apart[i]) for y, i in zip(drawn, chosen, strict=True)])
    off = np.abs(found - solutions[chosen])
    return {
        "n": len(chosen),
        "both_within_a_bin": float((off <= BIN_GEV).all(1).mean()),
        "one_within_a_bin": float((off <= BIN_GEV).any(1).mean()),
        "median_off_gev": float(np.median(off)),
        "share_of_draws_near_a_solution": float(
            (np.abs(drawn[:, :, None] - solutions[chosen][:, None]).min(2) <= BIN_GEV).mean()
        ),
        "share_of_truths_near_a_solution": float(
            np.mean(
                [np.abs(examples[i]["neutrino_pz"] - solutions[i]).min() <= BIN_GEV for i in chosen]
            )
        ),
    }


def figures_of(recipe: Recipe, folder: Path, scored: bool) -> dict[str, Any]:
    """Trains and measures a run, unless its figures are there already.

    Refuses a folder that holds another recipe's run.
    """
    run = timed_train(recipe, folder)
    path = folder / "figures.json"
    if path.exists():
        return json.loads(path.read_text())
    examples = list(run.examples("heldout"))
    target = recipe.tasks[0].targets[0]
    truth = np.stack([e[target] for e in examples])
    figures: dict[str, Any] = {"cpu_minutes": json.loads((folder / SPENT).read_text())}
    if scored:
        figures["nats"] = float(nll(run, examples).mean())
        drawn = draws(run, examples, N_DRAWS)
        figures |= calibration(truth, drawn)
        point = np.median(drawn, 1)
    else:
        point = draws(run, examples, 1)[:, 0]
    figures["absolute_error"] = np.abs(point - truth).mean(0).tolist()
    figures["squared_error"] = np.sqrt(np.square(point - truth).mean(0)).tolist()
    if target == "neutrino_pz" and scored:
        figures["modes"] = both_found(run, examples)
    write_text(path, json.dumps(figures, indent=1))
    return figures


def gains(ours: Mapping[str, Any], theirs: Mapping[str, Any], n: int) -> np.ndarray:
    """How much smaller our mean absolute errors of n events are: (3, D), with a 95 % interval.

    Rows are the gain 1 - ours / theirs, its lower and its upper end, by the errors of both means as
    if they were of other events: of the same ones they mostly agree, and the interval is too wide.
    """
    means = np.array([ours["absolute_error"], theirs["absolute_error"]])
    squares = np.square([ours["squared_error"], theirs["squared_error"]])
    relative = np.sqrt((squares - means**2) / n) / means
    ratio = means[0] / means[1]
    half = 1.96 * ratio * np.sqrt(np.square(relative).sum(0))
    return np.stack([1 - ratio, 1 - ratio - half, 1 - ratio + half])


def main() -> None:
    """The figures of a process, and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("process", choices=["W", "ttbar"])
    parser.add_argument("--steps", type=int, default=0, help="of each training; 0: the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/neutrinos"))
    args = parser.parse_args()
    if args.process == "W":
        recipes = {"flow": w_recipe(), "Gaussian": w_recipe(Regression(Gaussian()))}
    else:
        recipes = {
            "flow": ttbar_recipe(NormalisingFlow(n_maps=2, hidden=128), 4000),
            "SquaredError": ttbar_recipe(Regression(SquaredError()), 4000),
        }
    found = {}
    for name, recipe in recipes.items():
        if args.steps:
            recipe = replace(recipe, train=replace(recipe.train, steps=args.steps))
        found[name] = figures_of(
            recipe, args.out / f"{args.process}-{name}", name != "SquaredError"
        )
        print(name, json.dumps(found[name], indent=1), flush=True)
    flow = found["flow"]
    print(f"coverage off by {flow['off']:.3f}: {verdict(flow['off'] <= BARS['coverage'])}")
    if args.process == "W":
        gain = found["Gaussian"]["nats"] - flow["nats"]
        print(f"nats above a Gaussian's: {gain:.3f}: {verdict(gain >= BARS['nats'])}")
        return
    n_events = NeutrinoEvents("ttbar").n_heldout
    gain = gains(flow, found["SquaredError"], n_events)
    print("median's gain in absolute error, and its interval:")
    print(f"{gain.round(3)}: {verdict(gain[0].min() >= BARS['gain'])}")


if __name__ == "__main__":
    called(main)
