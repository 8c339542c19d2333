"""What data leave open of a head's weights: dropout ensembles and a Bayesian last layer.

Training draws weights anew for every example. Draws and scores are of an ensemble of K members,
sets of weights that are always the same ones: a draw takes one of them at random, and log p(y) is
that of their mean, log (1/K) sum_k p(y | weights_k), exact for the ensemble. So draws hold what the
model does not know for lack of data beside the noise that it has learned. Only the head's weights
are uncertain, never the decoder's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.diffusion.random import normal_like, uniform
from mmtok.errors import UserError

MOST_MEMBERS = 10_000


@dataclass(frozen=True)
class Certain:
    """One set of weights."""

    @property
    def members(self) -> int:
        """One."""
        return 1


@dataclass(frozen=True)
class DropoutEnsemble:
    """Dropout before the last layer, in training and in drawing (Gal and Ghahramani 2016).

    arXiv 1506.02142, equation 6: a mask is a member.

    Attributes:
        rate: share of hidden units that a mask drops.
        members: K.
    """

    rate: float = 0.1
    members: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or not 1 <= self.members <= MOST_MEMBERS:
            raise UserError(
                f"DropoutEnsemble: rate is {self.rate} and members {self.members}; the rate must be"
                f" between 0 and 1, members 1 to {MOST_MEMBERS:,}"
            )


@dataclass(frozen=True)
class BayesianLastLayer:
    """Weights of the last layer of N(mean, sd^2) each, learned by the evidence lower bound.

    The loss of an example has KL(q || prior) / n_examples beside it, each of its T frames 1 / T of
    that, so that an epoch has the KL once (Blundell et al. 2015, arXiv 1505.05424, equation 2),
    with noise drawn in the outputs (Kingma et al. 2015, arXiv 1506.02557, equation 6). It is a
    bound beside the loss of families that are trained by their likelihood alone.

    Attributes:
        n_examples: training examples that predict this modality; has to be said.
        prior: standard deviation of the last layer's outputs before any data, where hidden units
            have a mean square of 1.
        members: K, draws of the weights.
    """

    n_examples: int = 0
    prior: float = 1.0
    members: int = 32

    def __post_init__(self) -> None:
        if self.n_examples < 1:
            raise UserError(
                "BayesianLastLayer: n_examples is not said; set it to the number of training"
                " examples, as the KL divergence counts once for all of them"
            )
        if not 0 < self.prior < math.inf or not 1 <= self.members <= MOST_MEMBERS:
            raise UserError(
                f"BayesianLastLayer: prior is {self.prior} and members {self.members}; the prior"
                f" must be above 0 and finite, members 1 to {MOST_MEMBERS:,}"
            )


Weights = Certain | DropoutEnsemble | BayesianLastLayer


class DropoutLinear(nn.Linear):
    """A linear layer whose inputs are dropped at random, in evaluation too."""

    def __init__(self, width: int, n_out: int, rate: float):
        super().__init__(width, n_out)
        self.rate = rate

    def draw(self, x: Tensor) -> Tensor:
        """(N, n_out), each row by a mask of its own."""
        return self(x * (uniform(tuple(x.shape), x) >= self.rate) / (1 - self.rate))

    def member(self, x: Tensor, k: int) -> Tensor:
        """(N, n_out), by the mask of member k."""
        generator = torch.Generator().manual_seed(k)
        kept = uniform((x.shape[1],), x, generator) >= self.rate
        return self(x * kept / (1 - self.rate))


class MeanFieldLinear(nn.Module):
    """A linear layer of independent Gaussian weights and biases; `weight`, `bias` are their means.

    log_sd, log_sd_bias: of their standard deviations. No nn.Linear, so that nothing of it decays:
    the prior does that.
    """

    def __init__(self, width: int, n_out: int, prior: float):
        super().__init__()
        means = nn.Linear(width, n_out)
        self.weight = means.weight
        self.bias = means.bias
        self.prior_sd = prior / math.sqrt(width + 1)
        start = math.log(0.1 * self.prior_sd)
        self.log_sd = nn.Parameter(torch.full((n_out, width), start))
        self.log_sd_bias = nn.Parameter(torch.full((n_out,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_out), by the means of the weights."""
        return F.linear(x, self.weight, self.bias)

    def draw(self, x: Tensor) -> Tensor:
        """(N, n_out), each row by weights of its own."""
        mean = self(x)
        variance = F.linear(x.square(), (2 * self.log_sd).exp(), (2 * self.log_sd_bias).exp())
        return mean + variance.sqrt() * normal_like(mean)

    def member(self, x: Tensor, k: int) -> Tensor:
        """(N, n_out), by the weights of member k."""
        generator = torch.Generator().manual_seed(k)
        weight = self.weight + self.log_sd.exp() * normal_like(self.weight, generator)
        bias = self.bias + self.log_sd_bias.exp() * normal_like(self.bias, generator)
        return F.linear(x, weight, bias)

    def kl(self) -> Tensor:
        """KL(q || prior) in nats: sum of log(prior / sd) + (sd^2 + mean^2) / (2 prior^2) - 1/2."""
        total = self.weight.new_zeros(())
        for mean, log_sd in ((self.weight, self.log_sd), (self.bias, self.log_sd_bias)):
            ratio = log_sd - math.log(self.prior_sd)
            square = (2 * ratio).exp() + (mean / self.prior_sd).square()
            total = total + (0.5 * square - ratio - 0.5).sum()
        return total


def last_layer(config: Weights, width: int, n_out: int) -> nn.Linear | MeanFieldLinear:
    """The last layer of a head's network."""
    if isinstance(config, DropoutEnsemble):
        return DropoutLinear(width, n_out, config.rate)
    if isinstance(config, BayesianLastLayer):
        return MeanFieldLinear(width, n_out, config.prior)
    return nn.Linear(width, n_out)
