"""Sets of latents drawn by diffusion or flow matching, all elements at once: point clouds.

    p(set | h) = p(N | h) N! p(x_1 ... x_N | N, h)

The network (`SetDenoiser`) has no positions, so that p(x_1 ... x_N) is the same in every order; the
N! orders of N different elements are one set. p(N) is exact, the density is that of the
probability-flow ODE. The state h at the set's begin mark comes from the shared decoder, so the
condition may be a text, another set, or of any other modality.

Where some numbers of each element are given (`Signature.given`), so are N and which element is
which: what is left is p(x_1 ... x_N | g_1 ... g_N, h).

Sources: Buhmann et al. 2023 (EPiC-GAN, arXiv 2301.08128) for clouds of particles; Leigh et al. 2023
(PC-JeDi, arXiv 2303.05376) and Buhmann et al. 2023 (EPiC-FM, arXiv 2310.00049) for their diffusion
and flow matching. Letters: N sets, P frames of the largest, D latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtok.core.segment import Signature
from mmtok.diffusion.likelihood import (
    Divergence,
    Field,
    exact_trace,
    hutchinson,
    log_likelihood,
    log_spaced,
)
from mmtok.diffusion.losses import network_loss
from mmtok.diffusion.predictions import Denoiser, preconditioned
from mmtok.diffusion.random import normal_like, rademacher_like, stratified
from mmtok.heads.base import (
    Callback,
    Context,
    Known,
    SetHead,
    Sizes,
    as_user_error,
    check_fit,
    with_frames,
)
from mmtok.heads.diffusion import TRACE_EVERY, Diffusion, DiffusionHead, check_all_free
from mmtok.heads.sampling import Sampling
from mmtok.heads.set_sizes import SetSizes
from mmtok.nn.conditioning import Vectors
from mmtok.nn.denoisers import DiTConfig, SetDenoiser

# Sets of nearly one size that go through the network together on a CPU: padding costs time too.
CHUNK_SETS = 16
SCORED_SETS = 64  # whose graphs are kept together for a likelihood


@dataclass(frozen=True)
class SetDiffusion(Diffusion):
    """A set of any number of latents at once, given the state at its begin mark.

    Attributes:
        network: a transformer without positions, whose tokens are the elements of the set.
        max_frames: the largest number of elements that a set can have; larger ones must be cut by
            their tokenizer, at this number.
        context: the network attends to the decoder's states at all positions before the set, not
            only to that at its begin mark: for conditions of many parts, such as another set.
        rotations: the numbers that are drawn of an element are a position about the set's middle,
            and training turns each set at random, so that no direction is another than others.
    """

    autoregressive = False
    of_sets = True
    frames = "latents that are a set"

    network: DiTConfig = DiTConfig()
    max_frames: int = 128
    context: bool = False
    rotations: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")

    @property
    def reads_context(self) -> bool:
        """As the field says."""
        return self.context

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Latents that are a set."""
        return super().fits(signature) and signature.unordered and not signature.cells

    def build(self, width: int, signature: Signature) -> SetDiffusionHead:
        """The head for hidden states of this width and sets of this signature."""
        return SetDiffusionHead(self, width, signature)


@dataclass(frozen=True, eq=False)
class _Given:
    """What the network is told of N sets.

    Attributes:
        h: (N, M) the states at their begin marks.
        mask: (N, P) bool: where elements are, the first ones of each row.
        context: what is before the sets, where the head reads it.
        numbers: (N, P, G) the given numbers of each element, where there are any.
    """

    h: Tensor
    mask: Tensor
    context: Context | None
    numbers: Tensor | None = None

    def rows(self, chosen: Tensor, longest: int | None = None) -> _Given:
        """That of some of the sets, which are no larger than `longest`."""
        context: Context | None = None
        if self.context is not None:
            context = self.context.rows(chosen)
        numbers: Tensor | None = None
        if self.numbers is not None:
            numbers = self.numbers[chosen, :longest]
        return _Given(self.h[chosen], self.mask[chosen, :longest], context, numbers)


class SetDiffusionHead(DiffusionHead, SetHead):
    """Sets (N, P, D), one for each hidden state at a begin mark."""

    def __init__(self, config: SetDiffusion, width: int, signature: Signature):
        check_fit(config, signature)
        # without a condition the decoder's state says so
        condition = Vectors(width, droppable=False)
        context_size = width * config.context
        network = SetDenoiser(
            config.network,
            signature.n_free,
            condition,
            context_size,
            signature.given,
            signature.graph,
        )
        super().__init__(config, network, signature)
        self.rotations = config.rotations
        self.sizes: SetSizes | None = None
        if not signature.given:
            self.sizes = SetSizes(width, config.max_frames, signature.modality)

    def loss(
        self,
        h: Tensor,
        y: Tensor,
        ceiling: Tensor | None = None,
        *,
        sizes: Sizes | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """(N,) for sets (N, P, D): -log p(N), and the denoising loss summed over the elements.

        Of an element it is the mean over dimensions and noise draws.
        """
        sizes = self._sizes(y, sizes)
        k = self.config.draws
        n_nats = -self._log_p_sizes(h, sizes)
        copies = torch.arange(len(y), device=y.device).repeat_interleave(k)
        y, numbers = self._parts(y, sizes)
        given = _Given(h, sizes.mask(y.shape[1]), context, numbers).rows(copies)
        mask = given.mask[..., None]
        y = y[copies]
        if self.rotations:
            y = y @ rotations(len(y), y.shape[2], y)
        schedule = self.config.schedule
        sigma = schedule.training_sigma(1 - stratified(len(y), y))
        # where there is no element there is neither noise nor output, so that its error is 0
        noise = normal_like(y) * mask
        loss = network_loss(self._network_of(given), schedule, y, noise, sigma)
        n_frames = sizes.n_frames.to(loss.dtype)
        of_one = loss * (y.shape[1] / n_frames.clamp(min=1))[copies]
        of_one = self._weighed(of_one, sigma).view(-1, k).mean(1)
        return of_one * n_frames + n_nats

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
        sigma: float | None = None,
        *,
        sizes: Sizes | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Log p(N | h) + log N! + log p(x_1 ... x_N | N, h) of sets (N, P, D): (N,) float64.

        The density is exact but for the ODE's steps where N D is at most `exact_dimensions`, an
        estimate from one random probe elsewhere. Of a set that was cut off, p(N) is that there are
        more, and N! counts the orders of what is left.
        """
        sizes = self._sizes(y, sizes)
        n = sizes.n_frames.double()
        y, numbers = self._parts(y, sizes)
        y = y.double()
        all_given = _Given(h, sizes.mask(y.shape[1]), context, numbers)
        probe = rademacher_like(y, generator)
        found = self._log_p_sizes(h, sizes).double()
        if numbers is None:
            found = found + torch.lgamma(n + 1)
        found = found - n * math.fsum(map(math.log, self.signature.scales))
        for rows in self._alike(sizes.n_frames):
            longest = max(1, int(sizes.n_frames[rows].max()))
            given = all_given.rows(rows, longest)
            here = given.mask[..., None]
            trace = _trace_within(here)
            if longest * y.shape[2] > self.config.exact_dimensions:
                trace = hutchinson(probe[rows, :longest] * here)
            density = self._set_density(given, y[rows, :longest], sigma, trace)
            found[rows] = found[rows] + density
        return found

    def _alike(self, n_frames: Tensor) -> list[Tensor]:
        """The sets' numbers in groups of nearly one size, whose trace is taken in one way."""
        if not len(n_frames):
            return []
        order = n_frames.argsort(stable=True)
        exact = n_frames[order] * self.signature.n_free <= self.config.exact_dimensions
        n_exact = int(exact.sum())
        parts = [order[:n_exact], order[n_exact:]]
        return [chunk for part in parts if len(part) for chunk in part.split(SCORED_SETS)]

    def _set_density(
        self, given: _Given, y: Tensor, sigma_min: float | None, trace: Divergence
    ) -> Tensor:
        """Log p(x_1 ... x_N | N, h) (N,) of sets y (N, P, D).

        As `DiffusionHead._log_density`; where there is no element the state stays 0.
        """
        mask = given.mask[..., None]
        n_dimensions = mask.flatten(1).sum(1) * y.shape[2]
        with as_user_error():
            least, sigma_max = self.config.schedule.sigma_range
            deviation = math.hypot(sigma_max, self.config.schedule.sigma_data)
            constant = math.log(deviation) + math.log(2 * math.pi) / 2

            def log_prior(x: Tensor) -> Tensor:
                squares = (x * mask / deviation).square().flatten(1).sum(1)
                return -squares / 2 - n_dimensions * constant

            sigmas = log_spaced(sigma_min or least, sigma_max, self.config.ode_steps)
            denoiser = self._set_denoiser(given)
            return log_likelihood(denoiser, y, sigmas, log_prior, trace, every=TRACE_EVERY)

    def _set_denoiser(self, given: _Given) -> Denoiser:
        """D(x, sigma) of sets x (N, P, D)."""
        dtype = next(self.network.parameters()).dtype
        return preconditioned(self._network_of(given), self.config.schedule, dtype)

    def check_training(self, sizes: Sizes) -> None:
        """As `SetSizes.check_training`; of given elements any number will do."""
        if self.sizes is not None:
            self.sizes.check_training(sizes)

    def sample_sizes(
        self, hs: Sequence[Tensor], sampling: Sampling, generator: torch.Generator
    ) -> Sizes:
        """Draw the number of elements from p(N | h), under the temperature and the guidance."""
        assert self.sizes is not None, "of given elements the number is known"
        return self.sizes.sample(hs, sampling, generator)

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
        *,
        sizes: Sizes | None = None,
        contexts: Sequence[Context] = (),
    ) -> Tensor:
        """Draw sets (N, P, D) float32; see `SetHead.sample`.

        known: the given numbers of each element, with `sizes`; they come back as they are.

        Raises UserError for known frames, which it cannot keep.
        """
        check_all_free(known)
        if sizes is None:
            sizes = self.sample_sizes(hs, sampling, generator)
        numbers: Tensor | None = None
        if known is not None:
            _, numbers = self._parts(known.values, sizes)
        n_frames = sizes.n_frames
        mask = sizes.mask(max([1, *n_frames.tolist()]))
        # the noise of a set does not depend on how far others reach
        size = (int(n_frames.sum()), self.signature.n_free)
        flat = normal_like(hs[0].new_empty(size, dtype=torch.float64), generator)
        noise = flat.new_zeros((*mask.shape, size[1]))
        noise[mask] = flat
        show = with_frames(callback, partial(_frames, mask, numbers))
        drawn = self.from_noise(hs, noise, mask, sampling, generator, show, contexts, numbers)
        return _frames(mask, numbers, drawn).float()

    def from_noise(
        self,
        hs: Sequence[Tensor],
        noise: Tensor,
        mask: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
        callback: Callback | None = None,
        contexts: Sequence[Context] = (),
        numbers: Tensor | None = None,
    ) -> Tensor:
        """The sets that noise (N, P, D) becomes; mask (N, P) bool: where elements are.

        numbers (N, P, G): those that are given, which are none of the D.
        """
        given = [_Given(h, mask, None, numbers) for h in hs]
        if contexts:
            given = [_Given(h, mask, c, numbers) for h, c in zip(hs, contexts, strict=True)]
        denoisers = [self._set_denoiser(one) for one in given]
        return self.solve(denoisers, noise, sampling, generator, callback)

    def _network_of(self, given: _Given) -> Callable[[Tensor, Tensor], Tensor]:
        """F(x, c_noise) of sets x (N, P, D)."""
        if given.mask.device.type != "cpu" or len(given.mask) <= CHUNK_SETS:
            return partial(self._network_at, given)
        sizes = given.mask.sum(1)
        order = sizes.argsort(stable=True)
        chunks = []
        for rows in order.split(CHUNK_SETS):
            longest = max(1, int(sizes[rows[-1]]))
            chunks.append((rows, longest, given.rows(rows, longest)))

        def conditioned(x: Tensor, c_noise: Tensor) -> Tensor:
            parts = []
            for rows, longest, part in chunks:
                y = self._network_at(part, x[rows, :longest], c_noise[rows])
                parts.append(F.pad(y, (0, 0, 0, x.shape[1] - longest)))
            return torch.cat(parts)[order.argsort()]

        return conditioned

    def _network_at(self, given: _Given, x: Tensor, c_noise: Tensor) -> Tensor:
        """F(x, c_noise) of sets x (N, P, D), all at once."""
        more = {}
        if given.context is not None:
            states = given.context.states.to(x.dtype)
            more = {"context": states, "context_mask": given.context.mask}
        if given.numbers is not None:
            more["given"] = given.numbers.to(x.dtype)
        return self.network(x, c_noise, given.mask, given.h.to(x.dtype), **more)

    def _sizes(self, y: Tensor, sizes: Sizes | None) -> Sizes:
        """The sizes that are given, once they were checked; None: all frames of y (N, P, D)."""
        if self.sizes is not None:
            self.sizes.check(y.shape[1])
        if sizes is not None:
            return sizes
        n_frames = torch.full((len(y),), y.shape[1], device=y.device)
        return Sizes(n_frames, torch.zeros_like(n_frames, dtype=torch.bool))

    def _log_p_sizes(self, h: Tensor, sizes: Sizes) -> Tensor:
        """Log p(N | h) (N,); 0 where the elements are given."""
        if self.sizes is None:
            return h.new_zeros(len(h))
        return self.sizes.log_prob(h, sizes)

    def _parts(self, y: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor | None]:
        """What is drawn of sets y (N, P, D), and what is given; 0 where there is no element."""
        y = y.masked_fill(~sizes.mask(y.shape[1])[..., None], 0)
        if not self.signature.given:
            return y, None
        return y[..., : self.signature.n_free], y[..., self.signature.n_free :]

    def data_notes(self, segments: Iterable[Tensor]) -> list[str]:
        """A sigma_data that does not fit what is drawn of latents (T, D)."""
        return super().data_notes(y[:, : self.signature.n_free] for y in segments)


def _trace_within(mask: Tensor) -> Divergence:
    """`exact_trace` over the elements that are there: mask (N, P, 1) bool."""

    def divergence(f: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        def within(z: Tensor) -> Tensor:
            return f(z) * mask

        return exact_trace(within, x)

    return divergence


def _frames(mask: Tensor, numbers: Tensor | None, x: Tensor) -> Tensor:
    """States x and the given numbers as frames (N, P, D), NaN where the mask has no element."""
    if numbers is not None:
        x = torch.cat([x, numbers.to(x.dtype)], 2)
    return x.masked_fill(~mask[..., None], math.nan)


def rotations(n: int, size: int, like: Tensor) -> Tensor:
    """Random rotations (n, size, size), each as likely as any other (Mezzadri 2007, section 5)."""
    q, r = torch.linalg.qr(normal_like(like.new_empty(n, size, size, dtype=torch.float64)))
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    flip = torch.linalg.det(q).sign()[:, None]
    return torch.cat([q[..., :1] * flip[..., None], q[..., 1:]], 2).to(like.dtype)
