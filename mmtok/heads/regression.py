"""Regression: numbers y drawn from a closed distribution whose parameters the condition decides.

The network reads the decoder's hidden state, so the condition may be of any modality, and
p(y | condition) is exact. In the unit of the caller: where latents are standardised numbers
(`Signature.scales`), log p has the Jacobian of that, -sum log scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

import torch
from torch import Tensor, nn

from mmtok.core.segment import Signature
from mmtok.diffusion.guidance import guide
from mmtok.diffusion.random import uniform
from mmtok.errors import UserError
from mmtok.heads.base import Callback, Head, HeadConfig, Kind, Known, TrainingTask
from mmtok.heads.densities import (
    Density,
    Gaussian,
    GaussianMixture,
    GeneralisedNormal,
    NegativeBinomial,
    Poisson,
    Student,
)
from mmtok.heads.epistemic import (
    BayesianLastLayer,
    Certain,
    DropoutEnsemble,
    DropoutLinear,
    MeanFieldLinear,
    last_layer,
)
from mmtok.heads.laws import Law, MassConstraint, MomentumBalance
from mmtok.heads.quantiles import AbsoluteError, Quantiles, SquaredError
from mmtok.heads.sampling import Sampling
from mmtok.io.serialize import Kinds


@dataclass(frozen=True)
class Regression(HeadConfig):
    """A frame of latents from a closed distribution, given the state before it.

    Attributes:
        family: the distribution; of counts (`VectorConfig.counts`) Poisson or NegativeBinomial.
            Quantiles, SquaredError and AbsoluteError are not trained by their likelihood, and
            BayesianLastLayer refuses them.
        hidden: width of the network's one hidden layer; 0: a linear layer.
        weights: what data leave open of them: `Certain`, `DropoutEnsemble` or `BayesianLastLayer`.
        laws: what the distribution's centre costs beside its loss, where it breaks a law of physics
            (`mmtok.heads.laws`); they need `VectorConfig.one_unit`.
    """

    frames = "continuous latents, or counts"

    family: (
        Gaussian
        | GeneralisedNormal
        | Student
        | GaussianMixture
        | Poisson
        | NegativeBinomial
        | Quantiles
        | SquaredError
        | AbsoluteError
    ) = Gaussian()
    hidden: int = 128
    weights: Certain | DropoutEnsemble | BayesianLastLayer = Certain()
    laws: tuple[Annotated[Law, Kinds(MomentumBalance | MassConstraint)], ...] = ()

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise UserError(f"Regression: hidden is {self.hidden}; it must be at least 0")
        if isinstance(self.weights, BayesianLastLayer) and self.family.kind != "exact":
            raise UserError(
                f"Regression: {type(self.family).__name__} is not trained by its likelihood, which"
                " BayesianLastLayer bounds; set weights to DropoutEnsemble(), or family to"
                " Gaussian()"
            )

    @property
    def loss_kind(self) -> Kind:
        """The family's; of uncertain weights, and with laws, a bound on what is exact."""
        is_exact = isinstance(self.weights, Certain) and not self.laws
        if self.family.kind == "exact" and not is_exact:
            return "bound"
        return self.family.kind

    @property
    def loss_name(self) -> str:
        """The family's, with laws beside it."""
        if self.laws:
            return f"{self.family.loss_name} with laws"
        return self.family.loss_name

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Latents that are no cells."""
        return bool(signature.latent_size) and not signature.cells

    def build(self, width: int, signature: Signature) -> RegressionHead:
        """The head for hidden states of this width and frames of this signature.

        Raises UserError for counts with a family of real numbers, and the other way round; for
        BayesianLastLayer and segments of any number of frames.
        """
        return RegressionHead(self, width, signature)


class RegressionHead(Head):
    """Frames (N, D), one for each hidden state."""

    def __init__(self, config: Regression, width: int, signature: Signature):
        super().__init__(config, signature)
        self.config: Regression = config
        self.family = config.family
        _check_family(config, signature)
        _check_frames(config, signature)
        _check_laws(config, signature)
        self.size = signature.latent_size
        self.log_volume = math.fsum(map(math.log, signature.scales))
        n_raw = self.family.n_raw(self.size)
        last = last_layer(config.weights, config.hidden or width, n_raw)
        with torch.no_grad():
            last.weight.mul_(0.1)  # so that training starts from `initial`
            last.bias.copy_(self.family.initial(self.size))
        layers: list[nn.Module] = [last]
        if config.hidden:
            layers = [nn.Linear(width, config.hidden), nn.SiLU(), last]
        self.network = nn.Sequential(*layers)

    @property
    def kind(self) -> Kind:
        """The family's."""
        return self.family.kind

    @property
    def is_certain(self) -> bool:
        """Whether there is one set of weights."""
        return isinstance(self.config.weights, Certain)

    @property
    def no_score(self) -> str:
        """Why the family has no log p; "" where it has one."""
        return self.family.no_score

    def density(self, hs: Sequence[Tensor], guidance: float = 1.0) -> Density:
        """The distribution of the latents; of two states, with raw outputs mixed by guidance.

        Of uncertain weights: by their means. In float64, as lgamma's and the triangular solver's
        errors would show in float32.
        """
        raw = self._raw(hs[0], self.network[-1])
        if len(hs) > 1:
            raw = guide(raw, self._raw(hs[1], self.network[-1]), guidance)
        return self.family.at(raw, self.size)

    def member(self, h: Tensor, k: int) -> Density:
        """The distribution of the latents by member k of uncertain weights."""
        last = cast(DropoutLinear | MeanFieldLinear, self.network[-1])
        return self.family.at(self._raw(h, partial(last.member, k=k)), self.size)

    def _raw(self, h: Tensor, last: Callable[[Tensor], Tensor]) -> Tensor:
        """Raw outputs (N, P) in float64, of products in the weights' type under autocast too.

        In bfloat16 a mean would be off by half a percent, and log p by nats where p is sharp.
        """
        dtype = cast(nn.Linear | MeanFieldLinear, self.network[-1]).weight.dtype
        with torch.autocast(h.device.type, enabled=False):
            return last(self.network[:-1](h.to(dtype))).double()

    def _values(self, y: Tensor) -> Tensor:
        """Latents in float64, or the counts that they stand for."""
        if self.family.counts:
            return torch.expm1(y.double()).round()
        return y.double()

    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """-log p (N,), or what else the family is trained by, then of the latents."""
        if self.is_certain:
            density = self.density([h])
        else:
            last = cast(DropoutLinear | MeanFieldLinear, self.network[-1])
            density = self.family.at(self._raw(h, last.draw), self.size)
        loss = density.loss(self._values(y)) + self._law_costs(density)
        if self.family.kind == "exact":
            loss = loss + self.log_volume
        if isinstance(self.config.weights, BayesianLastLayer):
            n_frames = self.config.weights.n_examples * cast(int, self.signature.frames)
            loss = loss + cast(MeanFieldLinear, self.network[-1]).kl() / n_frames
        return loss

    def _law_costs(self, density: Density) -> Tensor | float:
        """What the centres cost by all laws: (N,) nats."""
        if not self.config.laws:
            return 0.0
        unit = (*self.signature.scales, 1.0)[0]  # all are alike
        centre = unit * density.sample(0.0, torch.Generator())
        return torch.stack([law(centre) for law in self.config.laws]).sum(0)

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Log p(y | h) (N,) in nats, of y in the caller's unit; a probability for counts.

        Raises UserError for a family that has none.
        """
        if self.no_score:
            raise UserError(f"{self.signature.modality}: {self.no_score}")
        y = self._values(y)
        if self.is_certain:
            return self.density([h]).log_prob(y) - self.log_volume
        n = self.config.weights.members
        each = torch.stack([self.member(h, k).log_prob(y) for k in range(n)])
        return torch.logsumexp(each, 0) - math.log(n) - self.log_volume

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw frames (N, D) in float64; see `Density.sample` for the temperature.

        Of uncertain weights each row takes a member at random, at temperature 0 their means.
        """
        self._check_guidance(sampling)
        if self.is_certain or sampling.temperature == 0:
            y = self.density(hs, sampling.guidance).sample(sampling.temperature, generator)
        else:
            y = self._sample_members(hs[0], sampling.temperature, generator)
        if not bool(torch.isfinite(y).all()):
            raise UserError(
                f"{self.signature.modality}: a draw is NaN or infinite; train again, with a lower"
                " learning rate"
            )
        return torch.log1p(y) if self.family.counts else y

    def _sample_members(self, h: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Draw (N, D), each row by a member that is drawn for it."""
        n = self.config.weights.members
        chosen = (n * uniform((len(h),), h, generator)).long()
        y = h.new_empty((len(h), self.size), dtype=torch.float64)
        for k in chosen.unique().tolist():
            rows = chosen == k
            y[rows] = self.member(h[rows], k).sample(temperature, generator)
        return y

    def validate(self, sampling: Sampling | None = None, task: TrainingTask | None = None) -> None:
        """As `Head.validate`; uncertain weights refuse guidance."""
        super().validate(sampling, task)
        if sampling is not None:
            self._check_guidance(sampling)

    def _check_guidance(self, sampling: Sampling) -> None:
        if sampling.guidance != 1 and not self.is_certain:
            raise UserError(
                f"{self.signature.modality}: its weights are drawn anew for every draw, which two"
                " conditions cannot share; leave out guidance"
            )


def _check_family(config: Regression, signature: Signature) -> None:
    """Raise UserError for counts and a family of real numbers, and the other way round."""
    if config.family.counts == signature.counts:
        return
    name = type(config.family).__name__
    m = signature.modality
    if signature.counts:
        raise UserError(
            f"Regression: {m} holds counts, but {name} is of real numbers; set"
            f" model.heads.{m}.family to Poisson() or NegativeBinomial()"
        )
    raise UserError(
        f"Regression: {m} holds real numbers, but {name} is of counts; set tokenizers.{m}.counts,"
        f" or model.heads.{m}.family to Gaussian()"
    )


def _check_frames(config: Regression, signature: Signature) -> None:
    """Raise UserError for a Bayesian layer where the number of training frames is not known."""
    if isinstance(config.weights, BayesianLastLayer) and signature.frames is None:
        m = signature.modality
        raise UserError(
            f"Regression: BayesianLastLayer counts its KL divergence once for all frames, but {m}"
            f" has segments of any number of them; set model.heads.{m}.weights to DropoutEnsemble()"
        )


def _check_laws(config: Regression, signature: Signature) -> None:
    """Raise UserError for laws of numbers that are not in one unit."""
    for law in config.laws:
        law.check(signature.latent_size)
    if config.laws and len(set(signature.scales)) > 1:
        raise UserError(
            f"Regression: laws are of quantities in one unit; set tokenizers.{signature.modality}"
            f" to VectorConfig(size={signature.latent_size}, one_unit=True)"
        )
