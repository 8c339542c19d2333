"""A moving average of a module's weights, for sampling: what denoisers are usually judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Decay = Callable[[int], float]
"""The share of the average that stays at the t-th update, t = 1, 2, ..."""


def exponential(decay: float = 0.999) -> Decay:
    """A constant decay, but at most (t - 1) / (t + 8): the average is never older than the training, and its first value is the weights."""
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of a moving average must be at least 0 and below 1, got {decay}")
    return lambda t: min(decay, (t - 1) / (t + 8))


def power(gamma: float = 6.94) -> Decay:
    """Weights that grow as t^gamma, so that the average spans the same share of a training of any length.

    Karras et al. 2024 (arXiv 2312.02696), eq. 2: beta = (1 - 1 / t)^(gamma + 1). 6.94 is a relative width of 0.10.
    """
    if gamma < 0:
        raise ValueError(f"the power of a moving average must not be negative, got {gamma}")
    return lambda t: (1 - 1 / t) ** (gamma + 1)


class MovingAverage:
    """Averages the parameters of one module, by name; buffers are the module's own business."""

    def __init__(self, module: nn.Module, decay: Decay):
        self.decay, self.updates = decay, 0
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's weights as they are now: once after every step."""
        self.updates += 1
        now = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.weights.values()), [now[name].detach() for name in self.weights], 1 - self.decay(self.updates))

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights for good."""
        for name, p in module.named_parameters():
            p.copy_(self.weights[name])

    @contextmanager
    def within(self, module: nn.Module) -> Iterator[None]:
        """The module has the averaged weights inside the `with`, and its own again after it."""
        own = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in module.named_parameters():
                    p.copy_(own[name])
