"""Tagging of jets from scratch and from a run of unlabelled ones, and jets that are unusual.

    python scripts/bench_jets_tagging.py FOLDER          train what is missing, measure, print
    python scripts/bench_jets_tagging.py FOLDER --table  print what is measured already

`pretrained` learns p(jet) of 13,500 gluon, quark and top jets without their names. The others read
a jet and write its name: 500 jets (250 a class) or 13,500 with three names, from scratch or by
`start=pretrained`. All are tested on the same held-out jets, which no run has read. Steps and
learning rates were fixed before an AUC was measured. FOLDER/data keeps the jets.

`usual` learns gluon and quark jets alone. W and Higgs jets, which no run has read, are found among
held-out gluon and quark jets by its likelihood, by how typical that is, and by its ratio to that of
`pretrained`, which knows top jets too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timed import SPENT, cpu_minutes

from mmtok.commands.anomaly import unusual
from mmtok.data.tasks import Task
from mmtok.evaluation.classification import Classified, classify
from mmtok.evaluation.task import TaskEvaluation
from mmtok.io.files import write_text
from mmtok.metrics.calibration import reliability
from mmtok.metrics.roc import auc_difference, auc_estimate
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.build import start_run, train
from mmtok.run.ensemble import take_ensemble
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import Run
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.pythia import PythiaJets

RECIPES = Path(__file__).parent.parent / "recipes"
SEEDS = (0, 1, 2)
FEW = PythiaJets(classes=("quark", "top"), n_per_class=2250, n_heldout=2000, processes=1)
ALL = PythiaJets(processes=1)
USUAL = PythiaJets(classes=("gluon", "quark"), processes=1)
STRANGE = PythiaJets(classes=("W", "Higgs"), n_per_class=1010, n_heldout=1000, processes=1)
UNLABELLED = {"pretrained": ALL, "usual": USUAL}
N_SCORED = 1000  # jets of each class that are looked for, or are usual
STEPS = {"pretrained": 1500, "usual": 800, "few": 300, "all": 500}
RATES = {"scratch": 1e-3, "start": 1e-3}
N_MASKS = 8
ENSEMBLES = {f"{n}-{b}": [f"{n}-{b}-{s}" for s in SEEDS] for n in ("few", "all") for b in RATES}
RUNS = (*UNLABELLED, *(member for members in ENSEMBLES.values() for member in members))


def tagger(name: str, folder: Path) -> Recipe:
    """The recipe of a run by its name: pretrained, or few-scratch-0, all-start-2."""
    if name in UNLABELLED:
        recipe = load_recipe(RECIPES / "jets.py", ["--path", "unused"])
        source = UNLABELLED[name]
        recipe = replace(recipe, name=name, sources=(source,), tasks=(Task((), ("jets",)),))
        return _sized(recipe, STEPS[name], 1e-3, 0)
    labels, begin, seed = name.split("-")
    source = {"few": FEW, "all": ALL}[labels]
    recipe = replace(load_recipe(RECIPES / "jet_tagging.py"), name=name, sources=(source,))
    if begin == "start":
        recipe = replace(recipe, start=str(folder / "pretrained"))
    return _sized(recipe, STEPS[labels], RATES[begin], int(seed))


def _sized(recipe: Recipe, steps: int, rate: float, seed: int) -> Recipe:
    """Of depth 2, and of the 64 hardest constituents, for a minute or two of one core."""
    trunk = TransformerConfig.from_depth(2, dropout=0.1)
    grid = replace(recipe.tokenizers["jets"], max_constituents=64)
    train = replace(
        recipe.train,
        steps=steps,
        batch_size=4,
        learning_rate=rate,
        warmup=20,
        precision="float32",
        seed=seed,
    )
    model = replace(recipe.model, trunk=trunk)
    tokenizers = {**recipe.tokenizers, "jets": grid}
    return replace(recipe, tokenizers=tokenizers, model=model, train=train)


def trained(name: str, folder: Path) -> Run:
    """The run of this name below a folder, trained where it is not yet."""
    home = folder / name
    recipe = tagger(name, folder)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    if not home.exists():
        start_run(recipe, home)
        (home / "data").symlink_to(data.resolve())
    before = cpu_minutes()
    is_new = not (home / "log.jsonl").exists()
    run = train(recipe, home)
    if is_new:  # what an interrupted training took is not known
        write_text(home / SPENT, json.dumps(cpu_minutes() - before))
    return run


# ---- figures


def classified(run: Run, others: list[Path], n_masks: int) -> Classified:
    """Held-out jets under a run, or under an ensemble."""
    take_ensemble(run, others, n_masks)
    found = classify(TaskEvaluation(run, run.recipe.tasks[0]))
    assert found is not None, "there are two classes"
    return found


def top_against_quark(found: Classified) -> tuple[np.ndarray, np.ndarray]:
    """Scores of quark and of top jets."""
    return found.scores(found.names.index("quark jet"), found.names.index("top jet"))


def figures(found: Classified) -> dict[str, Any]:
    """The AUC with its interval, and how reliable p(top) is among quark and top jets."""
    quark, top = top_against_quark(found)
    ratio = np.concatenate((quark, top))
    labels = np.repeat([0, 1], [len(quark), len(top)])
    calibration = reliability(1 / (1 + np.exp(-ratio)), labels)
    auc = auc_estimate(quark, top)
    return {
        **auc.named("auc"),
        "n": len(labels),
        "ece": calibration.ece,
        "largest": calibration.largest,
        "ece_p": calibration.p_value,
    }


def measure(folder: Path, names: Sequence[str]) -> None:
    """Write FOLDER/tagging.json: the figures of the runs that are trained, and of ensembles."""
    kept: dict[str, Classified] = {}
    results: dict[str, Any] = {}
    path = folder / "tagging.json"
    if path.exists():
        results = json.loads(path.read_text())
    for name in names:
        run = trained(name, folder)
        minutes = None  # not known where a training was interrupted
        if (folder / name / SPENT).exists():
            minutes = json.loads((folder / name / SPENT).read_text())
        if name in UNLABELLED:
            results[name] = {"minutes": minutes}
            continue
        kept[name] = classified(run, [], 0)
        results[name] = figures(kept[name]) | {"minutes": minutes}
    for name, members in ENSEMBLES.items():
        there = [member for member in members if member in kept]
        if len(there) > 1:
            run = trained(there[0], folder)
            others = [folder / other for other in there[1:]]
            results[f"{name}, {len(there)} runs"] = figures(classified(run, others, 0))
        if there:
            run = trained(there[0], folder)
            key = f"{there[0]}, {N_MASKS} dropout masks"
            results[key] = figures(classified(run, [], N_MASKS))
    for seed in SEEDS:
        pair = [kept.get(f"few-{begin}-{seed}") for begin in ("start", "scratch")]
        if None not in pair:
            gain = auc_difference(*(top_against_quark(found) for found in pair if found))
            results[f"few, start less scratch, seed {seed}"] = gain.named("auc")
    if "usual" in names:
        results |= strange_figures(folder)
    write_text(path, json.dumps(results, indent=1))


def strange_figures(folder: Path) -> dict[str, Any]:
    """How well each score of `mmtok score --anomaly` finds W and Higgs jets."""
    run = trained("usual", folder)
    against = trained("pretrained", folder)
    found = {}
    for source in (USUAL, STRANGE):
        for name in source.classes:
            path = folder / f"{name}.npz"
            write_jets(path, list(islice(_held_out(source, name, folder), N_SCORED)))
            (found[name],) = unusual(run, [[str(path)]], against=against)
    usual = found["gluon"] + found["quark"]
    results = {}
    for name in STRANGE.classes:
        for score in usual[0].scores:
            a = np.array([each.scores[score] for each in usual])
            b = np.array([each.scores[score] for each in found[name]])
            results[f"{name} among gluon and quark, {score}"] = auc_estimate(a, b).named("auc")
    return results


def _held_out(source: PythiaJets, name: str, folder: Path) -> Iterator[np.ndarray]:
    for example in source.examples("heldout", folder / "data"):
        if example["caption"] == f"{name} jet":
            yield example["jets"]


def print_table(folder: Path) -> None:
    """The figures as a table in Markdown."""
    print("| run | AUC | ECE | p | largest | minutes |\n|---|---|---|---|---|---|")
    for name, found in json.loads((folder / "tagging.json").read_text()).items():
        cells = [name]
        auc = "-"
        if "auc" in found:
            auc = f"{found['auc']:.4f} ({found['auc_low']:.4f} to {found['auc_high']:.4f})"
        cells.append(auc)
        cells += [_shown(found, key) for key in ("ece", "ece_p", "largest", "minutes")]
        print(f"| {' | '.join(cells)} |")


def _shown(found: Mapping[str, Any], key: str) -> str:
    if found.get(key) is None:
        return "-"
    return f"{found[key]:.3f}"


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=RUNS, help="these runs alone")
    parser.add_argument("--table", action="store_true", help="print what is measured already")
    words = parser.parse_args()
    if not words.table:
        torch.set_num_threads(1)
        measure(words.folder, words.only)
    print_table(words.folder)


if __name__ == "__main__":
    main()
