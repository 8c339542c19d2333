"""The report's charts of pile-up removal: resolution beside other methods, PIT, coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmtok.evaluation.cleaning import METHODS, OBSERVABLES, Cleaned, cleaned_path
from mmtok.metrics.calibration import coverage, pit
from mmtok.metrics.intervals import width_estimate
from mmtok.report.calibration import SIZE_IN, coverage_curve, pit_histogram
from mmtok.report.html import Markup, tag
from mmtok.report.plots import Theme, chart
from mmtok.run.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_BINS = 40
LABELS = {"run": "this run", "soft_drop": "soft drop", "puppi": "PUPPI", "raw": "as it is"}
ERRORS = {"mass": "mass over true mass, less 1", "tau21": "tau21 less the true one"}
REMARK = (
    "Errors of estimates of the clean jet, with half of their central 68 % and its 95 % interval;"
    " that of the run is of the median of its draws. PIT and coverage are of all its draws."
)


def cleaning_charts(run: Run, name: str) -> list[Markup]:
    """Resolution, PIT and coverage of the task of this name; [] where it removes no pile-up."""
    path = cleaned_path(name, run.folder)
    if not path.exists() or not name.startswith("jets_from_jets"):
        return []
    found = Cleaned.load(path)
    charts = []
    for key in OBSERVABLES:
        truth = found.truth[key]
        draws = found.draws[key]
        charts.append(_resolution(found, key))
        charts.append(pit_histogram(key, pit(truth, draws)))
        charts.append(coverage_curve(key, {"this run": coverage(truth, draws)}))
    return [tag("p", REMARK), tag("div", *charts, cls="charts")]


def _resolution(found: Cleaned, key: str) -> Markup:
    """Distributions of the errors of every method."""
    errors = {method: found.errors(key, method) for method in METHODS}
    labels = {m: f"{LABELS[m]}: {width_estimate(x)}" for m, x in errors.items()}
    reach = 4 * float(width_estimate(errors["run"]).value) or 1.0

    def draw(figure: Figure, theme: Theme) -> None:
        """A step histogram for each method; what is beyond the axis is in the last bins."""
        axes = figure.subplots()
        colours = (theme.ours, theme.other, theme.ink, theme.line)
        edges = np.linspace(-reach, reach, N_BINS + 1).tolist()
        for colour, (method, values) in zip(colours, errors.items(), strict=True):
            clipped = np.clip(values, -reach, reach)
            axes.hist(clipped, edges, histtype="step", color=colour, lw=1.3, label=labels[method])
        axes.set(xlabel=ERRORS[key], ylabel="jets", title=f"{key}: resolution")
        axes.legend(fontsize=7)

    words = "; ".join(labels.values())
    return chart(f"{key}, errors of estimates: {words}", draw, SIZE_IN)
