"""From a log-mel spectrogram back to samples.

One way so far, which needs no training: mel inversion, then Griffin-Lim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, griffin_lim, invert_mel

FRAMES_AT_ONCE = (
    256  # of a padded batch; more is slower on a processor, whose cache no longer holds them
)


@dataclass(frozen=True)
class GriffinLimConfig:
    """Iterations of fast Griffin-Lim and of the mel inversion before it; `seed` draws the first
    phase, the same for every clip.
    """

    n_iterations: int = 32
    momentum: float = 0.99
    inversion_iterations: int = 100
    seed: int = 0

    def __post_init__(self):
        for name in ("n_iterations", "inversion_iterations"):
            if not 0 <= getattr(self, name) <= 10**4:
                raise UserError(
                    f"GriffinLimConfig: {name} is {getattr(self, name)}; it must be from 0 to"
                    " 10,000"
                )
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
        self.config, self.spec = config, spec

    def __call__(self, log_mels: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """A clip's samples are the same alone and in a batch but for rounding, which the iterations
        carry to some 1e-3.
        """
        order = sorted(range(len(log_mels)), key=lambda i: n_samples[i])
        samples: list[Tensor] = [torch.empty(0)] * len(log_mels)
        for group in self._groups(order, log_mels):
            spectra = [
                invert_mel(10 ** log_mels[i], self.spec, self.config.inversion_iterations)
                for i in group
            ]
            c = self.config
            clips = griffin_lim(
                spectra,
                [n_samples[i] for i in group],
                self.spec,
                c.n_iterations,
                c.momentum,
                c.seed,
            )
            for i, clip in zip(group, clips):
                samples[i] = clip
        return samples

    def _groups(self, order: list[int], log_mels: Sequence[Tensor]):
        """Clips of similar length together, at most FRAMES_AT_ONCE frames when padded to the
        longest.
        """
        group: list[int] = []
        for i in order:
            if group and (len(group) + 1) * len(log_mels[i]) > FRAMES_AT_ONCE:
                yield group
                group = []
            group.append(i)
        if group:
            yield group
