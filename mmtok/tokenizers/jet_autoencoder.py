"""Jets as a fixed number of latents: an autoencoder of whole sets of constituents.

T latents of D numbers stand for a jet, however many constituents it has and in whatever order, so
that heads of grids (GridDiffusion) draw jets by latent diffusion. The first number says how many
constituents there are, so a decoded jet has as many. The others say what they are, with a loss.
mmtok.train.jet_set_fit trains the networks.

Jets go through the networks one by one, without padding and in float64, so neither their latents
nor what they decode to depends on the jets of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError, check_ranges
from mmtok.tokenizers.base import (
    TokenizerConfig,
    checked_latents,
    fingerprint,
    learned,
    load_config,
    spreads,
    with_weights,
    write_learned,
)
from mmtok.tokenizers.jet_clipping import Clipping, ClippingTokenizer
from mmtok.tokenizers.jet_particles import FEATURES, counted, hardest, stretched, unstretched
from mmtok.tokenizers.jet_totals import half_width, of_jets, pt_and_mass

if TYPE_CHECKING:
    import torch

    from mmtok.nn.set_latents import SetLatents

SUMMARIES = ("ln pt", "ln mass", "ln (1 + P)")  # that the encoder reads of a jet
LEAST_GEV = 1.0  # lighter jets count as ones of this mass, and so for pt


@dataclass(frozen=True)
class JetAutoencoderConfig(TokenizerConfig):
    """Latents of whole jets by networks without an order.

    Attributes:
        frames: latents of a jet.
        latent_size: numbers of a latent.
        width: hidden numbers of the networks, a multiple of n_heads. The dial of the size.
        blocks: of attention, in the encoder and in the decoder.
        n_heads: of attention.
        loss: between the constituents of a jet and those that it decodes to: "matched", the squared
            error under the best matching, which is optimal transport; "sinkhorn", the Sinkhorn
            divergence of both, weighed by powers of pt; "chamfer", the distance to the nearest; or
            "sorted", the squared error in the order of falling pt.
        weight: constituents count as pt to this power in the loss; 0: all alike.
        totals_weight: of the squared errors of a jet's ln pt and ln mass, beside the loss.
        kl_weight: of the latents' KL term in nats, beside the loss; 0: a plain autoencoder, without
            noise.
        max_constituents: so many are kept, the hardest.
        batch_size: jets per step.
        steps: of training.
    """

    modality: ClassVar[str] = "jets"
    learns: ClassVar[bool] = True
    features: ClassVar[tuple[str, ...]] = FEATURES
    totals: ClassVar[tuple[str, ...]] = ()

    frames: int = 8
    latent_size: int = 8
    width: int = 64
    blocks: int = 2
    n_heads: int = 4
    loss: Literal["matched", "sinkhorn", "chamfer", "sorted"] = "matched"
    weight: float = 0.5
    totals_weight: float = 1.0
    kl_weight: float = 1e-5
    max_constituents: int = 128
    batch_size: int = 32
    steps: int = 2000

    def __post_init__(self) -> None:
        check_ranges(
            self,
            frames=(1, 2**12),
            latent_size=(1, 2**12),
            width=(1, 2**13),
            blocks=(1, 256),
            n_heads=(1, 1024),
            weight=(0, 2),
            totals_weight=(0, 1e6),
            kl_weight=(0, 1e6),
            max_constituents=(1, 10**6),
            batch_size=(1, 2**16),
            steps=(1, 10**9),
        )
        if self.width % self.n_heads:
            raise UserError(
                f"JetAutoencoderConfig: width is {self.width}; it must be a multiple of n_heads,"
                f" which is {self.n_heads}"
            )

    @property
    def takes(self) -> dict[str, tuple[str, ...]]:
        """The jets that the tokenizer takes: these columns."""
        return {"features": FEATURES}

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the weights."""
        return Signature("jets", latent_size=self.latent_size, frames=self.frames)

    def network(self) -> SetLatents:
        """A new, untrained network of these sizes."""
        from mmtok.nn.set_latents import SetLatents, SetLatentsConfig

        sizes = SetLatentsConfig(
            n_numbers=len(FEATURES),
            n_summaries=len(SUMMARIES),
            most=self.max_constituents,
            frames=self.frames,
            latent_size=self.latent_size,
            width=self.width,
            blocks=self.blocks,
            n_heads=self.n_heads,
        )
        return SetLatents(sizes)

    def load(self, folder: Path) -> JetAutoencoder:
        """Open the tokenizer that was saved in `folder`."""
        return JetAutoencoder.load(folder)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Numbers of a jet."""
        return [f"{self.frames * self.latent_size} numbers a jet"]

    # ---- constituents as numbers

    def kept(
        self, signals: Sequence[np.ndarray], count: Clipping
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The constituents that are kept, as `hardest` gives them."""
        return hardest(signals, self.max_constituents, count)

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """pt_gev, eta_rel and phi_rel (P, 3) -> numbers (P, 3) float64."""
        return stretched(values)

    def new_count(self) -> Clipping:
        """Of jets that are cut."""
        return counted(self.max_constituents)


def summaries(values: np.ndarray, n: np.ndarray) -> np.ndarray:
    """SUMMARIES (N, 3) of jets of n (N,) constituents (all P, 3)."""
    pt, mass = pt_and_mass(values, n)
    logs = np.log(np.maximum(np.stack([pt, mass], 1), LEAST_GEV))
    return np.concatenate([logs, np.log1p(n)[:, None]], 1)


class JetAutoencoder(ClippingTokenizer):
    """Constituents (P, 3) <-> latents (T, D), each of mean 0 and variance 1; lossy.

    All orders of a jet's constituents give the same latents, but for rounding. Decoded constituents
    go by falling pt.
    """

    config: JetAutoencoderConfig
    config_type: ClassVar[type] = JetAutoencoderConfig

    def __init__(self, config: JetAutoencoderConfig, network: SetLatents):
        """Take over a trained network, and change it to float64."""
        super().__init__(config)
        self._network = network.double().eval().requires_grad_(False)
        mark = fingerprint("JetAutoencoder", asdict(config), *learned(self._network))
        self.signature = replace(config.signature(), fingerprint=mark)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Jets (P, 3) -> segments of latents (T, D) float32.

        Particles of zero pt are padding and left out; so are those beyond max_constituents, which
        are counted. Raises UserError for another shape, NaN, infinities and negative pt.
        """
        import torch

        with self.count_of_call() as count:
            values, n, _ = self.config.kept(signals, count)
        numbers = torch.from_numpy(self.config.numbers(values)).split(n.tolist())
        of_sets = torch.from_numpy(summaries(values, n))
        segments = []
        for x, summary in zip(numbers, of_sets, strict=True):
            latents = self._latents(x, summary).numpy().astype(np.float32)
            segments.append(Segment("jets", latents=latents))
        return segments

    def _latents(self, x: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
        """The latents (T, D) of constituents (P, 3)."""
        import torch

        if not len(x):
            return self._network.latents_of_nothing()
        mask = torch.ones(1, len(x), dtype=torch.bool)
        return self._network.latents(x[None], summary[None], mask)[0]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments of latents (T, D) -> constituents (P, 3) float32, by falling pt."""
        import torch

        jets = []
        for segment in segments:
            latents = torch.from_numpy(checked_latents(segment, self.signature)).double()[None]
            mask = torch.ones(1, int(self._network.counts(latents)), dtype=torch.bool)
            jet = unstretched(self._network.sets(latents, mask)[0].numpy())
            jets.append(jet[np.argsort(-jet[:, 0], kind="stable")])
        return jets

    def n_units(self, segment: Segment) -> int:
        """The number of constituents that a segment says."""
        import torch

        latents = torch.from_numpy(checked_latents(segment, self.signature)).double()
        return int(self._network.counts(latents[None]))

    def new_count(self) -> Clipping:
        """Of jets that are cut."""
        return self.config.new_count()

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Figures of the round trip, as `JetVQ.fidelity`, and the `spreads` of the latents."""
        with self.counting(quiet=True):
            segments = self.encode_batch(signals)
        full = [i for i, segment in enumerate(segments) if self.n_units(segment)]
        if not full:
            raise UserError("fidelity of jets needs at least one constituent")
        real = [np.asarray(signals[i]) for i in full]
        decoded = self.decode_batch([segments[i] for i in full])
        pt, mass = of_jets(real)
        pt_back, mass_back = of_jets(decoded)
        n_cut = sum(int((jet[:, 0] > 0).sum()) > self.config.max_constituents for jet in real)
        figures = {
            "pt_ratio_width": half_width(pt_back / pt),
            "pt_ratio_median": np.median(pt_back / pt),
            "mass_width_gev": half_width(mass_back - mass),
            "mass_shift_gev": np.median(mass_back - mass),
            "truncated_share": n_cut / len(signals),
        }
        return {name: float(value) for name, value in figures.items()} | spreads(segments)

    def save(self, folder: Path) -> None:
        """Write the config and the weights."""
        write_learned(Path(folder), "JetAutoencoder", asdict(self.config), self._network)

    @classmethod
    def load(cls, folder: Path) -> JetAutoencoder:
        """Open what `save` wrote.

        Raises UserError when the weights are missing, broken or of other sizes.
        """
        config = load_config(folder, "JetAutoencoder", JetAutoencoderConfig)
        return cls(config, with_weights(folder, config.network))
