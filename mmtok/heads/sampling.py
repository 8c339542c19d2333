"""Sampling settings, and how they turn logits into a drawn id."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmtok.diffusion.guidance import guided_logits
from mmtok.diffusion.random import RowGenerators, drawn, inverse_cdf
from mmtok.errors import UserError
from mmtok.nn.device import sum_dtype

PRECISIONS = ("auto", "float32", "bf16", "int8")
ROUNDED = ("bf16", "int8")
LOGIT_SETTINGS = frozenset({"top_k", "top_p", "precision", "compiled"})
"""The special settings of what is drawn from logits: ids of the stream, and codes of channels."""
ROW_SETTINGS = frozenset({"n_rows", "n_columns"})
"""Those of codes in rows, too."""

REFUSALS = {  # setting -> why a modality that does not know it refuses it
    "aug_noise": "{modality} is not drawn by a cascade; leave out aug_noise",
    "top_k": "{modality}: its head knows no top_k or top_p; use the temperature",
    "top_p": "{modality}: its head knows no top_k or top_p; use the temperature",
    "precision": (
        "{modality}: its head cannot be compiled or rounded; leave out compiled and precision"
    ),
    "compiled": (
        "{modality}: its head cannot be compiled or rounded; leave out compiled and precision"
    ),
    "steps": "{modality} is drawn code by code, not in steps; leave out steps",
    "n_rows": "{modality}: its tokenizer takes one size only; leave out rows",
    "n_columns": "{modality}: its tokenizer takes one size only; leave out columns",
}


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Attributes:
        temperature: 0 is greedy; of latents it scales the noise.
        top_k: draw among the k likeliest ids only; 0 is off.
        top_p: draw among the likeliest ids that together have this probability; 1 is off.
        guidance: g mixes log p = null + g (given - null), Ho and Salimans 2022 eq. 6 with w = g -
            1; 1 is off. Needs condition dropout in training.
        max_frames: the most frames drawn for one open-ended segment (a fixed count is its own cap);
            reaching it is the stop reason "cap".
        precision: of the weights while drawing: "float32" as they are, "bf16" or "int8" rounded,
            for speed; "auto" is bf16 where this machine multiplies it faster, else float32. Scores
            never use rounded weights.
        compiled: compile the decoder's step: 1.5 times as fast or more after half a minute, for
            equal batches of equal caps.
        steps: of heads that draw in steps (diffusion); 0: as many as the head's config says.
        aug_noise: of a cascade: the share of noise in the picture that the next stage reads, from 0
            to below 1; None: as each stage's config says.
        n_rows: of pictures of any size: how many rows of patches; 0: as many as the model draws.
        n_columns: likewise how many patches a row has.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    max_frames: int = 512
    precision: Literal["auto", "float32", "bf16", "int8"] = "auto"
    compiled: bool = False
    steps: int = 0
    aug_noise: float | None = None
    n_rows: int = 0
    n_columns: int = 0

    def __post_init__(self) -> None:
        share = self.aug_noise is None or 0 <= self.aug_noise < 1
        for name, fits, what in (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0, and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("guidance", math.isfinite(self.guidance), "finite"),
            ("max_frames", self.max_frames >= 1, "at least 1"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            ("steps", self.steps >= 0, "at least 0, which leaves them to the head"),
            ("aug_noise", share, "a share of noise, at least 0 and below 1"),
            ("n_rows", self.n_rows >= 0, "at least 0, which leaves them to the model"),
            ("n_columns", self.n_columns >= 0, "at least 0, which leaves them to the model"),
        ):
            if not fits:
                raise UserError(f"sampling: {name} is {getattr(self, name)!r}; it must be {what}")
        if self.compiled and self.precision == "int8":
            raise UserError("sampling with int8 weights cannot be compiled; take bf16")
        n_frames = max(1, self.n_rows) * (self.n_columns + 1) + 1
        if self.n_columns and n_frames > self.max_frames:
            raise UserError(
                f"sampling: {max(1, self.n_rows)} rows of {self.n_columns} columns take {n_frames}"
                f" frames, more than max_frames {self.max_frames}; raise it"
            )

    def special_settings(self) -> list[str]:
        """The settings in use that not every head knows, in the order of `REFUSALS`."""
        in_use = {
            "aug_noise": self.aug_noise is not None,
            "top_k": self.top_k > 0,
            "top_p": self.top_p < 1,
            "precision": self.precision in ROUNDED,
            "compiled": self.compiled,
            "steps": self.steps > 0,
            "n_rows": self.n_rows > 0,
            "n_columns": self.n_columns > 0,
        }
        return [name for name in REFUSALS if in_use[name]]


def check_settings(sampling: Sampling, known: Collection[str], modality: str) -> None:
    """Raise UserError for a special setting in use that is not among the known ones."""
    for name in sampling.special_settings():
        if name not in known:
            raise UserError(REFUSALS[name].format(modality=modality))


def mix_guidance(logits: Sequence[Tensor], guidance: float) -> Tensor:
    """Join the logits with the condition and those without it; a single one is returned as is."""
    if len(logits) == 1:
        return logits[0]
    return guided_logits(logits[0], logits[1], guidance)


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw one id per row of logits (n, K) -> (n,).

    Ids of logit -inf are never drawn. Rows with NaN give K, which is no id.
    """
    if sampling.temperature == 0:
        best, ids = logits.max(-1)
        return ids.masked_fill(best.isnan(), logits.shape[-1])
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    p = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = p.sort(-1, descending=True)
        # the id that crosses the threshold stays
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    return draw(p, generator)


def draw(p: Tensor, generator: torch.Generator | RowGenerators) -> Tensor:
    """Draw one id per row of probabilities (n, K) -> (n,), by inverting their cumulated sums.

    The sums are float64, so that rare ids come as often as they should. It takes one random number
    per row; torch.multinomial takes one per probability, nine tenths of a small model's step.
    """
    dtype = sum_dtype(p.device)
    u = drawn(torch.rand, (len(p),), p, generator, dtype)
    return inverse_cdf(p.to(dtype), u)
