"""What is said, how well, and by whom: word error rate, a judge of spoken words, a judge of voices.

The judges are trained on real clips only and hear them through features of their own (40 mel bands
up to 3.9 kHz every 10 ms), which no tokenizer of the package uses, so that they do not share its
blind spots.
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

from mmtok.errors import UserError, missing_extra
from mmtok.nn import audio
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.nn.weight_decay import decay_groups

JUDGE_FRAMES = 120  # 1.2 s, room for one word
JUDGE_DEPTH = 3.0  # log10: what is more than 60 dB below the clip's loudest value counts as silence


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Substitutions, insertions and deletions of words over the words of the references, summed
    over all pairs before dividing.

    Without any reference word: 0 when nothing was heard either, else infinity.
    """
    edits = sum(_edits(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True))
    n_words = sum(len(r.split()) for r in references)
    return edits / n_words if n_words else (math.inf if edits else 0.0)


def _edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance, row by row (Wagner & Fischer 1974)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def stoi(reference: np.ndarray, degraded: np.ndarray, rate_hz: int) -> float:
    """Intelligibility of `degraded` against `reference`, see nn/audio.py.

    Raises UserError without pystoi, or when the shapes differ.
    """
    try:
        return audio.stoi(reference, degraded, rate_hz)
    except ImportError:
        raise missing_extra("intelligibility (STOI)", "eval") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def entropy_share(labels: Sequence, n: int) -> float:
    """Entropy of the labels' histogram over log n: 1 when n labels occur equally often, 0 when one
    does alone. NaN without labels.
    """
    if n < 2:
        raise ValueError(f"entropy_share: needs n >= 2 possible labels, got {n}")
    p = (
        np.array(list(Counter(labels).values())) / len(labels)
        if len(labels)
        else np.array([np.nan])
    )
    return float(-(p * np.log(p)).sum() / math.log(n)) + 0.0


def judge_spec(rate_hz: int) -> MelSpec:
    """The judges' own spectrogram: 25 ms windows every 10 ms, 40 bands from 60 Hz to 3.9 kHz (or
    the Nyquist frequency).
    """
    window = round(0.025 * rate_hz)
    n_fft = 2 ** math.ceil(math.log2(window))
    return MelSpec(
        rate_hz, n_fft, window, round(0.01 * rate_hz), 40, 60.0, min(3900.0, rate_hz / 2)
    )


def judge_features(clips: Sequence[np.ndarray], rate_hz: int) -> list[Tensor]:
    """Clips (N_i,) -> (T_i, 40) in [0, 1]: log10 mel relative to the clip's own maximum, so that
    level does not matter.
    """
    sounds = [
        torch.from_numpy(np.ascontiguousarray(clip if len(clip) else np.zeros(1), dtype=np.float32))
        for clip in clips
    ]
    return [
        ((mel - mel.max()) / JUDGE_DEPTH + 1).clamp_min(0)
        for mel in log_mel(sounds, judge_spec(rate_hz))
    ]


# The judge of words


def _window(features: Tensor) -> Tensor:
    """(T, 40) -> (JUDGE_FRAMES, 40): zeros around a short clip, the middle of the sound of a long
    one.
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
        layers, c = [], 1
        for width in widths:
            layers += [
                nn.Conv2d(c, width, 3, stride=2, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            c = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * 5 * c, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x[:, None]).flatten(1, 1).permute(0, 2, 1, 3).flatten(2)  # (B, T / 8, C * 5)
        return self.head(torch.cat([h.mean(1), h.amax(1)], 1))


@dataclass(frozen=True, eq=False)
class SpeechJudge:
    """Which of the classes a clip says. Made by `train_speech_judge`."""

    classes: tuple[str, ...]
    rate_hz: int
    net: nn.Module

    def probabilities(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Clips (N_i,) -> (n, classes) float32."""
        if not len(clips):
            return np.zeros((0, len(self.classes)), np.float32)
        x = torch.stack([_window(f) for f in judge_features(clips, self.rate_hz)])
        with torch.no_grad():
            return torch.cat([self.net(part).softmax(1) for part in x.split(256)]).numpy()

    def predict(self, clips: Sequence[np.ndarray]) -> list[str]:
        """Clips (N_i,) -> the likeliest class of each."""
        return [self.classes[i] for i in self.probabilities(clips).argmax(1)]

    def accuracy(self, clips: Sequence[np.ndarray], labels: Sequence[str]) -> float:
        """Share of clips (N_i,) heard as their label.

        Raises ValueError when there are not as many labels.
        """
        return float(
            np.mean([p == label for p, label in zip(self.predict(clips), labels, strict=True)])
        )


def train_speech_judge(
    clips: Sequence[np.ndarray],
    labels: Sequence[str],
    rate_hz: int = 16_000,
    seed: int = 0,
    n_steps: int = 300,
) -> SpeechJudge:
    """A small convnet that names the word of a clip, trained on real clips (N_i,) and their labels;
    half a minute on one core.

    Augmented by what rooms and microphones do (noise at 10 to 40 dB, shifts, bands and moments
    masked, a tilted spectrum), never by a tokenizer's round trip. Its own draws only: the global
    random state is left as it was.
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
        x = torch.stack(
            [
                _window(f)
                for copy in (clips, *(_noisy(clips, rng) for _ in range(3)))
                for f in judge_features(copy, rate_hz)
            ]
        )
        y = torch.tensor([classes.index(label) for label in labels]).repeat(4)
        net = _Convnet(len(classes))
        optimiser = torch.optim.AdamW(decay_groups(0.02, net), 4e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, n_steps)
        for _ in range(n_steps):
            rows = torch.randint(len(x), (64,))
            loss = F.cross_entropy(net(_augment(x[rows])), y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return SpeechJudge(classes, rate_hz, net.eval())


def _noisy(clips: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """White noise at 10 to 40 dB below each clip."""
    return [
        clip
        + rng.standard_normal(len(clip)).astype(np.float32)
        * clip.std()
        * 10 ** -rng.uniform(0.5, 2)
        for clip in clips
    ]


def _augment(x: Tensor) -> Tensor:
    """(B, T, 40): shift in time, tilt, jitter, mask a band and a moment; each row its own draw."""
    n_rows, n_frames, n_bands = x.shape
    time, band = torch.arange(n_frames)[None, :, None], torch.arange(n_bands)[None, None, :]
    draw = lambda low, high: low + (high - low) * torch.rand(n_rows, 1, 1)  # noqa: E731
    x = x.gather(
        1, (time - draw(-10, 11).floor().long()).remainder(n_frames).expand(-1, -1, n_bands)
    )
    sound = x > 0
    x = x + draw(-0.1, 0.1) * (band / n_bands - 0.5) + draw(0, 0.08) * torch.randn_like(x)
    first_band, first_frame = draw(0, n_bands), draw(0, n_frames)
    masked = ((band >= first_band) & (band < first_band + draw(0, 6))) | (
        (time >= first_frame) & (time < first_frame + draw(0, 8))
    )
    return torch.where(sound & ~masked, x, 0).clamp(0, 1.2)


# The judge of voices


def voice_features(clips: Sequence[np.ndarray], rate_hz: int) -> np.ndarray:
    """Clips (N_i,) -> (n, 82): mean and spread of each band over the loud half of the frames, and
    the pitch (log Hz, and its spread).
    """
    rows = []
    for clip, features in zip(clips, judge_features(clips, rate_hz)):
        loudness = features.mean(1)
        loud = features[loudness >= loudness.median()]
        rows.append(
            np.concatenate(
                [loud.mean(0).numpy(), loud.std(0, correction=0).numpy(), _pitch(clip, rate_hz)]
            )
        )
    return np.array(rows).reshape(len(rows), 82)


def _pitch(
    clip: np.ndarray, rate_hz: int, low_hz: float = 50, high_hz: float = 400
) -> tuple[float, float]:
    """Median and spread over the loud frames of log pitch, by the peak of the autocorrelation of 50
    ms frames every 12.5 ms.
    """
    size, hop = round(0.05 * rate_hz), round(0.0125 * rate_hz)
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
    """Which of the known voices a clip is nearest to: linear discriminant analysis of
    `voice_features`. Made by `train_voice_judge`.
    """

    voices: tuple[str, ...]
    rate_hz: int
    weight: np.ndarray  # (82, voices)
    bias: np.ndarray  # (voices,)

    def predict(self, clips: Sequence[np.ndarray]) -> list[str]:
        """Clips (N_i,) -> the nearest voice of each."""
        return (
            [
                self.voices[i]
                for i in (voice_features(clips, self.rate_hz) @ self.weight + self.bias).argmax(1)
            ]
            if len(clips)
            else []
        )

    def accuracy(self, clips: Sequence[np.ndarray], voices: Sequence[str]) -> float:
        """Share of clips (N_i,) taken for their own voice.

        Raises ValueError when there are not as many voices.
        """
        return float(
            np.mean([p == voice for p, voice in zip(self.predict(clips), voices, strict=True)])
        )


def train_voice_judge(
    clips: Sequence[np.ndarray],
    voices: Sequence[str],
    rate_hz: int = 16_000,
    shrinkage: float = 0.05,
) -> VoiceJudge:
    """Fisher's discriminant in closed form, with a pooled covariance drawn towards its diagonal, on
    real clips (N_i,).
    """
    if len(clips) != len(voices) or len(set(voices)) < 2:
        raise UserError(
            f"voice judge: needs a voice per clip and two voices at least, got {len(clips)} clips,"
            f" {len(set(voices))} voices"
        )
    names = tuple(sorted(set(voices)))
    x, label = voice_features(clips, rate_hz), np.array([names.index(v) for v in voices])
    means = np.stack([x[label == k].mean(0) for k in range(len(names))])  # (voices, 82)
    within = np.cov((x - means[label]).T)
    within = (1 - shrinkage) * within + (shrinkage + 1e-3) * np.diag(np.diag(within) + 1e-6)
    weight = np.linalg.solve(within, means.T)
    return VoiceJudge(names, rate_hz, weight, -0.5 * (means.T * weight).sum(0))
