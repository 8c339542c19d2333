"""Jets as codes of a network: a codebook between an encoder and a decoder of constituents.

A VQ-VAE (van den Oord et al. 2017) of constituents one by one, or of all of a jet by attention:
the unconditional and conditional tokens of OmniJet-alpha (Birk et al. 2024, arXiv 2403.05618).
mmtok.train.jet_fit trains it.

Constituents are a set: frames fall in their codes, and codes of one codebook are numbered by rising
pt of what they stood for. Jets go through the networks one by one, without padding and in float64,
so neither their codes nor what they decode to depends on the jets of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError, check_ranges
from mmtok.io.serialize import to_plain
from mmtok.io.tally import Tally
from mmtok.nn.angles import wrap
from mmtok.tokenizers.base import (
    TokenizerConfig,
    checked_codes,
    fingerprint,
    learned,
    load_config,
    with_weights,
    write_learned,
)
from mmtok.tokenizers.jet_clipping import Clipping, ClippingTokenizer, Count
from mmtok.tokenizers.jet_networks import JetNetwork, PerParticle, WholeJet
from mmtok.tokenizers.jet_order import ordered
from mmtok.tokenizers.jet_particles import (
    CORE,
    FEATURES,
    MOST_ASINH,
    MOST_LOG_PT,
    hardest,
    lengths_of,
)
from mmtok.tokenizers.jet_totals import half_width, of_jets
from mmtok.tokenizers.quantizers import VQ, Quantizer

if TYPE_CHECKING:
    from torch import Tensor

    from mmtok.nn.set_autoencoder import SetAutoencoder

LOG_PT = 1.8  # what is subtracted from ln(pt_gev)
TIMES = 3.0  # what angles are multiplied by
MOST_ANGLE = 100.0  # radians that a decoded angle has at most


@dataclass(frozen=True)
class JetVQConfig(TokenizerConfig):
    """Codes of constituents by networks around a codebook.

    Attributes:
        quantizer: how a constituent's vector becomes codes; with `ResidualVQ` a frame has several.
        network: between constituents and vectors, each by itself or all of a jet.
        measure: of what errors are: ln(pt_gev) - 1.8, and of both angles asinh(angle / 0.03)
            ("asinh", fine about the axis), or 3 x the angle ("omnijet").
        max_angle: constituents that are further from the axis in either angle, in radians, are left
            out; 0: none are.
        weight: constituents count as pt to this power while it learns; 0: all alike.
        max_constituents: so many are kept, the hardest; a jet with more becomes a truncated
            segment.
        batch_size: jets per step.
        steps: of training.
    """

    modality: ClassVar[str] = "jets"
    learns: ClassVar[bool] = True
    presets: ClassVar[tuple[str, ...]] = ("omnijet", "omnijet_per_particle")

    quantizer: Quantizer = VQ(n_codes=1024, code_size=4)
    network: JetNetwork = WholeJet()
    measure: Literal["asinh", "omnijet"] = "asinh"
    max_angle: float = 0.0
    weight: float = 0.5
    max_constituents: int = 128
    batch_size: int = 32
    steps: int = 2000

    @classmethod
    def omnijet(cls) -> JetVQConfig:
        """OmniJet-alpha's conditional tokens: sizes, numbers and cuts of its configuration.

        It takes batches of 512 jets, and 585,000 steps of them.
        """
        return cls(
            quantizer=VQ(n_codes=8192, code_size=4),
            network=WholeJet(width=128, blocks=4, n_heads=8),
            measure="omnijet",
            max_angle=0.8,
            weight=0.0,
            batch_size=512,
            steps=585_000,
        )

    @classmethod
    def omnijet_per_particle(cls) -> JetVQConfig:
        """OmniJet-alpha's unconditional tokens."""
        return replace(cls.omnijet(), network=PerParticle())

    def __post_init__(self) -> None:
        check_ranges(
            self,
            max_angle=(0, 100),
            weight=(0, 2),
            max_constituents=(1, 10**6),
            batch_size=(1, 2**16),
            steps=(1, 10**9),
        )

    @property
    def takes(self) -> dict[str, tuple[str, ...]]:
        """The jets that the tokenizer takes: these columns."""
        return {"features": FEATURES}

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the weights."""
        return Signature("jets", self.quantizer.levels, descending=True)

    def autoencoder(self) -> SetAutoencoder:
        """New, untrained networks of these sizes, with an empty codebook."""
        from mmtok.nn.set_autoencoder import SetAutoencoder

        encoder = self.network.network(len(FEATURES), self.quantizer.size)
        decoder = self.network.network(self.quantizer.size, len(FEATURES))
        return SetAutoencoder(encoder, self.quantizer.look_up(), decoder)

    def load(self, folder: Path) -> JetVQ:
        """Open the tokenizer that was saved in `folder`."""
        return JetVQ.load(folder)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Bits of a particle, and what its code depends on."""
        seen = "by the particle alone"
        if isinstance(self.network, WholeJet):
            seen = "by the whole jet"
        return [f"{signature.bits_per_frame:.4g} bits a particle {seen}"]

    # ---- constituents as numbers

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """pt_gev, eta_rel and phi_rel (P, 3) -> numbers (P, 3) float64."""
        values = np.asarray(values, np.float64)
        log_pt = np.log(values[:, :1]) - LOG_PT
        angles = np.stack([values[:, 1], wrap(values[:, 2])], 1)
        if self.measure == "omnijet":
            return np.concatenate([log_pt, TIMES * angles], 1)
        return np.concatenate([log_pt, np.arcsinh(angles / CORE)], 1)

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """The inverse of `numbers`, float32; what is too large for a jet is cut."""
        numbers = np.asarray(numbers, np.float64)
        pt = np.exp(np.clip(numbers[:, :1] + LOG_PT, -MOST_LOG_PT, MOST_LOG_PT))
        if self.measure == "omnijet":
            angles = np.clip(numbers[:, 1:] / TIMES, -MOST_ANGLE, MOST_ANGLE)
        else:
            angles = CORE * np.sinh(np.clip(numbers[:, 1:], -MOST_ASINH, MOST_ASINH))
        return np.concatenate([pt, angles], 1).astype(np.float32)

    def kept(
        self, signals: Sequence[np.ndarray], count: Kept
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The constituents that are kept, as `hardest` gives them; `count` gets all of them.

        Raises UserError for what is no jet.
        """
        if self.max_angle:
            lengths_of(signals)
            signals = [count.near(np.asarray(jet), i) for i, jet in enumerate(signals)]
        return hardest(signals, self.max_constituents, count)

    def new_count(self) -> Kept:
        """Of jets that are cut, and of constituents that are left out."""
        edges = np.zeros((len(FEATURES), 2))
        return Kept(FEATURES, edges, self.max_constituents, max_angle=self.max_angle)


@dataclass
class Kept(Clipping):
    """Counts of jets that are cut, and of constituents that are too far from the axis.

    Attributes:
        max_angle: in radians.
        far: constituents that are left out, as they are further away.
    """

    max_angle: float = 0.0
    far: Count = field(default_factory=Count)

    def near(self, jet: np.ndarray, i: int) -> np.ndarray:
        """The constituents of a jet (P, 3) that are near enough; the others are counted.

        i: the number of the jet among those of this call, which are counted after it.
        """
        is_far = (np.abs(jet[:, 1:3]) > self.max_angle).any(1)
        pt = jet[:, 0].astype(np.float64)
        is_counted = is_far & (pt > 0)  # the others are padding
        self.far.add(is_counted, pt, np.full(len(jet), self.n_jets + i))
        return jet[~is_far]

    def as_plain(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {**super().as_plain(), "far": asdict(self.far)}

    def merge_plain(self, plain: Mapping[str, Any]) -> None:
        """Add counts that `as_plain` gave, of jets that come after these."""
        self.far.merge(Count(**plain["far"]), self.n_jets)
        super().merge_plain(plain)

    def report(self, reported: set | None = None) -> None:
        """Warn of what was cut and left out."""
        super().report(reported)
        if not self.far.n or "far" in (reported or ()):
            return
        with Tally("particles") as tally:
            tally.count(self.all.n + self.far.n)
            share = self.far.pt / (self.all.pt + self.far.pt)
            what = f"left out, more than {self.max_angle:g} from the axis ({share:.2g} of the pt)"
            tally.add(what, f"jet {self.far.first}", self.far.n)
        if reported is not None:
            reported.add("far")


class JetVQ(ClippingTokenizer):
    """Constituents (P, 3) <-> codes (P, C), C is 1 but for `ResidualVQ`; lossy.

    Several lists of codes may decode to about the same jet, and what a jet decodes to may be
    encoded otherwise. So the probability of codes is exact for them, and a lower bound of that of
    their jet.
    """

    config: JetVQConfig
    config_type: ClassVar[type] = JetVQConfig

    def __init__(self, config: JetVQConfig, network: SetAutoencoder):
        """Take over trained networks, and change them to float64."""
        super().__init__(config)
        self._network = network.double().eval().requires_grad_(False)
        mark = fingerprint("JetVQ", _plain(config), *learned(self._network))
        levels = config.quantizer.levels
        self.signature = Signature("jets", levels, fingerprint=mark, descending=True)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Jets (P, 3) -> segments of codes (P, C) int32, P at most max_constituents.

        Particles of zero pt are padding and left out. All orders of a jet's constituents give the
        same segment. Raises UserError for another shape, NaN, infinities and negative pt.
        """
        import torch

        with self.count_of_call() as count:
            values, n, is_cut = self.config.kept(signals, count)
        numbers = torch.from_numpy(self.config.numbers(values))
        codes = self._one_by_one(self._network.codes, numbers, n).numpy().astype(np.int32)
        jet = np.repeat(np.arange(len(n)), n)
        _, codes = ordered(values, codes, jet, self.signature.levels)
        pieces = np.split(codes, np.cumsum(n)[:-1]) if len(n) else []
        return [
            Segment("jets", codes=piece, truncated=cut)
            for piece, cut in zip(pieces, is_cut.tolist(), strict=True)
        ]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments of codes (P, C) -> constituents (P, 3) float32."""
        import torch

        if not segments:
            return []
        codes = np.concatenate([checked_codes(segment, self.signature) for segment in segments])
        n = np.array([len(segment) for segment in segments])
        given = torch.from_numpy(codes.astype(np.int64))
        numbers = self._one_by_one(self._network.elements, given, n).numpy()
        return np.split(self.config.values(numbers), np.cumsum(n)[:-1])

    def _one_by_one(self, network: Any, x: Tensor, n: np.ndarray) -> Tensor:
        """What a network makes of each of the jets of n (N,) constituents x (all P, ...)."""
        import torch

        found = [network(part, torch.tensor([len(part)])) for part in x.split(n.tolist())]
        if not found:
            return network(x, torch.zeros(0, dtype=torch.long))
        return torch.cat(found)

    def new_count(self) -> Kept:
        """Of jets that are cut, and of constituents that are left out."""
        return self.config.new_count()

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Figures of the round trip of jets, as `JetGrid.fidelity`, and the use of the codebook.

        dead_codes: those of the first codebook that none of these jets has.
        """
        import torch

        from mmtok.nn.quantize import book_use, code_counts, codebook_figures

        with self.counting(quiet=True):
            segments = self.encode_batch(signals)
        codes = np.concatenate([segment.values for segment in segments])
        if not len(codes):
            raise UserError("fidelity of jets needs at least one constituent")
        levels = self.signature.levels
        use, perplexity = codebook_figures(torch.from_numpy(codes), levels)
        first = book_use(code_counts(torch.from_numpy(codes[:, 0]), levels[0]))
        full = [i for i, segment in enumerate(segments) if len(segment)]
        decoded = self.decode_batch([segments[i] for i in full])
        pt, mass = of_jets([signals[i] for i in full])
        pt_back, mass_back = of_jets(decoded)
        figures = {
            "pt_ratio_width": half_width(pt_back / pt),
            "pt_ratio_median": np.median(pt_back / pt),
            "mass_width_gev": half_width(mass_back - mass),
            "mass_shift_gev": np.median(mass_back - mass),
            "codebook_use": use,
            "codebook_perplexity": perplexity,
            "dead_codes": round((1 - first) * levels[0]),
            "truncated_share": np.mean([segment.truncated for segment in segments]),
        }
        return {name: float(value) for name, value in figures.items()}

    def save(self, folder: Path) -> None:
        """Write the config and the weights."""
        write_learned(Path(folder), "JetVQ", _plain(self.config), self._network)

    @classmethod
    def load(cls, folder: Path) -> JetVQ:
        """Open what `save` wrote.

        Raises UserError when the weights are missing, broken or of other sizes.
        """
        config = load_config(folder, "JetVQ", JetVQConfig)
        return cls(config, with_weights(folder, config.autoencoder))


def _plain(config: JetVQConfig) -> dict[str, Any]:
    """Its fields as JSON values, each choice with its kind."""
    plain: dict[str, Any] = to_plain(config)
    del plain["kind"]
    return plain
