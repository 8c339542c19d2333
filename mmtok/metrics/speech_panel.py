"""All judges and distances of speech that are installed, asked together.

Figures are per clip, so that whoever shows them gives an interval: `mmtok.metrics.intervals`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec

import numpy as np

from mmtok.metrics.intervals import Estimate, mean_estimate, ratio_estimate
from mmtok.metrics.speech_distances import (
    estoi,
    log_mel_distance,
    log_spectral_distance,
    mel_cepstral_distortion,
    multi_resolution_stft,
    pesq,
    stoi,
)
from mmtok.metrics.speech_pretrained import (
    MOSJudge,
    PhonemeJudge,
    SpeakerJudge,
    missing_judges,
    similarities,
)
from mmtok.metrics.speech_text import EditCounts, edit_counts

SHIFT_S = 0.005  # by which a recording is delayed, to see how firmly the phonemes in it are heard
# package -> what needs it, and how it is installed
PACKAGES = {
    "pystoi": ("STOI and ESTOI", "pip install 'mmtok[eval]'"),
    "pesq": ("PESQ", "pip install pesq, which is compiled"),
    "distillmos": ("quality by DistillMOS", "pip install 'mmtok[judges]'"),
    "hama": ("phonemes by hama", "pip install 'mmtok[judges]'"),
    "resemblyzer": ("voices by resemblyzer", "pip install 'mmtok[judges]'"),
}


def missing_packages() -> list[str]:
    """The packages of PACKAGES that are not installed."""
    measures = [name for name in ("pystoi", "pesq") if find_spec(name) is None]
    return measures + missing_judges()


def missing_note(packages: Sequence[str]) -> str:
    """One line on what is left out without these packages; "" of none."""
    if not packages:
        return ""
    whats = ", ".join(PACKAGES[name][0] for name in packages)
    hows = "; ".join(dict.fromkeys(PACKAGES[name][1] for name in packages))
    return f"not measured: {whats} ({hows})"


def distances(
    references: Sequence[np.ndarray],
    degraded: Sequence[np.ndarray],
    rate_hz: int,
    band: str = "wb",
) -> dict[str, np.ndarray]:
    """Name -> distances (n,) of n clips (N_i,) from their references (N_i,); NaN: not measurable.

    STOI, ESTOI and PESQ only where their packages are installed. `band` is PESQ's.
    """
    pairs = list(zip(references, degraded, strict=True))
    measures: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {}
    if find_spec("pystoi") is not None:
        measures |= {"stoi": stoi, "estoi": estoi}
    if find_spec("pesq") is not None:

        def pesq_of_band(a: np.ndarray, b: np.ndarray, rate: int) -> float:
            return pesq(a, b, rate, band)

        measures["pesq"] = pesq_of_band
    measures |= {
        "mcd_db": mel_cepstral_distortion,
        "lsd_db": log_spectral_distance,
        "log_mel_db": log_mel_distance,
    }
    found = {
        name: np.array([measure(a, b, rate_hz) for a, b in pairs], float)
        for name, measure in measures.items()
    }
    stft = np.array([multi_resolution_stft(a, b, rate_hz) for a, b in pairs], float).reshape(-1, 2)
    return found | {"stft_convergence": stft[:, 0], "stft_log_magnitude": stft[:, 1]}


class Panel:
    """The judges that are installed, each made when it is first asked; None where it is missing.

    `without` are packages of judges that are not asked, as if they were missing.
    """

    def __init__(self, without: Sequence[str] = ()) -> None:
        self.missing = missing_packages()
        self.missing += [name for name in without if name not in self.missing]

    @cached_property
    def quality(self) -> MOSJudge | None:
        """DistillMOS."""
        return None if "distillmos" in self.missing else MOSJudge()

    @cached_property
    def phonemes(self) -> PhonemeJudge | None:
        """hama."""
        return None if "hama" in self.missing else PhonemeJudge()

    @cached_property
    def voices(self) -> SpeakerJudge | None:
        """resemblyzer."""
        return None if "resemblyzer" in self.missing else SpeakerJudge()


class Recordings:
    """Recordings that other sounds are judged beside: what the judges say of them, kept.

    Args:
        panel: The judges.
        clips: Recordings (N_i,).
        rate_hz: Of all.
        texts: What is said in each; None where that is unknown.
    """

    def __init__(
        self,
        panel: Panel,
        clips: Sequence[np.ndarray],
        rate_hz: int,
        texts: Sequence[str | None] | None = None,
    ):
        self.panel = panel
        self.clips = clips
        self.rate_hz = rate_hz
        self.texts = texts or [None] * len(clips)

    @cached_property
    def scores(self) -> np.ndarray | None:
        """DistillMOS (n,) of the recordings."""
        return self.scores_of(self.clips)

    def scores_of(self, clips: Sequence[np.ndarray]) -> np.ndarray | None:
        """DistillMOS (n,) of other clips; None without the judge."""
        if self.panel.quality is None:
            return None
        return self.panel.quality(clips, self.rate_hz)

    @cached_property
    def heard(self) -> list[list[str]]:
        """The phonemes heard in each recording."""
        return self.heard_in(self.clips)

    def heard_in(self, clips: Sequence[np.ndarray]) -> list[list[str]]:
        """The phonemes heard in each of other clips. Needs the judge."""
        assert self.panel.phonemes is not None
        return self.panel.phonemes.heard(clips, self.rate_hz)

    @cached_property
    def references(self) -> list[list[str]]:
        """The phonemes of each text, and where it is unknown those heard in the recording."""
        assert self.panel.phonemes is not None
        read = self.panel.phonemes.read([text or "" for text in self.texts])
        return [a or b for a, b in zip(read, self.heard, strict=True)]

    @cached_property
    def phoneme_counts(self) -> EditCounts | None:
        """Phoneme errors of the recordings themselves; None without the judge.

        Against their texts. Where these are unknown, of the recording delayed by SHIFT_S against
        the recording: how far a reading changes where nothing audible does.
        """
        if self.panel.phonemes is None:
            return None
        silence = np.zeros(round(SHIFT_S * self.rate_hz), np.float32)
        read = self.panel.phonemes.read([text or "" for text in self.texts])
        shifted = [
            clip if known else np.concatenate([silence, clip])
            for clip, known in zip(self.clips, read, strict=True)
        ]
        return edit_counts(self.references, self.heard_in(shifted))

    def phoneme_counts_of(self, clips: Sequence[np.ndarray]) -> EditCounts | None:
        """Phoneme errors of other sounds of the same texts; None without the judge."""
        if self.panel.phonemes is None:
            return None
        return edit_counts(self.references, self.heard_in(clips))

    @cached_property
    def vectors(self) -> np.ndarray | None:
        """Voices (n, 256) of the recordings."""
        return self.vectors_of(self.clips)

    def vectors_of(self, clips: Sequence[np.ndarray]) -> np.ndarray | None:
        """Voices (n, 256) of other clips; None without the judge."""
        if self.panel.voices is None:
            return None
        return self.panel.voices.vectors(clips, self.rate_hz)

    def similarities_of(self, clips: Sequence[np.ndarray]) -> np.ndarray | None:
        """How alike (n,) the voice of each clip is to that of the recording in its place."""
        if self.vectors is None:
            return None
        vectors = self.vectors_of(clips)
        assert vectors is not None
        return similarities(vectors, self.vectors)

    def own_figures(self) -> dict[str, Estimate]:
        """Name -> figure of the recordings themselves: mos, phoneme_error.

        And speaker_similarity, of each recording to the next, which is another one.
        """
        found = {}
        if self.scores is not None:
            found["mos"] = mean_estimate(self.scores)
        if self.vectors is not None and len(self.clips) > 1:
            alike = similarities(self.vectors, np.roll(self.vectors, 1, axis=0))
            found["speaker_similarity"] = mean_estimate(alike)
        if self.phoneme_counts is not None:
            found["phoneme_error"] = self.phoneme_counts.estimate()
        return found

    def figures_of(self, clips: Sequence[np.ndarray]) -> dict[str, Estimate]:
        """Name -> figure of other sounds (N_i,) of the same texts, beside the recordings.

        mos, speaker_similarity, phoneme_error; mos_below and phoneme_error_above are the
        differences to the recordings', whose intervals are of pairs.
        """
        found = {}
        scores = self.scores_of(clips)
        if scores is not None and self.scores is not None:
            found["mos"] = mean_estimate(scores)
            found["mos_below"] = mean_estimate(self.scores - scores)
        alike = self.similarities_of(clips)
        if alike is not None:
            found["speaker_similarity"] = mean_estimate(alike)
        counts = self.phoneme_counts_of(clips)
        if counts is not None and self.phoneme_counts is not None:
            found["phoneme_error"] = counts.estimate()
            more = counts.edits - self.phoneme_counts.edits
            found["phoneme_error_above"] = ratio_estimate(more, counts.lengths)
        return found
