"""Crops of clips, for trainings of vocoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.terminal import print_status
from mmtok.nn.resample import resample

QUIET = 0.02  # crops whose peak is below this are drawn again
N_DRAWS = 10  # at most


def at_speeds(
    signals: Sequence[np.ndarray], speeds: Sequence[float], rate_hz: int, seed: int
) -> Sequence[np.ndarray]:
    """Clips (N_i,), each played at a speed drawn from these, with all its frequencies: says so."""
    if all(speed == 1 for speed in speeds):
        return signals
    print_status(f"each clip is played at one of the speeds {', '.join(map(str, speeds))}")
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(speeds), (len(signals),), generator=generator).tolist()
    played = []
    for clip, place in zip(signals, places, strict=True):
        samples = resample(np.asarray(clip), round(rate_hz * speeds[place]), rate_hz)
        played.append(samples.astype(clip.dtype))
    return played


class Crops:
    """Random stretches of clips, with random gain."""

    def __init__(self, signals: Sequence[np.ndarray], rate_hz: int):
        if not len(signals):
            raise UserError("no clips to train a vocoder on; give at least one")
        self.samples = torch.cat([torch.as_tensor(np.asarray(clip)) for clip in signals])
        hours = len(self.samples) / rate_hz / 3600
        print_status(f"training on {hours:.2g} h of sound in {len(signals):,} clips")

    def draw(
        self, n: int, length: int, gain_db: tuple[float, float], generator: torch.Generator
    ) -> Tensor:
        """(n, length) float32: stretches that are not silent, where some draws find one."""
        return self.draw_at(n, length, gain_db, generator)[0]

    def draw_at(
        self,
        n: int,
        length: int,
        gain_db: tuple[float, float],
        generator: torch.Generator,
        step: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """`draw`, and the samples (n,) at which they begin, which are multiples of `step`."""
        if len(self.samples) < length:
            raise UserError(
                f"the clips have {len(self.samples):,} samples in all, and a crop has {length:,}:"
                " give more sound, or set crop_frames lower"
            )
        starts = [self._start(length, generator, step) for _ in range(n)]
        crops = torch.stack([self._crop(start, length) for start in starts])
        low, high = gain_db
        gains = low + (high - low) * torch.rand(n, 1, generator=generator)
        return crops * 10 ** (gains / 20), torch.tensor(starts)

    def _start(self, length: int, generator: torch.Generator, step: int) -> int:
        n_places = (len(self.samples) - length) // step + 1
        for _ in range(N_DRAWS):
            start = step * int(torch.randint(n_places, (), generator=generator))
            if self._crop(start, length).abs().max() >= QUIET:
                break
        return start

    def _crop(self, start: int, length: int) -> Tensor:
        return self.samples[start : start + length].float()
