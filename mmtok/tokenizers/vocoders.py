"""From a log-mel spectrogram back to samples: mel inversion, then Griffin-Lim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, griffin_lim, invert_mel

FRAMES_AT_ONCE = 256  # of a padded batch; more is slower on a CPU, as they no longer fit its cache


@dataclass(frozen=True)
class GriffinLimConfig:
    """Settings of fast Griffin-Lim (Perraudin, Balazs & Sondergaard 2013).

    Attributes:
        n_iterations: of Griffin-Lim.
        momentum: of Griffin-Lim.
        inversion_iterations: of the mel inversion before it.
        seed: of the first phase, which is the same for every clip.
    """

    n_iterations: int = 32
    momentum: float = 0.99
    inversion_iterations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_iterations", "inversion_iterations"):
            value = getattr(self, name)
            if not 0 <= value <= 10**4:
                raise UserError(f"GriffinLimConfig: {name} is {value}; it must be from 0 to 10,000")
        if not 0 <= self.momentum < 1:
            raise UserError(
                f"GriffinLimConfig: momentum is {self.momentum}; it must be at least 0 and below 1"
            )

    def build(self, spec: MelSpec) -> GriffinLim:
        """The vocoder of spectrograms of these settings."""
        return GriffinLim(self, spec)


class GriffinLim:
    """log10 mel spectrograms (T_i, C) -> samples (N_i,), where T_i = spec.n_frames(N_i) >= 1.

    Deterministic.
    """

    def __init__(self, config: GriffinLimConfig, spec: MelSpec):
        self.config = config
        self.spec = spec

    def __call__(self, log_mels: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """The samples of each clip.

        Alone and in a batch they are equal but for rounding, which the iterations enlarge to some
        1e-3.
        """
        c = self.config
        order = sorted(range(len(log_mels)), key=lambda i: n_samples[i])
        samples: list[Tensor] = [torch.empty(0)] * len(log_mels)
        for group in self._groups(order, log_mels):
            spectra = [
                invert_mel(10 ** log_mels[i], self.spec, c.inversion_iterations) for i in group
            ]
            lengths = [n_samples[i] for i in group]
            clips = griffin_lim(spectra, lengths, self.spec, c.n_iterations, c.momentum, c.seed)
            for i, clip in zip(group, clips, strict=True):
                samples[i] = clip
        return samples

    def _groups(self, order: list[int], log_mels: Sequence[Tensor]) -> Iterator[list[int]]:
        """Groups of clips of similar length, of at most FRAMES_AT_ONCE frames once padded."""
        group: list[int] = []
        for i in order:
            if group and (len(group) + 1) * len(log_mels[i]) > FRAMES_AT_ONCE:
                yield group
                group = []
            group.append(i)
        if group:
            yield group
