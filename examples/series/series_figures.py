"""Likelihoods and forecasts of time series beside a Gaussian autoregressive process, VAR(p).

x_t = c + A_1 x_(t-1) + ... + A_p x_(t-p) + e_t with e_t ~ N(0, S), by least squares (Luetkepohl
2005, section 3.2). Letters: N windows, T times, C channels, L draws, H times ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from series_reader import SERIES

from mmtok.core.segment import Document
from mmtok.data.subset import random_subset
from mmtok.evaluation.task import TaskEvaluation
from mmtok.metrics.calibration import crps
from mmtok.metrics.intervals import mean_estimate, paired_difference
from mmtok.report.html import Markup, table, tag
from mmtok.report.samples import Sample
from mmtok.run.run import Run

ORDER = 4  # p
N_SCORED = 200  # windows
N_DRAWS = 50
AHEAD = 8  # times


@dataclass(frozen=True)
class Autoregression:
    """VAR(p): coefficients (1 + p C, C) of (1, x_(t-1), ..., x_(t-p)), and covariance (C, C)."""

    coefficients: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, windows: np.ndarray, order: int = ORDER) -> Autoregression:
        """By least squares of windows (N, T, C), each by itself."""
        rows = _lagged(windows, order).reshape(-1, 1 + order * windows.shape[2])
        targets = windows[:, order:].reshape(len(rows), -1)
        coefficients = np.linalg.lstsq(rows, targets, rcond=None)[0]
        errors = targets - rows @ coefficients
        return cls(coefficients, errors.T @ errors / len(errors))

    @property
    def order(self) -> int:
        """p."""
        return (len(self.coefficients) - 1) // len(self.covariance)

    def nats(self, windows: np.ndarray) -> np.ndarray:
        """-log of the density of windows (N, T, C) given their first p times: (N,)."""
        errors = windows[:, self.order :] - _lagged(windows, self.order) @ self.coefficients
        squares = np.einsum("ntc,cd,ntd->nt", errors, np.linalg.inv(self.covariance), errors)
        log_volume = np.linalg.slogdet(2 * np.pi * self.covariance)[1]
        return ((squares + log_volume) / 2).sum(1)

    def draw(self, begin: np.ndarray, n_ahead: int, seed: int) -> np.ndarray:
        """Continuations (N, n_ahead, C) of beginnings (N, T, C)."""
        rng = np.random.default_rng(seed)
        factor = np.linalg.cholesky(self.covariance)
        x = begin
        for _ in range(n_ahead):
            last = x[:, -self.order :]
            row = _lagged(np.concatenate([last, last[:, :1]], 1), self.order)[:, 0]
            noise = rng.normal(size=row.shape[:1] + factor.shape[:1]) @ factor.T
            x = np.concatenate([x, (row @ self.coefficients + noise)[:, None]], 1)
        return x[:, begin.shape[1] :]


def _lagged(windows: np.ndarray, order: int) -> np.ndarray:
    """Windows (N, T, C) -> (1, x_(t-1), ..., x_(t-p)) of every t >= p: (N, T - p, 1 + p C)."""
    n, length, _ = windows.shape
    past = [windows[:, order - lag : length - lag] for lag in range(1, order + 1)]
    return np.concatenate([np.ones((n, length - order, 1)), *past], 2)


def series_figures(task: TaskEvaluation) -> dict[str, Any]:
    """Likelihoods and forecasts of held-out windows, with 95 % intervals.

    - nats_per_frame given the first ORDER times, in the channels' units, and nats_per_frame_var of
      a VAR(ORDER) that was fitted to the training windows; nats_p of their difference. Of bins, the
      density is even within a bin.
    - crps of each channel, over N_DRAWS forecasts of the last AHEAD times, and crps_var; crps_p.
    """
    heldout = np.stack(random_subset(iter(_windows(task, "heldout")), N_SCORED, task.seed))
    baseline = Autoregression.fit(_windows(task, "train"))
    n_frames = heldout.shape[1] - ORDER
    nats = conditional_nats(task, heldout) / n_frames
    nats_var = baseline.nats(heldout) / n_frames
    figures: dict[str, Any] = mean_estimate(nats).named("nats_per_frame")
    figures |= mean_estimate(nats_var).named("nats_per_frame_var")
    figures["nats_p"] = paired_difference(nats, nats_var)[1]

    begin = np.repeat(heldout[:, :-AHEAD], N_DRAWS, 0)
    truth = heldout[:, -AHEAD:]
    ours = _scores(truth, forecast(task, begin))
    theirs = _scores(truth, baseline.draw(begin, AHEAD, task.seed))
    figures["crps"] = ours.mean(0).tolist()
    figures["crps_var"] = theirs.mean(0).tolist()
    pairs = zip(ours.T, theirs.T, strict=True)
    figures["crps_p"] = [paired_difference(a, b)[1] for a, b in pairs]
    return figures


def _scores(truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """CRPS (N, C) of draws (N L, H, C) of truths (N, H, C), the mean over the times ahead."""
    n, ahead, channels = truth.shape
    draws = drawn.reshape(n, N_DRAWS, ahead * channels)
    return crps(truth.reshape(n, -1), draws).reshape(truth.shape).mean(1)


def _windows(task: TaskEvaluation, split: str) -> np.ndarray:
    """(N, T, C)."""
    return np.stack([series for _, series in task.rows(split)])


def conditional_nats(task: TaskEvaluation, windows: np.ndarray) -> np.ndarray:
    """-log of the density of windows (N, T, C) given their first ORDER times: (N,).

    -log p of the whole, less that of its beginning.
    """
    tokenizer = task.target_tokenizer
    whole = tokenizer.encode_batch(list(windows))
    begun = tokenizer.encode_batch(list(windows[:, :ORDER]))
    scores = [
        task.run.score_documents([Document((segment,), (True,)) for segment in segments])
        for segments in (whole, begun)
    ]
    nats = np.array([[score.nats[0] for score in some] for some in scores])
    found = nats[0] - nats[1]
    if tokenizer.config.n_bins:
        found = found + (windows.shape[1] - ORDER) * np.log(tokenizer.bin_widths).sum()
    return found


def forecast(task: TaskEvaluation, begin: np.ndarray) -> np.ndarray:
    """Continuations (N, AHEAD, C) of beginnings (N, T, C), T a window less AHEAD."""
    run = task.run
    segments = task.target_tokenizer.encode_batch(list(begin))
    prompts = [run.prompt([], "series", segment) for segment in segments]
    drawn = task.decode(run.draw(prompts, run.sampling("series"), task.seed))
    return np.stack([values[-AHEAD:] for values in drawn])


def moments(parts: Sequence[np.ndarray]) -> list[str]:
    """Mean, deviation, and correlation of each time with the one before, of one channel (T,)."""
    values = np.concatenate(parts)
    before = np.concatenate([part[:-1] for part in parts])
    after = np.concatenate([part[1:] for part in parts])
    r = np.corrcoef(before, after)[0, 1]
    return [f"{x:.4g}" for x in (values.mean(), values.std(), r)]


def series_section(run: Run, prompts: dict[str, list[Sample]]) -> list[Markup]:
    """Moments of each channel of the samples."""
    channels = run.recipe.tokenizers["series"].channels
    rows = []
    for prompt, samples in prompts.items():
        read = [SERIES.read(sample.path, {"channels": channels}) for sample in samples]
        series = [values for many in read for values in many if len(values) > 2]
        for k, channel in enumerate(channels):
            if series:
                rows.append((prompt, channel, *moments([values[:, k] for values in series])))
    names = ("prompt", "channel", "mean", "deviation", "correlation of following times")
    return [tag("p", "Moments of samples, in the channels' units."), table(names, rows)]
