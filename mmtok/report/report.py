"""A run's numbers and samples -> RUN/report.html: one page that needs nothing but itself.

A section stands for what the run has: what its tasks promise and is not there yet is said in its
place.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmtok.commands.show import n_numbers
from mmtok.core.units import customary
from mmtok.errors import UserError
from mmtok.io.files import remove_leftovers_of, write_text
from mmtok.io.terminal import print_status
from mmtok.report import html as page
from mmtok.report import plots
from mmtok.report.gallery import missing, sample_names, sample_section, title_of
from mmtok.report.html import Markup, join, number, table, tag
from mmtok.run.folder import read_fidelity, read_figures, read_fingerprint
from mmtok.run.run import Run
from mmtok.train.log import read_log

LABELS = {
    "judge_accuracy": "samples that the judge names as asked", "judge_heldout": "the judge on real held-out signals",
    "judge_round_trip": "the judge on real ones through the tokenizer", "copies": "samples equal to a training image, in codes or decoded",
    "copies_heldout": "the same for real held-out images", "frechet": "Fréchet distance to real held-out images",
    "frechet_real": "the same between two real sets", "round_trip_psnr_db": "round trip PSNR [dB]", "codebook_use": "share of codes in use",
    "accuracy": "read as their name says", "n": "number of signals", "stopped": "samples that end by themselves",
    "voice_entropy": "spread over the voices (1: even)", "voice_entropy_real": "the same for real clips",
    "voice_judge_heldout": "the judge of voices on real held-out clips", "string_word_error": "word errors on its own three-word strings",
    "string_word_error_real": "the same on real clips", "string_stopped": "strings that end by themselves",
    "unseen_voice_word_error_rate": "word error rate, unseen voices",
    "at_cap": "samples cut at the cap", "at_cap_real": "real jets cut at the cap",
    **{f"{key}_w1": f"W1 of {label}, to tokenised real" for key, (label, _) in plots.OBSERVED.items()},
    **{f"{key}_w1_raw": f"W1 of {label}, to raw real" for key, (label, _) in plots.OBSERVED.items()},
}  # fmt: skip
REMARKS = {
    **dict.fromkeys(
        ("jets_from_text", "jets_from_nothing"),
        "Wasserstein-1 distances of generated to real jets, in units of what two sets of real jets"
        " differ by.",
    ),
    "score": (
        "Negative log-likelihood of held-out signals; lower is better. The unigram model of latents"
        " is a Gaussian for each of a frame's numbers, or, where these are cells of an axis, a"
        " table of them."
    ),
    "zero_shot": "Held-out images named by the caption under which they are likeliest.",
}


def write_report(run: Run, force: bool = False) -> Path:
    """Write RUN/report.html and return its path; one of the same weights that is newer than all
    else in the run stands, unless `force`.

    Raises UserError without matplotlib, and where the run was opened at a checkpoint that is not
    there.
    """
    path = run.folder / "report.html"
    remove_leftovers_of([path])
    if run.step is not None:
        run.trained  # noqa: B018 - is it there?
    if not force and _stands(run, path):
        print_status(f"{path} stands")
        return path
    plots.need_matplotlib()
    parts: list[tuple[str, Callable[[], Sequence[object]]]] = [
        ("Training", lambda: _training(run)), ("Figures", lambda: _figures(run)), ("Tokenizers", lambda: _fidelity(run)),
    ]  # fmt: skip
    parts += [
        (title_of(name), lambda name=name: sample_section(run, name)) for name in sample_names(run)
    ]
    parts += [
        (
            "Recipe",
            lambda: [
                tag("details", tag("summary", "recipe.json"), tag("pre", run.recipe.to_json()))
            ],
        )
    ]
    sections = [
        tag("section", tag("h2", title), *_body(build), id=_anchor(title)) for title, build in parts
    ]
    links = tag("nav", *(tag("a", title, href=f"#{_anchor(title)}") for title, _ in parts))
    write_text(path, page.page(f"{run.recipe.name}: report", [_header(run, links), *sections]))
    os.utime(path)  # the renaming itself touched the folder
    return path


def _stands(run: Run, path: Path) -> bool:
    """Whether a report is newer than all else in the run, and of the weights that the run was
    opened with.
    """
    if not path.exists() or path.stat().st_mtime_ns < max(
        p.stat().st_mtime_ns for p in (run.folder, *run.folder.rglob("*"))
    ):
        return False
    return _weights_text(run) in path.read_text(encoding="utf-8", errors="replace")


def _body(build: Callable[[], Sequence[object]]) -> Sequence[object]:
    """A section's content; where the run's files or data do not allow it, the reason."""
    try:
        return build()
    except (UserError, OSError) as error:
        return [tag("p", str(error), cls="soft")]


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


# ---- numbers


def _header(run: Run, links: Markup) -> Markup:
    weights, vocabulary = run.folder / "model.safetensors", run.folder / "vocabulary.json"
    facts = {
        "run": str(run.folder),
        "weights of": _weights_text(run),
        "vocabulary": "not laid out yet",
    }
    if weights.exists():
        facts["parameters"] = f"{n_numbers(weights):,}"
    if vocabulary.exists():
        facts["vocabulary"] = read_fingerprint(vocabulary)
    facts["tasks"] = ", ".join(str(task).replace("->", "→") for task in run.recipe.tasks)
    return tag("header", tag("h1", run.recipe.name), _facts(facts), links)


def _weights_text(run: Run) -> str:
    """Which weights the run was opened with: when they were written, or of which checkpoint they
    are.
    """
    weights = run.folder / "model.safetensors"
    if run.step is None and weights.exists():
        return f"{datetime.fromtimestamp(weights.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"
    trained = _trained(run)
    return (
        f"the checkpoint at step {trained['step']:,} of {trained['of']:,}"
        if trained
        else "not trained to the end yet"
    )


def _trained(run: Run) -> dict[str, int] | None:
    """`Run.trained`; None where the run has no weights yet."""
    try:
        return run.trained
    except (UserError, OSError):
        return None


def _facts(facts: Mapping[str, str]) -> Markup:
    return tag(
        "dl", *(tag(name, text) for pair in facts.items() for name, text in zip(("dt", "dd"), pair))
    )


def _training(run: Run) -> list[Markup]:
    """The loss, and the nats of every modality in its customary unit, beside what held-out signals
    cost.
    """
    lines = read_log(run.folder / "log.jsonl")
    if not lines:
        return [tag("p", "not trained yet: no log.jsonl", cls="soft")]
    steps = [line["step"] for line in lines]
    held_out = _scores(run)
    lowered = dict.fromkeys(m for line in lines for m in line.get("training_loss", ()))
    charts = [
        plots.curve(
            "loss",
            "weighted" if lowered else "nats, weighted",
            steps,
            [line["loss"] for line in lines],
            {},
        )
    ]
    curves = {m: (customary(m, 0.0, 1)[1], [_customary(m, line) for line in lines], held_out.get(m, {}))
              for m in dict.fromkeys(m for line in lines for m in line["nats"])}  # fmt: skip
    curves |= {
        m: _lowered(
            run, m, [line.get("training_loss", {}).get(m) for line in lines], held_out.get(m, {})
        )
        for m in lowered
    }
    charts += [plots.curve(m, unit, steps, values, levels) for m, (unit, values, levels) in curves.items()
               if any(v is not None and math.isfinite(v) for v in values)]  # fmt: skip
    last = lines[-1]
    words = (
        f"Step {last['step']:,} of {run.recipe.train.steps:,}, {last['positions_per_s']:,.0f}"
        " positions per second at the end. "
    )
    remark = (
        "Dashed: held-out signals under a unigram model of the training codes, and under the"
        " untrained decoder."
        if held_out
        else ""
    )
    return [tag("p", words + remark), tag("div", *charts, cls="charts")]


def _lowered(
    run: Run, m: str, values: Sequence[float | None], held_out: Mapping[str, float]
) -> tuple[str, list[float | None], Mapping]:
    """Unit, values and held-out levels of what training lowers where it is no likelihood: a bound's
    are those of the likelihood that it bounds; a denoising loss has a unit of its own, beside which
    held-out nats cannot stand.
    """
    if m in run.recipe.model.heads and run.recipe.model.heads[m].kind == "bound":
        return (
            f"bound, {customary(m, 0.0, 1)[1]}",
            [None if v is None else customary(m, v, 1)[0] for v in values],
            held_out,
        )
    return "denoising loss", list(values), {}


def _customary(m: str, line: Mapping[str, Any]) -> float | None:
    """A modality's nats in a line of the log, in the customary unit; a log that is older than these
    has them per frame only.
    """
    if "customary" in line:
        return next(iter(line["customary"].get(m, {}).values()), None)
    return None if line["nats"].get(m) is None else customary(m, line["nats"][m], 1)[0]


def _scores(run: Run) -> dict[str, dict[str, float]]:
    """Modality -> what held-out signals cost under "model", "unigram" and "untrained", in the
    customary unit; {} before evaluation.
    """
    try:
        found = read_figures(run.folder / "evaluation.json").get("score", {})
    except (UserError, OSError):  # the figures' own section says why
        return {}
    short = lambda key, values: (
        key.removeprefix(min(values, key=len)).strip("_") or "model"
    )  # bits_per_code_unigram -> unigram
    costs = {
        m: {key: x for key, x in values.items() if "_per_" in key} for m, values in found.items()
    }  # not how many, and of what kind
    return {m: {short(key, values): x for key, x in values.items()} for m, values in costs.items()}


def _figures(run: Run) -> list[Markup]:
    """evaluation.json as tables, one per question."""
    path = run.folder / "evaluation.json"
    if not path.exists():
        return missing(run, "not evaluated yet")
    figures = read_figures(path)
    weights, blocks = figures.pop("weights", None), []
    for name, values in figures.items():
        remark = [tag("p", REMARKS[name], cls="soft")] if name in REMARKS else []
        blocks.append(tag("div", tag("h3", title_of(name)), *remark, _question(run, name, values)))
    return [*_made_of(run, weights), tag("div", *blocks, cls="columns")]


def _made_of(run: Run, weights: object) -> list[Markup]:
    """Which weights the figures are of, where these are not those of the finished run."""
    if (
        not isinstance(weights, Mapping)
        or weights == _trained(run)
        and weights["step"] == weights["of"]
    ):
        return []
    words = (
        f"These figures are of the weights after step {weights.get('step')} of {weights.get('of')}"
    )
    if weights == _trained(run):
        return [tag("p", f"{words}: the run is not trained to its end.")]
    return [
        tag(
            "p",
            f"{words}, which are not those of this page; made again by ",
            tag("code", f"mmtok evaluate {run.folder}"),
        )
    ]


def _question(run: Run, name: str, values: object) -> Markup:
    """The figures of one question: a column each where it has classes."""
    if not isinstance(values, Mapping):
        return tag("p", number(values))
    if name == "score":
        columns = ("model", "without_condition", "unigram", "untrained")
        rows = [
            (_cost_text(m, values[m]), *(number(x.get(k, math.nan)) for k in columns))
            for m, x in _scores(run).items()
        ]
        return table(("", "this run", "without condition", *columns[2:]), rows)
    classes = {k: x for k, x in values.items() if isinstance(x, Mapping)}
    return _figure_table(classes or {"": values})


def _cost_text(m: str, values: Mapping[str, object]) -> str:
    """What a row of costs is of: the modality, the unit that the figures' keys name, and what they
    are where they are not exact.
    """
    unit = min((key for key in values if "_per_" in key), key=len).replace("_per_", "/")
    return f"{m}, {unit}" + (
        f" ({values['kind']}; {values['n']} signals)" if "kind" in values else ""
    )


def _figure_table(columns: Mapping[str, Mapping[str, float]]) -> Markup:
    keys = dict.fromkeys(key for values in columns.values() for key in values)
    rows = [(join(LABELS.get(key, key.replace("_", " ")), " ", tag("code", key)), *(number(x.get(key, math.nan)) for x in columns.values()))
            for key in keys]  # fmt: skip
    return table(("", *columns), rows)


def _fidelity(run: Run) -> list[Markup]:
    facts = {}
    for m, config in run.recipe.tokenizers.items():
        figures = read_fidelity(run.folder / "tokenizers" / m)
        words = ", ".join(f"{key.replace('_', ' ')} {number(x)}" for key, x in figures.items())
        facts[f"{m} ({type(config).__name__.removesuffix('Config')})"] = words or "not fitted yet"
    return [tag("p", "The round trip of held-out signals, without the decoder:"), _facts(facts)]
