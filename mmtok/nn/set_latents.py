"""An autoencoder of sets of any size through T latents of D numbers, whatever their order.

A Perceiver (Jaegle et al. 2021, arXiv 2103.03206) reads the elements, which have no positions.
Trained slots, as many as the set has elements, read the latents and each other, and become
elements. One of the T D numbers is that of the elements, so that decoded sets have as many.

Letters: B sets, P elements of the largest, X numbers of an element, W hidden numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.autoencoder import Posterior
from mmtok.nn.perceiver import Perceiver, PerceiverConfig, PerceiverLayer

WIDENING = 2  # of feed-forwards, relative to the width
SLOT_SPREAD = 0.1  # of slots before training, which must differ
LOG_VARIANCES = (-30.0, 20.0)
LEAST_SPREAD = 1e-6  # of a number that says something


@dataclass(frozen=True)
class SetLatentsConfig:
    """Sizes of the networks.

    Attributes:
        n_numbers: X, of an element.
        n_summaries: numbers of the whole set that the encoder reads beside each element.
        most: elements that a set has at most.
        frames: T.
        latent_size: D; the first number of the first latent is the number of elements.
        width: W.
        blocks: of attention, in the encoder and in the decoder.
        n_heads: of attention.
    """

    n_numbers: int
    n_summaries: int
    most: int
    frames: int
    latent_size: int
    width: int
    blocks: int
    n_heads: int

    @property
    def n_inputs(self) -> int:
        """Numbers that the encoder reads of an element."""
        return self.n_numbers + self.n_summaries


class SetLatents(nn.Module):
    """Sets (B, P, X) <-> latents (B, T, D).

    Before training `standardise_numbers` is called, so that elements have mean 0 and variance 1
    inside; after it `standardise_over`, so that latents have.
    """

    number_shift: Tensor
    number_scale: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, config: SetLatentsConfig):
        super().__init__()
        c = config
        self.config = c
        n_latents = c.frames * c.latent_size
        perceiver = PerceiverConfig(c.frames, c.blocks, c.n_heads, WIDENING, positions=False)
        self.stem = nn.Linear(c.n_inputs, c.width)
        self.mix = self._layer()
        self.read = Perceiver(perceiver, c.width, c.width)
        self.norm = nn.LayerNorm(c.width)
        self.to_latents = nn.Linear(c.width, 2 * c.latent_size)
        self.from_latents = nn.Linear(n_latents, c.frames * c.width)
        self.slots = nn.Parameter(torch.randn(c.most, c.width) * SLOT_SPREAD)
        self.crosses = nn.ModuleList([self._layer(c.width) for _ in range(c.blocks)])
        self.mixes = nn.ModuleList([self._layer() for _ in range(c.blocks)])
        self.out_norm = nn.LayerNorm(c.width)
        self.out = nn.Linear(c.width, c.n_numbers)
        self.register_buffer("number_shift", torch.zeros(c.n_inputs))
        self.register_buffer("number_scale", torch.ones(c.n_inputs))
        self.register_buffer("shift", torch.zeros(c.frames, c.latent_size))
        self.register_buffer("scale", torch.ones(c.frames, c.latent_size))

    def _layer(self, input_width: int | None = None) -> PerceiverLayer:
        return PerceiverLayer(self.config.width, self.config.n_heads, WIDENING, input_width)

    # ---- what training uses

    def posterior(self, x: Tensor, summaries: Tensor, mask: Tensor) -> Posterior:
        """q(z | set), (B, T, D), of elements (B, P, X) and numbers of the sets (B, n_summaries).

        mask (B, P) bool: where elements are, at least one of each set.
        """
        inputs = torch.cat([x, summaries[:, None].expand(-1, x.shape[1], -1)], 2)
        inputs = (inputs - self.number_shift) / self.number_scale
        y = F.gelu(self.stem(inputs.masked_fill(~mask[..., None], 0)))
        y = self.read(self.mix(y, mask=mask), mask)
        mean, log_variance = self.to_latents(self.norm(y)).chunk(2, -1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCES))

    def with_count(self, z: Tensor, mask: Tensor) -> Tensor:
        """Latents z (B, T, D) with log(1 + N) of the sets as their first number."""
        count = mask.sum(1, keepdim=True).to(z.dtype).log1p()
        return torch.cat([count, z.flatten(1)[:, 1:]], 1).view_as(z)

    def elements(self, z: Tensor, mask: Tensor) -> Tensor:
        """Latents z (B, T, D), with the number in them, -> elements (B, P, X), P as in mask."""
        read = self.from_latents(z.flatten(1)).unflatten(1, (self.config.frames, -1))
        y = self.slots[: mask.shape[1]].expand(len(z), -1, -1)
        for cross, mix in zip(self.crosses, self.mixes, strict=True):
            y = mix(cross(y, read), mask=mask)
        n = self.config.n_numbers
        return self.out(self.out_norm(y)) * self.number_scale[:n] + self.number_shift[:n]

    @torch.no_grad()
    def standardise_numbers(self, x: Tensor, summaries: Tensor) -> None:
        """Set the means and spreads of elements (N, X) and of summaries (B, n_summaries)."""
        parts = (x.double(), summaries.double())
        spread = torch.cat([part.std(0, correction=0) for part in parts])
        self.number_shift.copy_(torch.cat([part.mean(0) for part in parts]))
        self.number_scale.copy_(torch.where(spread > LEAST_SPREAD, spread, 1.0))

    @torch.no_grad()
    def standardise_over(self, z: Tensor) -> None:
        """Set shift and scale so that these latents (B, T, D) get mean 0 and variance 1."""
        spread = z.double().std(0, correction=0)
        self.shift.copy_(z.double().mean(0))
        self.scale.copy_(torch.where(spread > LEAST_SPREAD, spread, 1.0))

    # ---- what a trained network is for

    def latents(self, x: Tensor, summaries: Tensor, mask: Tensor) -> Tensor:
        """Sets, as for `posterior`, -> standardised latents (B, T, D)."""
        z = self.with_count(self.posterior(x, summaries, mask).mean, mask)
        return (z - self.shift) / self.scale

    def latents_of_nothing(self) -> Tensor:
        """Standardised latents (T, D) of a set without elements: the mean, but for the number."""
        latents = torch.zeros_like(self.shift)
        latents[0, 0] = -self.shift[0, 0] / self.scale[0, 0]
        return latents

    def counts(self, latents: Tensor) -> Tensor:
        """The numbers of elements (B,) int64 that standardised latents (B, T, D) say."""
        log_count = latents[:, 0, 0] * self.scale[0, 0] + self.shift[0, 0]
        return log_count.clamp(0, math.log1p(self.config.most)).expm1().round().long()

    def sets(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Standardised latents (B, T, D) -> elements (B, P, X); mask (B, P) as `counts` says."""
        return self.elements(latents * self.scale + self.shift, mask)
