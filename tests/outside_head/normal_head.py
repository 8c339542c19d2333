"""A head from outside the package: each latent a normal distribution, cut into cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmtok.core.segment import Signature
from mmtok.diffusion.guidance import guide
from mmtok.diffusion.likelihood import Bins
from mmtok.heads.base import Callback, Head, HeadConfig, Known
from mmtok.heads.sampling import Sampling


@dataclass(frozen=True)
class Normal(HeadConfig):
    """p(value) is the mass of N(mean, std^2) in its cell. hidden: width of the network."""

    frames = "discrete latents"

    hidden: int = 32

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        return signature.cells > 0

    def build(self, width: int, signature: Signature) -> NormalHead:
        return NormalHead(self, width, signature)


class NormalHead(Head):
    """Frames (N, D), one for each hidden state: exact, and drawn in one step."""

    def __init__(self, config: Normal, width: int, signature: Signature):
        super().__init__(config, signature)
        self.bins = Bins(signature.cells)
        self.network = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, 2 * signature.latent_size),
        )

    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        return -self.log_prob(h, y)

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        mean, log_std = self.network(h).double().chunk(2, -1)
        return self.bins.log_mass(self.bins.codes(y), mean, log_std.exp()).sum(1)

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        moments = self.network(hs[0])
        if len(hs) > 1:
            moments = guide(moments, self.network(hs[1]), sampling.guidance)
        mean, log_std = moments.chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator)
        x = mean + sampling.temperature * log_std.exp() * noise
        return self.bins.centres(self.bins.codes(x))
