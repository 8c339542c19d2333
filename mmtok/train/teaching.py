"""A teacher's sound for vocoders to learn: what another vocoder makes of stretches of clips.

A recording is one of many sounds of its frames; a teacher's sound is a function of them. So a
network comes close to it by distances of spectra alone, without discriminators (distillation of
knowledge, Hinton et al. 2015, arXiv 1503.02531).

The stretches of a part are functions of (seed, part), and each part is a file of the work's folder.
So a teacher that was interrupted goes on, and what it said stays until the tokenizer is saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.files import read_tensors, write_tensors, write_text
from mmtok.io.progress import Progress
from mmtok.io.strict_json import read_json
from mmtok.io.terminal import print_status
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.tokenizers.harmonic import MOST_LINES
from mmtok.tokenizers.istft import VocoderTraining
from mmtok.tokenizers.vocoder_base import Vocoder
from mmtok.train.crops import N_DRAWS, QUIET, Crops
from mmtok.train.trainer import Interrupted, mixed_seed, stop_signals

STRETCH_S = 2.0  # or a crop, where that is longer
PART = 16  # stretches in a file
FOLDER = "teacher"  # of the work's

Heard = Callable[[Tensor, torch.Generator], Tensor]  # log10 mel (1, T, C) as the teacher hears it


class Taught(Crops):
    """Crops of what a teacher said, and the frames that it said it of.

    A crop lies within a stretch, and begins with a frame that spectrograms of half as many frames
    have too. Frames are those of the sound at the gain that it has.
    """

    def __init__(self, spec: MelSpec, mels: Tensor, sounds: Tensor):
        """mels: log10 mel (n, T, C). sounds: (n, S) of the same stretches, T = S / hop + 1."""
        self.spec = spec
        self.mels = mels
        self.stretch = sounds.shape[1]
        self.samples = sounds.flatten()

    def _start(self, length: int, generator: torch.Generator, step: int) -> int:
        step = max(step, MOST_LINES * self.spec.hop_samples)
        n_places = (self.stretch - length) // step + 1
        for _ in range(N_DRAWS):
            stretch = int(torch.randint(len(self.mels), (), generator=generator))
            place = int(torch.randint(n_places, (), generator=generator))
            start = stretch * self.stretch + place * step
            if self._crop(start, length).abs().max() >= QUIET:
                break
        return start

    def frames(self, starts: Tensor, n_frames: int) -> Tensor:
        """log10 mel (n, n_frames, C) of the crops that begin at the samples `starts` (n,)."""
        places = (starts % self.stretch) // self.spec.hop_samples
        stretches = starts // self.stretch
        return self.mels[stretches[:, None], places[:, None] + torch.arange(n_frames)].float()


def stretch_samples(spec: MelSpec, n_least: int, n_clips: int) -> int:
    """The length of a stretch: of `STRETCH_S`, but at least a crop, and at most all clips.

    n_least: samples of a crop. n_clips: of all clips together.
    """
    step = MOST_LINES * spec.hop_samples
    longest = min(n_clips, round(STRETCH_S * spec.rate_hz)) // step * step
    return max(-(-n_least // spec.hop_samples) * spec.hop_samples, longest)


def taught(
    clips: Crops,
    teacher: Vocoder,
    heard: Heard,
    n_samples: int,
    training: VocoderTraining,
    seed: int,
    folder: Path,
    settings: Mapping[str, Any],
) -> Taught:
    """What a teacher says of stretches of clips.

    Args:
        clips: whose stretches are drawn.
        teacher: of the spectrograms that the network is to read.
        heard: spectrograms as the teacher and the network hear them, coarse as codes are.
        n_samples: of a stretch.
        training: with the gains, and the seconds in all, which are rounded up to whole parts.
        seed: of everything that is drawn.
        folder: in which parts are kept.
        settings: what the parts must have been made with.

    Raises UserError where the folder has parts of other settings, Interrupted after Ctrl-C or
    SIGTERM: the same call goes on.
    """
    spec = teacher.spec
    _check_settings(folder, settings)
    n_parts = max(1, -(-round(training.taught_s * spec.rate_hz) // (PART * n_samples)))
    paths = [folder / f"{i:05d}.safetensors" for i in range(n_parts)]
    length_s = n_samples / spec.rate_hz
    n_bytes = 2 * PART * n_parts * (n_samples + spec.n_frames(n_samples) * spec.n_mels)
    print_status(
        f"the teacher speaks {PART * n_parts:,} stretches of {length_s:.3g} s; they take"
        f" {n_bytes / 1e6:,.0f} MB until the tokenizer is saved"
    )
    n_made = sum(path.exists() for path in paths)
    with stop_signals() as stops, Progress("the teacher speaks", n_parts, "parts", n_made) as shown:
        for i, path in enumerate(paths):
            if not path.exists():
                generator = torch.Generator().manual_seed(mixed_seed(seed, i))
                crops = clips.draw(PART, n_samples, training.gain_db, generator)
                mels = [heard(mel[None], generator)[0] for mel in log_mel(list(crops), spec)]
                sounds = teacher(mels, [n_samples] * PART)
                kept = {"mels": torch.stack(mels).half(), "sounds": torch.stack(sounds).half()}
                write_tensors(path, kept)
                shown.advance()
            if stops:
                raise Interrupted(
                    f"the teacher has spoken {i + 1} of {n_parts} parts; the same command goes on"
                    " from there"
                )
    parts = [read_tensors(path) for path in paths]
    return Taught(spec, *(torch.cat([part[name] for part in parts]) for name in ("mels", "sounds")))


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a folder's parts, or raise UserError where there are others."""
    path = folder / "settings.json"
    text = json.dumps(settings, indent=1)
    if path.exists() and read_json(path) != json.loads(text):
        raise UserError(
            f"{folder} holds what a teacher said with other settings: remove the folder to begin"
            " anew, or set them as they were"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
