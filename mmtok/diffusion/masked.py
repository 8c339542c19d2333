"""Masked diffusion: tokens are hidden at random and a model fills them in; the absorbing case of
corruption.py, with its own short forms.

A model is a callable tokens (B, L) long, hidden ones with id n_levels -> logits (B, L, n_levels) of
their values: it cannot say "mask", and what it says of tokens that are not hidden is never read
(Sahoo et al. 2024, arXiv 2406.07524: "SUBS").

Its bound on -log p is that of an any-order autoregressive model: the mean over all orders of the
sum of -log p(x_i | those before it) (Ou et al. 2024, arXiv 2406.03736). So the bound does not
depend on the schedule, and any subset can be filled in given the rest. All nats are (B,), over
whole rows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.diffusion.discrete import Keep, Model, PowerKeep, log_probs
from mmtok.diffusion.random import choose, uniform
from mmtok.diffusion.samplers import Callback


@dataclass(frozen=True)
class Masked:
    """A masked diffusion over values 0 ... n_levels - 1; the mask is the id n_levels."""

    n_levels: int
    keep: Keep = PowerKeep()

    def hide(self, x: Tensor, hidden: Tensor) -> Tensor:
        """X (B, L) with the mask where hidden (B, L) is true."""
        return x.masked_fill(hidden, self.n_levels)

    def hidden_at(
        self,
        x: Tensor,
        t: Tensor,
        generator: torch.Generator | None = None,
        free: Tensor | None = None,
    ) -> Tensor:
        """A draw of what is hidden at times t (B,): each token with probability 1 - alpha_t.

        free (B, L): only those may be.
        """
        hidden = uniform(x.shape, x, generator) >= self.keep.alpha(t.double())[:, None]
        return hidden if free is None else hidden & free

    def nats_hidden(self, model: Model, x: Tensor, hidden: Tensor) -> Tensor:
        """The sum over hidden tokens of -log p(x_i | those not hidden)."""
        log_p = log_probs(model(self.hide(x, hidden))).gather(-1, x[..., None])[..., 0]
        return -log_p.masked_fill(~hidden, 0).sum(1)

    def bound(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        generator: torch.Generator | None = None,
        free: Tensor | None = None,
    ) -> Tensor:
        """One unbiased estimate of the continuous-time bound of -log p(x), at times t (B,) drawn
        uniform in (0, 1].

        Sahoo et al. 2024: -alpha' / (1 - alpha) times the hidden tokens' nats. With `free` it is
        the bound of those tokens given the others. Draw t by 1 - `draws.stratified`.
        """
        nats = self.nats_hidden(model, x, self.hidden_at(x, t, generator, free))
        return torch.where(nats > 0, self.keep.rate(t.double()).to(nats.dtype) * nats, nats)

    def step_bound(
        self,
        model: Model,
        x: Tensor,
        steps: Tensor,
        n_steps: int,
        generator: torch.Generator | None = None,
        free: Tensor | None = None,
    ) -> Tensor:
        """One unbiased estimate of the T-step bound (Sahoo et al. 2024), T = n_steps, at steps (B,)
        drawn from 1..T.

        It bounds what `sample` with T steps draws, and falls to the continuous-time bound as T
        grows.
        """
        t = steps.double() / n_steps
        alpha_s, alpha_t = self.keep.alpha(t - 1 / n_steps), self.keep.alpha(t)
        nats = self.nats_hidden(model, x, self.hidden_at(x, t, generator, free))
        return (n_steps * (alpha_s - alpha_t) / (1 - alpha_t)).to(nats.dtype) * nats

    def order_bound(
        self, model: Model, x: Tensor, n_hidden: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """One unbiased estimate of the same continuous-time bound by counts: L / n times the nats
        of n random hidden tokens.

        n_hidden (B,) drawn from 1..L. Its variance is below that of `bound`, which draws how many
        are hidden as well.
        """
        rank = uniform(x.shape, x, generator).argsort(1).argsort(1)
        return x.shape[1] / n_hidden * self.nats_hidden(model, x, rank < n_hidden[:, None])

    def enumerated_bound(self, model: Model, x: Tensor, weights: Tensor) -> Tensor:
        """A bound without chance: the sum over all subsets M of positions of weights[|M|] times its
        nats. For L up to a dozen.

        weights (L + 1,): `subset_weights` for continuous time and any order, `step_subset_weights`
        for T steps.
        """
        total = 0
        for subset in itertools.product((False, True), repeat=x.shape[1]):
            hidden = torch.tensor(subset, device=x.device)
            if hidden.any():
                total = total + weights[hidden.sum()].item() * self.nats_hidden(
                    model, x, hidden.expand_as(x)
                )
        return total

    def step_subset_weights(self, n_tokens: int, n_steps: int) -> Tensor:
        """The weight of a subset of m hidden tokens in the T-step bound: (n_tokens + 1,) float64,
        index m.
        """
        alpha = self.keep.alpha(torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)).clamp(0, 1)
        a_s, a_t, m = alpha[:-1, None], alpha[1:, None], torch.arange(n_tokens + 1)
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

        Drawn in float64.

        Tokens that appear in the same step are drawn apart from each other; `fill` does not make
        that error. watch: as of samplers. Raises FloatingPointError at the first step at which the
        model says what is no number.
        """
        if n_steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got {n_steps}")
        alphas = (
            self.keep.alpha(torch.linspace(1, 0, n_steps + 1, dtype=torch.float64))
            .clamp(0, 1)
            .tolist()
        )
        for i, (alpha_t, alpha_s) in enumerate(zip(alphas, alphas[1:])):
            shown = uniform(tokens.shape, tokens, generator) < (alpha_s - alpha_t) / (1 - alpha_t)
            tokens = self._revealed(
                model, tokens, shown, generator, temperature, f"step {i + 1} of {n_steps}"
            )
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
        """Fill the masked tokens of (B, L) one at a time: any-order infilling, exact for a
        consistent model.

        order (B, L): a permutation of positions per row, in which the masked ones are met; random
        by default. Raises as `sample`.
        """
        if order is None:
            order = uniform(tokens.shape, tokens, generator).argsort(1)
        masked_in_order = (tokens == self.n_levels).gather(1, order)
        turn = torch.zeros_like(order).scatter(
            1, order, masked_in_order.cumsum(1) - 1
        )  # of a masked position: how many come before it
        n_turns = int(masked_in_order.sum(1).max())
        for i in range(n_turns):
            tokens = self._revealed(
                model, tokens, turn == i, generator, temperature, f"step {i + 1} of {n_turns}"
            )
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

        The numbers are drawn whatever is shown, so rows do not depend on each other.
        """
        u, shown = uniform(tokens.shape, tokens, generator), shown & (tokens == self.n_levels)
        if not bool(shown.any()):
            return tokens
        logits = model(tokens)[shown].double()  # (n, n_levels)
        if not bool((logits < torch.inf).all()):
            raise FloatingPointError(f"the model returned NaN or infinity at {at}")
        tokens = tokens.clone()
        tokens[shown] = (
            logits.argmax(-1) if temperature == 0 else choose(logits / temperature, u[shown])
        )
        return tokens


def subset_weights(n_tokens: int) -> Tensor:
    """(m - 1)! (L - m)! / L!, the weight of a subset of m hidden tokens in the continuous-time
    bound: (L + 1,) float64, index m.

    It is the integral of -alpha' / (1 - alpha) (1 - alpha)^m alpha^(L - m) over t for every
    schedule: Beta(m, L - m + 1).
    """
    weights = [
        math.exp(math.lgamma(m) + math.lgamma(n_tokens - m + 1) - math.lgamma(n_tokens + 1))
        for m in range(1, n_tokens + 1)
    ]
    return torch.tensor([0.0, *weights], dtype=torch.float64)


def concrete_score(log_p: Tensor, alpha: Tensor | float) -> Tensor:
    """p_t(x with value y at a hidden position) / p_t(x) = p(y | not hidden) alpha / (1 - alpha) (Ou
    et al. 2024), elementwise.
    """
    return log_p.exp() * alpha / (1 - alpha)


def score_entropy(score: Tensor, ratio: Tensor) -> Tensor:
    """Lou et al. 2024 (arXiv 2310.16834), definition 3.1: sum over y of s - r ln s + r (ln r - 1).

    Scores s and their true values r, (..., K) -> (...). For hidden tokens, scores made from
    normalised p, and one alpha in s and r, -alpha' / alpha times this is masked diffusion's term.
    """
    return (score - torch.xlogy(ratio, score) + torch.xlogy(ratio, ratio) - ratio).sum(-1)
