"""Charts of calibration: PIT histograms, coverage curves, reliability, pulls, p-values of tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmtok.metrics.calibration import N_BINS, Coverage, Pulls, Reliability, uniformity
from mmtok.metrics.statistics import TwoSample
from mmtok.report.html import Markup, number, table
from mmtok.report.plots import Theme, chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE_IN = (3.9, 3.1)


def pit_histogram(title: str, values: np.ndarray, n_bins: int = N_BINS) -> Markup:
    """A histogram of PIT values (N,) with the band of 95 % of uniform ones in each bin."""
    from scipy.stats import binom

    n = len(values)
    test = uniformity(values)
    low, high = binom.ppf([0.025, 0.975], n, 1 / n_bins) * n_bins / n

    def draw(figure: Figure, theme: Theme) -> None:
        """The bins, the band and the line at 1."""
        axes = figure.subplots()
        axes.axhspan(low, high, color=theme.real, lw=0)
        axes.axhline(1, color=theme.ink, lw=0.8)
        axes.hist(
            values, n_bins, range=(0, 1), density=True, histtype="step", color=theme.ours, lw=1.4
        )
        axes.set(xlim=(0, 1), xlabel="PIT of the truth", ylabel="density", title=title)

    words = f"{title}: PIT of {n} truths, p of uniform {test.ks_p:.2g}"
    return chart(words, draw, SIZE_IN)


def coverage_curve(title: str, curves: Mapping[str, Coverage]) -> Markup:
    """Observed coverage against claimed, with the band of two standard deviations."""

    def draw(figure: Figure, theme: Theme) -> None:
        """The diagonal and a curve for each."""
        axes = figure.subplots()
        colours = (theme.ours, theme.other)
        axes.plot([0, 1], [0, 1], color=theme.ink, lw=0.8)
        for i, (name, found) in enumerate(curves.items()):
            if not i:
                low = found.levels - 2 * found.error
                axes.fill_between(
                    found.levels, low, found.levels + 2 * found.error, color=theme.real, lw=0
                )
            axes.plot(found.levels, found.observed, color=colours[i % 2], lw=1.4, label=name)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="claimed coverage", ylabel="observed")
        axes.set_title(title)
        axes.legend()

    return chart(f"{title}: observed against claimed coverage", draw, SIZE_IN)


def reliability_diagram(title: str, found: Reliability) -> Markup:
    """How often predictions come true, by their probability, with standard deviations."""

    def draw(figure: Figure, theme: Theme) -> None:
        """The diagonal and a point for each bin."""
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=theme.ink, lw=0.8)
        axes.errorbar(
            found.predicted, found.observed, found.error, fmt="o", ms=4, lw=1, color=theme.ours
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="observed")
        axes.set_title(f"{title}: ECE {found.ece:.3f}, p {found.p_value:.2g}")

    return chart(f"{title}: reliability, expected error {found.ece:.3f}", draw, SIZE_IN)


def pull_histogram(title: str, found: Pulls, n_bins: int = 30) -> Markup:
    """A histogram of pulls beside the standard normal density."""
    from scipy.stats import norm

    def draw(figure: Figure, theme: Theme) -> None:
        """The bins and the density."""
        axes = figure.subplots()
        edges = np.linspace(-4, 4, n_bins + 1).tolist()
        z = np.linspace(-4, 4, 200)
        axes.hist(np.clip(found.values, -4, 4), edges, density=True, color=theme.real)
        axes.plot(z, norm.pdf(z), color=theme.ours, lw=1.4)
        axes.set(xlabel="pull", ylabel="density")
        axes.set_title(f"{title}: mean {found.mean:.2f}, sd {found.sd:.2f}")

    return chart(f"{title}: pulls, sd {found.sd:.2f}", draw, SIZE_IN)


def p_value_table(found: TwoSample) -> Markup:
    """Statistics, p-values with their errors, and power, a row for each test."""
    rows = []
    for name, test in found.tests.items():
        p = f"{number(test.p_value)} ± {number(test.p_error)}"
        limit = number(test.quantiles[0.95])
        rows.append((name, number(test.statistic), limit, p, number(test.power)))
    power = "power"
    if found.alternative:
        power = f"power at {found.alternative}"
    return table(("test", "statistic", "null 95 %", "p-value", power), rows)
