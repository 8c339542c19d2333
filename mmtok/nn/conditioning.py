"""Conditions of a denoiser: the noise level, and a class, a vector or the null in its place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Frequencies in radians per unit. c_noise spans a thousand units in some noise schedules and about
# one unit in others.
MIN_FREQUENCY = 1e-3
MAX_FREQUENCY = 30.0


@dataclass(frozen=True)
class Labels:
    """The condition is a class: (B,) integers in [0, n_classes)."""

    droppable = True

    n_classes: int

    def layer(self, width: int) -> nn.Module:
        """What makes conditions vectors: (B,) -> (B, width)."""
        embedding = nn.Embedding(self.n_classes, width)
        nn.init.normal_(embedding.weight, std=0.1)
        return embedding


@dataclass(frozen=True)
class Vectors:
    """The condition is a vector, e.g. a text's hidden state: (B, size) floats.

    droppable: False where a missing condition has a vector of its own, so that the network needs
    no null.
    """

    size: int
    droppable: bool = True

    def layer(self, width: int) -> nn.Module:
        """What makes conditions vectors: (B, size) -> (B, width)."""
        return nn.Linear(self.size, width)


ConditionConfig = Labels | Vectors


def fourier_features(c: Tensor, n_features: int) -> Tensor:
    """Cosines and sines of c (B,) at n_features / 2 log-spaced frequencies: (B, n_features).

    The frequencies are fixed and not too high, as solvers step along the denoiser's derivative with
    respect to the noise level. Random ones (Tancik et al. 2020; Karras et al. 2022 draw them with a
    deviation of 16 turns) would make it rough.
    """
    ratio = torch.linspace(0, 1, n_features // 2, dtype=c.dtype, device=c.device)
    angle = c[:, None] * (MIN_FREQUENCY * (MAX_FREQUENCY / MIN_FREQUENCY) ** ratio)
    return torch.cat([angle.cos(), angle.sin()], 1)


class TimestepEmbedding(nn.Module):
    """A number per row, of any scale up to some thousands, as a vector: (B,) -> (B, M)."""

    n_features = 64

    def __init__(self, width: int):
        super().__init__()
        self.enter = nn.Linear(self.n_features, width)
        self.out = nn.Linear(width, width)

    def forward(self, c: Tensor) -> Tensor:
        """(B,) -> (B, M)."""
        if c.dtype != torch.float64:
            c = c.float()  # angles of 1e4 need float32
        features = fourier_features(c, self.n_features)
        return self.out(F.silu(self.enter(features.to(self.enter.weight.dtype))))


class ConditionEmbedding(nn.Module):
    """A condition as a vector (B, M), or the learned null where a row has none."""

    def __init__(self, config: ConditionConfig, width: int):
        super().__init__()
        self.null: nn.Parameter | None = None
        if config.droppable:
            self.null = nn.Parameter(torch.zeros(width))
        self.read = config.layer(width)

    def forward(self, condition: Tensor, dropped: Tensor | None) -> Tensor:
        """Conditions (B,) or (B, size) -> (B, M). dropped (B,) bool: rows that get the null."""
        embedded = self.read(condition)
        if dropped is None or self.null is None:
            return embedded
        return torch.where(dropped[:, None], self.null.to(embedded.dtype), embedded)


class Conditioning(nn.Module):
    """Noise level and condition as one vector (B, M), by which every layer is modulated.

    condition: None makes a network without one. A network with one reads a missing condition as its
    null. It learns what classifier-free guidance needs when rows are `dropped` in training.
    """

    def __init__(self, width: int, condition: ConditionConfig | None):
        super().__init__()
        self.timestep = TimestepEmbedding(width)
        self.condition = ConditionEmbedding(condition, width) if condition else None

    def forward(self, c_noise: Tensor, condition: Tensor | None, dropped: Tensor | None) -> Tensor:
        """Embed the noise level and the condition -> (B, M).

        c_noise (B,); condition (B,) labels, (B, size) vectors or None; dropped (B,) bool: rows
        whose condition is hidden. Raises ValueError for a condition that the network was not built
        for, and for a missing one where it has no null.
        """
        embedded = self.timestep(c_noise)
        if self.condition is None:
            if condition is not None or dropped is not None:
                raise ValueError(
                    "this denoiser was built without a condition and cannot be given or denied one"
                )
            return embedded
        if self.condition.null is None and (condition is None or dropped is not None):
            raise ValueError(
                "this denoiser always has a condition: it was built without a null in its place"
            )
        if condition is None:
            return embedded + self.condition.null
        return embedded + self.condition(condition, dropped)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift x (B, ..., M) by its row's shift and scale (B, M)."""
    middle = (slice(None), *[None] * (x.dim() - 2))
    return x * (1 + scale[middle]) + shift[middle]


def zero_module(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Set a layer's weight and bias to 0, so that its branch adds nothing before training."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
