"""Exponential moving averages (EMA) of weights.

Denoisers are usually judged by their averaged weights, and a run keeps the averaged ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Decay = Callable[[int], float]
"""The share of the average that is kept at the t-th update, t = 1, 2, ..."""


def exponential(decay: float = 0.999) -> Decay:
    """A constant decay, but at most t / (t + 10), so that the first steps are soon forgotten."""
    if not 0 <= decay < 1:
        raise ValueError(
            f"the decay of a moving average must be at least 0 and below 1, got {decay}"
        )

    def decay_at(t: int) -> float:
        return min(decay, t / (t + 10))

    return decay_at


def power(gamma: float = 6.94) -> Decay:
    """Step t has weight t^gamma: the average spans the same share of a training of any length.

    Karras et al. 2024 (arXiv 2312.02696), eq. 2: beta = (1 - 1 / t)^(gamma + 1). 6.94 is a relative
    width of 0.10.
    """
    if gamma < 0:
        raise ValueError(f"the power of a moving average must not be negative, got {gamma}")

    def decay_at(t: int) -> float:
        return (1 - 1 / t) ** (gamma + 1)

    return decay_at


@torch.no_grad()
def ema_update(ema: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """Update the averages in place, by name: once after every step."""
    new = [weights[name].detach() for name in ema]
    torch._foreach_lerp_(list(ema.values()), new, 1 - decay)
