"""The report's charts of a classification: ROC curves of every two classes, and reliability."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from mmtok.evaluation.classification import Classified, path_of
from mmtok.metrics.calibration import reliability
from mmtok.metrics.roc import auc_estimate, roc
from mmtok.report.calibration import SIZE_IN, reliability_diagram
from mmtok.report.html import Markup, tag
from mmtok.report.plots import Theme, chart
from mmtok.run.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_CURVES = 6  # pairs of classes shown at most


def classification_charts(run: Run, name: str) -> list[Markup]:
    """ROC curves and reliability of the task of this name; [] where it is no classification."""
    path = path_of(name, run.folder)
    if not path.exists():
        return []
    found = Classified.load(path)
    pairs = list(combinations(range(len(found.names)), 2))[:N_CURVES]
    charts = [_curve(found, *pair) for pair in pairs]
    of_two = found.probabilities
    if len(found.names) == 2:
        of_two = found.probabilities[:, 1]
    charts.append(reliability_diagram("probabilities", reliability(of_two, found.labels)))
    return [tag("div", *charts, cls="charts")]


def _curve(found: Classified, first: int, second: int) -> Markup:
    """How many of the second class are kept at each share of the first."""
    a, b = found.scores(first, second)
    names = found.names[first], found.names[second]
    title = f"{names[1]} against {names[0]}"
    if not len(a) or not len(b):
        return tag("p", f"{title}: none held out.", cls="soft")
    curve = roc(a, b)
    words = f"AUC {auc_estimate(a, b)}"

    def draw(figure: Figure, theme: Theme) -> None:
        """The curve and the diagonal of a guess."""
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=theme.ink, lw=0.8)
        axes.plot(curve.false, curve.true, color=theme.ours, lw=1.4)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"share of {names[0]} kept")
        axes.set_ylabel(f"share of {names[1]} kept")
        axes.set_title(f"{title}\n{words}", fontsize=10)

    return chart(f"ROC curve, {title}: {words}", draw, SIZE_IN)
