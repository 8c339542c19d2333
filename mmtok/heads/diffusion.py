"""Diffusion heads: latents drawn by denoising, given the decoder's hidden state.

`FrameDiffusion` fills one frame in, frame after frame (MAR, Li et al. 2024, arXiv 2406.11838);
`GridDiffusion` fills all frames of a segment of fixed length in at once, given the state at its
begin mark: class- and text-conditional latent diffusion (Rombach et al. 2022; Peebles and Xie
2023), or diffusion in pixels. What a state says comes from the shared decoder, so the condition may
be any modality. Letters: N frames or segments, D latent size, C, Y, X of a grid as an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from mmtok.core.segment import Signature
from mmtok.diffusion.guidance import guided
from mmtok.diffusion.likelihood import (
    Levels,
    exact_trace,
    hutchinson,
    latent_bound,
    log_likelihood,
    log_normal,
    log_spaced,
)
from mmtok.diffusion.losses import network_loss
from mmtok.diffusion.pairing import optimal_pairing, pair_noise
from mmtok.diffusion.predictions import Denoiser, preconditioned
from mmtok.diffusion.random import normal_like, rademacher_like, stratified, uniform
from mmtok.diffusion.samplers import (
    DDIM,
    Callback,
    DPMSolver2M,
    Euler,
    Heun,
    Midpoint,
    RungeKutta4,
)
from mmtok.diffusion.schedules import EDM, IDDPM, VE, VP, CondOT
from mmtok.errors import UserError
from mmtok.heads.patchify import patchify_of
from mmtok.nn.conditioning import Vectors
from mmtok.nn.denoisers import (
    DiTConfig,
    GridDenoiser,
    TokenDenoiser,
    TokenMLPConfig,
    in_chunks,
)
from mmtok.nn.unet import UNet, UNetConfig

# of a likelihood, whose graphs are kept for every dimension; more are slower on a CPU, out of its
# caches
CHUNK_ROWS = 128
# steps of a likelihood's walk: on six digits 17 traces gave the nats of 129 to within 0.05 of 55
TRACE_EVERY = 2


@dataclass(frozen=True)
class Diffusion:
    """How to learn, draw and score latents by denoising.

    column       noise levels, preconditioning and loss: CondOT for flow matching, or one of the
                 design space; EDM's training levels
                 are made for a sigma_data of 0.5: for another, p_mean and p_std are to be moved
                 along
    sampler      the solver that draws, in `steps` steps (Sampling.steps changes them)
    draws        noise levels per frame or segment in a training step
    ode_steps    fourth-order steps of the probability-flow ODE when scoring; the trace is taken at
                 every second
    exact_dimensions  up to which the trace is exact, by a backward pass for each; above, one random
                      probe stands for them
    likelihood   of discrete data (`Signature.cells`): "decoder" adds a little noise and a
                 discretised decoder (the L_0 term of Ho et al. 2020), "dequantised" spreads each
                 value over its cell; both are bounds
    dequantise   training spreads discrete data over their cells; needed for "dequantised"
                 likelihoods
    decoder      the noise and the decoder's standard deviation, in cells
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

    def __post_init__(self):
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
        """The head on hidden states of this width, for frames of this signature."""
        return FrameDiffusionHead(self, width, signature)


@dataclass(frozen=True)
class GridDiffusion(Diffusion):
    """All frames of a segment at once, as a grid in raster order, given the state at its begin
    mark.

    network  a diffusion transformer, whose tokens are the frames, or a U-Net over the picture that
             the frames make
    grid     (rows, columns) of frames; None: a square
    patch    a frame's latents are a patch x patch square of the picture's channels
    pairing  each training step's noise is given out by minibatch optimal transport
             (`mmtok.diffusion.pairing`): straighter paths, for flow matching without a condition;
             with one it skews what is drawn, so that it is off unless asked for, and warned of
    """

    network: DiTConfig | UNetConfig = DiTConfig()
    grid: tuple[int, int] | None = None
    patch: int = 1
    pairing: bool = False

    def build(self, width: int, signature: Signature) -> GridDiffusionHead:
        """The head on hidden states of this width, for frames of this signature."""
        return GridDiffusionHead(self, width, signature)


class DiffusionHead(nn.Module):
    """Common to both: loss, likelihood and drawing of states y (N, ...) given hidden states h (N,
    M).

    network: F(c_in x, c_noise, h). Noise in training comes from torch's global generator, as
    dropout does.
    """

    kind = (  # what its nats are: by an ODE, and by random probes where there are many dimensions
        "estimate"
    )
    whole = True  # a state is a picture

    def __init__(self, config: Diffusion, network: nn.Module, signature: Signature):
        super().__init__()
        self.config, self.network = config, network
        self.levels = Levels(signature.cells) if signature.cells else None

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        """The denoising loss (Karras et al.

        2022, eq. 8), a mean over dimensions and draws: (N,). 1 for EDM before training.
        """
        k = self.config.draws
        y, h = y.repeat_interleave(k, 0), h.repeat_interleave(k, 0)
        if self.levels and self.config.dequantise:
            y = self._dequantised(y, None)
        sigma = self.config.schedule.training_sigma(1 - stratified(len(y), y))
        return (
            network_loss(self._told(h), self.config.schedule, y, self._noise(y), sigma)
            .view(-1, k)
            .mean(1)
        )

    def _noise(self, y: Tensor) -> Tensor:
        """The noise n (N, ...) that training mixes with y (N, ...)."""
        return normal_like(y)

    def nats(
        self, h: Tensor, y: Tensor, generator: torch.Generator, sigma: float | None = None
    ) -> Tensor:
        """-log p(y | h) (N,): of a density for latents, of a probability (a bound) for discrete
        data.

        sigma: y is no data, but data with noise of this deviation: the density of that.
        """
        parts = zip(h.split(CHUNK_ROWS), y.double().split(CHUNK_ROWS))
        return (
            torch.cat([self._nats(a, b, generator, sigma) for a, b in parts])
            if len(y)
            else y.new_zeros(0)
        )

    def _nats(
        self, h: Tensor, y: Tensor, generator: torch.Generator, sigma: float | None
    ) -> Tensor:
        if self.levels is None or sigma:
            return -self._log_density(h, y, sigma, generator)
        if self.config.likelihood == "dequantised":
            n_dimensions = y[0].numel()
            return -self._log_density(
                h, self._dequantised(y, generator), None, generator
            ) - n_dimensions * math.log(self.levels.width)
        noise, std = (x * self.levels.width for x in self.config.decoder)
        z = y + noise * normal_like(y, generator)
        mean = self.denoiser(h)(z, z.new_full((len(z),), noise))
        decoder = self.levels.log_mass(self.levels.codes(y), mean, std).flatten(1).sum(1)
        return -latent_bound(
            self._log_density(h, z, noise, generator), decoder, log_normal(z, y, noise)
        )

    def _log_density(
        self, h: Tensor, y: Tensor, sigma_min: float | None, generator: torch.Generator
    ) -> Tensor:
        """Log p(y; sigma_min) (N,), by default at the column's least noise.

        The prior is Gaussian, of the second moment that the column takes noisy data to have. At
        sigma_max 80 that is within 0.005 nats a scanned digit of one with the data's own means and
        covariances (`GaussianPrior`), at 5 within 0.6: a low sigma_max costs.
        """
        with as_user_error():
            least, sigma_max = self.sigma_range
        divergence = (
            exact_trace
            if y[0].numel() <= self.config.exact_dimensions
            else hutchinson(rademacher_like(y, generator))
        )
        prior = lambda x: log_normal(x, torch.zeros_like(x), math.hypot(sigma_max, self.spread))
        with as_user_error():
            sigmas = log_spaced(sigma_min or least, sigma_max, self.config.ode_steps)
            return log_likelihood(self.denoiser(h), y, sigmas, prior, divergence, every=TRACE_EVERY)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The least and the most noise that the column walks through, above 0."""
        schedule = self.config.schedule
        sigmas = schedule.sigmas(schedule.m - schedule.j_0 if isinstance(schedule, IDDPM) else 1000)
        return float(sigmas[-2]), float(sigmas[0])

    @property
    def spread(self) -> float:
        """The root mean square that the column takes the data to have: EDM's sigma_data, 1 in the
        others.
        """
        return getattr(self.config.schedule, "sigma_data", 1.0)

    def _dequantised(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        """Centres of cells -> anywhere in their cells, evenly."""
        return y + (self.levels.width * (uniform(y.shape, y, generator) - 0.5)).to(y.dtype)

    def denoiser(self, h: Tensor) -> Denoiser:
        """D(x, sigma) given h; the state keeps its type, the network computes in its own."""
        return preconditioned(self._told(h), self.config.schedule, self._dtype)

    def draw(
        self,
        hs: list[Tensor],
        shape: tuple[int, ...],
        steps: int,
        temperature: float,
        guidance: float,
        generator: torch.Generator,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw states (N, *shape) in float64. hs: the hidden state (N, M), and under guidance the
        one without the condition.

        temperature scales the noise that the walk starts from, and what the sampler adds on its way
        (Li et al. 2024). Raises UserError for fewer steps than the solver needs, and when the
        network returns what is no number, naming the step.
        """
        denoiser = (
            self.denoiser(hs[0])
            if len(hs) == 1
            else guided(self.denoiser(hs[0]), self.denoiser(hs[1]), guidance)
        )
        schedule, sampler, n_steps = (
            self.config.schedule,
            self.config.sampler,
            steps or self.config.steps,
        )
        if n_steps < sampler.least_steps:
            raise UserError(
                f"{type(sampler).__name__} needs at least {sampler.least_steps} steps, got"
                f" {n_steps}"
            )
        noise = temperature * normal_like(
            hs[0].new_empty((len(hs[0]), *shape), dtype=torch.float64), generator
        )
        with as_user_error():
            times = schedule.times(n_steps)
            return sampler.tempered(temperature)(
                denoiser, schedule.start(noise, times[0]), times, schedule, generator, callback
            )

    def _told(self, h: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        network = (
            partial(in_chunks, self.network) if self.whole else self.network
        )  # a frame's small one is quicker at once
        return lambda x, c_noise: network(x, c_noise, h.to(x.dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


class FrameDiffusionHead(DiffusionHead):
    """Frames (N, D), one for each hidden state."""

    whole = False

    def __init__(self, config: FrameDiffusion, width: int, signature: Signature):
        need_latents(signature, config)
        super().__init__(
            config, TokenDenoiser(config.network, signature.latent_size, width), signature
        )
        self.size = signature.latent_size


class GridDiffusionHead(DiffusionHead):
    """Segments (N, T, D), one for each hidden state at a begin mark."""

    def __init__(self, config: GridDiffusion, width: int, signature: Signature):
        need_latents(signature, config)
        raster = patchify_of(signature, config.grid, config.patch)
        condition = Vectors(
            width, droppable=False
        )  # without a condition the decoder's state says so
        network = (UNet(config.network, raster.n_channels, condition) if isinstance(config.network, UNetConfig)
                   else GridDenoiser(config.network, raster.shape, config.patch, condition))  # fmt: skip
        super().__init__(config, network, signature)
        self.raster = raster
        if config.pairing:
            with as_user_error():
                optimal_pairing(
                    torch.zeros(2, 1), torch.zeros(2, 1)
                )  # a missing package is told of before the long work

    def _noise(self, y: Tensor) -> Tensor:
        noise = super()._noise(y)
        return pair_noise(y, noise) if self.config.pairing else noise

    def loss(self, h: Tensor, values: Tensor) -> Tensor:
        """(N,) for segments (N, T, D): the mean over dimensions, times T, so that a segment weighs
        as its frames would.
        """
        return super().loss(h, self.picture(values)) * values.shape[1]

    def nats(
        self, h: Tensor, values: Tensor, generator: torch.Generator, sigma: float | None = None
    ) -> Tensor:
        """-log p(values | h) (N,) of segments (N, T, D)."""
        return super().nats(h, self.picture(values), generator, sigma)

    def sample(
        self,
        hs: list[Tensor],
        values: Tensor,
        free: Tensor,
        sampling,
        generator: torch.Generator,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw segments (N, T, D) float32.

        values (N, T, D), free (N, T) bool: the frames to draw. watch is given segments too.
        """
        need_all_free(free)
        seen = None if callback is None else lambda step, x: callback(step, self.raster.frames(x))
        picture = self.draw(
            hs,
            self.raster.shape,
            sampling.steps,
            sampling.temperature,
            sampling.guidance,
            generator,
            seen,
        )
        return self.raster.frames(picture).float()

    def picture(self, values: Tensor) -> Tensor:
        """Frames in raster order (N, T, D) -> (N, C, Y, X)."""
        return self.raster.picture(values)


def need_all_free(free: Tensor) -> None:
    """Raise UserError where frames of a segment are to be kept: free (N, T) bool."""
    if not bool(free.all()):
        raise UserError(
            "a diffusion over latents draws whole segments: parts of one cannot be kept;"
            " MaskedDiffusion can fill parts in"
        )


def need_latents(signature: Signature, config: object) -> None:
    """Raise UserError where a modality is made of codes. config: whose name the message gives."""
    if not signature.latent_size:
        raise UserError(
            f"{type(config).__name__} draws latents, but {signature.modality} is made of codes"
        )


@contextmanager
def as_user_error() -> Iterator[None]:
    """What the diffusion room refuses is wrong input here: too few steps, noise levels that do not
    fit, a network without numbers.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, FloatingPointError) as error:
        raise UserError(str(error)) from None
