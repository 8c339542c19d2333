"""Estimates in the words of the benchmark of speech."""

from __future__ import annotations

import math

import numpy as np

from mmtok.metrics.intervals import Estimate


def value_text(estimate: Estimate | None, digits: int) -> str:
    """A figure and half its interval; of how many clips, where some have none."""
    if estimate is None or not np.isfinite(estimate.value):
        return "-"
    text = f"{estimate.value:.{digits}f}"
    if np.isfinite(estimate.low):
        text += f" +- {(estimate.high - estimate.low) / 2:.{digits}f}"
    return text


def span(estimate: Estimate) -> str:
    """The interval in words."""
    return f"{estimate.low:.3g} to {estimate.high:.3g}"


def as_json(estimate: Estimate) -> dict[str, float | None]:
    """For a file; null is what could not be measured."""
    return {key: x if math.isfinite(x) else None for key, x in estimate._asdict().items()}
