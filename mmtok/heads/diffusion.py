"""Diffusion heads: latents drawn by denoising, given the decoder's hidden state.

`FrameDiffusion` fills in one frame at a time (MAR, Li et al. 2024, arXiv 2406.11838);
`GridDiffusion` fills in all frames of a segment of fixed length at once, given the state at its
begin mark: class- and text-conditional latent diffusion (Rombach et al. 2022; Peebles and Xie
2023), or diffusion in pixels. The state comes from the shared decoder, so the condition may be of
any modality. Letters: N frames or segments, D latent size, C, Y, X of a grid as a picture.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from mmtok.core.segment import Signature
from mmtok.diffusion.guidance import guided
from mmtok.diffusion.likelihood import (
    Bins,
    Divergence,
    exact_trace,
    hutchinson,
    latent_bound,
    log_likelihood,
    log_normal,
    log_spaced,
)
from mmtok.diffusion.losses import check_sigma_data, network_loss
from mmtok.diffusion.pairing import optimal_pairing, pair_noise
from mmtok.diffusion.predictions import Denoiser, preconditioned
from mmtok.diffusion.random import normal_like, rademacher_like, stratified, uniform
from mmtok.diffusion.samplers import DDIM, DPMSolver2M, Euler, Heun, Midpoint, RungeKutta4
from mmtok.diffusion.schedules import EDM, IDDPM, VE, VP, CondOT
from mmtok.errors import UserError
from mmtok.heads.base import (
    Callback,
    Head,
    HeadConfig,
    Known,
    TrainingTask,
    as_user_error,
    check_fit,
    with_frames,
)
from mmtok.heads.patchify import patchify_of
from mmtok.heads.sampling import Sampling
from mmtok.nn.conditioning import Vectors
from mmtok.nn.denoisers import (
    DiTConfig,
    TokenDenoiser,
    TokenMLPConfig,
    in_chunks,
)
from mmtok.nn.uncertainty import NoiseVariance, relative
from mmtok.nn.unet import UNetConfig

# Rows of a likelihood computed together. Their graphs are kept for every dimension; more rows are
# slower on a CPU, as they outgrow its caches.
CHUNK_ROWS = 128
# A likelihood takes the trace at every second step: on six digits 17 traces gave the nats of 129 to
# within 0.05 of 55.
TRACE_EVERY = 2


class LatentConfig(HeadConfig):
    """Base of the settings of heads over latents, by diffusion."""

    kind = "estimate"  # the ODE is solved in steps, with random probes in many dimensions
    frames = "latents"

    @property
    def loss_name(self) -> str:
        """Its unit is its own: no likelihood compares with it."""
        return "denoising loss"

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Latents, but no counts."""
        return bool(signature.latent_size) and not signature.counts


@dataclass(frozen=True)
class Diffusion(LatentConfig):
    """How to learn, draw and score latents by denoising.

    Attributes:
        schedule: noise levels, preconditioning and loss: CondOT for flow matching, or one of Karras
            et al. 2022, table 1. EDM's training noise is made for a sigma_data of 0.5: for another
            one, change p_mean and p_std too.
        sampler: the solver that draws, in `steps` steps (Sampling.steps changes them).
        draws: noise levels per frame or segment in a training step.
        ode_steps: fourth-order steps of the probability-flow ODE when scoring; the trace is taken
            at every second.
        exact_dimensions: up to which the trace is exact, by a backward pass for each; above, one
            random probe estimates it.
        likelihood: of discrete data (`Signature.cells`): "decoder" adds a little noise and a
            discretised decoder (the L_0 term of Ho et al. 2020), "dequantised" spreads each value
            over its cell; both are bounds.
        dequantise: training spreads discrete data over their cells; needed for "dequantised"
            likelihoods.
        decoder: the noise and the decoder's standard deviation, in cells.
        learned_sigma: weigh the loss of each noise level by a variance u(sigma) that is learned
            beside it, as EDM2 does (`mmtok.nn.uncertainty`).
    """

    schedule: CondOT | EDM | VP | VE | IDDPM = CondOT()
    sampler: Heun | Euler | Midpoint | RungeKutta4 | DPMSolver2M | DDIM = Heun()
    steps: int = 18
    draws: int = 1
    ode_steps: int = 32
    exact_dimensions: int = 64
    likelihood: Literal["decoder", "dequantised"] = "dequantised"
    dequantise: bool = True
    decoder: tuple[float, float] = (0.5, 0.3)
    learned_sigma: bool = False

    def __post_init__(self) -> None:
        if self.draws < 1 or self.ode_steps < 1 or self.exact_dimensions < 0:
            raise ValueError(
                "draws and ode_steps must be at least 1, exact_dimensions not negative; got"
                f" {self.draws}, {self.ode_steps} and {self.exact_dimensions}"
            )
        if self.steps < self.sampler.least_steps:
            raise ValueError(
                f"{type(self.sampler).__name__} needs at least {self.sampler.least_steps} steps,"
                f" got {self.steps}"
            )
        if min(self.decoder) <= 0:
            raise ValueError(
                f"the decoder's noise and deviation must be above 0, got {self.decoder}"
            )


@dataclass(frozen=True)
class FrameDiffusion(Diffusion):
    """A frame of latents given the state before it, by a residual MLP.

    MAR takes four noise draws per frame.
    """

    draws: int = 4
    network: TokenMLPConfig = TokenMLPConfig()

    def build(self, width: int, signature: Signature) -> FrameDiffusionHead:
        """The head for hidden states of this width and frames of this signature."""
        return FrameDiffusionHead(self, width, signature)


@dataclass(frozen=True)
class GridDiffusion(Diffusion):
    """All frames of a segment at once, as a grid, given the state at its begin mark.

    Attributes:
        network: a diffusion transformer, whose tokens are the frames, or a U-Net over the picture
            that the frames make.
        grid: (rows, columns) of frames, row after row; None: a square.
        patch: a frame's latents are a patch x patch square of the picture's channels.
        pairing: assign each training step's noise by minibatch optimal transport
            (`mmtok.diffusion.pairing`): straighter paths, for flow matching without a condition.
            With a condition it skews the samples, so it is off by default and warned of.
    """

    autoregressive = False
    frames = "latents of segments of fixed length"

    network: DiTConfig | UNetConfig = DiTConfig()
    grid: tuple[int, int] | None = None
    patch: int = 1
    pairing: bool = False

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Latents of a fixed count of frames."""
        return super().fits(signature) and signature.frames is not None

    def build(self, width: int, signature: Signature) -> GridDiffusionHead:
        """The head for hidden states of this width and segments of this signature."""
        return GridDiffusionHead(self, width, signature)


class DiffusionHead(Head):
    """Loss, likelihood and sampling of states y (N, ...) given hidden states h (N, M).

    network: F(c_in x, c_noise, h). Noise in training comes from torch's global generator, as
    dropout's does.
    """

    settings = frozenset({"steps"})

    def __init__(self, config: Diffusion, network: nn.Module, signature: Signature):
        super().__init__(config, signature)
        self.config: Diffusion = config
        self.network = network
        self.bins = Bins(signature.cells) if signature.cells else None
        self.variance: NoiseVariance | None = None
        if config.learned_sigma:
            self.variance = NoiseVariance()

    @property
    def loss_is_positive(self) -> bool:
        """Unless a learned variance weighs it."""
        return self.variance is None

    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """The denoising loss, a mean over dimensions and noise draws: (N,).

        Source: Karras et al. 2022, eq. 8. It is 1 for EDM before training.
        """
        k = self.config.draws
        y = y.repeat_interleave(k, 0)
        h = h.repeat_interleave(k, 0)
        if self.bins and self.config.dequantise:
            y = self._dequantised(y, None)
        schedule = self.config.schedule
        sigma = schedule.training_sigma(1 - stratified(len(y), y))
        loss = network_loss(self._conditioned(h), schedule, y, self._noise(y), sigma)
        return self._weighed(loss, sigma).view(-1, k).mean(1)

    def _weighed(self, loss: Tensor, sigma: Tensor) -> Tensor:
        """Losses (N,) at noise levels sigma (N,), by the learned variance where there is one."""
        if self.variance is None:
            return loss
        return relative(loss, self.variance(self.config.schedule.coefficients(sigma).c_noise))

    def _noise(self, y: Tensor) -> Tensor:
        """The noise n (N, ...) that training mixes with y (N, ...)."""
        return normal_like(y)

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
        sigma: float | None = None,
    ) -> Tensor:
        """Log p(y | h) (N,): a density for latents, a probability (a bound) for discrete data.

        sigma: y is not data, but data with noise of this deviation: the density of that.
        """
        if not len(y):
            return y.new_zeros(0, dtype=torch.float64)
        parts = zip(h.split(CHUNK_ROWS), y.double().split(CHUNK_ROWS), strict=True)
        return torch.cat([self._log_prob(a, b, generator, sigma) for a, b in parts])

    def _log_prob(
        self, h: Tensor, y: Tensor, generator: torch.Generator | None, sigma: float | None
    ) -> Tensor:
        if self.bins is None or sigma:
            log_volume = math.fsum(map(math.log, self.signature.scales))
            return self._log_density(h, y, sigma, generator) - log_volume
        if self.config.likelihood == "dequantised":
            log_volume = y[0].numel() * math.log(self.bins.width)
            spread = self._dequantised(y, generator)
            return self._log_density(h, spread, None, generator) + log_volume
        noise, std = (x * self.bins.width for x in self.config.decoder)
        z = y + noise * normal_like(y, generator)
        mean = self.denoiser(h)(z, z.new_full((len(z),), noise))
        decoder = self.bins.log_mass(self.bins.codes(y), mean, std).flatten(1).sum(1)
        prior = self._log_density(h, z, noise, generator)
        return latent_bound(prior, decoder, log_normal(z, y, noise))

    def _log_density(
        self, h: Tensor, y: Tensor, sigma_min: float | None, generator: torch.Generator | None
    ) -> Tensor:
        """Log p(y; sigma_min) (N,), by default at the schedule's least noise.

        The prior is Gaussian, of the second moment that the schedule takes noisy data to have. At
        sigma_max 80 that is within 0.005 nats a scanned digit of one with the data's own means and
        covariances (`GaussianPrior`), at 5 within 0.6: a low sigma_max costs.
        """
        with as_user_error():
            least, sigma_max = self.config.schedule.sigma_range
        divergence = self._divergence(y, generator)
        deviation = math.hypot(sigma_max, self.config.schedule.sigma_data)

        def log_prior(x: Tensor) -> Tensor:
            return log_normal(x, torch.zeros_like(x), deviation)

        with as_user_error():
            sigmas = log_spaced(sigma_min or least, sigma_max, self.config.ode_steps)
            return log_likelihood(
                self.denoiser(h), y, sigmas, log_prior, divergence, every=TRACE_EVERY
            )

    def _divergence(self, y: Tensor, generator: torch.Generator | None) -> Divergence:
        if y[0].numel() <= self.config.exact_dimensions:
            return exact_trace
        return hutchinson(rademacher_like(y, generator))

    def _dequantised(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        """Centres of cells -> uniform over their cells."""
        assert self.bins is not None
        return y + (self.bins.width * (uniform(y.shape, y, generator) - 0.5)).to(y.dtype)

    def denoiser(self, h: Tensor) -> Denoiser:
        """D(x, sigma) given h; the state keeps its dtype, the network computes in its own."""
        dtype = next(self.network.parameters()).dtype
        return preconditioned(self._conditioned(h), self.config.schedule, dtype)

    def draw(
        self,
        hs: Sequence[Tensor],
        shape: tuple[int, ...],
        sampling: Sampling,
        generator: torch.Generator,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw states (N, *shape) in float64; hs as of `Head.sample`.

        The temperature scales the noise at the start and what the sampler adds later (Li et al.
        2024). Raises UserError for fewer steps than the solver needs, and when the network returns
        NaN or infinity, naming the step.
        """
        like = hs[0].new_empty((len(hs[0]), *shape), dtype=torch.float64)
        noise = normal_like(like, generator)
        return self.solve([self.denoiser(h) for h in hs], noise, sampling, generator, callback)

    def solve(
        self,
        denoisers: Sequence[Denoiser],
        noise: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
        callback: Callback | None = None,
    ) -> Tensor:
        """States from noise n ~ N(0, I) (N, ...), as `draw` makes them.

        denoisers: one, or with the condition and without it.
        """
        schedule = self.config.schedule
        sampler = self.config.sampler
        steps = self.n_steps(sampling, 0)
        if steps < sampler.least_steps:
            raise UserError(
                f"{type(sampler).__name__} needs at least {sampler.least_steps} steps, got {steps}"
            )
        denoiser = denoisers[0]
        if len(denoisers) > 1:
            denoiser = guided(denoiser, denoisers[1], sampling.guidance)
        noise = sampling.temperature * noise
        with as_user_error():
            times = schedule.times(steps)
            start = schedule.start(noise, times[0])
            solve = sampler.tempered(sampling.temperature)
            return solve(denoiser, start, times, schedule, generator, callback)

    def n_steps(self, sampling: Sampling, n_missing: int) -> int:
        """Those of the sampling settings, else the config's."""
        return sampling.steps or self.config.steps

    @property
    def uses_sigma_data(self) -> bool:
        """Whether its schedule takes the data to have a certain root mean square."""
        return self.config.schedule.has_sigma_data

    def data_notes(self, segments: Iterable[Tensor]) -> list[str]:
        """A sigma_data that does not fit latents (T, D)."""
        if not self.uses_sigma_data:
            return []
        parts = list(segments)
        if not parts:
            return []
        groups = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(x) for x in parts]))
        return self.sigma_data_notes(torch.cat(parts), groups)

    def sigma_data_notes(self, y: Tensor, groups: Tensor) -> list[str]:
        """What `check_sigma_data` warns of for states y (N, ...), rows of groups (N,).

        Discrete data are spread over their cells as in training.
        """
        if not self.uses_sigma_data:
            return []
        if self.bins is not None and self.config.dequantise:
            u = torch.rand(y.shape, generator=torch.Generator().manual_seed(0))
            y = y + self.bins.width * (u - 0.5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_sigma_data(self.config.schedule, y, groups=groups)
        return [str(warning.message) for warning in caught]

    def _conditioned(self, h: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """F(x, c_noise) given h. The small network of single frames is faster all rows at once."""
        network = self.network if self.autoregressive else partial(in_chunks, self.network)

        def conditioned(x: Tensor, c_noise: Tensor) -> Tensor:
            return network(x, c_noise, h.to(x.dtype))

        return conditioned


class FrameDiffusionHead(DiffusionHead):
    """Frames (N, D), one for each hidden state."""

    draws_by_row = True

    def __init__(self, config: FrameDiffusion, width: int, signature: Signature):
        check_fit(config, signature)
        network = TokenDenoiser(config.network, signature.latent_size, width)
        super().__init__(config, network, signature)

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw frames (N, D), in float64."""
        return self.draw(hs, (self.signature.latent_size,), sampling, generator, callback)


class GridDiffusionHead(DiffusionHead):
    """Segments (N, T, D), one for each hidden state at a begin mark."""

    def __init__(self, config: GridDiffusion, width: int, signature: Signature):
        check_fit(config, signature)
        patchify = patchify_of(signature, config.grid, config.patch)
        # without a condition the decoder's state says so
        condition = Vectors(width, droppable=False)
        network = config.network.build(patchify.shape, config.patch, condition)
        super().__init__(config, network, signature)
        self.patchify = patchify
        self.pairing = config.pairing
        if config.pairing:
            with as_user_error():  # a missing package is reported before the long work
                optimal_pairing(torch.zeros(2, 1), torch.zeros(2, 1))

    def _noise(self, y: Tensor) -> Tensor:
        noise = super()._noise(y)
        return pair_noise(y, noise) if self.pairing else noise

    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """(N,) for segments (N, T, D): the mean over dimensions, times T.

        So a segment weighs as much as its frames would.
        """
        return super().loss(h, self.patchify.picture(y)) * y.shape[1]

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
        sigma: float | None = None,
    ) -> Tensor:
        """Log p(y | h) (N,) of segments (N, T, D)."""
        return super().log_prob(h, self.patchify.picture(y), generator, sigma=sigma)

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

        callback: x is segments (N, T, D).
        """
        check_all_free(known)
        show = with_frames(callback, self.patchify.frames)
        picture = self.draw(hs, self.patchify.shape, sampling, generator, show)
        return self.patchify.frames(picture).float()

    def task_notes(self, task: TrainingTask) -> list[str]:
        """Pairing noise although the task has a condition."""
        if not self.pairing or not task.inputs or task.cond_dropout == 1:
            return []
        modality = self.signature.modality
        return [
            f"pairing noise by optimal transport ties it to the condition of task {task}, which"
            " sampling does not do: conditional samples will be skewed; set"
            f" model.heads.{modality}.pairing to false"
        ]


def check_all_free(known: Known | None) -> None:
    """Raise UserError where frames of a segment are to be kept."""
    if known is not None and not bool(known.free.all()):
        raise UserError(
            "a diffusion over latents draws whole segments: parts of one cannot be kept;"
            " MaskedDiffusion can fill parts in"
        )
