"""Judges of single words and of voices: classifiers that are trained on real clips.

Their features (40 mel bands up to 3.9 kHz every 10 ms) are those of no tokenizer of the package, so
that they do not share its blind spots. Judges that come with their weights are in
`speech_pretrained`. Letters: T frames, N_i samples of clip i.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.nn.weight_decay import decay_groups

JUDGE_FRAMES = 120  # 1.2 s, room for one word
JUDGE_DEPTH = 3.0  # log10 of magnitude: more than 60 dB below the clip's loudest value is silence
NOISY_COPIES = 3  # of each training clip
JUDGE_BATCH = 64


def entropy_share(labels: Sequence, n: int) -> float:
    """Entropy of the labels' histogram over log n, from 0 to 1.

    It is 1 when n labels occur equally often and 0 when one occurs alone. NaN without labels.
    """
    if n < 2:
        raise ValueError(f"entropy_share: needs n >= 2 possible labels, got {n}")
    if not len(labels):
        return math.nan
    p = np.array(list(Counter(labels).values())) / len(labels)
    return float(-(p * np.log(p)).sum() / math.log(n)) + 0.0  # + 0.0: never -0.0


def judge_spec(rate_hz: int) -> MelSpec:
    """The judges' own spectrogram: 25 ms windows every 10 ms, 40 bands from 60 Hz to 3.9 kHz.

    At low rates the bands end at the Nyquist frequency.
    """
    window_samples = round(0.025 * rate_hz)
    return MelSpec(
        rate_hz,
        n_fft=2 ** math.ceil(math.log2(window_samples)),
        window_samples=window_samples,
        hop_samples=round(0.01 * rate_hz),
        n_mels=40,
        fmin_hz=60.0,
        fmax_hz=min(3900.0, rate_hz / 2),
    )


def judge_features(clips: Sequence[np.ndarray], rate_hz: int) -> list[Tensor]:
    """Log10 mel of clips (N_i,), relative to each clip's own maximum: (T_i, 40) from 0 to 1.

    So the level of a clip does not matter. An empty clip counts as one sample of silence.
    """
    silence = np.zeros(1)
    sounds = [
        torch.from_numpy(np.ascontiguousarray(clip if len(clip) else silence, dtype=np.float32))
        for clip in clips
    ]
    mels = log_mel(sounds, judge_spec(rate_hz))
    return [((mel - mel.max()) / JUDGE_DEPTH + 1).clamp_min(0) for mel in mels]


# ---- the judge of words


def _window(features: Tensor) -> Tensor:
    """Features (T, 40) as (JUDGE_FRAMES, 40): a short clip among zeros, the middle of a long one.

    The middle is the centre of the sound's energy.
    """
    energy = features.sum(1) + 1e-6
    centre = int((energy * torch.arange(len(features))).sum() / energy.sum())
    padded = F.pad(features, (0, 0, JUDGE_FRAMES, JUDGE_FRAMES))
    start = centre + JUDGE_FRAMES - JUDGE_FRAMES // 2
    return padded[start : start + JUDGE_FRAMES]


class _Convnet(nn.Module):
    """(B, T, 40) -> (B, n_classes): three strided convolutions, then mean and maximum over time."""

    def __init__(self, n_classes: int, widths: tuple[int, ...] = (16, 32, 48)):
        super().__init__()
        layers: list[nn.Module] = []
        n_channels = 1
        for width in widths:
            convolution = nn.Conv2d(n_channels, width, 3, stride=2, padding=1)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            n_channels = width
        n_bands = 5  # 40 after three strides of 2
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * n_bands * n_channels, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of features (B, T, 40)."""
        h = self.body(x[:, None])  # (B, C, T / 8, 5)
        h = h.permute(0, 2, 1, 3).flatten(2)  # (B, T / 8, C * 5)
        return self.head(torch.cat([h.mean(1), h.amax(1)], 1))


@dataclass(frozen=True, eq=False)
class SpeechJudge:
    """A classifier of single spoken words. Made by `train_speech_judge`."""

    classes: tuple[str, ...]
    rate_hz: int
    net: nn.Module

    def probabilities(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities (n, classes) in float32 of n clips (N_i,)."""
        if not len(clips):
            return np.zeros((0, len(self.classes)), np.float32)
        x = torch.stack([_window(f) for f in judge_features(clips, self.rate_hz)])
        with torch.no_grad():
            return torch.cat([self.net(part).softmax(1) for part in x.split(256)]).numpy()

    def predict(self, clips: Sequence[np.ndarray]) -> list[str]:
        """The likeliest class of each clip (N_i,)."""
        return [self.classes[i] for i in self.probabilities(clips).argmax(1)]

    def accuracy(self, clips: Sequence[np.ndarray], labels: Sequence[str]) -> float:
        """Share of clips (N_i,) heard as their label.

        Raises ValueError when there are not as many labels.
        """
        return float(np.mean(self.right(clips, labels)))

    def right(self, clips: Sequence[np.ndarray], labels: Sequence[str]) -> list[bool]:
        """Whether each clip (N_i,) is heard as its label.

        Raises ValueError when there are not as many labels.
        """
        return [a == b for a, b in zip(self.predict(clips), labels, strict=True)]


def train_speech_judge(
    clips: Sequence[np.ndarray],
    labels: Sequence[str],
    rate_hz: int = 16_000,
    seed: int = 0,
    n_steps: int = 300,
) -> SpeechJudge:
    """Train a small convnet on real clips (N_i,) and their words; half a minute on one core.

    Training clips are augmented by what rooms and microphones do (noise at 10 to 40 dB, shifts,
    bands and moments masked, a tilted spectrum), never by a tokenizer's round trip. The global
    random state is left as it was.

    Raises UserError for other than one label a clip, or fewer than two labels.
    """
    if len(clips) != len(labels) or len(set(labels)) < 2:
        raise UserError(
            f"speech judge: needs a label per clip and two labels at least, got {len(clips)} clips,"
            f" {len(set(labels))} labels"
        )
    classes = tuple(sorted(set(labels)))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        windows = []
        for copy in (clips, *(_noisy(clips, rng) for _ in range(NOISY_COPIES))):
            windows += [_window(features) for features in judge_features(copy, rate_hz)]
        x = torch.stack(windows)
        y = torch.tensor([classes.index(label) for label in labels]).repeat(1 + NOISY_COPIES)
        net = _Convnet(len(classes))
        optimiser = torch.optim.AdamW(decay_groups(0.02, net), 4e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, n_steps)
        for _ in range(n_steps):
            rows = torch.randint(len(x), (JUDGE_BATCH,))
            loss = F.cross_entropy(net(_augment(x[rows])), y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return SpeechJudge(classes, rate_hz, net.eval())


def _noisy(clips: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Clips with white noise 10 to 40 dB below each."""
    noisy = []
    for clip in clips:
        noise = rng.standard_normal(len(clip)).astype(np.float32) * clip.std()
        noisy.append(clip + noise * 10 ** -rng.uniform(0.5, 2))
    return noisy


def _augment(x: Tensor) -> Tensor:
    """Features (B, T, 40) shifted in time, tilted, with noise, a band and a moment masked.

    Each row has its own random draws.
    """
    n_rows, n_frames, n_bands = x.shape
    time = torch.arange(n_frames)[None, :, None]
    band = torch.arange(n_bands)[None, None, :]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n_rows, 1, 1)

    shift = uniform(-10, 11).floor().long()
    x = x.gather(1, (time - shift).remainder(n_frames).expand(-1, -1, n_bands))
    sound = x > 0
    tilt = uniform(-0.1, 0.1) * (band / n_bands - 0.5)
    x = x + tilt + uniform(0, 0.08) * torch.randn_like(x)
    first_band = uniform(0, n_bands)
    first_frame = uniform(0, n_frames)
    masked_bands = (band >= first_band) & (band < first_band + uniform(0, 6))
    masked_frames = (time >= first_frame) & (time < first_frame + uniform(0, 8))
    return torch.where(sound & ~(masked_bands | masked_frames), x, 0).clamp(0, 1.2)


# ---- the judge of voices


def voice_features(clips: Sequence[np.ndarray], rate_hz: int) -> np.ndarray:
    """Features (n, 82) of n clips (N_i,): statistics of 40 bands, and of the pitch.

    Mean and standard deviation of each band over the louder half of the frames, then the median of
    the pitch in log Hz and its interquartile range.
    """
    rows = []
    for clip, features in zip(clips, judge_features(clips, rate_hz), strict=True):
        loudness = features.mean(1)
        loud = features[loudness >= loudness.median()]
        mean = loud.mean(0).numpy()
        spread = loud.std(0, correction=0).numpy()
        rows.append(np.concatenate([mean, spread, _pitch(clip, rate_hz)]))
    return np.array(rows).reshape(len(rows), 82)


def _pitch(
    clip: np.ndarray, rate_hz: int, low_hz: float = 50, high_hz: float = 400
) -> tuple[float, float]:
    """Median and interquartile range of the log pitch of a clip (N,), over its louder half.

    The pitch is the peak of the autocorrelation of 50 ms frames every 12.5 ms.
    """
    size = round(0.05 * rate_hz)
    hop = round(0.0125 * rate_hz)
    if len(clip) < size:
        return math.log(low_hz), 0.0
    frames = np.lib.stride_tricks.sliding_window_view(clip, size)[::hop]
    power = (frames**2).sum(1)
    frames = frames[power >= np.median(power)]
    frames = frames - frames.mean(1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(frames, 2 * size)) ** 2
    lags = slice(round(rate_hz / high_hz), round(rate_hz / low_hz))
    correlation = np.fft.irfft(spectrum)[:, lags] / (1 - np.arange(lags.start, lags.stop) / size)
    pitch = np.log(rate_hz / (lags.start + correlation.argmax(1)))
    return float(np.median(pitch)), float(np.subtract(*np.percentile(pitch, [75, 25])))


@dataclass(frozen=True, eq=False)
class VoiceJudge:
    """A linear classifier of voices on `voice_features`. Made by `train_voice_judge`."""

    voices: tuple[str, ...]
    rate_hz: int
    weight: np.ndarray  # (82, voices)
    bias: np.ndarray  # (voices,)

    def predict(self, clips: Sequence[np.ndarray]) -> list[str]:
        """The likeliest voice of each clip (N_i,)."""
        if not len(clips):
            return []
        scores = voice_features(clips, self.rate_hz) @ self.weight + self.bias  # (n, voices)
        return [self.voices[i] for i in scores.argmax(1)]

    def accuracy(self, clips: Sequence[np.ndarray], voices: Sequence[str]) -> float:
        """Share of clips (N_i,) taken for their own voice.

        Raises ValueError when there are not as many voices.
        """
        heard = self.predict(clips)
        return float(np.mean([a == b for a, b in zip(heard, voices, strict=True)]))


def train_voice_judge(
    clips: Sequence[np.ndarray],
    voices: Sequence[str],
    rate_hz: int = 16_000,
    shrinkage: float = 0.05,
) -> VoiceJudge:
    """Linear discriminant analysis of real clips (N_i,), in closed form. Source: Fisher 1936.

    shrinkage: How far the pooled covariance is drawn towards its diagonal, from 0 to 1.

    Raises UserError for other than one voice a clip, or fewer than two voices.
    """
    if len(clips) != len(voices) or len(set(voices)) < 2:
        raise UserError(
            f"voice judge: needs a voice per clip and two voices at least, got {len(clips)} clips,"
            f" {len(set(voices))} voices"
        )
    names = tuple(sorted(set(voices)))
    x = voice_features(clips, rate_hz)  # (n, 82)
    label = np.array([names.index(voice) for voice in voices])
    means = np.stack([x[label == k].mean(0) for k in range(len(names))])  # (voices, 82)
    within = np.cov((x - means[label]).T)
    within = (1 - shrinkage) * within + (shrinkage + 1e-3) * np.diag(np.diag(within) + 1e-6)
    weight = np.linalg.solve(within, means.T)
    return VoiceJudge(names, rate_hz, weight, -0.5 * (means.T * weight).sum(0))
