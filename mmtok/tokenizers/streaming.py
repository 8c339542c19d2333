"""Sound from the frames of a speech tokenizer as they arrive, with a bounded delay."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mmtok.core.segment import segment_of
from mmtok.errors import UserError
from mmtok.tokenizers.mel import MelTokenizer


class SoundStream:
    """Samples of one clip from frames of a speech tokenizer: `push` more frames, then `finish`.

    Joined, they are as many as `decode` gives, made by the stream of the tokenizer's vocoder: an
    iSTFT vocoder's are those of the whole clip, Griffin-Lim's have another phase. Where samples
    would exceed 1 the gain falls and stays low; `decode` scales the whole clip instead. Raises
    UserError for a tokenizer whose sound is not made from a mel spectrogram, and for a vocoder
    without streams.
    """

    def __init__(self, tokenizer: Any):
        if not isinstance(tokenizer, MelTokenizer):
            raise UserError(
                f"{type(tokenizer).__name__} gives no sound before its last frame: only"
                " vocoders of mel spectrograms do"
            )
        self.tokenizer = tokenizer
        self.spec = tokenizer.vocoder.spec
        self.frames = tokenizer.frame_stream()
        self.sound = tokenizer.vocoder.stream()
        self.n_frames = 0
        self.peak = 1.0  # of the samples so far, and at least full scale

    @property
    def delay_s(self) -> float:
        """The longest time by which the sound given out is behind the frames pushed."""
        return self.frames.delay_s + self.sound.delay_s

    def push(self, values: np.ndarray) -> np.ndarray:
        """The next frames (k, C) -> the samples (n,) float32 that they settle, n >= 0.

        Raises UserError for other frames.
        """
        segment = segment_of(self.tokenizer.signature, values)
        log_mel = self.frames.push(segment)
        self.n_frames += self.tokenizer.n_units(segment)
        return self._out(self.sound.push(log_mel))

    def finish(self) -> np.ndarray:
        """The samples (n,) float32 that are left; nothing may be pushed after it."""
        if not self.n_frames:
            return np.zeros(0, np.float32)
        first = self._out(self.sound.push(self.frames.finish()))
        n_samples = self.tokenizer.config.mel.n_samples(self.n_frames)
        return np.concatenate([first, self._out(self.sound.finish(n_samples))])

    def _out(self, samples: Tensor) -> np.ndarray:
        """The samples at a gain that keeps them within 1: that of the loudest one so far."""
        if not len(samples):
            return np.zeros(0, np.float32)
        peaks = samples.abs().cummax(0).values.clamp_min(self.peak)
        self.peak = float(peaks[-1])
        return (samples / peaks).numpy()
