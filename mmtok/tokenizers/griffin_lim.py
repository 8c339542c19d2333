"""From a log-mel spectrogram back to samples: mel inversion, then Griffin-Lim.

A stream runs Griffin-Lim over a block of frames at a time, and over some frames after it. Once the
sound of a block is out, its frames are settled: what they add to later samples stays as it is. So
the next block continues in the same phase, without a seam. Frames after the block are used as in
RTISI-LA (Zhu, Beauregard & Wyse 2007, "Real-time signal estimation from modified short-time Fourier
transform magnitude spectra"). Unlike there, whole blocks are settled, with the momentum of the
whole-clip vocoder; as there, the first phase is random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmtok.errors import UserError, check_ranges
from mmtok.nn.audio import (
    WINDOW_FLOOR,
    MelSpec,
    analysis_window,
    first_phases,
    griffin_lim,
    griffin_lim_update,
    invert_mel,
    spectrum,
)
from mmtok.tokenizers.vocoder_base import Vocoder, VocoderConfig

FRAMES_AT_ONCE = 256  # of a padded batch; more is slower on a CPU, as they no longer fit its cache
# Of a clip that is decoded in blocks: bounds the memory. Shorter ones are decoded as a whole.
BLOCK_FRAMES = 1600
STREAM_BLOCK_S = 0.1  # sound that is given out at a time
STREAM_AHEAD_S = 0.05  # frames after the block that are used with it; twice gains nothing in STOI


@dataclass(frozen=True)
class GriffinLimConfig(VocoderConfig):
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
        check_ranges(self, n_iterations=(0, 10**4), inversion_iterations=(0, 10**4))
        if not 0 <= self.momentum < 1:
            raise UserError(
                f"GriffinLimConfig: momentum is {self.momentum}; it must be at least 0 and below 1"
            )

    def build(self, spec: MelSpec, saved: Path | None = None) -> GriffinLim:
        """The vocoder of spectrograms of these settings."""
        return GriffinLim(self, spec)


class GriffinLim(Vocoder):
    """log10 mel spectrograms (T_i, C) -> samples (N_i,), where T_i = spec.n_frames(N_i) >= 1.

    Clips of more than BLOCK_FRAMES are decoded in blocks. Each is decoded with as many frames
    around it as its iterations reach, so that it sounds as in the whole clip.
    """

    look_ahead = None

    def __init__(self, config: GriffinLimConfig, spec: MelSpec):
        self.config = config
        self.spec = spec

    @property
    def name(self) -> str:
        """It has no weights."""
        return "griffin-lim"

    def __call__(self, log_mels: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """The samples of each clip.

        Alone and in a batch they are equal but for rounding, which the iterations enlarge to some
        1e-3.
        """
        c = self.config
        order = sorted(range(len(log_mels)), key=lambda i: n_samples[i])
        samples: list[Tensor] = [torch.empty(0)] * len(log_mels)
        for i in [i for i in order if len(log_mels[i]) > BLOCK_FRAMES]:
            samples[i] = self._in_blocks(log_mels[i], n_samples[i])
        order = [i for i in order if len(log_mels[i]) <= BLOCK_FRAMES]
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

    def stream(self) -> GriffinLimStream:
        """A clip whose frames arrive in pieces."""
        return GriffinLimStream(self)

    def _in_blocks(self, log_mel: Tensor, n_samples: int) -> Tensor:
        """A clip of T frames -> (N,).

        A frame's phase depends on frames whose windows overlap its own, so an iteration reaches as
        many frames on.
        """
        c = self.config
        hop = self.spec.hop_samples
        n_frames = len(log_mel)
        around = (c.n_iterations + 3) * -(-self.spec.n_fft // hop)
        generator = torch.Generator().manual_seed(c.seed)
        phases = torch.zeros(0, self.spec.n_fft // 2 + 1)  # of the frames from `start` on
        start = 0
        pieces = []
        for begin in range(0, n_frames, BLOCK_FRAMES):
            first = max(0, begin - around)
            last = min(n_frames, begin + BLOCK_FRAMES + around)
            new = first_phases(last - start - len(phases), self.spec, generator)
            phases = torch.cat([phases[first - start :], new])
            start = first
            spectra = invert_mel(10 ** log_mel[first:last], self.spec, c.inversion_iterations)
            length = n_samples - first * hop
            if last < n_frames:
                length = self.spec.n_samples(last - first)
            sound = griffin_lim(
                [spectra], [length], self.spec, c.n_iterations, c.momentum, phases=[phases]
            )[0]
            end = length
            if begin + BLOCK_FRAMES < n_frames:
                end = (begin + BLOCK_FRAMES - first) * hop
            pieces.append(sound[(begin - first) * hop : end])
        return torch.cat(pieces)


class GriffinLimStream:
    """Samples of one clip whose log10 mel frames arrive in pieces.

    They have the same magnitudes as those of the whole clip, but another phase.
    """

    def __init__(
        self,
        vocoder: GriffinLim,
        block_s: float = STREAM_BLOCK_S,
        ahead_s: float = STREAM_AHEAD_S,
    ):
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

    @property
    def delay_s(self) -> float:
        """The longest time by which the sound given out is behind the frames pushed."""
        n_frames = self.block + self.ahead - 1
        n_samples = n_frames * self.spec.hop_samples + self.spec.left_samples
        return n_samples / self.spec.rate_hz

    def push(self, log_mel: Tensor) -> Tensor:
        """log10 mel (t, C) -> the samples (n,) that are settled, n >= 0."""
        self.waiting = torch.cat([self.waiting, log_mel])
        self.n_frames += len(log_mel)
        pieces = [torch.zeros(0)]
        n = self.block + self.ahead
        while len(self.target) + len(self.waiting) >= n:
            self._invert(n - len(self.target))
            pieces.append(self._in_clip(self._iterate()[: self.block * self.spec.hop_samples]))
            self._settle(self.block)
        return torch.cat(pieces)

    def finish(self, n_samples: int | None = None) -> Tensor:
        """The samples (n,) that are left; nothing may be pushed after it."""
        if not self.n_frames:
            return torch.zeros(0)
        self._invert(len(self.waiting))
        if n_samples is None:
            n_samples = self.spec.n_samples(self.n_frames)
        left = n_samples - max(0, self.at)
        out = self._in_clip(self._iterate())[:left]
        return torch.nn.functional.pad(out, (0, left - len(out)))

    def _in_clip(self, samples: Tensor) -> Tensor:
        """Samples from `at` on without those before the clip."""
        return samples[max(0, -self.at) :]

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
