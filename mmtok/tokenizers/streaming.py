"""Sound from the frames of a log-mel spectrogram as they arrive, with a bounded delay.

Griffin-Lim runs over a block of frames at a time, and over some frames after it. Once the sound of
a block is out, its frames are settled: what they add to later samples stays as it is. So the next
block continues in the same phase, without a seam. Frames after the block are used as in RTISI-LA
(Zhu, Beauregard & Wyse 2007, "Real-time signal estimation from modified short-time Fourier
transform magnitude spectra"). Unlike there, whole blocks are settled, with the momentum of the
whole-clip vocoder; as there, the first phase is random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import segment_of
from mmtok.errors import UserError
from mmtok.nn.audio import WINDOW_FLOOR, analysis_window, griffin_lim_update, invert_mel, spectrum
from mmtok.tokenizers.vocoders import GriffinLim

BLOCK_S = 0.1  # sound that is given out at a time
AHEAD_S = 0.05  # frames after the block that are used with it; twice that gains nothing in STOI
RAMP_S = 0.005  # time in which the gain falls


class SoundStream:
    """Samples of one clip from frames of a speech tokenizer: `push` more frames, then `finish`.

    Joined, they are as many as `decode` gives, with the same magnitudes but another phase. Where
    samples would exceed 1 the gain falls and stays low; `decode` scales the whole clip instead.
    Raises UserError for a tokenizer whose sound is not made from a mel spectrogram by Griffin-Lim.
    """

    def __init__(self, tokenizer: Any, block_s: float = BLOCK_S, ahead_s: float = AHEAD_S):
        vocoder = getattr(tokenizer, "vocoder", None)
        # by class, not by a method: the blocks take its iterations apart, so they are of it alone
        if not isinstance(vocoder, GriffinLim):
            raise UserError(
                f"{type(tokenizer).__name__} gives no sound before its last frame: only"
                " Griffin-Lim's comes in blocks"
            )
        self.tokenizer = tokenizer
        self.config = vocoder.config
        self.spec = vocoder.spec
        frames_per_s = self.spec.rate_hz / self.spec.hop_samples
        self.block = max(1, round(block_s * frames_per_s))
        self.ahead = max(1, round(ahead_s * frames_per_s))
        self.window = analysis_window(self.spec)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        n_frequencies = self.spec.n_fft // 2 + 1
        # log10 mel (T, C) of frames that wait for their block
        self.waiting = torch.zeros(0, self.spec.n_mels)
        # of the frames before these that are not settled: magnitudes (T, F), and spectra so far
        self.target = torch.zeros(0, n_frequencies)
        self.spectra = torch.zeros(0, n_frequencies, dtype=torch.complex64)
        # what settled frames add to the samples from `at` on, and their weight there
        self.kept = torch.zeros(2, self.spec.n_fft)
        # the sample at which the first frame begins that is not settled
        self.at = -self.spec.left_samples
        self.n_frames = 0
        self.gain = 1.0

    @property
    def delay_s(self) -> float:
        """The longest time by which the sound given out is behind the frames pushed."""
        n_frames = self.block + self.ahead - 1
        n_samples = n_frames * self.spec.hop_samples + self.spec.left_samples
        return n_samples / self.spec.rate_hz

    def push(self, values: np.ndarray) -> np.ndarray:
        """The next frames (k, C) -> the samples (n,) float32 that they settle, n >= 0.

        Raises UserError for other frames.
        """
        mel = self._log_mel(values)
        self.waiting = torch.cat([self.waiting, mel])
        self.n_frames += len(mel)
        pieces = [np.zeros(0, np.float32)]
        n = self.block + self.ahead
        while len(self.target) + len(self.waiting) >= n:
            self._invert(n - len(self.target))
            pieces.append(self._out(self._iterate()[: self.block * self.spec.hop_samples]))
            self._settle(self.block)
        return np.concatenate(pieces)

    def finish(self) -> np.ndarray:
        """The samples (n,) float32 that are left; nothing may be pushed after it."""
        if not self.n_frames:
            return np.zeros(0, np.float32)
        self._invert(len(self.waiting))
        left = self.spec.n_samples(self.n_frames) - max(0, self.at)
        out = self._out(self._iterate())[:left]
        return np.pad(out, (0, left - len(out)))

    def _log_mel(self, values: np.ndarray) -> Tensor:
        """Frames (k, C) -> log10 mel (k, n_mels)."""
        mel: Tensor = self.tokenizer.log_mel(segment_of(self.tokenizer.signature, values))
        return mel

    def _invert(self, n: int) -> None:
        """Compute the magnitudes of the first n waiting frames."""
        mel = self.waiting[:n]
        self.waiting = self.waiting[n:]
        magnitudes = invert_mel(10**mel, self.spec, self.config.inversion_iterations)
        self.target = torch.cat([self.target, magnitudes])

    def _iterate(self) -> Tensor:
        """Griffin-Lim over the frames that are not settled -> samples from `at` on.

        The last samples are not final. Fast Griffin-Lim (Perraudin, Balazs & Sondergaard 2013,
        algorithm 2), as nn/audio.py has it for whole clips.
        """
        spec = self.spec
        target = self.target
        n = len(self.target)
        new = target[len(self.spectra) :]
        phase = torch.rand(new.shape, generator=self.generator) * (2 * torch.pi)
        c = torch.cat([self.spectra, torch.polar(new, phase)])
        room = (0, (n - 1) * spec.hop_samples)
        kept, weight = (torch.nn.functional.pad(x, room) for x in self.kept)
        weight = (weight + self._added(self.window.square().expand(n, -1))).clamp_min(WINDOW_FLOOR)
        # Samples before the clip are zeros; where frames are centred, they are free.
        n_before = 0
        if spec.causal:
            n_before = max(0, -self.at)

        def samples() -> Tensor:
            x = (kept + self._added(torch.fft.irfft(c, spec.n_fft) * self.window)) / weight
            x[:n_before] = 0
            return x

        t_last = torch.zeros(*target.shape, 2)
        for _ in range(self.config.n_iterations):
            frames = samples().unfold(0, spec.n_fft, spec.hop_samples)
            t = torch.view_as_real(spectrum(frames, spec))  # (n, F, 2)
            c = griffin_lim_update(t, t_last, target, self.config.momentum)
            t_last = t
        self.spectra = c
        return samples()

    def _settle(self, n: int) -> None:
        """Settle the first n frames."""
        sound = torch.fft.irfft(self.spectra[:n], self.spec.n_fft) * self.window
        weight = self.window.square().expand(n, -1)
        n_hops = n * self.spec.hop_samples
        total = torch.nn.functional.pad(self.kept, (0, n_hops))
        for row, frames in zip(total, (sound, weight), strict=True):
            added = self._added(frames)
            row[: len(added)] += added
        self.kept = total[:, n_hops:]
        self.target = self.target[n:]
        self.spectra = self.spectra[n:]
        self.at += n_hops

    def _added(self, frames: Tensor) -> Tensor:
        """Overlap-add: frames (n, n_fft) -> samples ((n - 1) hop + n_fft,)."""
        hop = self.spec.hop_samples
        n_fft = self.spec.n_fft
        size = (1, (len(frames) - 1) * hop + n_fft)
        added = torch.nn.functional.fold(frames.T[None], size, (1, n_fft), stride=(1, hop))
        return added[0, 0, 0]

    def _out(self, samples: Tensor) -> np.ndarray:
        """Of samples from `at` on, those of the clip, at a gain that keeps them within 1.

        Where the gain falls, in a short ramp, samples are clipped.
        """
        samples = samples[max(0, -self.at) :]
        if not len(samples):
            return np.zeros(0, np.float32)
        peak = float(samples.abs().max())
        before = self.gain
        self.gain = min(self.gain, 1 / max(1.0, peak))
        gain = torch.full((len(samples),), self.gain)
        ramp = gain[: int(RAMP_S * self.spec.rate_hz)]
        ramp.copy_(torch.linspace(before, self.gain, len(ramp)))
        return (samples * gain).clamp(-1, 1).numpy()
