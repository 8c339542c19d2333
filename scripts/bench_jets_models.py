"""Generators of jets by class in one table, against raw held-out jets, and tagging by likelihood.

    python scripts/bench_jets_models.py FOLDER                   train all of RUNS, measure, print
    python scripts/bench_jets_models.py FOLDER --only clouds-fm  one of them
    python scripts/bench_jets_models.py FOLDER --table           print what is measured already

Gluon, quark and top jets are those of `PythiaJets()`: 4,500 a class to learn from, 2,000 held out.
FOLDER/data keeps them. Generated jets are compared with raw jets, which no tokenizer has cut.

AUC: boosted trees on mass, pt, multiplicity, tau21, tau32 and D2 tell generated from held-out jets;
trained on one half of both and tested on the other, `+-` is half of a 95 % interval (Hanley and
McNeil 1982). SKS: the sliced Kolmogorov-Smirnov distance of the same observables, each divided by
its deviation among real jets, with its p-value by permutation, and in units of what two halves of
real jets of that number stay below in 95 of 100 draws. Tagging: the likelihood ratio of a held-out
jet under the captions "top jet" and "quark jet". Particles: the same AUC of a set transformer on
the particles themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from timed import SPENT, cpu_minutes

from mmtok.core.segment import Document
from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import DPMSolver2M
from mmtok.diffusion.schedules import EDM
from mmtok.evaluation.likelihood import unigram_nll
from mmtok.io.files import write_text
from mmtok.io.terminal import print_status
from mmtok.metrics.classifier_test import auc, classifier_test
from mmtok.metrics.jets import masses, multiplicities, summed_pts
from mmtok.metrics.particle_test import particle_test
from mmtok.metrics.statistics import two_sample
from mmtok.metrics.substructure import substructure
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.build import start_run, train
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import Run
from mmtok.sources.pythia import PythiaJets

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("mass", "pt", "multiplicity", "tau21", "tau32", "d2")
CLASSES = ("gluon jet", "quark jet", "top jet")
BARS = {"autoregressive": 0.60, "clouds-fm": 0.65, "clouds-edm": 0.65}
N_DRAWN = 1000  # of each class
N_TAGGED = 300
N_SCORED = 40
N_HALVES = 200  # draws of the null of two halves
STEPS = {"autoregressive": 1000, "clouds-fm": 1500, "clouds-edm": 900}


def recipe_of(name: str, seed: int) -> Recipe:
    """The recipe of a run by its name, with a caption as the condition."""
    family = "jet_clouds"
    if name == "autoregressive":
        family = "jets"
    parent = load_recipe(RECIPES / f"{family}.py", ["--path", "unused"])
    model = parent.model
    steps = STEPS[name]
    config = replace(parent.train, steps=steps, precision="float32", seed=seed)
    if name == "autoregressive":
        model = replace(model, trunk=TransformerConfig.from_depth(3, dropout=0.1))
        config = replace(config, batch_size=4, ema_decay=0.995)
    else:
        head: Any = replace(model.heads["jets"], sampler=DPMSolver2M(), steps=24)
        if name == "clouds-edm":
            head = replace(head, schedule=EDM(sigma_data=1.0, p_mean=-0.5))
        model = replace(model, heads={"jets": head})
        config = replace(config, ema_decay=0.998)
    return replace(
        parent,
        name=name,
        sources=(PythiaJets(),),
        tasks=(Task(("caption",), ("jets",), cond_dropout=0.1),),
        model=model,
        train=config,
    )


def trained(name: str, folder: Path, seed: int) -> Run:
    """The run of this name below a folder, trained where it is not yet."""
    home = folder / f"{name}-{seed}"
    recipe = recipe_of(name, seed)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    if not home.exists():
        # all runs share the jets, which take long to make
        start_run(recipe, home)
        (home / "data").symlink_to(data.resolve())
    spent = 0.0
    if (home / SPENT).exists():
        spent = json.loads((home / SPENT).read_text())
    log = home / "log.jsonl"
    n_logged = log.stat().st_size if log.exists() else 0
    before = cpu_minutes()
    run = train(recipe, home)
    if log.stat().st_size > n_logged:
        # also of a run that is trained on; what an interrupted call took is not known
        write_text(home / SPENT, json.dumps(spent + cpu_minutes() - before))
    return run


def held_out(run: Run) -> dict[str, list[np.ndarray]]:
    """Class -> its held-out jets, raw."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    for example in run.recipe.sources[0].examples("heldout", run.folder / "data"):
        found[example["caption"]].append(example["jets"])
    return found


def observables(jets: Sequence[np.ndarray]) -> np.ndarray:
    """NAMES of jets (P, 3), (N, 6)."""
    found = {
        "mass": masses(jets),
        "pt": summed_pts(jets),
        "multiplicity": multiplicities(jets),
        **substructure(jets),
    }
    return np.stack([found[name] for name in NAMES], 1)


# ---- generation


def drawn(run: Run, name: str, n: int, seed: int) -> tuple[list[np.ndarray], float]:
    """n jets of a class, and how many were drawn in a second of the processor's time."""
    caption = run.tokenizers["text"].encode(name)
    begun = time.process_time()
    sampled = run.draw([run.prompt([caption], "jets")] * n, run.sampling("jets"), seed)
    jets = run.tokenizers["jets"].decode_batch([each.segment for each in sampled])
    return jets, n / (time.process_time() - begun)


def compared(generated: np.ndarray, real: np.ndarray, seed: int) -> dict[str, Any]:
    """The figures of observables of generated jets (n, 6) against those of real ones (m, 6).

    Jets without values (too few particles) are left out, and counted.
    """
    is_finite = np.isfinite(generated).all(1)
    generated = generated[is_finite]
    real = real[np.isfinite(real).all(1)]
    rng = np.random.default_rng(seed)
    real = real[rng.permutation(len(real))]
    n = min(len(generated), len(real) // 2)
    trees = classifier_test(real[: len(generated)], generated, seed=seed)
    scale = real.std(0)
    sks = two_sample(real[:n] / scale, generated[:n] / scale, ("sks",), seed=seed).tests["sks"]
    halves = []
    for _ in range(N_HALVES):
        order = rng.permutation(len(real))
        pair = (real[order[:n]] / scale, real[order[n : 2 * n]] / scale)
        halves.append(two_sample(*pair, ("sks",), n_null=1).tests["sks"].statistic)
    limit = float(np.quantile(halves, 0.95))
    return {
        "auc": trees.auc,
        "auc_half": 1.96 * _auc_error(trees.auc, trees.n),
        "auc_of_one": {column: auc(real[:, k], generated[:, k]) for k, column in enumerate(NAMES)},
        "sks": sks.statistic,
        "sks_p": sks.p_value,
        "sks_of_halves": sks.statistic / limit,
        "n": n,
        "left_out": int((~is_finite).sum()),
    }


def _auc_error(value: float, n: int) -> float:
    """The standard error of an AUC of n against n (Hanley and McNeil 1982, equation 1)."""
    q1 = value / (2 - value)
    q2 = 2 * value**2 / (1 + value)
    spread = value * (1 - value) + (n - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)
    return math.sqrt(max(spread, 0.0)) / n


# ---- tagging


def tagging(run: Run, jets: Mapping[str, Sequence[np.ndarray]], n: int) -> dict[str, Any]:
    """How well log p(jet | top) - log p(jet | quark) tells top from quark jets."""
    ratios = {}
    begun = time.process_time()
    for name in ("quark jet", "top jet"):
        segments = run.tokenizers["jets"].encode_batch(jets[name][:n])
        nats = []
        for caption in ("quark jet", "top jet"):
            given = run.tokenizers["text"].encode(caption)
            documents = [Document((given, segment), (False, True)) for segment in segments]
            nats.append([each.total for each in run.score_documents(documents)])
        ratios[name] = np.subtract(*nats)
    value = auc(ratios["quark jet"], ratios["top jet"])
    seconds = time.process_time() - begun
    return {"auc": value, "auc_half": 1.96 * _auc_error(value, n), "n": n, "rate": 4 * n / seconds}


# ---- likelihood


def likelihood(run: Run, jets: Mapping[str, Sequence[np.ndarray]], n: int) -> dict[str, Any]:
    """Nats per particle of n held-out jets a class given their class; unigram: by particles alone.

    The unigram draws each channel of each particle by its frequency among training jets (latents:
    from a normal distribution), and ends after each with one probability. Both are of the set.
    """
    documents = []
    segments = []
    for name in CLASSES:
        given = run.tokenizers["text"].encode(name)
        mine = run.tokenizers["jets"].encode_batch(jets[name][:n])
        segments += mine
        documents += [Document((given, segment), (False, True)) for segment in mine]
    n_particles = sum(run.tokenizers["jets"].n_units(segment) for segment in segments)
    nats = np.array([each.total for each in run.score_documents(documents)])
    error = nats.std() * math.sqrt(len(nats)) / n_particles
    return {
        "nats": float(nats.sum()) / n_particles,
        "nats_half": 1.96 * float(error),
        "unigram": float(unigram_nll(run, "jets", segments)) / n_particles,
        "kind": run.lm.kind("jets"),
        "n": len(nats),
    }


# ---- the table


def measured(name: str, folder: Path, seed: int, n: int, n_tagged: int) -> dict[str, Any]:
    """All figures of one run; FOLDER/NAME-SEED.json keeps them, and its jets are kept too."""
    run = trained(name, folder, seed)
    real = held_out(run)
    row: dict[str, Any] = {"name": name, "seed": seed, "classes": {}}
    row["cpu_minutes"] = json.loads((run.folder / SPENT).read_text())
    row["parameters"] = sum(p.numel() for p in run.lm.parameters())
    row["jets_seen"] = _jets_seen(run)
    for caption in CLASSES:
        print_status(f"{name}: drawing {n} of {caption}")
        jets, rate = drawn(run, caption, n, seed)
        figures = compared(observables(jets), observables(real[caption]), seed)
        particles = particle_test(real[caption][:n], jets, seed)
        figures["particles_auc"] = particles.auc
        figures["particles_half"] = 1.96 * _auc_error(particles.auc, particles.n)
        row["classes"][caption] = figures | {"rate": rate}
        print_status(f"{name}, {caption}: AUC {figures['auc']:.3f}, SKS {figures['sks']:.3f}")
    if name == "autoregressive":
        row["tagging"] = tagging(run, real, n_tagged)
    row["likelihood"] = likelihood(run, real, N_SCORED)
    write_text(folder / f"{name}-{seed}.json", json.dumps(row, indent=1))
    return row


def _jets_seen(run: Run) -> int | None:
    """Jets that the training read, some of them several times."""
    lines = [json.loads(x) for x in (run.folder / "log.jsonl").read_text().splitlines()]
    last = max((line.get("step", 0) for line in lines), default=0)
    if not last:
        return None
    config = run.recipe.train
    return round(last * config.batch_size * config.seq_len / _mean_length(run))


def _mean_length(run: Run) -> float:
    """Positions of a document, on average over training jets."""
    lengths = []
    for file in run.token_files():
        for i in range(min(2000, len(file))):
            lengths.append(len(file.segment("jets", i)) + len(file.segment("caption", i)) + 5)
    return float(np.mean(lengths))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as Markdown."""
    head = ("run", "jets", "AUC, boosted trees", "bar", "AUC, particles", "SKS of halves' 95 % (p)")
    print(f"| {' | '.join(head)} | jets/s |")
    print("|---" * (len(head) + 1) + "|")
    for row in rows:
        bar = BARS[row["name"]]
        for caption, x in row["classes"].items():
            verdict = ("MISSED", "met")[x["auc"] <= bar]
            cells = (
                f"{row['name']}, seed {row['seed']}",
                f"{caption}s",
                f"{x['auc']:.3f} +- {x['auc_half']:.3f}",
                f"<= {bar:.2f}: {verdict}",
                f"{x['particles_auc']:.3f} +- {x['particles_half']:.3f}",
                f"{x['sks_of_halves']:.2f} ({x['sks_p']:.3f})",
                f"{x['rate']:.1f}",
            )
            print(f"| {' | '.join(cells)} |")
    for row in rows:
        minutes = row["cpu_minutes"]
        print(f"{row['name']}: {row['parameters']:,} parameters, {minutes} CPU minutes")
        if "likelihood" in row:
            x = row["likelihood"]
            of = f"{x['nats']:.3f} +- {x['nats_half']:.3f}, unigram {x['unigram']:.3f}"
            print(f"nats per particle of {x['n']} jets ({x['kind']}): {of}")
        if "tagging" in row:
            x = row["tagging"]
            print(f"tagging: AUC {x['auc']:.3f} +- {x['auc_half']:.3f}, {x['rate']:.0f} scores/s")


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(STEPS), default=tuple(STEPS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawn", type=int, default=N_DRAWN)
    parser.add_argument("--tagged", type=int, default=N_TAGGED)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if not asked.table:
        for name in asked.only:
            measured(name, asked.folder, asked.seed, asked.drawn, asked.tagged)
    found = [asked.folder / f"{name}-{asked.seed}.json" for name in STEPS]
    print_table([json.loads(path.read_text()) for path in found if path.exists()])


if __name__ == "__main__":
    main()
