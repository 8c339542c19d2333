"""Cascaded diffusion as a head: a small picture first, then larger ones, each given the last.

Source: Ho et al. 2022 (arXiv 2106.15282).

The pictures x_1, ..., x_S of a segment, coarse to fine, are made here: x_S are its latents on their
grid, and each coarser one holds the means over squares of 2 x 2. Stage 1 is a diffusion of x_1
given the decoder's state h; stage i > 1 one of x_i given h and a noisy x_(i-1) (noise-conditioning
augmentation, section 4), so that it does not trust details which the stage before gets wrong when
sampling. With a = aug_noise:

    z_i = sqrt(1 - a) x_i / r_i + sqrt(a) n,    r_i: the sigma_data of stage i's schedule

Dividing by r_i gives z_i a variance near 1, so that a is the share of noise in it. In training a is
uniform in [0, 1), in sampling a setting; the network has it as an input in both.

Likelihood. The noisy pictures are latent variables: q(z_1 ... z_(S-1) | x) is the product of the
Gaussians above, the model is p(z_1) p(z_2 | z_1) ... p(x_S | z_(S-1)), all given h, and Jensen's
inequality says, with z_0 nothing,

    log p(x_S) >= E_q [ log p(x_S | z_(S-1)) + sum_(i < S) log p(z_i | z_(i-1)) - log q(z_i | x_i) ]

With v_i = z_i r_i / sqrt(1 - a) = x_i + sigma_i n and sigma_i = r_i sqrt(a / (1 - a)),
p(v_i | z_(i-1)) is what stage i's ODE gives when it starts from sigma_i. From z_i to v_i both log p
and log q change by the same d ln(r_i / sqrt(1 - a)), so the bound is computed with p(v_i) and
q(v_i | x_i) = N(x_i, sigma_i^2). One z is drawn: an unbiased estimate of the bound. It is the bound
of a cascade that ends the sampling of stage i < S at sigma_i; `sample` ends it at 0 and adds the
noise (the paper's "non-truncated" way, which lets aug_noise change). Both are the same where the
stages' denoisers are those of a distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.core.segment import Signature
from mmtok.diffusion.guidance import noise_condition
from mmtok.diffusion.likelihood import log_normal
from mmtok.diffusion.random import stratified
from mmtok.errors import UserError
from mmtok.heads.base import Callback, Head, Known, with_frames
from mmtok.heads.diffusion import Diffusion, DiffusionHead, LatentConfig, check_all_free
from mmtok.heads.patchify import patchify_of
from mmtok.heads.sampling import Sampling
from mmtok.nn.conditioning import Vectors
from mmtok.nn.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Stage(Diffusion):
    """One resolution of a cascade.

    Attributes:
        aug_noise: share of noise in the picture that the next stage reads, when sampling and
            scoring, in [0, 1); the coarsest stage, which reads none, ignores it. Sampling.aug_noise
            changes it for all stages. Scores are bounds at any share, and need one above 0: the
            less noise, the more the finer stage would have to know where the coarser picture lies;
            0 counts there as the schedule's least noise.
    """

    autoregressive = False

    network: UNetConfig = UNetConfig()
    aug_noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.aug_noise < 1:
            raise ValueError(
                f"aug_noise is a share of noise, at least 0 and below 1, got {self.aug_noise}"
            )

    def build(self, width: int, signature: Signature) -> StageHead:
        """A stage is no head of its own: raises TypeError."""
        raise TypeError("Stage is a part of Cascade, which builds it")


@dataclass(frozen=True)
class Cascade(LatentConfig):
    """A segment of latents as a picture, drawn coarse to fine.

    Attributes:
        stages: from the coarsest; each has twice the rows and columns of the one before.
        grid: as of `GridDiffusion`: (rows, columns) of frames; None: a square.
        patch: a frame is a patch x patch square of the picture.
    """

    autoregressive = False
    frames = "latents of segments of fixed length"

    stages: tuple[Stage, ...] = (Stage(), Stage())
    grid: tuple[int, int] | None = None
    patch: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a cascade needs at least one stage")

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Latents of a fixed count of frames."""
        return super().fits(signature) and signature.frames is not None

    def build(self, width: int, signature: Signature) -> CascadeHead:
        """The head for hidden states of this width and segments of this signature."""
        return CascadeHead(self, width, signature)


class SuperResolution(nn.Module):
    """A U-Net whose condition is one vector, made by `joined`.

    The vector holds the state, the noisy coarser picture and its share of noise.
    """

    def __init__(self, config: UNetConfig, coarse: tuple[int, int, int], width: int):
        super().__init__()
        self.coarse = coarse
        self.sizes = (width, math.prod(coarse), 1)
        n_channels = coarse[0]
        condition = Vectors(width, droppable=False)
        self.network = UNet(config, n_channels, condition, low_channels=n_channels)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor) -> Tensor:
        """x (N, C, Y, X), condition (N, M + C Y X / 4 + 1) -> (N, C, Y, X)."""
        h, low, aug_noise = condition.split(self.sizes, 1)
        low = low.unflatten(1, self.coarse)
        return self.network(x, c_noise, h, low=low, aug_noise=aug_noise[:, 0])


def joined(h: Tensor, low: Tensor, aug_noise: Tensor) -> Tensor:
    """h (N, M), low (N, C, y, x), aug_noise (N,) -> (N, M + C y x + 1), in low's dtype.

    One row per condition, so that it can be split and repeated like any other.
    """
    return torch.cat([h.to(low.dtype), low.flatten(1), aug_noise[:, None].to(low.dtype)], 1)


class StageHead(DiffusionHead):
    """Pictures (N, *shape) of one resolution, one for each row of h.

    h (N, M) is a hidden state; of a stage after the first it is `joined` with the coarser picture.
    """

    def __init__(
        self, config: Stage, network: nn.Module, signature: Signature, shape: tuple[int, int, int]
    ):
        super().__init__(config, network, signature)
        self.shape = shape

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw pictures (N, *shape), in float64."""
        return self.draw(hs, self.shape, sampling, generator, callback)


class CascadeHead(Head):
    """Segments (N, T, D), one for each hidden state at a begin mark.

    Every stage is a `StageHead` with its own network.
    """

    settings = frozenset({"steps", "aug_noise"})

    def __init__(self, config: Cascade, width: int, signature: Signature):
        super().__init__(config, signature)
        self.config: Cascade = config
        self.patchify = patchify_of(signature, config.grid, config.patch)
        n_channels, rows, columns = self.patchify.shape
        n_stages = len(config.stages)
        scales = [2**i for i in reversed(range(n_stages))]
        if rows % scales[0] or columns % scales[0]:
            raise UserError(
                f"{signature.modality}: {n_stages} stages halve the picture {n_stages - 1} times,"
                f" but {rows} x {columns} does not halve so often; take fewer stages"
            )
        self.shapes = [(n_channels, rows // s, columns // s) for s in scales]
        self.stages = nn.ModuleList()
        for i, stage in enumerate(config.stages):
            network: nn.Module
            if i == 0:
                network = UNet(stage.network, n_channels, Vectors(width, droppable=False))
            else:
                network = SuperResolution(stage.network, self.shapes[i - 1], width)
            # means of cells' centres are not centres: only the finest picture is discrete
            is_finest = i == n_stages - 1
            made_of = signature if is_finest else replace(signature, cells=0)
            self.stages.append(StageHead(stage, network, made_of, self.shapes[i]))

    @property
    def loss_is_positive(self) -> bool:
        """Unless a learned variance weighs that of a stage."""
        return all(self.stage(i).loss_is_positive for i in range(len(self.stages)))

    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """(N,) for segments (N, T, D): the sum of the stages' denoising losses.

        Each is a mean over dimensions times T. All noise draws of a segment share its noisy coarser
        picture.
        """
        pictures = self.pictures(y)
        total = self.stage(0).loss(h, pictures[0])
        for i in range(1, len(self.stages)):
            picture = pictures[i]
            aug_noise = stratified(len(picture), picture)
            low = noise_condition(pictures[i - 1] / self._rms(i - 1), aug_noise)
            total = total + self.stage(i).loss(joined(h, low, aug_noise), picture)
        return total * y.shape[1]

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """An estimate of a lower bound of log p(y | h) (N,), as the module's docstring derives it.

        For discrete data the finest stage's term is itself a bound, as its config says; then q is
        given the cells' centres.
        """
        *coarse, finest = self.pictures(y.double())
        total = torch.zeros(len(h), dtype=torch.float64, device=h.device)
        given = h
        for i, picture in enumerate(coarse):
            rms = self._rms(i)
            share = self.config.stages[i + 1].aug_noise
            least = self.stage(i).config.schedule.sigma_range[0] / rms
            noise = max(math.sqrt(share / (1 - share)), least)
            sigma = noise * rms
            aug_noise = _filled(noise**2 / (1 + noise**2), h)
            z = noise_condition(picture / rms, aug_noise, generator)
            v = z * math.hypot(rms, sigma)  # r / sqrt(1 - a)
            log_p = self.stage(i).log_prob(given, v, generator, sigma=sigma)
            total = total + log_p - log_normal(v, picture, sigma)
            given = joined(h, z, aug_noise)
        return total + self.stage(-1).log_prob(given, finest, generator)

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw segments (N, T, D) float32. Raises UserError for known frames, which it cannot keep.

        Both streams of guidance are given the same noisy coarser picture. callback: x is segments
        of every stage, the coarse ones enlarged; steps go on counting from stage to stage.
        """
        check_all_free(known)
        show = with_frames(callback, self._enlarged)
        picture = self.stage(0).sample(hs, sampling, generator, callback=show)
        first_step = self.stage(0).n_steps(sampling, 0)
        for i in range(1, len(self.stages)):
            stage = self.stage(i)
            share = self.config.stages[i].aug_noise
            if sampling.aug_noise is not None:
                share = sampling.aug_noise
            aug_noise = _filled(share, picture)
            low = noise_condition(picture / self._rms(i - 1), aug_noise, generator)
            conditions = [joined(h, low, aug_noise) for h in hs]
            show = with_frames(callback, self._enlarged, first_step)
            picture = stage.sample(conditions, sampling, generator, callback=show)
            first_step += stage.n_steps(sampling, 0)
        return self.patchify.frames(picture).float()

    def n_steps(self, sampling: Sampling, n_missing: int) -> int:
        """Those of all stages together."""
        return sum(self.stage(i).n_steps(sampling, n_missing) for i in range(len(self.stages)))

    def data_notes(self, segments: Iterable[Tensor]) -> list[str]:
        """A sigma_data of a stage that does not fit its pictures of latents (T, D)."""
        stages = [self.stage(i) for i in range(len(self.stages))]
        if not any(stage.uses_sigma_data for stage in stages):
            return []
        parts = list(segments)
        if not parts:
            return []
        groups = torch.arange(len(parts))
        pictures = self.pictures(torch.stack(parts))
        return [
            f"stage {i}: {note}"
            for i, (stage, picture) in enumerate(zip(stages, pictures, strict=True))
            for note in stage.sigma_data_notes(picture, groups)
        ]

    def stage(self, i: int) -> StageHead:
        """The head of stage i, from the coarsest."""
        stage = self.stages[i]
        assert isinstance(stage, StageHead)
        return stage

    def pictures(self, y: Tensor) -> list[Tensor]:
        """Segments (N, T, D) as pictures (N, C, y, x) of every stage, coarse to fine.

        Each one holds the means over squares of 2 x 2 of the next.
        """
        found = [self.patchify.picture(y)]
        while len(found) < len(self.stages):
            found.insert(0, F.avg_pool2d(found[0], 2))
        return found

    def _rms(self, i: int) -> float:
        """r_i, the root mean square that stage i takes its pictures to have."""
        return self.stage(i).config.schedule.sigma_data

    def _enlarged(self, x: Tensor) -> Tensor:
        """A picture of any stage as segments (N, T, D)."""
        size = self.patchify.shape[1:]
        return self.patchify.frames(F.interpolate(x, size, mode="nearest"))


def _filled(value: float, like: Tensor) -> Tensor:
    """(N,) float64 of one value, on the device of `like` (N, ...)."""
    return torch.full((len(like),), value, dtype=torch.float64, device=like.device)
