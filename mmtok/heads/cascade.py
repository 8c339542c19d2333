"""Cascaded diffusion as a head: a small picture first, then larger ones, each given the one below
(Ho et al. 2022, arXiv 2106.15282).

The pictures x_1, ..., x_S of a segment, coarse to fine, are made here: x_S are its latents on their
grid, and each one below is the mean over squares of 2 x 2. Stage 1 is a diffusion of x_1 given the
decoder's state h; stage i > 1 one of x_i given h and a noisy x_(i-1) (noise-conditioning
augmentation, section 4), so that it does not trust details which the stage below gets wrong when it
draws:

    z_i = sqrt(1 - level) x_i / r_i + sqrt(level) n,    r_i: the root mean square that stage i's
    column takes its pictures to have

Dividing by r_i (EDM's sigma_data, 1 in the other columns) is what gives z_i variance near 1, so
that a level is the share of noise in it. In training the level is uniform in [0, 1), in sampling a
dial; the network is told it in both.

Nats. The noisy pictures are latent variables: q(z_1 ... z_(S-1) | x) is the product of the
Gaussians above, the model is p(z_1) p(z_2 | z_1) ... p(x_S | z_(S-1)), all given h, and Jensen's
inequality says

    log p(x_S) >= E_q [ log p(x_S | z_(S-1)) + sum_(i < S) log p(z_i | z_(i-1)) - log q(z_i | x_i)
    ],    z_0: nothing.

With v_i = z_i r_i / sqrt(1 - level) = x_i + sigma_i n and sigma_i = r_i sqrt(level / (1 - level)),
p(v_i | z_(i-1)) is what stage i's ODE gives when it starts from sigma_i. From z_i to v_i both log p
and log q change by the same d ln(r_i / sqrt(1 - level)), so that the bound is computed with p(v_i)
and q(v_i | x_i) = N(x_i, sigma_i^2). One z is drawn: an unbiased estimate of the bound. It is that
of a cascade which ends the walk of stage i < S at sigma_i; `sample` ends it at 0 and adds the noise
(the paper's "non-truncated" way, which lets the level change), the same where the stages' denoisers
are those of a distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.core.segment import Signature
from mmtok.diffusion.guidance import noise_condition
from mmtok.diffusion.likelihood import log_normal
from mmtok.diffusion.random import stratified
from mmtok.errors import UserError
from mmtok.heads.diffusion import Diffusion, DiffusionHead, need_all_free, need_latents
from mmtok.heads.patchify import patchify_of
from mmtok.nn.conditioning import Vectors
from mmtok.nn.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Stage(Diffusion):
    """One resolution of a cascade.

    level  share of noise in the picture below when sampling and scoring, in [0, 1); the coarsest
           stage, which has none below, ignores it. Sampling.level changes it for all stages. Scores
           are bounds at any level, and need one above 0: the less noise, the more the finer stage
           would have to know where the coarser picture lies; 0 counts there as the column's least
           noise
    """

    network: UNetConfig = UNetConfig()
    aug_noise: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.aug_noise < 1:
            raise ValueError(
                f"level is a share of noise, at least 0 and below 1, got {self.aug_noise}"
            )


@dataclass(frozen=True)
class Cascade:
    """A segment of latents as a picture, drawn coarse to fine.

    stages       from the coarsest; each has twice the rows and columns of the one before
    grid, patch  as of `GridDiffusion`: (rows, columns) of frames (None: a square), each a patch x
                 patch square of the picture
    """

    stages: tuple[Stage, ...] = (Stage(), Stage())
    grid: tuple[int, int] | None = None
    patch: int = 1

    def __post_init__(self):
        if not self.stages:
            raise ValueError("a cascade needs at least one stage")

    def build(self, width: int, signature: Signature) -> CascadeHead:
        """The head on hidden states of this width, for segments of this signature."""
        return CascadeHead(self, width, signature)


class SuperResolution(nn.Module):
    """A U-Net whose condition is one vector: the state, the noisy picture below and its level, as
    `joined` puts them together.
    """

    def __init__(self, config: UNetConfig, below: tuple[int, int, int], width: int):
        super().__init__()
        self.below, self.sizes = below, (width, math.prod(below), 1)
        self.network = UNet(
            config, below[0], Vectors(width, droppable=False), low_channels=below[0]
        )

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """X (N, C, Y, X), condition (N, M + C Y X / 4 + 1) -> (N, C, Y, X)."""
        h, low, level = condition.split(self.sizes, 1)
        return self.network(x, c_noise, h, low=low.unflatten(1, self.below), low_level=level[:, 0])


def joined(h: Tensor, low: Tensor, level: Tensor) -> Tensor:
    """H (N, M), low (N, C, y, x), level (N,) -> (N, M + C y x + 1), in low's type: rows of a
    condition like any other.
    """
    return torch.cat([h.to(low.dtype), low.flatten(1), level[:, None].to(low.dtype)], 1)


class CascadeHead(nn.Module):
    """Segments (N, T, D), one for each hidden state at a begin mark.

    Every stage is a `DiffusionHead` with its own network.
    """

    whole, kind = (
        True,
        "estimate",
    )  # the ODE is solved in steps, with random probes where there are many dimensions

    def __init__(self, config: Cascade, width: int, signature: Signature):
        super().__init__()
        need_latents(signature, config)
        self.raster = patchify_of(signature, config.grid, config.patch)
        n_channels, rows, columns = self.raster.shape
        scales = [2**i for i in reversed(range(len(config.stages)))]
        if rows % scales[0] or columns % scales[0]:
            raise UserError(
                f"{signature.modality}: {len(config.stages)} stages halve the picture"
                f" {len(config.stages) - 1} times, but {rows} x {columns} does not halve so often;"
                " take fewer stages"
            )
        self.shapes = [(n_channels, rows // s, columns // s) for s in scales]
        self.stages = nn.ModuleList()
        for i, stage in enumerate(config.stages):
            network = (SuperResolution(stage.network, self.shapes[i - 1], width) if i
                       else UNet(stage.network, n_channels, Vectors(width, droppable=False)))  # fmt: skip
            # means of cells' centres are no such centres: only the finest pictures are discrete
            self.stages.append(
                DiffusionHead(
                    stage,
                    network,
                    signature if i == len(scales) - 1 else replace(signature, cells=0),
                )
            )

    def loss(self, h: Tensor, values: Tensor) -> Tensor:
        """(N,) for segments (N, T, D): the stages' denoising losses, each a mean over dimensions
        times T, added up.

        A segment's draws share its noisy picture below.
        """
        pictures = self.pictures(values)
        total = self.stages[0].loss(h, pictures[0])
        for below, low, stage, picture in zip(self.stages, pictures, self.stages[1:], pictures[1:]):
            level = stratified(len(picture), picture)
            total = total + stage.loss(
                joined(h, noise_condition(low / below.spread, level), level), picture
            )
        return total * values.shape[1]

    def nats(self, h: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
        """An estimate of a bound of -log p(values | h) (N,), as the file's head derives it.

        Of discrete data the finest stage's term is itself the bound that its config asks for; then
        q is given the cells' centres.
        """
        *coarse, finest = self.pictures(values.double())
        total, given = torch.zeros(len(h), dtype=torch.float64, device=h.device), h
        for stage, above, picture in zip(self.stages, self.stages[1:], coarse):
            noise = max(
                math.sqrt(above.config.aug_noise / (1 - above.config.aug_noise)),
                stage.sigma_range[0] / stage.spread,
            )
            sigma, level = noise * stage.spread, noise**2 / (1 + noise**2)
            level = torch.full((len(h),), level, dtype=torch.float64, device=h.device)
            z = noise_condition(picture / stage.spread, level, generator)
            v = z * math.hypot(stage.spread, sigma)  # r / sqrt(1 - level)
            total = total + stage.nats(given, v, generator, sigma) + log_normal(v, picture, sigma)
            given = joined(h, z, level)
        return total + self.stages[-1].nats(given, finest, generator)

    def sample(
        self,
        hs: list[Tensor],
        values: Tensor,
        free: Tensor,
        sampling,
        generator: torch.Generator,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw segments (N, T, D) float32. values (N, T, D), free (N, T) bool: the frames to draw.
        hs as of `DiffusionHead.draw`.

        All streams of guidance are given the same noisy picture below. watch: is given segments of
        every stage, the coarse ones enlarged, and numbers that go on counting.
        """
        need_all_free(free)
        givens, picture, spread, n_seen = hs, None, 1.0, 0
        for stage, shape in zip(self.stages, self.shapes):
            if picture is not None:
                level = stage.config.aug_noise if sampling.aug_noise is None else sampling.aug_noise
                level = torch.full(
                    (len(picture),), level, dtype=torch.float64, device=picture.device
                )
                low = noise_condition(picture / spread, level, generator)
                givens = [joined(h, low, level) for h in hs]
            seen = None if callback is None else self._enlarging(callback, n_seen)
            picture = stage.draw(
                givens,
                shape,
                sampling.steps,
                sampling.temperature,
                sampling.guidance,
                generator,
                seen,
            )
            spread, n_seen = stage.spread, n_seen + (sampling.steps or stage.config.steps)
        return self.raster.frames(picture).float()

    def pictures(self, values: Tensor) -> list[Tensor]:
        """Segments (N, T, D) as pictures (N, C, y, x) of every stage, coarse to fine: each one the
        means over squares of the next.
        """
        found = [self.raster.picture(values)]
        while len(found) < len(self.stages):
            found.insert(0, F.avg_pool2d(found[0], 2))
        return found

    def _enlarging(
        self, callback: Callable[[int, Tensor], None], n_seen: int
    ) -> Callable[[int, Tensor], None]:
        size = self.raster.shape[1:]
        return lambda step, x: callback(
            n_seen + step, self.raster.frames(F.interpolate(x, size, mode="nearest"))
        )
