"""What a denoiser is told beside its state: the noise level, and a class or a vector, or that there
is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOWEST, FASTEST = (
    1e-3,
    30.0,
)  # radians per unit: c_noise spans a thousand steps in some columns and about one unit in others


@dataclass(frozen=True)
class Labels:
    """The condition is a class: (B,) integers in [0, n_classes)."""

    n_classes: int


@dataclass(frozen=True)
class Vectors:
    """The condition is a vector, e.g. a text's hidden state: (B, size) floats.

    droppable: False where what is without a condition has a vector of its own, so that the network
    needs no null.
    """

    size: int
    droppable: bool = True


ConditionConfig = Labels | Vectors


def fourier_features(c: Tensor, n_features: int) -> Tensor:
    """Cosines and sines of c (B,) at n_features / 2 frequencies, evenly spaced in their logarithm:
    (B, n_features).

    Fixed and not too fast, as the derivative of a denoiser along the noise level is what solvers
    step on; random frequencies (Tancik et al. 2020; Karras et al. 2022 draw them with a deviation
    of 16 turns) would make it rough.
    """
    ratio = torch.linspace(0, 1, n_features // 2, dtype=c.dtype, device=c.device)
    angle = c[:, None] * (SLOWEST * (FASTEST / SLOWEST) ** ratio)
    return torch.cat([angle.cos(), angle.sin()], 1)


class TimestepEmbedding(nn.Module):
    """A number per row, of any scale up to some thousands, as a vector: (B,) -> (B, M)."""

    n_features = 64

    def __init__(self, width: int):
        super().__init__()
        self.enter = nn.Linear(self.n_features, width)
        self.out = nn.Linear(width, width)

    def forward(self, c: Tensor) -> Tensor:
        features = fourier_features(
            c if c.dtype == torch.float64 else c.float(), self.n_features
        )  # angles of 1e4 need float32
        return self.out(F.silu(self.enter(features.to(self.enter.weight.dtype))))


class ConditionEmbedding(nn.Module):
    """A condition as a vector (B, M), or the learned null in its place where a row has none."""

    def __init__(self, config: ConditionConfig, width: int):
        super().__init__()
        self.null = (
            nn.Parameter(torch.zeros(width))
            if isinstance(config, Labels) or config.droppable
            else None
        )
        if isinstance(config, Labels):
            self.read = nn.Embedding(config.n_classes, width)
            nn.init.normal_(self.read.weight, std=0.1)
        else:
            self.read = nn.Linear(config.size, width)

    def forward(self, condition: Tensor, dropped: Tensor | None) -> Tensor:
        read = self.read(condition)
        return (
            read
            if dropped is None
            else torch.where(dropped[:, None], self.null.to(read.dtype), read)
        )


class Conditioning(nn.Module):
    """Noise level and condition in one vector (B, M), which every layer of a denoiser is modulate
    by.

    condition: None makes a network without one. A network with one reads a missing condition as its
    null, and so learns what guidance needs when rows are `dropped` in training.
    """

    def __init__(self, width: int, condition: ConditionConfig | None):
        super().__init__()
        self.level = TimestepEmbedding(width)
        self.condition = ConditionEmbedding(condition, width) if condition else None

    def forward(self, c_noise: Tensor, condition: Tensor | None, dropped: Tensor | None) -> Tensor:
        """c_noise (B,); condition (B,) labels, (B, size) vectors or None; dropped (B,) bool, rows
        whose condition is hidden -> (B, M).
        """
        if self.condition is None:
            if condition is not None or dropped is not None:
                raise ValueError(
                    "this denoiser was built without a condition and cannot be given or denied one"
                )
            return self.level(c_noise)
        if self.condition.null is None and (condition is None or dropped is not None):
            raise ValueError(
                "this denoiser always has a condition: it was built without a null in its place"
            )
        if condition is None:
            return self.level(c_noise) + self.condition.null
        return self.level(c_noise) + self.condition(condition, dropped)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """X (B, ..., M) scaled and shifted by its row: shift, scale (B, M)."""
    middle = (slice(None), *[None] * (x.dim() - 2))
    return x * (1 + scale[middle]) + shift[middle]


def zero_module(layer: nn.Module) -> nn.Module:
    """The layer with weight and bias 0: what it leads to is silent until the first steps of
    training.
    """
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
