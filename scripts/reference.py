"""Is a training as it should be? A run's curves beside those of its recipe's reference runs.

    python scripts/reference.py RUN                 a run, finished or under way, beside
    recipes/reference/NAME.json, by its recipe's name python scripts/reference.py RUN RUN RUN --save
                                                    make that file of finished runs of one recipe,
                                                    each with a seed of its own, on the machine that
                                                    they were made on

Exit status 0: as it should be; 1: worse, or a modality is missing; 2: nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.overrides import leaves
from mmtok.io.strict_json import read_json
from mmtok.run.build import HOW
from mmtok.run.recipe import Recipe
from mmtok.train.checkpoint import planned_steps
from mmtok.train.log import read_log

ROOT = Path(__file__).parent.parent
# lines of the log that a curve is smoothed over at most: the last ones at each step, and no more
# than half of all so far
WINDOW = 5
SPREADS = (
    3.0  # how far beyond the reference's seeds a curve may lie, in standard deviations of theirs
)
# and how far in any case, as a share of the nats: the spread of three seeds is itself badly known
LEAST = 0.02
OF_ONE = 0.1  # the same where the reference has one seed only, of which no spread is known
KINDS = (
    "nats",
    "training_loss",
)  # of the log's figures by modality; a modality has one or the other
FREE = HOW | {
    "train.seed",
    "train.grad_accum_steps",
    "train.checkpoint_every",
    "train.precision",
}  # settings that curves of one reference may differ in


# ---- what a run was made from, and its curves


def recipe_of(run: Path) -> dict[str, Any]:
    """The plain recipe of a run folder, without the places of its data.

    Raises UserError where there is none.
    """
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run} is no run folder: it has no recipe.json")
    return _placeless(read_json(run / "recipe.json"))


def _placeless(node: Any, key: str = "") -> Any:
    """A plain value in which paths are names of files: the same data may lie elsewhere."""
    if isinstance(node, dict):
        return {k: _placeless(v, k) for k, v in node.items()}
    if isinstance(node, list):
        return [_placeless(v, key) for v in node]
    is_path = isinstance(node, str) and (
        key.endswith("path") or Path(node).is_absolute() and len(node) > 1
    )
    return Path(node).name if is_path else node


def settings(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings that curves depend on, by name; fields younger than the recipe have their
    defaults.
    """
    try:
        plain = _placeless(json.loads(Recipe.from_json(json.dumps(plain)).to_json()))
    except UserError:  # classes of its own: as it stands
        pass
    return {k: v for k, v in leaves(plain).items() if k not in FREE}


def check_same(plain: dict[str, Any], other: dict[str, Any], what: str) -> None:
    """Raise UserError, naming what differs, unless the two recipes have the same settings."""
    a, b = settings(plain), settings(other)
    changed = [
        f"{k}: {a.get(k, 'absent')} -> {b.get(k, 'absent')}"
        for k in {**a, **b}
        if a.get(k) != b.get(k)
    ]
    if changed:
        shown = "; ".join(changed[:5]) + (
            f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        )
        raise UserError(f"{what} ({shown}): such curves do not compare")


def curves_of(run: Path) -> tuple[list[int], dict[str, dict[str, list[float | None]]]]:
    """A run's logged steps, and kind -> modality -> its smoothed curve over them.

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
    """Means over the last WINDOW values, fewer at first, where curves are steep; what is not a
    number counts as infinite.
    """
    made = []
    for i in range(len(values)):
        last = values[i + 1 - max(1, min(WINDOW, (i + 1) // 2)) : i + 1]
        near = [math.inf if math.isnan(x) else x for x in last if x is not None]
        made.append(sum(near) / len(near) if near else None)
    return made


# ---- the band


@dataclass(frozen=True)
class Band:
    """Where a curve may lie: low to high at each step, `allowed` beyond the reference's seeds; all
    (K,).
    """

    low: np.ndarray
    high: np.ndarray
    allowed: np.ndarray


def band(steps: Sequence[int], curves: Sequence[Sequence[float | None]]) -> Band:
    """The band of the seeds' curves (S, K): from their least to their greatest, upcast by the
    greater of LEAST of their mean and SPREADS standard deviations. A step's deviation is pooled
    over the steps from half of it to twice it: of three numbers it would say little.
    """
    x, at = np.array(curves, float), np.array(steps)  # a None is nan
    mean = np.abs(x.mean(0))
    square = (x.var(0, ddof=1) if len(x) > 1 else 0 * mean) / np.maximum(mean, 1e-12) ** 2
    near = (at >= at[:, None] / 2) & (at <= at[:, None] * 2)
    pooled = np.sqrt(
        np.array([np.nanmean(square[n]) if np.isfinite(square[n]).any() else np.nan for n in near])
    )
    allowed = mean * np.maximum(LEAST if len(x) > 1 else OF_ONE, SPREADS * pooled)
    return Band(x.min(0) - allowed, x.max(0) + allowed, allowed)


def verdict(steps: Sequence[int], here: np.ndarray, within: Band) -> str:
    """What a curve (K,) is beside the band: "as it should be", "better", or "WORSE from step N".

    Worse: above the band at two lines in a row, or as far above it again as it was upcast by at
    one. Better: below it at the last two.
    """
    above, below = here > within.high, here < within.low
    twice = above & np.append(above[1:], False)
    wrong = np.flatnonzero(twice | (here > within.high + within.allowed))
    if len(wrong):
        return f"WORSE from step {steps[wrong[0]]}" + (
            "" if above[-1] else f", within the band again at step {steps[-1]}"
        )
    return "better" if len(below) > 1 and below[-2:].all() else "as it should be"


# ---- comparing


def compare(run: Path, reference: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Lines to print of a run beside a reference, and whether it is as it should be."""
    steps, curves = curves_of(run)
    lines, sound = [f"note: {trained_on(run)}"] if trained_on(run) else [], True
    for kind, seeds_of in reference["curves"].items():
        for m, seeds in seeds_of.items():
            told, fine = _compare_one(
                m, kind, steps, curves.get(kind, {}).get(m), reference["steps"], seeds
            )
            lines, sound = lines + told, sound and fine
    return lines + held_out_lines(run, reference), sound


def trained_on(run: Path) -> str:
    """What a run whose number of steps was changed on the way is not; empty for any other."""
    planned = planned_steps(run / "checkpoints")
    if len(planned) < 2:
        return ""
    return (
        f"{run} was planned for {planned[0][1]} steps at first, so its learning rates are not those"
        f" of {planned[-1][1]} from the start"
    )


def _compare_one(
    m: str, kind: str, steps: list[int], curve: list | None, known: list[int], seeds: list[list]
) -> tuple[list[str], bool]:
    name = f"{m}, {kind.replace('_', ' ')}"
    here = dict(zip(steps, curve or []))
    place = {step: k for k, step in enumerate(known)}
    both = [
        s for s in known if here.get(s) is not None and all(x[place[s]] is not None for x in seeds)
    ]
    if not both:
        return [f"{name}: MISSING: no step of the log has it that the reference has too"], False
    whole = band(known, seeds)
    at = [place[s] for s in both]
    within = Band(whole.low[at], whole.high[at], whole.allowed[at])
    values = np.array([here[s] for s in both])
    said = verdict(both, values, within)
    lines = [
        f"{name}: {said} ({len(both)} of its lines, steps {both[0]} to {both[-1]})",
        f"{'step':>10}{'here':>10}   band",
    ]
    shown = {int(k) for k in np.geomspace(1, len(both), 6).round()} | {
        both.index(int(n)) + 1 for n in re.findall(r"from step (\d+)", said)
    }
    for k in sorted(shown):
        mark = "  <" if values[k - 1] > within.high[k - 1] else ""
        lines.append(
            f"{both[k - 1]:>10}{values[k - 1]:>10.4g}   {within.low[k - 1]:.4g} .."
            f" {within.high[k - 1]:.4g}{mark}"
        )
    return lines, not said.startswith("WORSE")


def held_out_lines(run: Path, reference: Mapping[str, Any]) -> list[str]:
    """Evaluation figures outside the reference's range, upcast by its own width and LEAST; told,
    not judged: for some more is better.
    """
    known = reference["held_out"]
    if not known or not (run / "evaluation.json").is_file():
        return []
    here, outside = numbers(read_json(run / "evaluation.json")), []
    compared = [name for name in known if name in here]
    for name in compared:
        low, high = min(known[name]), max(known[name])
        room = high - low + LEAST * max(abs(low), abs(high))
        if not low - room <= here[name] <= high + room:
            outside.append(f"  {name}: {here[name]:.4g}, reference {low:.4g} .. {high:.4g}")
    near = f"{len(compared) - len(outside)} of {len(compared)} figures near the reference's range"
    return [f"evaluation: {near}" + "; the others:" * bool(outside), *outside]


def numbers(figures: Any) -> dict[str, float]:
    """The numbers of an evaluation.json by dotted names."""
    return {
        k: v
        for k, v in leaves(figures).items()
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    }


# ---- saving


def made_from(runs: Sequence[Path], commits: Sequence[str]) -> dict[str, Any]:
    """The reference that finished runs of one recipe with different seeds make.

    Raises UserError for anything else.
    """
    recipes = [recipe_of(run) for run in runs]
    seeds = [recipe["train"]["seed"] for recipe in recipes]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"the runs' seeds are {', '.join(map(str, seeds))}: each must have one of its own"
        )
    logs = [curves_of(run) for run in runs]
    for run, recipe, (steps, _) in zip(runs, recipes, logs):
        check_same(recipes[0], recipe, f"{run} was made with other settings than {runs[0]}")
        if steps[-1] != recipe["train"]["steps"]:
            raise UserError(
                f"{run} is logged up to step {steps[-1]} of {recipe['train']['steps']}: only"
                " finished runs make a reference"
            )
        if trained_on(run):
            raise UserError(f"{trained_on(run)}: it makes no reference")
        if steps != logs[0][0]:
            raise UserError(f"{run} and {runs[0]} are not logged at the same steps")
    rounded = lambda x: None if x is None else float(f"{x:.5g}")
    curves = {
        kind: {m: [[rounded(x) for x in log[1][kind][m]] for log in logs] for m in logs[0][1][kind]}
        for kind in logs[0][1]
    }
    figures = [
        numbers(read_json(run / "evaluation.json")) if (run / "evaluation.json").is_file() else {}
        for run in runs
    ]
    held_out = {
        name: [rounded(f[name]) for f in figures]
        for name in figures[0]
        if all(name in f for f in figures)
    }
    return {"seeds": seeds, "commits": list(commits) or [_commit()] * len(runs), "machine": _machine(),
            "smoothed_over_lines": WINDOW, "steps": logs[0][0], "curves": curves, "held_out": held_out, "recipe": recipes[0]}  # fmt: skip


def _machine() -> dict[str, Any]:
    import torch
    from side_by_side import machine

    facts = {k: v for k, v in machine(("torch", "mmtok")).items() if k not in ("threads", "load")}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **facts,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": gpus,
    }


def _commit() -> str:
    say = lambda *words: subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True
    ).stdout.strip()
    return (say("rev-parse", "--short", "HEAD") or "unknown") + "+ changes" * bool(
        say("status", "--porcelain", "-uno")
    )


def written(reference: Mapping[str, Any]) -> str:
    """As JSON, lists of numbers on one line each."""
    text = json.dumps(reference, indent=1)
    return (
        re.sub(
            r"\[[^][{}\"]*\]",
            lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"),
            text,
        )
        + "\n"
    )


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
    if (
        not isinstance(reference, dict)
        or not {"steps", "curves", "held_out", "recipe", "seeds", "machine", "commits"}
        <= set(reference)
        or reference.get("smoothed_over_lines") != WINDOW
    ):
        raise UserError(f"{path} is no reference: make it again by --save")
    return reference


def _about(reference: Mapping[str, Any]) -> Iterator[str]:
    machine = ", ".join(f"{k} {v}" for k, v in reference["machine"].items() if v != [])
    yield (
        f"reference: seeds {', '.join(map(str, reference['seeds']))}; {machine}; commits"
        f" {', '.join(reference['commits'])}"
    )
    one = len(reference["seeds"]) == 1
    allowed = (
        f"{OF_ONE:.0%}"
        if one
        else f"{LEAST:.0%} or {SPREADS:g} of their standard deviations, whichever is more"
    )
    yield (
        f"curves: means over up to {WINDOW} lines of the log; band: least to greatest of these"
        f" seeds, upcast by {allowed}"
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--save", action="store_true", help="write the reference of the runs' recipe"
    )
    parser.add_argument(
        "--commits",
        nargs="+",
        default=[],
        help="with --save: the commit of each run, where it is not the present one",
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "recipes" / "reference", help="where references lie"
    )
    given = parser.parse_args(words)
    if (
        not given.save
        and len(given.runs) > 1
        or given.commits
        and len(given.commits) != len(given.runs)
    ):
        parser.error("one run at a time is compared; with --save, --commits names one per run")
    try:
        plain = recipe_of(given.runs[0])
        path = given.folder / f"{Path(plain['name']).name}.json"
        if given.save:
            given.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, written(made_from(given.runs, given.commits)))
            print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
            return 0
        reference = read_reference(path, plain["name"])
        check_same(
            reference["recipe"],
            plain,
            f"{given.runs[0]} was made with other settings than the reference of {plain['name']!r}",
        )
        lines, sound = compare(given.runs[0], reference)
    except (UserError, OSError) as error:
        print(f"reference.py: {error}", file=sys.stderr)
        return 2
    print("\n".join([*_about(reference), *lines]))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
