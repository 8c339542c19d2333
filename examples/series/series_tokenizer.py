"""Time series of several channels, as standardised numbers or in bins of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from series_figures import series_figures, series_section
from series_reader import SERIES

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io.files import read_tensors, write_tensors
from mmtok.io.tally import Tally
from mmtok.tokenizers.base import (
    BatchTokenizer,
    TokenizerConfig,
    checked_codes,
    checked_latents,
    fingerprint,
    load_config,
    write_config,
)

LEARNED = "standard.safetensors"


@dataclass(frozen=True)
class SeriesConfig(TokenizerConfig):
    """Series (T, C) of channels with units; `fit` learns each channel's mean and deviation.

    Attributes:
        channels: names of the columns, with their units: "temperature [degC]".
        n_bins: 0: a frame is C numbers, which `Regression` predicts with a density in these units.
            Else each channel is in so many equal bins over mean -+ n_deviations; what lies outside
            is in the outermost ones, and counted.
        n_deviations: half the range of the bins, in standard deviations.
        window: rows of a whole segment. A shorter one is a beginning, which goes on.
    """

    modality: ClassVar[str] = "series"
    learns: ClassVar[bool] = True

    channels: tuple[str, ...] = ()
    n_bins: int = 0
    n_deviations: float = 5.0
    window: int = 64

    def __post_init__(self) -> None:
        wrong = not self.channels or self.n_bins < 0 or self.n_bins == 1
        if wrong or self.n_deviations <= 0 or self.window < 2:
            raise UserError(
                "SeriesConfig: channels must name at least one column, n_bins be 0 or at least 2,"
                " n_deviations be above 0 and window be at least 2"
            )

    @property
    def takes(self) -> dict[str, Any]:
        """What its files must hold."""
        return {"channels": self.channels}

    def signature(self) -> Signature:
        """Without the scales and the fingerprint, which are of what was learned."""
        if self.n_bins:
            levels = (self.n_bins,) * len(self.channels)
            return Signature("series", levels=levels, frames=self.window)
        return Signature("series", latent_size=len(self.channels), frames=self.window)

    def fit(self, signals: Sequence[np.ndarray]) -> Series:
        """Learn what standardises each channel."""
        rows = np.concatenate([as_series(signal, self.channels) for signal in signals])
        scale = rows.std(0)
        constant = [self.channels[k] for k in np.flatnonzero(scale == 0)]
        if constant:
            raise UserError(f"series: {constant[0]} never changes; leave the channel out")
        return Series(self, rows.mean(0), scale)

    def load(self, folder: Path) -> Series:
        """Open the tokenizer that was saved in `folder`."""
        return Series.load(folder)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Its channels."""
        return [", ".join(self.channels)]

    def task_figures(self):
        """Likelihood and forecasts, beside a Gaussian autoregressive process."""
        return {("nothing", "series"): series_figures}

    def report_section(self):
        """Moments of samples."""
        return series_section

    def signal_files(self):
        """Tables named NAME.series.csv."""
        return SERIES


def as_series(signal: Any, channels: Sequence[str]) -> np.ndarray:
    """A series as (T, C) float64. Raises UserError for another shape, and for NaN or infinity."""
    values = np.asarray(signal, float)
    if values.ndim != 2 or values.shape[1] != len(channels) or not np.isfinite(values).all():
        raise UserError(
            f"series: expected finite numbers (T, {len(channels)}), one column for each of"
            f" {', '.join(channels)}; got {values.shape}"
        )
    return values


class Series(BatchTokenizer):
    """(T, C) numbers <-> latents (T, C), or codes (T, C) of bins.

    The round trip's error is that of float32, or at most half a bin within the bins' range. Series
    go on, so a segment has no end of its own: it is a window, or truncated before.
    """

    config_type = SeriesConfig

    def __init__(self, config: SeriesConfig, mean: np.ndarray, scale: np.ndarray) -> None:
        super().__init__(config)
        self.mean = mean
        self.scale = scale
        known = asdict(config.signature())
        if not config.n_bins:
            known["scales"] = tuple(scale.tolist())
        learned = (mean.tobytes(), scale.tobytes())
        known["fingerprint"] = fingerprint("Series", asdict(config), *learned)
        self.signature = Signature(**known)

    @property
    def bin_widths(self) -> np.ndarray:
        """(C,) in the channels' units."""
        return 2 * self.config.n_deviations * self.scale / self.config.n_bins

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Series (T, C) in the channels' units -> segments."""
        rows = [self._window(signal) for signal in signals]
        standard = [(row - self.mean) / self.scale for row in rows]
        if not self.config.n_bins:
            return [
                Segment("series", latents=z.astype(np.float32), truncated=self._goes_on(z))
                for z in standard
            ]
        with Tally("series") as tally:
            tally.count(len(standard))
            return [self._binned(z, f"series {i}", tally) for i, z in enumerate(standard)]

    def _binned(self, z: np.ndarray, name: str, tally: Tally) -> Segment:
        """Standardised values (T, C) in bins."""
        width = 2 * self.config.n_deviations / self.config.n_bins
        bins = np.floor((z + self.config.n_deviations) / width).astype(np.int32)
        codes = bins.clip(0, self.config.n_bins - 1)
        if (codes != bins).any():
            tally.add("clipped: values lie outside the bins", name)
        return Segment("series", codes=codes, truncated=self._goes_on(z))

    def _window(self, signal: np.ndarray) -> np.ndarray:
        """A series (T, C) of at most a window. Raises UserError for a longer one."""
        values = as_series(signal, self.config.channels)
        if len(values) > self.config.window:
            raise UserError(
                f"series: {len(values)} rows, and a window has {self.config.window}; cut it"
                " (SeriesFile does), or set tokenizers.series.window"
            )
        return values

    def _goes_on(self, values: np.ndarray) -> bool:
        return len(values) < self.config.window

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> series (T, C) in the channels' units; of bins their centres."""
        if not self.config.n_bins:
            standard = [checked_latents(s, self.signature).astype(float) for s in segments]
            return [z * self.scale + self.mean for z in standard]
        low = self.mean - self.config.n_deviations * self.scale
        codes = [checked_codes(s, self.signature) for s in segments]
        return [low + (c + 0.5) * self.bin_widths for c in codes]

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """The largest error of the round trip, in standard deviations of its channel."""
        pairs = zip(signals, self.decode_batch(self.encode_batch(signals)), strict=True)
        return {"max_error": max(float(np.abs((a - b) / self.scale).max()) for a, b in pairs)}

    def save(self, folder: Path) -> None:
        """Write the config and what was learned."""
        learned = {"mean": torch.from_numpy(self.mean), "scale": torch.from_numpy(self.scale)}
        write_tensors(Path(folder) / LEARNED, learned)
        write_config(Path(folder), "Series", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Series:
        """Open what `save` wrote. Raises UserError for what cannot be a mean and deviations."""
        config = load_config(folder, "Series", SeriesConfig)
        tensors = read_tensors(Path(folder) / LEARNED)
        found = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        shapes = {name: array.shape for name, array in found.items()}
        if shapes != dict.fromkeys(("mean", "scale"), (len(config.channels),)):
            raise UserError(f"{folder}: holds no mean and scale of {len(config.channels)} channels")
        return cls(config, found["mean"], found["scale"])
