"""Is a training as it should be? Compares a run's curves with those of its recipe's reference runs.

    python scripts/reference.py RUN                   compare a run, finished or not, with
                                                      recipes/reference/NAME.json (NAME: its recipe)
    python scripts/reference.py RUN RUN RUN --save    make that file from finished runs of one
                                                      recipe with different seeds, on the machine
                                                      that they were made on

Exit status 0: as it should be; 1: worse, or a modality is missing; 2: nothing to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.overrides import leaves
from mmtok.io.strict_json import read_json
from mmtok.run.changes import FREE_FIELDS
from mmtok.run.recipe import Recipe
from mmtok.train.checkpoint import planned_steps
from mmtok.train.log import read_log

ROOT = Path(__file__).parent.parent
# A curve is smoothed over the last WINDOW lines of the log, and at most half of all so far.
WINDOW = 5
# How far beyond the reference's seeds a curve may lie, in standard deviations between the seeds ...
SPREADS = 3.0
# ... and in any case, as a share of the nats: three seeds give a poor estimate of their spread.
LEAST = 0.02
# The same share where the reference has one seed only, so that no spread is known.
OF_ONE = 0.1
# Figures of the log that are kept by modality; a modality has one or the other.
KINDS = ("nats", "training_loss")
# Settings that may differ between a run and its reference.
FREE = FREE_FIELDS | {
    "train.seed",
    "train.grad_accum_steps",
    "train.checkpoint_every",
    "train.precision",
}


# ---- what a run was made from, and its curves


def recipe_of(run: Path) -> dict[str, Any]:
    """The recipe of a run folder as plain JSON, without the folders of its data.

    Raises UserError where there is none.
    """
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run} is no run folder: it has no recipe.json")
    return _without_folders(read_json(run / "recipe.json"))


def _without_folders(node: Any, key: str = "") -> Any:
    """Plain JSON in which paths are file names: the same data may lie elsewhere."""
    if isinstance(node, dict):
        return {k: _without_folders(v, k) for k, v in node.items()}
    if isinstance(node, list):
        return [_without_folders(v, key) for v in node]
    if not isinstance(node, str):
        return node
    is_path = key.endswith("path") or (Path(node).is_absolute() and len(node) > 1)
    return Path(node).name if is_path else node


def settings(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings that curves depend on, by dotted name.

    Fields that are younger than the recipe get their defaults.
    """
    with contextlib.suppress(UserError):  # a recipe with classes of its own stays as it is
        plain = _without_folders(json.loads(Recipe.from_json(json.dumps(plain)).to_json()))
    return {k: v for k, v in leaves(plain).items() if k not in FREE}


def check_same(plain: dict[str, Any], other: dict[str, Any], what: str) -> None:
    """Raises UserError, naming what differs, unless two recipes have the same settings."""
    a = settings(plain)
    b = settings(other)
    changed = [
        f"{k}: {a.get(k, 'absent')} -> {b.get(k, 'absent')}"
        for k in {**a, **b}
        if a.get(k) != b.get(k)
    ]
    if not changed:
        return
    shown = "; ".join(changed[:5])
    if len(changed) > 5:
        shown += f"; and {len(changed) - 5} more"
    raise UserError(f"{what} ({shown}): such curves do not compare")


def curves_of(run: Path) -> tuple[list[int], dict[str, dict[str, list[float | None]]]]:
    """A run's logged steps, and its smoothed curves over them by kind and modality.

    Raises UserError when nothing is logged.
    """
    lines = {line["step"]: line for line in read_log(run / "log.jsonl")}
    if not lines:
        raise UserError(f"{run} has not logged a step yet: look again later")
    steps = sorted(lines)
    curves: dict[str, dict[str, list]] = {}
    for kind in KINDS:
        modalities = dict.fromkeys(m for step in steps for m in lines[step].get(kind, {}))
        values = {m: [lines[step].get(kind, {}).get(m) for step in steps] for m in modalities}
        curves[kind] = {m: smoothed(x) for m, x in values.items() if any(v is not None for v in x)}
    return steps, {kind: found for kind, found in curves.items() if found}


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Means over the last WINDOW values, or fewer at first, where curves are steep.

    NaN counts as infinite; None (not logged) is left out.
    """
    made: list[float | None] = []
    for i in range(len(values)):
        last = values[i + 1 - max(1, min(WINDOW, (i + 1) // 2)) : i + 1]
        near = [math.inf if math.isnan(x) else x for x in last if x is not None]
        made.append(sum(near) / len(near) if near else None)
    return made


# ---- the band


@dataclass(frozen=True)
class Band:
    """Where a curve may lie at each of K steps; all arrays are (K,).

    low and high are the reference's least and greatest, widened by `allowed`.
    """

    low: np.ndarray
    high: np.ndarray
    allowed: np.ndarray


def band(steps: Sequence[int], curves: Sequence[Sequence[float | None]]) -> Band:
    """The band around the curves (S, K) of S seeds: from least to greatest, widened.

    It is widened by LEAST of the mean, or by SPREADS standard deviations between the seeds where
    that is more. A step's deviation is pooled over the steps from half of it to twice it, because
    three numbers give a poor estimate.
    """
    x = np.array(curves, float)  # None becomes nan
    at = np.array(steps)
    mean = np.abs(x.mean(0))
    several = len(x) > 1
    variance = x.var(0, ddof=1) if several else 0 * mean
    relative = variance / np.maximum(mean, 1e-12) ** 2
    near = (at >= at[:, None] / 2) & (at <= at[:, None] * 2)
    spread = np.sqrt(np.array([_mean_of_finite(relative[n]) for n in near]))
    allowed = mean * np.maximum(LEAST if several else OF_ONE, SPREADS * spread)
    return Band(x.min(0) - allowed, x.max(0) + allowed, allowed)


def _mean_of_finite(values: np.ndarray) -> float:
    """The mean without nan; nan where no value is finite."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def verdict(steps: Sequence[int], here: np.ndarray, within: Band) -> str:
    """How a curve (K,) lies to the band: "as it should be", "better", or "WORSE from step N".

    Worse: above the band at two lines in a row, or at one line by as much again as the band was
    widened. Better: below it at the last two.
    """
    above = here > within.high
    below = here < within.low
    twice = above & np.append(above[1:], False)
    wrong = np.flatnonzero(twice | (here > within.high + within.allowed))
    if len(wrong):
        worse = f"WORSE from step {steps[wrong[0]]}"
        if not above[-1]:
            worse += f", within the band again at step {steps[-1]}"
        return worse
    if len(below) > 1 and below[-2:].all():
        return "better"
    return "as it should be"


# ---- comparing


def compare(run: Path, reference: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Compares a run with a reference.

    Returns:
        Lines to print, and whether the run is as it should be.
    """
    steps, curves = curves_of(run)
    lines = []
    sound = True
    note = replanned(run)
    if note:
        lines.append(f"note: {note}")
    for kind, seeds_of in reference["curves"].items():
        for modality, seeds in seeds_of.items():
            name = f"{modality}, {kind.replace('_', ' ')}"
            curve = curves.get(kind, {}).get(modality) or []
            here = dict(zip(steps, curve, strict=bool(curve)))
            more, fine = _compare_curve(name, here, reference["steps"], seeds)
            lines += more
            sound = sound and fine
    return lines + held_out_lines(run, reference), sound


def replanned(run: Path) -> str:
    """A note on a run whose number of steps was changed while it trained; "" for any other."""
    planned = planned_steps(run / "checkpoints")
    if len(planned) < 2:
        return ""
    return (
        f"{run} was planned for {planned[0][1]} steps at first, so its learning rates are not those"
        f" of {planned[-1][1]} from the start"
    )


def _compare_curve(
    name: str, here: Mapping[int, float | None], steps: list[int], seeds: list[list]
) -> tuple[list[str], bool]:
    """Compares one curve, step -> value, with the reference's curves over its steps."""
    place = {step: k for k, step in enumerate(steps)}
    both = [
        step
        for step in steps
        if here.get(step) is not None and all(seed[place[step]] is not None for seed in seeds)
    ]
    if not both:
        return [f"{name}: MISSING: no step of the log has it that the reference has too"], False
    whole = band(steps, seeds)
    at = [place[step] for step in both]
    within = Band(whole.low[at], whole.high[at], whole.allowed[at])
    values = np.array([here[step] for step in both])
    found = verdict(both, values, within)
    lines = [
        f"{name}: {found} ({len(both)} of its lines, steps {both[0]} to {both[-1]})",
        f"{'step':>10}{'here':>10}   band",
    ]
    shown = {int(k) - 1 for k in np.geomspace(1, len(both), 6).round()}
    shown |= {both.index(int(step)) for step in re.findall(r"from step (\d+)", found)}
    for k in sorted(shown):
        mark = "  <" if values[k] > within.high[k] else ""
        limits = f"{within.low[k]:.4g} .. {within.high[k]:.4g}"
        lines.append(f"{both[k]:>10}{values[k]:>10.4g}   {limits}{mark}")
    return lines, not found.startswith("WORSE")


def held_out_lines(run: Path, reference: Mapping[str, Any]) -> list[str]:
    """Evaluation figures outside the reference's range, widened by its own width and LEAST.

    They are reported, not judged: of some figures more is better.
    """
    known = reference["held_out"]
    if not known or not (run / "evaluation.json").is_file():
        return []
    here = numbers(read_json(run / "evaluation.json"))
    outside = []
    compared = [name for name in known if name in here]
    for name in compared:
        low = min(known[name])
        high = max(known[name])
        room = high - low + LEAST * max(abs(low), abs(high))
        if not low - room <= here[name] <= high + room:
            outside.append(f"  {name}: {here[name]:.4g}, reference {low:.4g} .. {high:.4g}")
    summary = (
        f"evaluation: {len(compared) - len(outside)} of {len(compared)} figures near the"
        " reference's range"
    )
    if outside:
        summary += "; the others:"
    return [summary, *outside]


def numbers(figures: Any) -> dict[str, float]:
    """The numbers of an evaluation.json by dotted name."""
    return {
        k: v
        for k, v in leaves(figures).items()
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    }


# ---- saving


def made_from(runs: Sequence[Path], commits: Sequence[str]) -> dict[str, Any]:
    """Makes a reference from finished runs of one recipe with different seeds.

    Raises UserError for anything else.
    """
    recipes = [recipe_of(run) for run in runs]
    seeds = [recipe["train"]["seed"] for recipe in recipes]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"the runs' seeds are {', '.join(map(str, seeds))}: each must have one of its own"
        )
    logs = [curves_of(run) for run in runs]
    for run, recipe, (steps, _) in zip(runs, recipes, logs, strict=True):
        check_same(recipes[0], recipe, f"{run} was made with other settings than {runs[0]}")
        if steps[-1] != recipe["train"]["steps"]:
            raise UserError(
                f"{run} is logged up to step {steps[-1]} of {recipe['train']['steps']}: only"
                " finished runs make a reference"
            )
        if replanned(run):
            raise UserError(f"{replanned(run)}: it makes no reference")
        if steps != logs[0][0]:
            raise UserError(f"{run} and {runs[0]} are not logged at the same steps")
    steps, first = logs[0]
    curves = {
        kind: {m: [_rounded(log[kind][m]) for _, log in logs] for m in by_modality}
        for kind, by_modality in first.items()
    }
    figures = [_evaluation(run) for run in runs]
    held_out = {
        name: _rounded(f[name] for f in figures)
        for name in figures[0]
        if all(name in f for f in figures)
    }
    return {
        "seeds": seeds,
        "commits": list(commits) or [_commit()] * len(runs),
        "machine": _machine(),
        "smoothed_over_lines": WINDOW,
        "steps": steps,
        "curves": curves,
        "held_out": held_out,
        "recipe": recipes[0],
    }


def _evaluation(run: Path) -> dict[str, float]:
    """The numbers of a run's evaluation; empty where it has none."""
    path = run / "evaluation.json"
    return numbers(read_json(path)) if path.is_file() else {}


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if x is None else float(f"{x:.5g}") for x in values]


def _machine() -> dict[str, Any]:
    import torch
    from side_by_side import machine

    facts = machine(("torch", "mmtok"))
    del facts["threads"], facts["load"]
    facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def _commit() -> str:
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    if _git("status", "--porcelain", "-uno"):
        commit += "+ changes"
    return commit


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return done.stdout.strip()


def written(reference: Mapping[str, Any]) -> str:
    """The reference as JSON, with each list of numbers on one line."""
    text = json.dumps(reference, indent=1)
    return re.sub(r"\[[^][{}\"]*\]", _on_one_line, text) + "\n"


def _on_one_line(found: re.Match) -> str:
    return re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]")


# ---- the command line


def read_reference(path: Path, name: str) -> dict[str, Any]:
    """A reference file. Raises UserError where there is none, or a damaged one."""
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise UserError(
            f"there is no reference of the recipe {name!r}, only of: {known}; finished runs make"
            " one by --save"
        )
    reference = read_json(path)
    if not _is_reference(reference):
        raise UserError(f"{path} is no reference: make it again by --save")
    return reference


def _is_reference(plain: Any) -> bool:
    needed = {"steps", "curves", "held_out", "recipe", "seeds", "machine", "commits"}
    if not isinstance(plain, dict) or not needed <= set(plain):
        return False
    return plain.get("smoothed_over_lines") == WINDOW


def _about(reference: Mapping[str, Any]) -> Iterator[str]:
    machine = ", ".join(f"{k} {v}" for k, v in reference["machine"].items() if v != [])
    yield (
        f"reference: seeds {', '.join(map(str, reference['seeds']))}; {machine}; commits"
        f" {', '.join(reference['commits'])}"
    )
    allowed = f"{LEAST:.0%} or {SPREADS:g} of their standard deviations, whichever is more"
    if len(reference["seeds"]) == 1:
        allowed = f"{OF_ONE:.0%}"
    yield (
        f"curves: means over up to {WINDOW} lines of the log; band: least to greatest of these"
        f" seeds, widened by {allowed}"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Compares or saves as the command line says. Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN")
    add("--save", action="store_true", help="write the reference of the runs' recipe")
    add("--commits", nargs="+", default=[], help="with --save: each run's commit, if not this one")
    add("--folder", type=Path, default=ROOT / "recipes" / "reference", help="where references lie")
    options = parser.parse_args(words)
    runs = options.runs
    if len(runs) > 1 and not options.save:
        parser.error("one run at a time is compared")
    if options.commits and len(options.commits) != len(runs):
        parser.error("--commits names one commit per run")
    try:
        plain = recipe_of(runs[0])
        path = options.folder / f"{Path(plain['name']).name}.json"
        if options.save:
            options.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, written(made_from(runs, options.commits)))
            print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
            return 0
        reference = read_reference(path, plain["name"])
        what = f"{runs[0]} was made with other settings than the reference of {plain['name']!r}"
        check_same(reference["recipe"], plain, what)
        lines, sound = compare(runs[0], reference)
    except (UserError, OSError) as error:
        print(f"reference.py: {error}", file=sys.stderr)
        return 2
    print("\n".join([*_about(reference), *lines]))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
