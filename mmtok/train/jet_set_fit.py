"""Trains the autoencoder of whole jets by gradients.

The loss is a distance of two sets of constituents (`mmtok.nn.transport`), plus the squared errors
of ln pt and ln mass, plus the KL term of the latents. Each jet counts alike.

Letters: B jets of a step, P constituents of the largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.serialize import to_plain
from mmtok.nn.precision import Precision
from mmtok.nn.set_autoencoder import real_places
from mmtok.nn.set_latents import SetLatents
from mmtok.nn.transport import (
    chamfer,
    log_weights,
    matched,
    sinkhorn_divergence,
    squared_distances,
)
from mmtok.tokenizers.jet_autoencoder import JetAutoencoder, JetAutoencoderConfig, summaries
from mmtok.tokenizers.jet_particles import CORE, FEATURES, MOST_ASINH, MOST_LOG_PT, unstretched
from mmtok.train.jet_fit import AT_ONCE, N_HEALTH, Jets, totals_of
from mmtok.train.network_fit import NetworkFit, Report, products_in, seeded

EPSILON = 0.05  # of the Sinkhorn divergence of standardised numbers
N_ITERATIONS = 20
MOST_LOG_WEIGHT = 20.0


class JetSets:
    """Jets as padded sets.

    Attributes:
        jets: the constituents of all of them.
        summaries: (B, 3) float32, as `jet_autoencoder.summaries`.
    """

    def __init__(self, config: JetAutoencoderConfig, signals: Sequence[np.ndarray]):
        self.jets = Jets(config, signals)
        values = unstretched(self.jets.numbers.numpy())
        self.summaries = torch.from_numpy(summaries(values, self.jets.lengths.numpy())).float()

    def __len__(self) -> int:
        return len(self.jets)

    def some(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers (B, P, 3), summaries (B, 3) and where constituents are (B, P), of these jets."""
        numbers, _, lengths = self.jets.some(which)
        mask = real_places(lengths)
        padded = numbers.new_zeros(*mask.shape, numbers.shape[1])
        padded[mask] = numbers
        return padded, self.summaries[which], mask

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All jets, some at once, as `some` gives them."""
        for which in torch.arange(len(self)).split(AT_ONCE):
            yield self.some(which)


class JetSetFit(NetworkFit):
    """The state of such a training."""

    what = "jet autoencoder"
    learning_rate = 2e-3

    network: SetLatents

    def __init__(
        self,
        config: JetAutoencoderConfig,
        jets: JetSets,
        heldout: JetSets,
        seed: int,
        folder: Path,
        progress: Report,
        precision: Precision,
    ):
        settings = to_plain(config) | {"seed": seed, "n_jets": len(jets)}
        network = config.network().train()
        network.standardise_numbers(jets.jets.numbers, jets.summaries)
        super().__init__(network, None, config.steps, settings, folder, progress)
        self.config = config
        self.jets = jets
        self.heldout = heldout
        self.precision = precision

    def parts(self) -> dict[str, Tensor]:
        """Of constituents, of totals, and of the latents."""
        c = self.config
        x, summary, mask = self.jets.some(torch.randint(len(self.jets), (c.batch_size,)))
        with products_in(self.precision):
            posterior = self.network.posterior(x, summary, mask)
            z = posterior.mean
            if c.kl_weight:
                z = posterior.sample()
            y = self.network.elements(self.network.with_count(z, mask), mask).float()
        off = (decoded_totals(y, mask) - summary[:, :2]).square().mean(1)
        losses = {
            "particles": self.distance(y, x, mask).mean(),
            "totals": c.totals_weight * off.mean(),
        }
        if c.kl_weight:
            losses["kl"] = c.kl_weight * posterior.kl().mean()
        return losses

    def distance(self, y: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """The loss (B,) of decoded constituents y against x, both (B, P, 3) in numbers.

        Numbers are standardised, and it is a mean over the three.
        """
        n_numbers = len(FEATURES)
        log_pt_y = y[..., 0]
        log_pt_x = x[..., 0]
        scale = self.network.number_scale[:n_numbers]
        y = y / scale
        x = x / scale
        log_b = self._log_weights(log_pt_x, mask)
        if self.config.loss in ("sinkhorn", "chamfer"):
            log_a = self._log_weights(log_pt_y, mask)
            if self.config.loss == "chamfer":
                return chamfer(y, x, log_a, log_b) / n_numbers
            return sinkhorn_divergence(y, x, log_a, log_b, EPSILON, N_ITERATIONS) / n_numbers
        weights = log_b.exp()
        if self.config.loss == "matched":
            with torch.no_grad():
                places = matched(squared_distances(y, x) * weights[:, None], mask.sum(1))
            x = x.gather(1, places[..., None].expand_as(x))
            weights = weights.gather(1, places)
        return ((y - x).square().mean(2) * weights).masked_fill(~mask, 0).sum(1)

    def _log_weights(self, log_pt: Tensor, mask: Tensor) -> Tensor:
        """Shares (B, P) of constituents in their jet's loss, by ln pt."""
        powers = (self.config.weight * log_pt).clamp(-MOST_LOG_WEIGHT, MOST_LOG_WEIGHT)
        return log_weights(mask, powers.exp())

    @torch.no_grad()
    def health(self) -> dict[str, float]:
        """Errors of held-out jets."""
        errors = []
        off = []
        for x, summary, mask in self.heldout.chunks():
            y = self.network.elements(self._means(x, summary, mask), mask)
            errors.append(self.distance(y, x, mask))
            off.append(decoded_totals(y, mask) - summary[:, :2])
        off_pt, off_mass = torch.cat(off).unbind(1)
        return {
            "error": float(torch.cat(errors).mean()),
            "pt_off": float(off_pt.square().mean().sqrt()),
            "mass_off": float(off_mass.abs().median()),
        }

    def _means(self, x: Tensor, summary: Tensor, mask: Tensor) -> Tensor:
        """Latents (B, T, D) of jets without noise, not standardised."""
        return self.network.with_count(self.network.posterior(x, summary, mask).mean, mask)

    @torch.no_grad()
    def tokenizer(self) -> JetAutoencoder:
        """With latents that have mean 0 and variance 1 over the jets that were learned from."""
        latents = [self._means(*jets) for jets in self.jets.chunks()]
        self.network.standardise_over(torch.cat(latents))
        return JetAutoencoder(self.config, self.network)


def decoded_totals(y: Tensor, mask: Tensor) -> Tensor:
    """ln pt and ln mass (B, 2), in GeV, of jets whose constituents are numbers (B, P, 3)."""
    numbers = y[mask]
    pt = numbers[:, 0].clamp(-MOST_LOG_PT, MOST_LOG_PT).exp()
    eta, phi = (CORE * numbers[:, 1:].clamp(-MOST_ASINH, MOST_ASINH).sinh()).unbind(1)
    return totals_of(pt, eta, phi, mask.sum(1))


def train_jet_sets(
    config: JetAutoencoderConfig,
    signals: Sequence[np.ndarray],
    seed: int,
    progress: Report,
    precision: Precision,
    folder: Path,
    heldout: Sequence[np.ndarray] = (),
) -> JetAutoencoder:
    """The tokenizer that `config` describes, learned from jets (P, 3).

    heldout: that the figures of the log are of; without any, of jets that are learned from.

    Raises UserError without constituents, and for what is no jet.
    """
    jets = JetSets(config, signals)
    if not len(jets):
        raise UserError("JetAutoencoderConfig: no constituents to learn from; give jets")
    others = JetSets(config, heldout[:N_HEALTH])
    if not len(others):
        others = JetSets(config, signals[:N_HEALTH])
    with seeded(seed):
        return JetSetFit(config, jets, others, seed, folder, progress, precision).run()
