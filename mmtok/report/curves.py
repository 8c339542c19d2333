"""The report's section of the training: loss and -log p by step, with held-out values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmtok.core.units import customary
from mmtok.errors import UserError
from mmtok.report import plots
from mmtok.report.html import Markup, tag
from mmtok.run.folder import read_figures
from mmtok.run.run import Run
from mmtok.train.log import read_log


@dataclass(frozen=True)
class _Curve:
    """One chart: values by step, None where there is none, and held-out values by name."""

    unit: str
    values: Sequence[float | None]
    held_out: Mapping[str, float]

    @property
    def has_values(self) -> bool:
        return any(value is not None and math.isfinite(value) for value in self.values)


def training_section(run: Run) -> list[Markup]:
    """The loss, and each modality's -log p in its customary unit, with held-out values."""
    lines = read_log(run.folder / "log.jsonl")
    if not lines:
        return [tag("p", "not trained yet: no log.jsonl", cls="soft")]
    steps = [line["step"] for line in lines]
    held_out = held_out_scores(run)
    charts = [
        plots.curve(title, curve.unit, steps, curve.values, curve.held_out)
        for title, curve in [("loss", _loss(lines)), *_modalities(run, lines, held_out)]
    ]
    last = lines[-1]
    words = (
        f"Step {last['step']:,} of {run.recipe.train.steps:,}, {last['positions_per_s']:,.0f}"
        " positions per second at the end. "
    )
    if held_out:
        words += (
            "Dashed: held-out signals under a unigram model of the training codes, and under the"
            " untrained decoder."
        )
    return [tag("p", words), tag("div", *charts, cls="charts")]


def _loss(lines: Sequence[Mapping[str, Any]]) -> _Curve:
    """The whole loss, which is weighted nats where every modality is trained on its -log p."""
    only_nats = not any(line.get("training_loss") for line in lines)
    unit = "nats, weighted" if only_nats else "weighted"
    return _Curve(unit, [line["loss"] for line in lines], {})


def _modalities(
    run: Run, lines: Sequence[Mapping[str, Any]], held_out: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, _Curve]]:
    """Modality and curve, of those that have values.

    Where training lowers something else than -log p, the curve is that.
    """
    curves: dict[str, _Curve] = {}
    for m in dict.fromkeys(m for line in lines for m in line["nats"]):
        values = [_customary_nll(m, line) for line in lines]
        curves[m] = _Curve(customary(m, 0.0, 1)[1], values, held_out.get(m, {}))
    for m in dict.fromkeys(m for line in lines for m in line.get("training_loss", ())):
        values = [line.get("training_loss", {}).get(m) for line in lines]
        curves[m] = _other_loss(run, m, values, held_out.get(m, {}))
    return [(m, curve) for m, curve in curves.items() if curve.has_values]


def _other_loss(
    run: Run, m: str, values: Sequence[float | None], held_out: Mapping[str, float]
) -> _Curve:
    """The curve of a training loss that is not -log p.

    A bound on -log p has the unit of the likelihood that it bounds. Another loss, such as a
    denoising loss or a squared error, has a unit of its own, to which held-out likelihoods do not
    compare. Blocks of mixture-of-depths look ahead in training, so that no loss behind them is a
    likelihood or bounds one.
    """
    if run.recipe.model.trunk.mod_capacity:
        return _Curve("training loss", list(values), {})
    head = run.recipe.model.heads.get(m)
    if head is not None and head.loss_kind == "bound":
        in_units = [None if value is None else customary(m, value, 1)[0] for value in values]
        return _Curve(f"bound, {customary(m, 0.0, 1)[1]}", in_units, held_out)
    name = "training loss"
    if head is not None:
        name = head.loss_name
    return _Curve(name, list(values), {})


def _customary_nll(m: str, line: Mapping[str, Any]) -> float | None:
    """A modality's -log p in a line of the log, in the customary unit.

    Logs of older runs have it per frame only.
    """
    if "customary" in line:
        return next(iter(line["customary"].get(m, {}).values()), None)
    nats = line["nats"].get(m)
    return None if nats is None else customary(m, nats, 1)[0]


def held_out_scores(run: Run) -> dict[str, dict[str, float]]:
    """Modality -> -log p of held-out signals under "model", "unigram", "untrained", ...

    In the customary unit. {} before the evaluation, or where evaluation.json is damaged.
    """
    try:
        figures = read_figures(run.folder / "evaluation.json").get("score", {})
    except (UserError, OSError):  # the section of figures says why
        return {}
    return {m: _by_model(values) for m, values in figures.items()}


def _by_model(values: Mapping[str, Any]) -> dict[str, float]:
    """{"bits_per_code_unigram": x, "n_codes": n, ...} -> {"unigram": x, ...}."""
    scores = {key: value for key, value in values.items() if "_per_" in key}
    unit = min(scores, key=len, default="")
    return {key.removeprefix(unit).strip("_") or "model": value for key, value in scores.items()}
