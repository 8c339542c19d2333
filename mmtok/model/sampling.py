"""How a frame is drawn from logits: temperature, the likeliest only, guidance; and what a drawn
segment is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.nn.device import sum_dtype
from mmtok.nn.inference_linear import WeightPrecision
from mmtok.nn.precision import resolve_precision

DRAWN_IN = ("auto", "float32", "bf16", "int8")
ROUNDED = (
    "bf16",
    "int8",
)  # asked for by name; a head that draws in steps refuses them, and "auto" leaves its weights as they are


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Temperature 0 is greedy; top_k 0 and top_p 1 are off; guidance 1 is off. Of latents, the
    temperature scales the noise.

    guidance   g mixes log p = null + g (given - null), Ho and Salimans 2022 eq. 6 with w = g - 1;
               needs condition dropout in training
    max_frames the most frames drawn for one open-ended segment (a fixed count is its own cap);
    reaching it is the stop reason "cap"
    precision  of the weights while drawing: "float32" as they are, "bf16" or "int8" rounded, for
               speed; "auto" is bf16 where this machine multiplies it faster, else float32. Scores
               are never rounded
    compiled   the decoder's step is compiled: faster by half and more after half a minute, for
               equal batches of equal caps
    steps      of a head that draws in steps (diffusion, codes in any order); 0: as many as the
               head's config says
    level      of a cascade: how noisy a picture is given to the stage above, from 0 to below 1;
               None: as each stage's config says
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

    def __post_init__(self):
        for name, fits, what in (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0, and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("guidance", math.isfinite(self.guidance), "finite"),
            ("max_frames", self.max_frames >= 1, "at least 1"),
            ("precision", self.precision in DRAWN_IN, f"one of {', '.join(DRAWN_IN)}"),
            ("steps", self.steps >= 0, "at least 0, which leaves them to the head"),
            (
                "aug_noise",
                self.aug_noise is None or 0 <= self.aug_noise < 1,
                "a share of noise, at least 0 and below 1",
            ),
        ):
            if not fits:
                raise UserError(f"sampling: {name} is {getattr(self, name)!r}; it must be {what}")
        if self.compiled and self.precision == "int8":
            raise UserError("sampling with int8 weights cannot be compiled; take bf16")


def weight_precision(asked: str, weight: Tensor) -> WeightPrecision:
    """What a decoder with such weights draws in, when this is asked for.

    Other weights than float32 stay as they are under "auto".
    """
    if asked == "int8":
        return "int8"
    if asked == "auto" and weight.dtype != torch.float32:
        return "float32"
    return resolve_precision(asked, weight.device)


@dataclass(frozen=True, eq=False)
class Sampled:
    """One drawn segment, the prompt's own frames included, and why it stopped: "end" or "cap".

    trajectory: what it was after some steps, where that was gathered (`mmtok.model.trajectory`):
    segments, and which frames (T,) were not there yet.

    The segment's info is empty, so that it decodes with the tokenizer's defaults: what a prompt's
    info says (a height, a count of samples) is true of the prompt's frames alone, and would cut off
    those drawn.
    """

    segment: Segment
    stop: str
    trajectory: tuple[tuple[Segment, np.ndarray], ...] = ()


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw one id per row of (n, K) logits; -inf never comes."""
    if sampling.temperature == 0:
        best, ids = logits.max(-1)
        return ids.masked_fill(
            best.isnan(), logits.shape[-1]
        )  # as `draw`: no id at all where there are no numbers
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    p = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = p.sort(-1, descending=True)
        beyond = (
            ordered.cumsum(-1) - ordered >= sampling.top_p
        )  # the id that crosses the threshold stays
        p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    return draw(p, generator)


def draw(p: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one id per row of (n, K) probabilities, by inverting their sums; in float64, so that the
    rarest come as often as they should.

    One random number per row, where torch.multinomial takes one per probability: nine tenths of a
    small model's step.
    """
    wide = sum_dtype(p.device)
    below = p.to(wide).cumsum(-1)
    u = torch.rand(
        len(p), 1, dtype=wide, device=p.device, generator=generator
    )  # below 1: what has p = 0 is never met
    return torch.searchsorted(below, u * below[:, -1:], right=True)[:, 0]


def mix_guidance(logits: list[Tensor], guidance: float) -> Tensor:
    """Join the logits of the stream with its condition and of the one without; the first alone when
    there is one.
    """
    if len(logits) == 1:
        return logits[0]
    given, null = (x.log_softmax(-1) for x in logits)
    return torch.where(given == float("-inf"), given, null + guidance * (given - null))
