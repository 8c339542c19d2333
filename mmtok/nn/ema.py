"""A moving average of weights, for sampling: what denoisers are usually judged by, and what a run
keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Decay = Callable[[int], float]
"""The share of the average that stays at the t-th update, t = 1, 2, ..."""


def exponential(decay: float = 0.999) -> Decay:
    """A constant decay, but at most t / (t + 10): the average is never much older than the
    training, so that early steps are forgotten early.
    """
    if not 0 <= decay < 1:
        raise ValueError(
            f"the decay of a moving average must be at least 0 and below 1, got {decay}"
        )
    return lambda t: min(decay, t / (t + 10))


def power(gamma: float = 6.94) -> Decay:
    """Weights that grow as t^gamma, so that the average spans the same share of a training of any
    length.

    Karras et al. 2024 (arXiv 2312.02696), eq. 2: beta = (1 - 1 / t)^(gamma + 1). 6.94 is a relative
    width of 0.10.
    """
    if gamma < 0:
        raise ValueError(f"the power of a moving average must not be negative, got {gamma}")
    return lambda t: (1 - 1 / t) ** (gamma + 1)


@torch.no_grad()
def ema_update(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """Take weights into their average, by name and in place: once after every step."""
    torch._foreach_lerp_(
        list(average.values()), [weights[name].detach() for name in average], 1 - decay
    )
