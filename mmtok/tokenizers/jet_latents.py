"""Jets as they are, without codes: each constituent is a vector of three numbers (P, 3).

Nothing is lost but float32's rounding. Constituents go by falling pt. Heads of sets (SetDiffusion)
give the density of the set, whatever its order; heads that draw one constituent after another
(FrameDiffusion) that of the list by falling pt, of which other lists take their share: a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
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

if TYPE_CHECKING:
    from torch import nn

LEAST_SPREAD = 1e-6  # of a number that says something


@dataclass(frozen=True)
class JetLatentsConfig(TokenizerConfig):
    """Constituents as latents of mean 0 and variance 1.

    Attributes:
        max_constituents: so many are kept, the hardest; a jet with more becomes a truncated
            segment.
    """

    modality: ClassVar[str] = "jets"
    learns: ClassVar[bool] = True
    features: ClassVar[tuple[str, ...]] = FEATURES
    totals: ClassVar[tuple[str, ...]] = ()

    max_constituents: int = 128

    def __post_init__(self) -> None:
        if self.max_constituents < 1:
            raise UserError(
                f"JetLatentsConfig: max_constituents is {self.max_constituents}; it must be at"
                " least 1"
            )

    @property
    def takes(self) -> dict[str, tuple[str, ...]]:
        """The jets that the tokenizer takes: these columns."""
        return {"features": FEATURES}

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the means and spreads."""
        return Signature("jets", latent_size=len(FEATURES), unordered=True)

    def scales(self) -> nn.Module:
        """Means 0 and spreads 1."""
        import torch
        from torch import nn

        module = nn.Module()
        module.register_buffer("shift", torch.zeros(len(FEATURES)))
        module.register_buffer("scale", torch.ones(len(FEATURES)))
        return module

    def fit(self, signals: Sequence[np.ndarray]) -> JetLatents:
        """Learn the mean and spread of each number. Raises UserError without constituents."""
        import torch

        values, _, _ = hardest(signals, self.max_constituents, counted(self.max_constituents))
        if not len(values):
            raise UserError("JetLatentsConfig: no constituents to learn from; give jets")
        numbers = stretched(values)
        spread = numbers.std(0)
        scales = self.scales()
        scales.get_buffer("shift").copy_(torch.from_numpy(numbers.mean(0)))
        spread = np.where(spread > LEAST_SPREAD, spread, 1.0)
        scales.get_buffer("scale").copy_(torch.from_numpy(spread))
        return JetLatents(self, scales)

    def load(self, folder: Path) -> JetLatents:
        """Open the tokenizer that was saved in `folder`."""
        return JetLatents.load(folder)


class JetLatents(ClippingTokenizer):
    """Constituents (P, 3) <-> latents (P, 3); `fidelity` gives the `spreads`."""

    config: JetLatentsConfig
    config_type: ClassVar[type] = JetLatentsConfig
    is_ambiguous = True

    def __init__(self, config: JetLatentsConfig, scales: nn.Module):
        super().__init__(config)
        self._scales = scales
        self._shift = scales.get_buffer("shift").double().numpy()
        self._scale = scales.get_buffer("scale").double().numpy()
        mark = fingerprint("JetLatents", asdict(config), *learned(scales))
        self.signature = replace(config.signature(), fingerprint=mark)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Jets (P, 3) -> segments of latents (P, 3), P at most max_constituents.

        Particles of zero pt are padding and left out. Raises UserError for another shape, NaN,
        infinities and negative pt.
        """
        with self.count_of_call() as count:
            values, n, is_cut = hardest(signals, self.config.max_constituents, count)
        latents = ((stretched(values) - self._shift) / self._scale).astype(np.float32)
        pieces = np.split(latents, np.cumsum(n)[:-1]) if len(n) else []
        return [
            Segment("jets", latents=piece, truncated=cut)
            for piece, cut in zip(pieces, is_cut.tolist(), strict=True)
        ]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments of latents (P, 3) -> constituents (P, 3) float32, by falling pt."""
        jets = []
        for segment in segments:
            numbers = checked_latents(segment, self.signature) * self._scale + self._shift
            jet = unstretched(numbers)
            jets.append(jet[np.argsort(-jet[:, 0], kind="stable")])
        return jets

    def new_count(self) -> Clipping:
        """Of jets that are cut."""
        return counted(self.config.max_constituents)

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """The smallest and largest spread of a number, and the share of jets that are cut."""
        with self.counting(quiet=True):
            segments = self.encode_batch(signals)
        cut = float(np.mean([segment.truncated for segment in segments]))
        return {**spreads(segments), "truncated_share": cut}

    def save(self, folder: Path) -> None:
        """Write the config, the means and the spreads."""
        write_learned(Path(folder), "JetLatents", asdict(self.config), self._scales)

    @classmethod
    def load(cls, folder: Path) -> JetLatents:
        """Open what `save` wrote.

        Raises UserError when the constants are missing, broken or of other sizes.
        """
        config = load_config(folder, "JetLatents", JetLatentsConfig)
        return cls(config, with_weights(folder, config.scales))
