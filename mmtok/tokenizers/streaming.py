"""Sound from the frames of a log-mel spectrogram as they come, block by block, a bounded time
behind them.

Griffin-Lim over a few frames at a time. Those whose sound is out are settled: what they add to the
samples after it is kept as it is, so that each block goes on in the phase of the one before,
without a seam. Some frames beyond a block are looked at before it is settled, as in RTISI-LA (Zhu,
Beauregard & Wyse 2007, "Real-time signal estimation from modified short-time Fourier transform
magnitude spectra"); here whole blocks are, with the momentum of the whole-clip vocoder, and from a
random phase as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import segment_of
from mmtok.errors import UserError
from mmtok.nn.audio import WINDOW_FLOOR, analysis_window, invert_mel, spectrum
from mmtok.tokenizers.vocoders import GriffinLim

BLOCK_S = 0.1  # of sound given out at a time
AHEAD_S = 0.05  # of frames looked at beyond it; twice that gains nothing in STOI
RAMP_S = 0.005  # in which the gain falls


class SoundStream:
    """Samples of one clip from the frames of a speech tokenizer: `push` gives what is settled,
    `finish` the rest.

    Joined they are as many as the whole clip's decoding has, with the same magnitudes but another
    phase. Where samples would exceed 1 the gain falls, and stays so, while the whole clip's
    decoding scales the whole of it. Raises UserError for a tokenizer whose sound is not made from a
    mel spectrogram by Griffin-Lim.
    """

    def __init__(self, tokenizer: Any, block_s: float = BLOCK_S, ahead_s: float = AHEAD_S):
        vocoder = getattr(tokenizer, "vocoder", None)
        if not isinstance(vocoder, GriffinLim):
            raise UserError(
                f"{type(tokenizer).__name__} gives no sound before its last frame: only"
                " Griffin-Lim's comes in blocks"
            )
        self.tokenizer, self.config, self.spec = tokenizer, vocoder.config, vocoder.spec
        frames = lambda seconds: max(1, round(seconds * self.spec.rate_hz / self.spec.hop_samples))
        self.block, self.ahead = frames(block_s), frames(ahead_s)
        self.window = analysis_window(self.spec)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        n_frequencies = self.spec.n_fft // 2 + 1
        self.waiting = torch.zeros(
            0, self.spec.n_mels
        )  # log10 mel (T, C) of the frames that wait for their block
        self.target = torch.zeros(
            0, n_frequencies
        )  # magnitudes (T, F) of those before them that are not settled
        self.spectra = torch.zeros(
            0, n_frequencies, dtype=torch.complex64
        )  # and what they are taken to be so far
        self.kept = torch.zeros(
            2, self.spec.n_fft
        )  # what settled frames add to the samples from `at` on, and its weight
        self.at = (
            -self.spec.left_samples
        )  # the sample at which the first frame that is not settled begins
        self.n_frames, self.gain = 0, 1.0

    @property
    def delay_s(self) -> float:
        """The most by which the sound that is out is shorter than the frames that are in."""
        return (
            (self.block + self.ahead - 1) * self.spec.hop_samples + self.spec.left_samples
        ) / self.spec.rate_hz

    def push(self, values: np.ndarray) -> np.ndarray:
        """The next frames (k, C) -> the samples (n,) float32 that they settle, n >= 0.

        Raises UserError on what are no such frames.
        """
        self.waiting = torch.cat([self.waiting, mel := self._log_mel(values)])
        self.n_frames += len(mel)
        pieces, n = [np.zeros(0, np.float32)], self.block + self.ahead
        while len(self.target) + len(self.waiting) >= n:
            self._invert(n - len(self.target))
            pieces.append(self._out(self._iterate()[: self.block * self.spec.hop_samples]))
            self._settle(self.block)
        return np.concatenate(pieces)

    def finish(self) -> np.ndarray:
        """The samples (n,) float32 that are left; nothing is pushed after."""
        if not self.n_frames:
            return np.zeros(0, np.float32)
        self._invert(len(self.waiting))
        left = self.spec.n_samples(self.n_frames) - max(0, self.at)
        out = self._out(self._iterate())[:left]
        return np.pad(out, (0, left - len(out)))

    def _log_mel(self, values: np.ndarray) -> Tensor:
        """Frames (k, C) -> log10 mel (k, n_mels)."""
        return self.tokenizer.log_mel(segment_of(self.tokenizer.signature, values))

    def _invert(self, n: int) -> None:
        """The first n frames that wait get their magnitudes."""
        mel, self.waiting = self.waiting[:n], self.waiting[n:]
        self.target = torch.cat(
            [self.target, invert_mel(10**mel, self.spec, self.config.inversion_iterations)]
        )

    def _iterate(self) -> Tensor:
        """Griffin-Lim over the frames at hand, after what is settled -> samples from `at` on, the
        last of which are not final.

        Fast Griffin-Lim (Perraudin, Balazs & Sondergaard 2013, algorithm 2), as nn/audio.py has it
        for whole clips.
        """
        spec, target, n = self.spec, self.target, len(self.target)
        new = target[len(self.spectra) :]
        phase = torch.rand(new.shape, generator=self.generator) * (2 * torch.pi)
        c = torch.cat([self.spectra, torch.polar(new, phase)])
        kept, weight = (
            torch.nn.functional.pad(x, (0, (n - 1) * spec.hop_samples)) for x in self.kept
        )
        weight = (weight + self._added(self.window.square().expand(n, -1))).clamp_min(WINDOW_FLOOR)
        before = (
            max(0, -self.at) if spec.causal else 0
        )  # samples before the clip, which are zeros; where frames are centred they are free

        def samples() -> Tensor:
            x = (kept + self._added(torch.fft.irfft(c, spec.n_fft) * self.window)) / weight
            x[:before] = 0
            return x

        t_last = torch.zeros(*target.shape, 2)
        for _ in range(self.config.n_iterations):
            t = torch.view_as_real(
                spectrum(samples().unfold(0, spec.n_fft, spec.hop_samples), spec)
            )  # (n, F, 2)
            direction = torch.add(t, t - t_last, alpha=self.config.momentum)
            scale = target * direction.square().sum(-1).clamp_min(1e-30).rsqrt()
            c, t_last = torch.view_as_complex(direction * scale[..., None]), t
        self.spectra = c
        return samples()

    def _settle(self, n: int) -> None:
        """The first n frames are as they are from now on."""
        done = torch.stack(
            [
                torch.fft.irfft(self.spectra[:n], self.spec.n_fft) * self.window,
                self.window.square().expand(n, -1),
            ]
        )
        n_hops = n * self.spec.hop_samples
        total = torch.nn.functional.pad(self.kept, (0, n_hops))
        for row, frames in zip(total, done):
            added = self._added(frames)
            row[: len(added)] += added
        self.kept = total[:, n_hops:]
        self.target, self.spectra, self.at = self.target[n:], self.spectra[n:], self.at + n_hops

    def _added(self, frames: Tensor) -> Tensor:
        """(n, n_fft) -> ((n - 1) hop + n_fft,): each frame added in at its place."""
        n = len(frames)
        size = (1, (n - 1) * self.spec.hop_samples + self.spec.n_fft)
        return torch.nn.functional.fold(
            frames.T[None], size, (1, self.spec.n_fft), stride=(1, self.spec.hop_samples)
        )[0, 0, 0]

    def _out(self, samples: Tensor) -> np.ndarray:
        """Of samples from `at` on those of the clip, at a gain that keeps them within 1 but in a
        short ramp, which is clipped.
        """
        samples = samples[max(0, -self.at) :]
        if not len(samples):
            return np.zeros(0, np.float32)
        before, self.gain = self.gain, min(self.gain, 1 / max(1.0, float(samples.abs().max())))
        gain = torch.full((len(samples),), self.gain)
        ramp = gain[: int(RAMP_S * self.spec.rate_hz)]
        ramp.copy_(torch.linspace(before, self.gain, len(ramp)))
        return (samples * gain).clamp(-1, 1).numpy()
