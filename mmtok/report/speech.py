"""The report's section of speech: spectrograms and players, beside real clips of the same words."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.report import plots
from mmtok.report.html import Markup, data_uri, tag
from mmtok.report.samples import N_PROMPTS, Sample, more_prompts, task_fields, trajectories
from mmtok.run.run import Run
from mmtok.tokenizers.base import TokenizerConfig
from mmtok.tokenizers.mel import MelConfig
from mmtok.tokenizers.speech_latents import PICTURE_FRAMES, PICTURE_RANGE

N_CLIPS = 2  # shown per prompt
SOUND_BYTES = 2_700_000  # of all players together, so that the page stays below 6 MB
BYTES_PER_SAMPLE = 2

LABELS = {
    "voice_entropy": "spread over the voices (1: even)",
    "voice_entropy_real": "the same for real clips",
    "voice_judge_heldout": "the judge of voices on real held-out clips",
    "string_word_error": "word errors on its own three-word strings",
    "string_word_error_real": "the same on real clips",
    "string_stopped": "strings that end by themselves",
    "silent": "samples without any sound",
    "mos": "quality by DistillMOS, 1 to 5",
    "mos_below": "the same, below the recordings'",
    "phoneme_error": "phoneme errors by hama against the text",
    "phoneme_error_above": "the same, above the recordings'",
    "speaker_similarity": (
        "likeness of voices by resemblyzer, to the recording (of recordings: to the next one)"
    ),
    "speaker_above_others": "the same, above the likeness to other voices",
    "word_error": "word errors of the run's own recognition",
    "character_error": "its character errors",
    "mcd_db": "mel-cepstral distortion in dB",
    "stoi": "intelligibility (STOI)",
    "estoi": "the same, extended (ESTOI)",
    "pesq": "quality against the recording (PESQ, wide band)",
}
JUDGED_REMARK = (
    "Samples of held-out texts, the round trip of their recordings through the tokenizer, and the"
    " recordings themselves. In brackets: 95 % bootstrap intervals over clips."
)
REMARKS = {
    "speech_from_text_judged": JUDGED_REMARK,
    "speech_from_voice_and_text_judged": JUDGED_REMARK,
    "speech_from_nothing_judged": JUDGED_REMARK,
}
TRAJECTORY_REMARK = (
    f"Of sound: the first {PICTURE_FRAMES} frames of the spectrogram, low bands at the bottom, each"
    f" from {-PICTURE_RANGE:g} (black) to {PICTURE_RANGE:g} (white) of its standard deviations from"
    " the mean."
)


@dataclass(frozen=True)
class SoundClip:
    """A clip to show: its heading, samples (N,) float32, and log10 mel magnitudes (T, C)."""

    heading: str
    samples: np.ndarray
    log_mel: np.ndarray


def speech_section(run: Run, prompts: Mapping[str, list[Sample]]) -> list[Markup]:
    """Samples by prompt, with spectrogram and player.

    Beside them a real held-out clip of the same words, and its round trip through the tokenizer.
    """
    tokenizer: Any = run.tokenizers["speech"]
    spec = _spec(tokenizer.config)
    shown = _clips_within_budget(run, prompts)
    clips = [clip for some in shown.values() for clip in some]
    longest = max((len(clip.samples) for clip in clips), default=1)
    loudest = max((float(clip.log_mel.max()) for clip in clips), default=0.0)
    blocks = []
    for prompt, some in shown.items():
        figures = [sound_figure(clip, spec, longest, loudest) for clip in some]
        sounds = tag("div", *figures, cls="sounds")
        blocks.append(tag("div", tag("h3", prompt), sounds, cls="prompt full"))
    remark = (
        "Mel spectrograms on one scale of time and colour, 80 dB from black to the loudest. Real:"
        " held-out clips of the same words."
    )
    paths = [sample.path for prompt in shown for sample in prompts[prompt]]
    return [
        tag("p", remark),
        tag("div", *blocks, cls="prompts"),
        *more_prompts(prompts, len(shown)),
        *trajectories(paths, TRAJECTORY_REMARK),
    ]


def _spec(config: TokenizerConfig) -> MelSpec:
    """The spectrogram to draw: the tokenizer's own, or a like one at its rate."""
    if isinstance(config, MelConfig):
        return config.mel
    rate_hz = config.takes["rate_hz"]
    size = round(0.05 * rate_hz)
    return MelSpec(rate_hz, size, size, round(0.0125 * rate_hz), fmax_hz=min(7600.0, rate_hz / 2))


def _clips_within_budget(
    run: Run, prompts: Mapping[str, list[Sample]]
) -> dict[str, list[SoundClip]]:
    """Prompt -> its clips, of as many prompts as the section's share of SOUND_BYTES allows."""
    folders = (run.folder / "samples").iterdir()
    n_sections = sum(any(folder.glob("*.wav")) for folder in folders)
    budget = SOUND_BYTES // max(1, n_sections)
    chosen = dict(islice(prompts.items(), N_PROMPTS))
    real = _real_clips(run, set(chosen))
    shown: dict[str, list[SoundClip]] = {}
    for prompt, samples in chosen.items():
        clips = _clips(run, samples[:N_CLIPS], real.get(prompt))
        budget -= sum(BYTES_PER_SAMPLE * len(clip.samples) for clip in clips)
        if budget < 0:
            break
        shown[prompt] = clips
    return shown


def sound_figure(clip: SoundClip, spec: MelSpec, longest: int, loudest: float) -> Markup:
    """A clip's spectrogram and player.

    Args:
        clip: What is shown.
        spec: The spectrogram's sizes.
        longest: Samples of the section's longest clip, which has the whole width.
        loudest: log10 magnitude that is drawn brightest.
    """
    n = len(clip.samples)
    picture = plots.spectrogram(
        clip.log_mel, loudest, n / longest, n / spec.rate_hz, (spec.fmin_hz, spec.fmax_hz)
    )
    wav = data_uri("audio/wav", _wav(clip.samples, spec.rate_hz))
    player = tag("audio", controls=True, preload="none", src=wav)
    return tag("figure", tag("figcaption", clip.heading), picture, player)


def _clips(run: Run, samples: Sequence[Sample], real: np.ndarray | None) -> list[SoundClip]:
    """What is shown of one prompt, without samples that have no sound."""
    import torch

    from mmtok.data.speech_preparation import read_sound
    from mmtok.nn.audio import log_mel

    tokenizer: Any = run.tokenizers["speech"]
    spec = _spec(tokenizer.config)
    found: list[tuple[str, np.ndarray]] = []
    for i, sample in enumerate(samples, 1):
        heading = f"sample {i}"
        if sample.vocoder:
            heading += f", {sample.vocoder}"
        if "cap" in sample.stops:
            heading += ", cut at the cap"
        try:
            found.append((heading, read_sound(sample.path, spec.rate_hz)))
        except UserError:  # a sample of no frames is a file without sound
            continue
    if real is not None:
        round_trip = tokenizer.decode(tokenizer.encode(real))
        words = "real, through the tokenizer"
        if run.vocoder:
            words += f", {run.vocoder}"
        found += [("real", real), (words, round_trip)]
    return [
        SoundClip(heading, x, log_mel([torch.from_numpy(x)], spec)[0].numpy())
        for heading, x in found
        if len(x)
    ]


def _real_clips(run: Run, captions: set[str]) -> dict[str, np.ndarray]:
    """A held-out clip (N,) of each caption that has one."""
    input_field, target_field = task_fields(run, "speech")
    found: dict[str, np.ndarray] = {}
    if input_field is None:
        return found
    for example in run.examples("heldout", input_field, target_field):
        caption = example[input_field]
        if caption in captions:
            found.setdefault(caption, example[target_field])
            if len(found) == len(captions):
                break
    return found


def _wav(samples: np.ndarray, rate_hz: int) -> bytes:
    """Samples (N,) as a 16-bit wav file."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate_hz, format="WAV", subtype="PCM_16")
    return file.getvalue()
