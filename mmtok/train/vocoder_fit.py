"""Trains the networks that make sound of a speech tokenizer's frames, from clips.

First the de-quantiser, whose values stay in the cells of their codes (L1, then a discriminator of
spectrograms), then the vocoder (distances of spectra at several resolutions, then discriminators of
sound; a source-filter vocoder learns the pitch that a tracker finds besides). Both are in the
folder of work when they are done, and it holds what an interrupted training goes on from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmtok.errors import UserError
from mmtok.io.serialize import to_plain
from mmtok.io.terminal import print_status
from mmtok.nn.audio import MelSpec
from mmtok.nn.vocoder import Dequantiser
from mmtok.tokenizers import dequantiser as dequantisers
from mmtok.tokenizers import harmonic, istft
from mmtok.tokenizers.harmonic import HarmonicDescription, HarmonicTraining, own_spec
from mmtok.tokenizers.istft import ISTFTDescription, ISTFTTraining, VocoderTraining
from mmtok.tokenizers.mel import MelConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.vocoder_base import WeightsKind
from mmtok.train import teaching
from mmtok.train.adversarial import AdversarialFit
from mmtok.train.crops import Crops, at_speeds
from mmtok.train.vocoder_problems import (
    ClipProblem,
    DequantiserProblem,
    HarmonicProblem,
    VocoderProblem,
    coarse,
    crop_samples,
    dequantised,
)

# settings of a training that what a teacher says depends on
HEARD = (
    "teacher",
    "speeds",
    "gain_db",
    "low",
    "high",
    "n_levels",
    "others",
    "others_share",
    "lines_share",
    "dequantised_share",
)


def fit_networks(config: MelConfig, signals: Sequence[np.ndarray], seed: int, folder: Path) -> Path:
    """Train the vocoder and the de-quantiser that `config` wants trained.

    Returns the folder, with a folder of weights in it for each. What is there stands, and what is
    half done goes on.

    Args:
        config: of the tokenizer.
        signals: clips (N,) at its rate, in [-1, 1]; of any float type, float16 takes least memory.
        seed: of everything random.
        folder: for the work.

    Raises UserError where the clips are too few, or the work was begun with other settings.
    """
    work = Work(signals, config.mel.rate_hz, seed, folder)
    spec = config.mel
    network: Dequantiser | None = None
    if isinstance(config, DMelConfig) and config.dequantiser is not None:
        place = folder / dequantisers.WEIGHTS.name
        description = config.dequantised(place)
        training = config.dequantiser.training
        if description is not None:
            spec = description.fine_spec
            if training is not None:
                make_dequantiser = partial(DequantiserProblem, description, training)
                _train(make_dequantiser, work.clips, dequantisers.WEIGHTS, description, seed, place)
            network = config.dequantiser.build(description, place).network
    place = folder / "vocoder"
    learned = config.vocoder.training
    if isinstance(learned, ISTFTTraining):
        own = ISTFTDescription(spec, learned.network)
        hop = spec.hop_samples
        if network is not None:
            hop *= network.r
        heard = partial(dequantised, network, learned)
        sounds = partial(work.sounds, spec, learned, hop, heard)
        make_vocoder = partial(VocoderProblem, own, learned, network)
        _train(make_vocoder, sounds, istft.WEIGHTS, own, seed, place)
    if isinstance(learned, HarmonicTraining):
        described = HarmonicDescription(own_spec(spec), learned.network)
        heard = partial(coarse, described.mel, learned)
        sounds = partial(work.sounds, described.mel, learned, described.mel.hop_samples, heard)
        make_harmonic = partial(HarmonicProblem, described, learned)
        _train(make_harmonic, sounds, harmonic.WEIGHTS, described, seed, place)
    return folder


def remove_work(folder: Path) -> None:
    """Remove what `fit_networks` goes on from, once it is in a tokenizer's folder; logs stay."""
    for path in [*folder.glob("*/checkpoints"), *folder.glob(f"*/{teaching.FOLDER}")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob("*/*.safetensors"), *folder.glob("*/*.json")]:
        path.unlink()


def _stands(place: Path, kind: WeightsKind) -> bool:
    """Whether a network is trained; says so."""
    stands = kind.is_in(place)
    if stands:
        print_status(f"the {place.name} stands")
    return stands


@dataclass(frozen=True)
class Work:
    """What the trainings of a tokenizer's networks share.

    Attributes:
        signals: clips (N,).
        rate_hz: theirs.
        seed: of everything random.
        folder: of the work.
    """

    signals: Sequence[np.ndarray]
    rate_hz: int
    seed: int
    folder: Path

    def clips(self, speeds: Sequence[float] = (1.0,)) -> Crops:
        """Crops of the clips, played at these speeds."""
        return Crops(at_speeds(self.signals, speeds, self.rate_hz, self.seed), self.rate_hz)

    def sounds(
        self, spec: MelSpec, training: VocoderTraining, hop: int, heard: teaching.Heard
    ) -> Crops:
        """The sound that a vocoder learns: of the clips, or a teacher's of what is `heard` of them.

        `hop`: of which the length of a crop is a multiple.
        """
        clips = self.clips(training.speeds)
        if training.teacher is None:
            return clips
        teacher = replace(training.teacher, mapped=True).build(spec)
        n_least = crop_samples(spec, training, hop)
        n_samples = teaching.stretch_samples(spec, n_least, len(clips.samples))
        plain = to_plain(training)
        settings = {
            "mel": to_plain(spec),
            "training": {name: plain[name] for name in HEARD if name in plain},
            "seed": self.seed,
            "n_samples": len(clips.samples),
            "stretch_samples": n_samples,
        }
        folder = self.folder / "vocoder" / teaching.FOLDER
        return teaching.taught(
            clips, teacher, heard, n_samples, training, self.seed, folder, settings
        )


def _settings(description: Any, training: Any, seed: int, clips: Crops) -> Mapping[str, Any]:
    """What a training that goes on must share with its beginning."""
    plain = to_plain(training)
    for name in ("log_every", "checkpoint_every"):
        del plain[name]
    n_samples = len(clips.samples)
    return {
        "network": to_plain(description),
        "training": plain,
        "seed": seed,
        "n_samples": n_samples,
    }


def _train(
    make: Callable[[Crops], ClipProblem],
    clips: Callable[[], Crops],
    kind: WeightsKind,
    description: Any,
    seed: int,
    folder: Path,
) -> None:
    """Train a network on clips and write its weights, unless they stand.

    Its settings are compared with those of a training that goes on.
    """
    if _stands(folder, kind):
        return
    crops = clips()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        problem = make(crops)
    kind.write(folder, description, _fitted(problem, kind, description, seed, folder))


def _fitted(
    problem: ClipProblem, kind: WeightsKind, description: Any, seed: int, folder: Path
) -> nn.Module:
    """The trained network."""
    training = problem.training
    if training.start:
        found = kind.find(training.start)
        start = kind.read(found, kind.describe(found).make)
        try:
            problem.network.load_state_dict(start.state_dict())
        except RuntimeError:
            raise UserError(
                f"training cannot start from the {problem.what} in {found}, whose sizes are others:"
                " set training.network as it has them"
            ) from None
    settings = _settings(description, training, seed, problem.clips)
    fit = AdversarialFit(problem, training, settings, seed, folder)
    fit.run()
    return fit.averaged()
