"""Discrete diffusion: a token keeps its value with probability alpha_t, else is redrawn from pi.

    q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) pi(x_t)

pi uniform is D3PM's uniform noise, pi all on a mask token its absorbing one (Austin et al. 2021,
arXiv 2107.03006, appendix A.2). As everywhere in this room noise grows with t, from data at t = 0
to pi at t = 1; alpha falls from 1 to 0. Token ids are (B, L) long below V = len(pi); probabilities
and their logs are (B, L, V). Models are callables tokens (B, L) -> logits (B, L, V) of x_0.

`Masked` is the absorbing case in its own short forms: tokens are masked at random, and a model
fills them in. Its model never predicts the mask, and its logits of tokens that are not masked are
never read (Sahoo et al. 2024, arXiv 2406.07524: "SUBS"). Its bound on -log p is that of an
any-order autoregressive model: the mean over all orders of the sum of -log p(x_i | those before it)
(Ou et al. 2024, arXiv 2406.03736). So the bound does not depend on the schedule, and any subset can
be filled in given the rest. All negative log-likelihoods are in nats, (B,), over whole rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mmtok.diffusion.random import choose, uniform
from mmtok.diffusion.samplers import Callback

Model = Callable[[Tensor], Tensor]
"""Tokens (B, L) long -> logits (B, L, V) of their clean values.

A condition, or the time, is bound beforehand.
"""


@dataclass(frozen=True)
class PowerKeep:
    """alpha_t = 1 - t^power.

    Power 1 is the linear schedule ("log-linear" in sigma, for sigma = -ln alpha).
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"the power must be above 0, got {self.power}")

    def alpha(self, t: Tensor) -> Tensor:
        """The share of tokens that keep their value at time t."""
        return 1 - t**self.power

    def slope(self, t: Tensor) -> Tensor:
        """d alpha / d t."""
        return -self.power * t ** (self.power - 1)

    def rate(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha), the weight of the continuous-time bound."""
        return self.power / t


@dataclass(frozen=True)
class CosineKeep:
    """alpha_t = cos(pi t / 2)."""

    def alpha(self, t: Tensor) -> Tensor:
        """The share of tokens that keep their value at time t; as a sine it is exactly 0 at 1."""
        return (math.pi / 2 * (1 - t)).sin()

    def slope(self, t: Tensor) -> Tensor:
        """d alpha / d t."""
        return -math.pi / 2 * (math.pi / 2 * t).sin()

    def rate(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha), in a form that is accurate near t = 0."""
        return math.pi / 2 / (math.pi / 4 * t).tan()


Keep = PowerKeep | CosineKeep


@dataclass(frozen=True)
class Corruption:
    """Noise with stationary distribution pi, given as numbers that sum to 1."""

    stationary: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.stationary, default=-1.0) < 0 or abs(math.fsum(self.stationary) - 1) > 1e-9:
            raise ValueError(
                "the stationary distribution must be numbers not below 0 that sum to 1, got"
                f" {self.stationary}"
            )

    @classmethod
    def uniform(cls, n_levels: int) -> Corruption:
        """Every value as likely as any other: V = n_levels."""
        return cls((1 / n_levels,) * n_levels)

    @classmethod
    def absorbing(cls, n_levels: int) -> Corruption:
        """The mask is the id n_levels: V = n_levels + 1."""
        return cls((0.0,) * n_levels + (1.0,))

    @property
    def mask(self) -> int | None:
        """The id that pi is concentrated on, which data never hold. None where there is none."""
        if 1.0 in self.stationary and len(self.stationary) > 1:
            return self.stationary.index(1.0)
        return None

    def matrix(self, alpha: float) -> Tensor:
        """Q[from, to] = alpha I + (1 - alpha) 1 pi^T: (V, V) float64.

        Products multiply the alphas.
        """
        pi = torch.tensor(self.stationary, dtype=torch.float64)
        identity = torch.eye(len(pi), dtype=torch.float64)
        return alpha * identity + (1 - alpha) * pi.expand(len(pi), -1)

    def corrupted(
        self, x: Tensor, alpha: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """A draw of x_t given x_0 = x (B, L), alpha (B,)."""
        redraw = uniform(x.shape, x, generator) >= alpha[:, None]
        noise = choose(self._pi(x).log().expand(*x.shape, -1), uniform(x.shape, x, generator))
        return torch.where(redraw, noise, x)

    def posterior(self, x_t: Tensor, p_0: Tensor, alpha_s: Tensor, alpha_t: Tensor) -> Tensor:
        """q(x_s | x_t) for s < t when x_0 ~ p_0, (B, L, V).

        The sum over x_0 of p_0(x_0) q(x_s | x_t, x_0). With the true p(x_0 | x_t) this is the true
        reverse step; Austin et al. 2021, eq. 4 mixes joints q(x_s, x_t | x_0) instead. A value that
        noise cannot have made (where pi or 1 - alpha_t is 0) is its own x_0, whatever p_0 is.

        Args:
            x_t: (B, L).
            p_0: (B, L, V), the distribution of x_0 given x_t; one-hot for the posterior of a known
                x_0 (eq. 3).
            alpha_s: (B,).
            alpha_t: (B,).
        """
        # in place of 0, the limit from above, where values that noise cannot make stay
        least = torch.finfo(p_0.dtype).tiny
        a_s, a_t = (
            alpha[:, None, None].to(p_0.dtype).clamp(min=least) for alpha in (alpha_s, alpha_t)
        )
        step = a_t / a_s  # alpha from s to t
        pi = self._pi(x_t).to(p_0.dtype)
        here = torch.nn.functional.one_hot(x_t, len(pi)).to(p_0.dtype)
        pi_here = pi[x_t][..., None]
        likelihood = a_t * here + (1 - a_t) * pi_here  # q(x_t | x_0), over x_0
        p_0 = torch.where((1 - a_t) * pi_here > 0, p_0, here)
        share = torch.where(p_0 > 0, p_0 / likelihood, 0)
        return (step * here + (1 - step) * pi_here) * (
            a_s * share + (1 - a_s) * pi * share.sum(-1, keepdim=True)
        )

    def step_kl(
        self, log_p_0: Tensor, x: Tensor, x_t: Tensor, alpha_s: Tensor, alpha_t: Tensor
    ) -> Tensor:
        """One term of the T-step bound, in nats (B,).

        KL(q(x_s | x_t, x_0 = x) || the model's q(x_s | x_t)). log_p_0: the model's log p(x_0 | x_t)
        (B, L, V). At s = 0 (alpha_s = 1) this is -log p(x_0 = x | x_t). A bound is the sum over all
        T steps of the mean over x_t, plus `prior_kl`.
        """
        known = torch.nn.functional.one_hot(x, log_p_0.shape[-1]).to(log_p_0.dtype)
        true = self.posterior(x_t, known, alpha_s, alpha_t)
        model = self.posterior(x_t, log_p_0.exp(), alpha_s, alpha_t)
        # selected before the logarithm, whose gradient at 0 is NaN
        possible = torch.where(true > 0, model, 1)
        return (torch.xlogy(true, true) - true * possible.log()).sum((1, 2))

    def prior_kl(self, x: Tensor, alpha_1: float) -> Tensor:
        """KL(q(x_1 | x_0 = x) || pi), in nats (B,): 0 where alpha_1 = 0."""
        q = self.matrix(alpha_1).to(x.device)
        pi = self._pi(x)
        return torch.where(q > 0, q * (q.log() - pi.log()), 0).sum(1)[x].sum(1)

    def step_bound(
        self,
        model: Model,
        x: Tensor,
        steps: Tensor,
        n_steps: int,
        keep: Keep,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One estimate of the T-step bound of -log p(x), in nats (B,).

        T = n_steps times the term of step `steps` (B,), in 1..T.
        """
        t = steps.double() / n_steps
        alpha_s = keep.alpha(t - 1 / n_steps)
        alpha_t = keep.alpha(t)
        x_t = self.corrupted(x, alpha_t, generator)
        last = keep.alpha(torch.ones((), dtype=torch.float64)).item()
        log_p_0 = self._log_p_0(model, x_t)
        return n_steps * self.step_kl(log_p_0, x, x_t, alpha_s, alpha_t) + self.prior_kl(x, last)

    def sample(
        self,
        model: Model,
        x: Tensor,
        n_steps: int,
        keep: Keep,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise x ~ pi (B, L) at t = 1 -> data (B, L), by n_steps ancestral steps even in t.

        Drawn in float64. Under absorbing noise all masks are drawn; the other tokens stay. Raises
        FloatingPointError at the first step at which the model returns NaN.
        """
        if n_steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got {n_steps}")
        times = torch.linspace(1, 0, n_steps + 1, dtype=torch.float64, device=x.device)
        alphas = keep.alpha(times).clamp(0, 1)
        for i, (alpha_t, alpha_s) in enumerate(pairwise(alphas)):
            p_0 = self._log_p_0(model, x).double().exp()
            if bool(p_0.isnan().any()):
                raise FloatingPointError(f"the model returned NaN at step {i + 1} of {n_steps}")
            step = self.posterior(x, p_0, alpha_s.expand(len(x)), alpha_t.expand(len(x)))
            x = choose(step.log(), uniform(x.shape, x, generator))
        return x

    def _log_p_0(self, model: Model, x_t: Tensor) -> Tensor:
        """The model's log p(x_0 | x_t) (B, L, V); -inf for the mask, which is not data."""
        logits = model(x_t)
        if self.mask is not None:
            ids = torch.arange(logits.shape[-1], device=logits.device)
            logits = logits.masked_fill(ids == self.mask, -torch.inf)
        return log_probs(logits)

    def _pi(self, x: Tensor) -> Tensor:
        return torch.tensor(self.stationary, dtype=torch.float64, device=x.device)


def reverse_rate(p_0: Tensor, x_t: Tensor, rate: Tensor | float) -> Tensor:
    """Rates towards data of discrete flow matching's mixture path, (B, L, V).

    -alpha'/(1 - alpha) (p(x_0 = y | x_t) - [y = x_t]): Gat et al. 2024 (arXiv 2407.15595), with
    kappa = alpha and their time running backwards. Each row sums to 0, and with falling t they
    transport p_t (the Kolmogorov equation).
    """
    return rate * (p_0 - torch.nn.functional.one_hot(x_t, p_0.shape[-1]).to(p_0.dtype))


def log_probs(logits: Tensor) -> Tensor:
    """log p, in float32 at least: half precision is for the layers."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@dataclass(frozen=True)
class Masked:
    """A masked diffusion over values 0 ... n_levels - 1; the mask is the id n_levels."""

    n_levels: int
    keep: Keep = PowerKeep()

    def hide(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x (B, L) with the mask where hidden (B, L) is true."""
        return x.masked_fill(hidden, self.n_levels)

    def hidden_at(
        self,
        x: Tensor,
        t: Tensor,
        generator: torch.Generator | None = None,
        free: Tensor | None = None,
    ) -> Tensor:
        """Which tokens (B, L) are masked at times t (B,): each with probability 1 - alpha_t.

        free (B, L): only those may be masked.
        """
        hidden = uniform(x.shape, x, generator) >= self.keep.alpha(t.double())[:, None]
        if free is not None:
            hidden = hidden & free
        return hidden

    def hidden_nll(self, model: Model, x: Tensor, hidden: Tensor) -> Tensor:
        """The sum over masked tokens of -log p(x_i | those not masked)."""
        return self.token_nll(model, x, hidden).sum(1)

    def token_nll(self, model: Model, x: Tensor, hidden: Tensor) -> Tensor:
        """-log p(x_i | those not masked) of masked tokens, 0 of the others: (B, L)."""
        log_p = log_probs(model(self.hide(x, hidden))).gather(-1, x[..., None])[..., 0]
        return -log_p.masked_fill(~hidden, 0)

    def bound(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        generator: torch.Generator | None = None,
        free: Tensor | None = None,
    ) -> Tensor:
        """One unbiased estimate of the continuous-time bound of -log p(x), at random times t (B,).

        Sahoo et al. 2024: -alpha' / (1 - alpha) times the masked tokens' nats, for t uniform in
        (0, 1]; draw it by 1 - `random.stratified`. With `free` it is the bound of those tokens
        given the others.
        """
        nll = self.hidden_nll(model, x, self.hidden_at(x, t, generator, free))
        return torch.where(nll > 0, self.keep.rate(t.double()).to(nll.dtype) * nll, nll)

    def step_bound(
        self,
        model: Model,
        x: Tensor,
        steps: Tensor,
        n_steps: int,
        generator: torch.Generator | None = None,
        free: Tensor | None = None,
    ) -> Tensor:
        """One unbiased estimate of the T-step bound, T = n_steps, at steps (B,) drawn from 1..T.

        Source: Sahoo et al. 2024. It holds for `sample` with T steps, and falls to the
        continuous-time bound as T grows.
        """
        t = steps.double() / n_steps
        alpha_s = self.keep.alpha(t - 1 / n_steps)
        alpha_t = self.keep.alpha(t)
        nll = self.hidden_nll(model, x, self.hidden_at(x, t, generator, free))
        return (n_steps * (alpha_s - alpha_t) / (1 - alpha_t)).to(nll.dtype) * nll

    def order_bound(
        self, model: Model, x: Tensor, n_hidden: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """One unbiased estimate of the same continuous-time bound, with n tokens masked.

        L / n times the nats of n random masked tokens; n_hidden (B,) is drawn from 1..L. It varies
        less than `bound`, where the number of masked tokens is random too.
        """
        return self.block_bound(model, x, n_hidden[:, None], x.shape[1], generator)

    def block_bound(
        self,
        model: Model,
        x: Tensor,
        n_hidden: Tensor,
        block: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The sum over blocks of `order_bound` of each block given those before it.

        Source: Arriola et al. 2025 (arXiv 2503.09573), equation 8. The model (B, L) -> (B, L, K) is
        shown x with tokens of all blocks masked; that a block reads those before it unmasked, and
        none behind it, is the model's part. n_hidden (B, blocks): drawn from 1 to the size of each
        block, `block` or for the last one what is left.
        """
        rank = blocks_of(uniform(x.shape, x, generator), block, torch.inf).argsort(2).argsort(2)
        hidden = (rank < n_hidden[..., None]).flatten(1)[:, : x.shape[1]]
        nats = blocks_of(self.token_nll(model, x, hidden), block, 0.0).sum(2)
        return (block_sizes(x.shape[1], block, x.device) / n_hidden * nats).sum(1)

    def enumerated_bound(self, model: Model, x: Tensor, weights: Tensor) -> Tensor:
        """The bound without sampling, for L up to a dozen.

        The sum over all subsets M of positions of weights[|M|] times its nats. weights (L + 1,):
        `subset_weights` for continuous time and any order, `step_subset_weights` for T steps.
        """
        total = torch.zeros(len(x), device=x.device)
        for subset in itertools.product((False, True), repeat=x.shape[1]):
            hidden = torch.tensor(subset, device=x.device)
            if hidden.any():
                weight = weights[hidden.sum()].item()
                total = total + weight * self.hidden_nll(model, x, hidden.expand_as(x))
        return total

    def step_subset_weights(self, n_tokens: int, n_steps: int) -> Tensor:
        """The weight of a subset of m masked tokens in the T-step bound, at index m.

        (n_tokens + 1,) float64.
        """
        alpha = self.keep.alpha(torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)).clamp(0, 1)
        a_s = alpha[:-1, None]
        a_t = alpha[1:, None]
        m = torch.arange(n_tokens + 1)
        weights = ((a_s - a_t) / (1 - a_t) * (1 - a_t) ** m * a_t ** (n_tokens - m)).sum(0)
        weights[0] = 0
        return weights

    def sample(
        self,
        model: Model,
        tokens: Tensor,
        n_steps: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        callback: Callback | None = None,
    ) -> Tensor:
        """Fill the masked tokens of (B, L) in n_steps steps even in t; the others stay.

        Drawn in float64. Tokens of the same step are drawn independently, which is an error that
        `fill` does not make. callback: as of samplers. Raises FloatingPointError at the first step
        at which the model returns NaN or infinity.
        """
        if n_steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got {n_steps}")
        times = torch.linspace(1, 0, n_steps + 1, dtype=torch.float64)
        alphas = self.keep.alpha(times).clamp(0, 1).tolist()
        for i, (alpha_t, alpha_s) in enumerate(pairwise(alphas)):
            shown = uniform(tokens.shape, tokens, generator) < (alpha_s - alpha_t) / (1 - alpha_t)
            at = f"step {i + 1} of {n_steps}"
            tokens = self._revealed(model, tokens, shown, generator, temperature, at)
            if callback is not None:
                callback(i, tokens)
        return tokens

    def fill(
        self,
        model: Model,
        tokens: Tensor,
        generator: torch.Generator | None = None,
        order: Tensor | None = None,
        temperature: float = 1.0,
        callback: Callback | None = None,
    ) -> Tensor:
        """Fill the masked tokens of (B, L) one at a time, exact for a consistent model.

        order (B, L): a permutation of positions per row, in which the masked ones are filled;
        random by default. Raises as `sample`.
        """
        if order is None:
            order = uniform(tokens.shape, tokens, generator).argsort(1)
        masked_in_order = (tokens == self.n_levels).gather(1, order)
        # of a masked position: how many are filled before it
        n_before = torch.zeros_like(order).scatter(1, order, masked_in_order.cumsum(1) - 1)
        n_steps = int(masked_in_order.sum(1).max())
        for i in range(n_steps):
            at = f"step {i + 1} of {n_steps}"
            tokens = self._revealed(model, tokens, n_before == i, generator, temperature, at)
            if callback is not None:
                callback(i, tokens)
        return tokens

    def _revealed(
        self,
        model: Model,
        tokens: Tensor,
        shown: Tensor,
        generator: torch.Generator | None,
        temperature: float,
        at: str,
    ) -> Tensor:
        """Tokens with the masked ones among `shown` drawn.

        Random numbers are drawn for all tokens, so that rows do not depend on each other. at: the
        step, for errors.
        """
        u = uniform(tokens.shape, tokens, generator)
        shown = shown & (tokens == self.n_levels)
        if not bool(shown.any()):
            return tokens
        logits = model(tokens)[shown].double()  # (n, n_levels)
        if not bool((logits < torch.inf).all()):
            raise FloatingPointError(f"the model returned NaN or infinity at {at}")
        tokens = tokens.clone()
        if temperature == 0:
            tokens[shown] = logits.argmax(-1)
        else:
            tokens[shown] = choose(logits / temperature, u[shown])
        return tokens


def block_sizes(n_tokens: int, block: int, device: torch.device | None = None) -> Tensor:
    """How many of n tokens lie in each block, (blocks,): the last one holds what is left."""
    first = torch.arange(0, n_tokens, block, device=device)
    return (n_tokens - first).clamp(max=block)


def blocks_of(x: Tensor, block: int, filling: float) -> Tensor:
    """(B, L) -> (B, blocks, block), the last one filled up."""
    missing = -x.shape[1] % block
    return torch.nn.functional.pad(x, (0, missing), value=filling).unflatten(1, (-1, block))


def subset_weights(n_tokens: int) -> Tensor:
    """The weight of a subset of m masked tokens in the continuous-time bound, (L + 1,) float64.

    (m - 1)! (L - m)! / L!, at index m. It is the integral of -alpha' / (1 - alpha) (1 - alpha)^m
    alpha^(L - m) over t for every schedule: Beta(m, L - m + 1).
    """
    weights = [
        math.exp(math.lgamma(m) + math.lgamma(n_tokens - m + 1) - math.lgamma(n_tokens + 1))
        for m in range(1, n_tokens + 1)
    ]
    return torch.tensor([0.0, *weights], dtype=torch.float64)


def concrete_score(log_p: Tensor, alpha: Tensor | float) -> Tensor:
    """p_t(x with value y at a masked position) / p_t(x), elementwise (Ou et al. 2024).

    It is p(y | not masked) alpha / (1 - alpha).
    """
    return log_p.exp() * alpha / (1 - alpha)


def score_entropy(score: Tensor, ratio: Tensor) -> Tensor:
    """Lou et al. 2024 (arXiv 2310.16834), definition 3.1: sum over y of s - r ln s + r (ln r - 1).

    Scores s and their true values r, (..., K) -> (...). For hidden tokens, scores made from
    normalised p, and one alpha in s and r, -alpha' / alpha times this is masked diffusion's term.
    """
    return (score - torch.xlogy(ratio, score) + torch.xlogy(ratio, ratio) - ratio).sum(-1)
