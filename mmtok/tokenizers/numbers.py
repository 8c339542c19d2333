"""Numbers as conditions: a jet's pt, a speaker's age, the index of a class; one frame each.

A number becomes latents (1, D), its Fourier features, which a linear layer of the model reads; or a
code of one channel, whose embedding is learned: the index of a class, or of a bin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError, check_ranges, reading
from mmtok.io.files import atomic_write
from mmtok.io.numbers import as_number
from mmtok.io.signal_files import SignalFiles
from mmtok.io.tally import Tally
from mmtok.tokenizers import MODALITIES
from mmtok.tokenizers.base import (
    TokenizerConfig,
    checked_codes,
    checked_latents,
    fingerprint,
)
from mmtok.tokenizers.counting import CountingTokenizer

MOST_FREQUENCIES = 24  # beyond, float32 cannot tell neighbouring angles apart
MOST_CODES = 2**20


@dataclass(frozen=True)
class NumberConfig(TokenizerConfig):
    """A quantity with its unit and range; the modality's name is the recipe's own.

    tokenizers={"pt_gev": NumberConfig(unit="GeV", low=400, high=2000, scale="log")}.

    Attributes:
        unit: of the quantity, for people; "" where it has none.
        low: the least number; those below are clipped to it, and counted.
        high: the largest, likewise.
        scale: "linear"; or "log", where a factor matters, not a difference.
        n_frequencies: of the Fourier features, each twice the one before; the last has a period of
            2^(2 - n_frequencies) of the range.
        n_bins: instead, so many bins of equal width on the scale, each with a learned embedding.
        n_classes: instead, the numbers 0 to n_classes - 1, each with a learned embedding; others
            are refused, and low, high and scale are not used.
        modality: set by the recipe.
    """

    unit: str = ""
    low: float = 0.0
    high: float = 1.0
    scale: Literal["linear", "log"] = "linear"
    n_frequencies: int = 8
    n_bins: int = 0
    n_classes: int = 0
    modality: str = "number"  # type: ignore[misc]  # of every recipe its own

    def __post_init__(self) -> None:
        for name in ("low", "high"):  # 0 and 0.0 are one, in the fingerprint too
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.n_bins and self.n_classes:
            raise UserError("NumberConfig: n_bins and n_classes exclude each other; set one to 0")
        check_ranges(
            self,
            n_frequencies=(1, MOST_FREQUENCIES),
            n_bins=(0, MOST_CODES),
            n_classes=(0, MOST_CODES),
        )
        if not -math.inf < self.low < self.high < math.inf:
            raise UserError(
                f"NumberConfig: low is {self.low:g} and high {self.high:g}; low must be below high,"
                " both finite"
            )
        width = self.high / self.low if self.scale == "log" and self.low else self.high - self.low
        if not math.isfinite(width):
            raise UserError(
                f"NumberConfig: low is {self.low:g} and high {self.high:g}, too far apart for"
                " arithmetic; narrow them"
            )
        if self.scale not in ("linear", "log"):
            raise UserError(f"NumberConfig: scale is {self.scale!r}; it is linear or log")
        if self.scale == "log" and self.low <= 0:
            raise UserError(f"NumberConfig: low is {self.low:g}; on a log scale it is above 0")

    def named(self, modality: str) -> Self:
        """The same settings under a recipe's name.

        Raises UserError for the name of another kind of signal.
        """
        if modality in MODALITIES:
            raise UserError(
                f"tokenizers.{modality} is a NumberConfig, but {modality} is no number; name it by"
                " the quantity, such as pt_gev"
            )
        return replace(self, modality=modality)

    @property
    def is_input_only(self) -> bool:
        """Fourier features are read, never made."""
        return not (self.n_bins or self.n_classes)

    def signal_files(self) -> SignalFiles:
        """Text files of a number per line; none is a prompt, which gives numbers by themselves."""
        return SignalFiles((), ".txt", read_numbers, write_numbers, many=True, unit="numbers")

    def build(self) -> Number:
        """The tokenizer; nothing is learned."""
        return Number(self)

    def load(self, folder: Path) -> Number:
        """Open the tokenizer that was saved in `folder`."""
        return Number.load(folder)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """The range, with its unit."""
        if self.n_classes:
            return []
        unit = f" {self.unit}" if self.unit else ""
        return [f"{self.low:g} to {self.high:g}{unit}, {self.scale} scale"]

    def shares(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers (N,) within the range as shares of it, from 0 to 1."""
        if self.scale == "log":
            return np.log(numbers / self.low) / math.log(self.high / self.low)
        return (numbers - self.low) / (self.high - self.low)

    def numbers(self, shares: np.ndarray) -> np.ndarray:
        """The inverse of `shares`."""
        if self.scale == "log":
            return self.low * np.exp(shares * math.log(self.high / self.low))
        return self.low + shares * (self.high - self.low)


def read_numbers(path: Path, takes: Mapping[str, Any]) -> Iterator[float]:
    """The numbers of a text file, one per line."""
    with reading(path, "numbers"):
        lines = path.read_text("utf-8-sig").splitlines()
    for k, line in enumerate(lines, 1):
        yield as_number(line, f"{path}: line {k}")


def write_numbers(path: Path, numbers: Sequence[float], takes: Mapping[str, Any]) -> None:
    """Write one number per line, each so that it is read as the same."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{number!r}\n" for number in numbers), "utf-8")


class NumberCount:
    """How many numbers were clipped to the range; see `EncodingCount`."""

    def __init__(self, modality: str) -> None:
        self.tally = Tally(f"numbers of {modality}")

    def as_plain(self) -> Mapping[str, Any]:
        """The counts as JSON values."""
        return self.tally.as_plain()

    def merge_plain(self, plain: Mapping[str, Any]) -> None:
        """Add counts of numbers that come after these."""
        self.tally.merge(plain)

    def refuse(self) -> None:
        """Any share may be clipped."""

    def report(self) -> None:
        """Say how many were clipped, once."""
        self.tally.report()


class Number(CountingTokenizer):
    """A number <-> latents (1, 2 n_frequencies), or a code (1, 1).

    The features of a share v of the range, from 0 to 1, are those of Tancik et al. 2020, "Fourier
    features let networks learn high frequency functions in low dimensional domains", equation 5,

        gamma(v) = [a_1 cos(2 pi b_1 v), a_1 sin(2 pi b_1 v), ..., a_m cos(2 pi b_m v), ...],

    with a_j = 1 and octaves, b_j = 2^(j - 2), as in section 6.1 (sigma 2 per step). The first has
    half a period over the range, so it alone tells v. `decode` reads it; its error is that of
    float32, 1e-7 of the range. That of n_bins is half a bin, that of n_classes 0.
    """

    config_type = NumberConfig

    def __init__(self, config: NumberConfig) -> None:
        super().__init__(config)
        size = config.n_classes or config.n_bins
        sizes: dict[str, Any] = {"latent_size": 2 * config.n_frequencies}
        if size:
            sizes = {"levels": (size,)}
        self.signature = Signature(
            config.modality,
            frames=1,
            fingerprint=fingerprint("Number", asdict(config)),
            **sizes,
        )

    def encode_batch(self, signals: Sequence[Any]) -> list[Segment]:
        """Numbers, or texts that are numbers.

        Raises UserError for NaN, infinity, and words; and for what is no class.
        """
        c = self.config
        numbers = np.array([as_number(signal, c.modality) for signal in signals], np.float64)
        if c.n_classes:
            return [Segment(c.modality, codes=code) for code in self._classes(numbers)]
        shares = c.shares(self._clipped(numbers))
        if c.n_bins:
            codes = np.minimum((shares * c.n_bins).astype(np.int64), c.n_bins - 1)
            return [Segment(c.modality, codes=code) for code in codes[:, None, None]]
        angles = math.pi * shares[:, None] * 2.0 ** np.arange(c.n_frequencies)  # 2 pi b v
        features = np.stack([np.cos(angles), np.sin(angles)], 2).reshape(len(numbers), 1, -1)
        return [Segment(c.modality, latents=row) for row in features.astype(np.float32)]

    def _classes(self, numbers: np.ndarray) -> np.ndarray:
        """(N, 1, 1) codes. Raises UserError for what is no class."""
        c = self.config
        wrong = (numbers != np.round(numbers)) | (numbers < 0) | (numbers >= c.n_classes)
        if wrong.any():
            raise UserError(
                f"{c.modality}: {numbers[np.argmax(wrong)]:g} is no class; they are 0 to"
                f" {c.n_classes - 1} (n_classes of its NumberConfig)"
            )
        return numbers.astype(np.int64)[:, None, None]

    def _clipped(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers within the range; what lies outside is counted, or said where nobody counts."""
        c = self.config
        with self.count_of_call() as count:
            count.tally.count(len(numbers))
            for edge, side, outside in (
                (c.low, "below", numbers < c.low),
                (c.high, "above", numbers > c.high),
            ):
                if outside.any():
                    unit = f" {c.unit}" if c.unit else ""
                    what = f"clipped, being {side} {edge:g}{unit}; widen tokenizers.{c.modality}"
                    first = f"{numbers[np.argmax(outside)]:g}"
                    count.tally.add(what, first, int(outside.sum()))
        return numbers.clip(c.low, c.high)

    def decode_batch(self, segments: Sequence[Segment]) -> list[float]:
        """The numbers; of a bin its centre.

        Raises UserError for other frames.
        """
        c = self.config
        if c.n_classes:
            return [float(checked_codes(s, self.signature)[0, 0]) for s in segments]
        if c.n_bins:
            codes = [checked_codes(s, self.signature)[0, 0] for s in segments]
            shares = (np.array(codes, np.float64) + 0.5) / c.n_bins
        else:
            latents = [checked_latents(s, self.signature)[0, :2].astype(float) for s in segments]
            pairs = np.array(latents).reshape(-1, 2)
            shares = (np.arctan2(pairs[:, 1], pairs[:, 0]) / math.pi).clip(0, 1)
        return c.numbers(shares).tolist()

    def fidelity(self, signals: Sequence[Any]) -> dict[str, float]:
        """The largest error of the round trip, as a share of the range."""
        if not signals:
            return {}
        with self.counting(quiet=True):
            back = np.array(self.decode_batch(self.encode_batch(signals)))
        c = self.config
        numbers = np.array([as_number(signal, c.modality) for signal in signals])
        if c.n_classes:
            return {"max_error": float(np.abs(back - numbers).max())}
        errors = np.abs(c.shares(back) - c.shares(numbers.clip(c.low, c.high)))
        is_outside = (numbers < c.low) | (numbers > c.high)
        return {"max_error": float(errors.max()), "clipped_share": float(is_outside.mean())}

    def new_count(self) -> NumberCount:
        """Of numbers that are clipped."""
        return NumberCount(self.config.modality)
