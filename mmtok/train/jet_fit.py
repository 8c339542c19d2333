"""Trains the networks of a jet's codes by gradients, around one of the quantisers.

The loss is the mean squared error of the constituents' numbers, weighted by pt, plus the
quantiser's (van den Oord et al. 2017, equation 3). A further term, the squared error of a jet's ln
pt and ln mass, made masses no better (300 steps, 1,000 codes, one seed).

Letters: N constituents of a step's jets, B jets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.serialize import to_plain
from mmtok.io.terminal import print_status
from mmtok.nn.precision import Precision
from mmtok.nn.quantize import Codebook, ResidualCodebooks, code_counts, codebook_figures
from mmtok.nn.set_autoencoder import SetAutoencoder
from mmtok.tokenizers.jet_autoencoder import JetAutoencoderConfig
from mmtok.tokenizers.jet_particles import CORE, MOST_ASINH
from mmtok.tokenizers.jet_vq import LOG_PT, TIMES, JetVQ, JetVQConfig
from mmtok.tokenizers.quantizers import VQ, ResidualVQ
from mmtok.train.network_fit import NetworkFit, Report, collapse, products_in, seeded
from mmtok.train.quantizers import learner

# Constituents per code for the k-means start, and a bound of its table of distances in numbers.
START_PER_CODE = 16
MOST_DISTANCES = 2**27
N_HEALTH = 500  # jets that the log's figures are of at most, where none are held out
AT_ONCE = 100  # jets, where nothing is learned
LEAST_MASS_GEV = 1.0  # lighter jets count as ones of this mass
LEAST_LOG_PT = -12.0
MOST_LOG_PT = 12.0


class Jets:
    """The constituents of jets, one jet after another.

    Attributes:
        numbers: (N, 3) float32, as the config measures them.
        weights: (N,) how much each counts.
        lengths: (B,) int64.
        n_cut: jets of which constituents beyond the cap are left out.
    """

    def __init__(self, config: JetVQConfig | JetAutoencoderConfig, signals: Sequence[np.ndarray]):
        count: Any = config.new_count()
        values, n, _ = config.kept(signals, count)
        count.report()
        self.numbers = torch.from_numpy(config.numbers(values)).float()
        self.weights = torch.from_numpy(values[:, 0] ** config.weight).float()
        self.lengths = torch.from_numpy(n[n > 0])  # jets without constituents say nothing
        self._starts = self.lengths.cumsum(0) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def some(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers (N, 3), weights (N,) and lengths (B,) of the jets with these indices (B,)."""
        lengths = self.lengths[which]
        first = lengths.cumsum(0) - lengths
        shift = torch.repeat_interleave(self._starts[which] - first, lengths)
        place = torch.arange(int(lengths.sum())) + shift
        return self.numbers[place], self.weights[place], lengths


class JetFit(NetworkFit):
    """The state of such a training."""

    what = "jet tokenizer"
    learning_rate = 2e-3

    network: SetAutoencoder

    def __init__(
        self,
        config: JetVQConfig,
        jets: Jets,
        heldout: Jets,
        seed: int,
        folder: Path,
        progress: Report,
        precision: Precision,
    ):
        per_step = config.batch_size * len(jets.numbers) / len(jets)
        between = learner(config.quantizer, round(per_step))
        settings = to_plain(config) | {"seed": seed, "n_jets": len(jets)}
        network = config.autoencoder().train()
        super().__init__(network, between, config.steps, settings, folder, progress)
        self.config = config
        self.jets = jets
        self.heldout = heldout
        self.precision = precision

    @torch.no_grad()
    def start(self) -> None:
        """Let codebooks begin where vectors lie, by k-means."""
        quantizer = self.config.quantizer
        if not isinstance(quantizer, (VQ, ResidualVQ)):
            return
        assert self.between is not None
        wanted = min(START_PER_CODE * quantizer.n_codes, MOST_DISTANCES // quantizer.n_codes)
        wanted = max(wanted, quantizer.n_codes)
        n_jets = math.ceil(2 * wanted * len(self.jets) / len(self.jets.numbers))
        numbers, weights, lengths = self.jets.some(torch.randperm(len(self.jets))[:n_jets])
        vectors = self.network.encoder(numbers, lengths)
        self.between(vectors[torch.multinomial(weights, wanted, replacement=True)])

    def parts(self) -> dict[str, Tensor]:
        """Of constituents, and of the quantiser."""
        assert self.between is not None
        which = torch.randint(len(self.jets), (self.config.batch_size,))
        numbers, weights, lengths = self.jets.some(which)
        with products_in(self.precision):
            vectors = self.network.encoder(numbers, lengths)
        drawn = None
        if self.config.weight:
            drawn = torch.multinomial(weights, len(weights), replacement=True)
        found, loss = self.between(vectors, drawn)
        with products_in(self.precision):
            decoded = self.network.decoder(found, lengths)
        error = (decoded.float() - numbers).square().mean(1)
        return {"particles": (weights * error).sum() / weights.sum(), "quantizer": loss}

    def _totals(self, numbers: Tensor, lengths: Tensor) -> Tensor:
        """ln pt and ln mass (B, 2) of jets, in GeV."""
        pt = (numbers[:, 0] + LOG_PT).clamp(LEAST_LOG_PT, MOST_LOG_PT).exp()
        if self.config.measure == "omnijet":
            eta, phi = (numbers[:, 1:] / TIMES).unbind(1)
        else:
            eta, phi = (CORE * numbers[:, 1:].clamp(-MOST_ASINH, MOST_ASINH).sinh()).unbind(1)
        return totals_of(pt, eta, phi, lengths)

    @torch.no_grad()
    def health(self) -> dict[str, float]:
        """Errors of held-out jets, and the use of the codebook."""
        codes, decoded = self._coded(self.heldout)
        jets = self.heldout
        error = (decoded - jets.numbers).square().mean(1)
        off = self._totals(decoded, jets.lengths) - self._totals(jets.numbers, jets.lengths)
        use, perplexity = codebook_figures(codes, self.config.quantizer.levels)
        return {
            "error": float((jets.weights * error).sum() / jets.weights.sum()),
            "pt_off": float(off[:, 0].square().mean().sqrt()),
            "mass_off": float(off[:, 1].abs().median()),
            "codebook_use": use,
            "codebook_perplexity": perplexity,
        }

    def _coded(self, jets: Jets) -> tuple[Tensor, Tensor]:
        """The codes (N, C) of jets, and the numbers (N, 3) that they decode to."""
        assert self.between is not None
        self.between.write_to(self.network.codebook)
        all_codes = []
        decoded = []
        for which in torch.arange(len(jets)).split(AT_ONCE):
            numbers, _, lengths = jets.some(which)
            codes = self.network.codes(numbers, lengths)
            all_codes.append(codes)
            decoded.append(self.network.elements(codes, lengths))
        return torch.cat(all_codes), torch.cat(decoded)

    def remark(self, figures: Mapping[str, float]) -> str:
        """A codebook of which few codes are used."""
        quantizer = self.config.quantizer
        said = collapse(figures["codebook_use"], quantizer, len(self.heldout.numbers))
        return said and f"jets: {said}"

    @torch.no_grad()
    def tokenizer(self) -> JetVQ:
        """With the codebook as it stands, its codes by rising ln pt of what they stand for."""
        codes, _ = self._coded(self.jets)
        book = self.network.codebook
        n_codes = self.config.quantizer.levels[0]
        counts = code_counts(codes[:, 0], n_codes)
        if isinstance(book, (Codebook, ResidualCodebooks)):
            sums = torch.zeros(n_codes).index_add_(0, codes[:, 0], self.jets.numbers[:, 0])
            mean = torch.where(counts > 0, sums / counts.clamp(min=1), -math.inf)
            rows = book.vectors if isinstance(book, Codebook) else book.vectors[0]
            rows.copy_(rows[mean.argsort(stable=True)])
        n_dead = int((counts == 0).sum())
        if n_dead:
            print_status(
                f"jet tokenizer: {n_dead:,} of {n_codes:,} codes are dead, none of the"
                f" {len(codes):,} constituents that were learned from has them"
            )
        return JetVQ(self.config, self.network)


def totals_of(pt: Tensor, eta: Tensor, phi: Tensor, lengths: Tensor) -> Tensor:
    """ln pt and ln mass (B, 2), in GeV, of jets of lengths (B,) of constituents (N,)."""
    eta = eta.clamp(-5, 5)
    terms = torch.stack([pt, pt * eta.exp(), pt * (-eta).exp(), pt * phi.cos(), pt * phi.sin()])
    jet = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    sums = terms.new_zeros(5, len(lengths)).index_add_(1, jet, terms)
    square = sums[1] * sums[2] - sums[3].square() - sums[4].square()  # E^2 - |p|^2
    mass = square.clamp(min=LEAST_MASS_GEV**2).sqrt()
    return torch.stack([sums[0].log(), mass.log()], 1)


def train_jets(
    config: JetVQConfig,
    signals: Sequence[np.ndarray],
    seed: int,
    progress: Report,
    precision: Precision,
    folder: Path,
    heldout: Sequence[np.ndarray] = (),
) -> Any:
    """The tokenizer that `config` describes, learned from jets (P, 3).

    heldout: that the figures of the log are of; without any, of jets that are learned from.

    Raises UserError without constituents, for what is no jet, and for fewer constituents than
    codes.
    """
    jets = Jets(config, signals)
    if not len(jets):
        raise UserError("JetVQConfig: no constituents to learn from; give jets")
    quantizer = config.quantizer
    n = len(jets.numbers)
    if isinstance(quantizer, (VQ, ResidualVQ)) and n < quantizer.n_codes:
        raise UserError(
            f"JetVQConfig: {n:,} constituents are fewer than the {quantizer.n_codes:,} codes to be"
            " learned: give more jets, or set quantizer.n_codes lower"
        )
    others = Jets(config, heldout)
    if not len(others):
        others = Jets(config, signals[:N_HEALTH])
    with seeded(seed):
        return JetFit(config, jets, others, seed, folder, progress, precision).run()
