"""Trains the networks that make sound of a speech tokenizer's frames, from clips.

First the de-quantiser, whose values stay in the cells of their codes (L1, then a discriminator of
spectrograms), then the vocoder (distances of spectra at several resolutions, then discriminators of
sound; a source-filter vocoder learns the pitch that a tracker finds besides). Both are in the
folder of work when they are done, and it holds what an interrupted training goes on from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import UserError
from mmtok.io.progress import Progress
from mmtok.io.serialize import to_plain
from mmtok.io.terminal import print_status
from mmtok.nn.audio import MelSpec, log_mel, mel_filters
from mmtok.nn.harmonic import HarmonicVocoder, n_source_samples
from mmtok.nn.pitch import pitch_loss, track_pitch
from mmtok.nn.vocoder import Dequantiser, ISTFTVocoder
from mmtok.tokenizers import dequantiser as dequantisers
from mmtok.tokenizers import harmonic, istft
from mmtok.tokenizers.dequantiser import DequantiserDescription, DequantiserTraining
from mmtok.tokenizers.harmonic import (
    MOST_LINES,
    HarmonicDescription,
    HarmonicTraining,
    own_spec,
    with_lines,
)
from mmtok.tokenizers.istft import (
    AdversarialTraining,
    ISTFTDescription,
    ISTFTTraining,
)
from mmtok.tokenizers.mel import MelConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.vocoder_base import WeightsKind
from mmtok.train.adversarial import AdversarialFit, Problem
from mmtok.train.discriminators import MelDiscriminator, resolutions_of, wave_discriminators

QUIET = 0.02  # crops whose peak is below this are drawn again
N_DRAWS = 10  # at most
MEL_FLOOR = 1e-5
STFT_FLOOR = 1e-4
STRETCH_FRAMES = 40_000  # whose pitch is found at a time, which bounds the memory


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
    clips = Crops(signals, config.mel.rate_hz)
    spec = config.mel
    network: Dequantiser | None = None
    if isinstance(config, DMelConfig) and config.dequantiser is not None:
        place = folder / dequantisers.WEIGHTS.name
        description = config.dequantised(place)
        training = config.dequantiser.training
        if description is not None:
            spec = description.fine_spec
            if training is not None:
                make_dequantiser = partial(DequantiserProblem, description, training, clips)
                _train(make_dequantiser, dequantisers.WEIGHTS, description, seed, place)
            network = config.dequantiser.build(description, place).network
    place = folder / "vocoder"
    learned = config.vocoder.training
    if isinstance(learned, ISTFTTraining):
        own = ISTFTDescription(spec, learned.network)
        make_vocoder = partial(VocoderProblem, own, learned, network, clips)
        _train(make_vocoder, istft.WEIGHTS, own, seed, place)
    if isinstance(learned, HarmonicTraining):
        described = HarmonicDescription(own_spec(spec), learned.network)
        make_harmonic = partial(HarmonicProblem, described, learned, clips)
        _train(make_harmonic, harmonic.WEIGHTS, described, seed, place)
    return folder


def remove_work(folder: Path) -> None:
    """Remove what `fit_networks` goes on from, once it is in a tokenizer's folder; logs stay."""
    for path in folder.glob("*/checkpoints"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob("*/*.safetensors"), *folder.glob("*/*.json")]:
        path.unlink()


def _stands(place: Path, kind: WeightsKind) -> bool:
    """Whether a network is trained; says so."""
    stands = kind.is_in(place)
    if stands:
        print_status(f"the {place.name} stands")
    return stands


class Crops:
    """Random stretches of clips, with random gain."""

    def __init__(self, signals: Sequence[np.ndarray], rate_hz: int):
        if not len(signals):
            raise UserError("no clips to train a vocoder on; give at least one")
        self.samples = torch.cat([torch.as_tensor(np.asarray(clip)) for clip in signals])
        hours = len(self.samples) / rate_hz / 3600
        print_status(f"training on {hours:.2g} h of sound in {len(signals):,} clips")

    def draw(
        self, n: int, length: int, gain_db: tuple[float, float], generator: torch.Generator
    ) -> Tensor:
        """(n, length) float32: stretches that are not silent, where some draws find one."""
        return self.draw_at(n, length, gain_db, generator)[0]

    def draw_at(
        self,
        n: int,
        length: int,
        gain_db: tuple[float, float],
        generator: torch.Generator,
        step: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """`draw`, and the samples (n,) at which they begin, which are multiples of `step`."""
        if len(self.samples) < length:
            raise UserError(
                f"the clips have {len(self.samples):,} samples in all, and a crop has {length:,}:"
                " give more sound, or set crop_frames lower"
            )
        starts = [self._start(length, generator, step) for _ in range(n)]
        crops = torch.stack([self._crop(start, length) for start in starts])
        low, high = gain_db
        gains = low + (high - low) * torch.rand(n, 1, generator=generator)
        return crops * 10 ** (gains / 20), torch.tensor(starts)

    def _start(self, length: int, generator: torch.Generator, step: int) -> int:
        n_places = (len(self.samples) - length) // step + 1
        for _ in range(N_DRAWS):
            start = step * int(torch.randint(n_places, (), generator=generator))
            if self._crop(start, length).abs().max() >= QUIET:
                break
        return start

    def _crop(self, start: int, length: int) -> Tensor:
        return self.samples[start : start + length].float()


class ClipProblem(Problem):
    """What all trainings here have: settings, and clips to draw crops of."""

    training: Any  # an AdversarialTraining of its own kind
    clips: Crops


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
    make: Callable[[], ClipProblem], kind: WeightsKind, description: Any, seed: int, folder: Path
) -> None:
    """Train a network and write its weights, unless they stand.

    Its settings are compared with those of a training that goes on.
    """
    if _stands(folder, kind):
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        problem = make()
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


# ---- the de-quantiser


class DequantiserProblem(ClipProblem):
    """Codes of crops -> their fine spectrogram."""

    what = "dequantiser"
    distance_weight = 10.0
    grad_clip = 5.0

    def __init__(
        self, description: DequantiserDescription, training: DequantiserTraining, clips: Crops
    ):
        self.network: Dequantiser = description.make()
        self.cells = description.cells
        self.spec = description.fine_spec
        self.r = description.upsampling
        self.training = training
        self.clips = clips
        self.discriminators = nn.ModuleList([MelDiscriminator(self.cells.step / 2)])
        self.adversarial_weight = training.adversarial_weight
        self.matching_weight = training.matching_weight
        n_frames = -(-training.crop_frames // self.r)
        self.n_samples = n_frames * description.mel.hop_samples

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes (B, T, C), and the fine spectrogram (B, T', C) that they are of."""
        training = self.training
        crops = self.clips.draw(training.batch_size, self.n_samples, training.gain_db, generator)
        fine = torch.stack(log_mel(list(crops), self.spec))
        return codes_of(fine, self.network), fine

    def made(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The network's spectrogram."""
        codes, fine = batch
        return self.network(codes)[:, : fine.shape[1]]

    def wanted(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """That of the crop, as far as the cells allow it."""
        codes, fine = batch
        wanted = fine.clamp(self.cells.low - self.cells.margin, self.cells.high + self.cells.margin)
        coarse = own_frames(wanted, self.network)
        coarse.copy_(self.cells.clamp(codes, coarse))
        return wanted

    def distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        """The mean absolute error in steps."""
        return (made - wanted).abs().mean() / self.cells.step

    def conditions(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """What the codes say without a network."""
        codes, fine = batch
        return (self.network.base(codes)[:, : fine.shape[1]],)


def own_frames(fine: Tensor, network: Dequantiser) -> Tensor:
    """The fine frames (B, T', C) that are the frames of codes: (B, T, C), a view."""
    first = network.r - 1 if network.spec.causal else 0
    return fine[:, first :: network.r]


def codes_of(fine: Tensor, network: Dequantiser) -> Tensor:
    """The codes (B, T, C) of a fine spectrogram (B, T', C)."""
    cells = network.cells
    codes = ((own_frames(fine, network) - cells.low) / cells.step).round()
    return codes.clamp(0, cells.n_levels - 1)


# ---- vocoders


class SoundProblem(ClipProblem):
    """What trainings of vocoders share: their targets are crops."""

    what = "vocoder"
    distance_weight = 5.0
    adversarial_weight = 1.0
    matching_weight = 2.0
    grad_clip = 20.0

    def __init__(self, spec: MelSpec, training: AdversarialTraining, clips: Crops, hop: int):
        """`hop`: of which the length of a crop is a multiple."""
        self.spec = spec
        self.clips = clips
        self.discriminators = wave_discriminators(spec.n_fft)
        resolutions = resolutions_of(spec.rate_hz)
        self.scales = [Scale(spec.rate_hz, *sizes) for sizes in resolutions]
        longest = max(n for n, _ in resolutions)
        least = max(training.crop_frames * spec.hop_samples, longest)
        self.n_samples = -(-least // hop) * hop

    def wanted(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The crops."""
        return batch[1]

    def distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        """The sum over scales."""
        return torch.stack([scale.distance(made, wanted) for scale in self.scales]).sum()


class VocoderProblem(SoundProblem):
    """The spectrograms of crops -> crops, by an iSTFT vocoder."""

    def __init__(
        self,
        description: ISTFTDescription,
        training: ISTFTTraining,
        dequantiser: Dequantiser | None,
        clips: Crops,
    ):
        self.network: ISTFTVocoder = description.make()
        self.training = training
        self.dequantiser = dequantiser
        hop = description.mel.hop_samples
        if dequantiser is not None:
            hop *= dequantiser.r
        super().__init__(description.mel, training, clips, hop)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """log10 mel spectrograms (B, T, C), and the crops (B, N) that they are of."""
        training = self.training
        crops = self.clips.draw(training.batch_size, self.n_samples, training.gain_db, generator)
        mels = torch.stack(log_mel(list(crops), self.spec))
        if self.dequantiser is not None:
            chosen = torch.rand(len(crops), generator=generator) < training.dequantised_share
            if chosen.any():
                with torch.no_grad():
                    codes = codes_of(mels[chosen], self.dequantiser)
                    mels[chosen] = self.dequantiser(codes)[:, : mels.shape[1]]
        return mels, crops

    def made(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The network's sound."""
        mels, crops = batch
        return self.network(mels, crops.shape[1])


class HarmonicProblem(SoundProblem):
    """The spectrograms of crops, as coarse as codes are -> crops, at the pitch of a tracker."""

    pitch_weight = 0.5

    def __init__(self, description: HarmonicDescription, training: HarmonicTraining, clips: Crops):
        self.network: HarmonicVocoder = description.make()
        self.training = training
        super().__init__(description.mel, training, clips, description.mel.hop_samples)
        for scale in self.scales[1:-1]:
            scale.weight_of_bins = 0.5
        for scale in (self.scales[0], self.scales[-1]):
            scale.weight_of_bins = 0.0
            scale.weight_of_convergence = 0.0
        self.pitch = pitch_of_clips(clips.samples, self.spec)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Spectrograms (B, T, C), crops (B, N), pitch (B, T), phases (B,) and noise of a step."""
        training = self.training
        hop = self.spec.hop_samples
        crops, starts = self.clips.draw_at(
            training.batch_size, self.n_samples, training.gain_db, generator, hop
        )
        mels = self.coarse(torch.stack(log_mel(list(crops), self.spec)), generator)
        n_frames = mels.shape[1]
        places = starts[:, None] // hop + torch.arange(n_frames)
        pitch = self.pitch[places.clamp_max(len(self.pitch) - 1)]
        phases = torch.rand(len(crops), generator=generator, dtype=torch.float64)
        n_noise = n_source_samples(self.spec, n_frames)
        noise = torch.randn(len(crops), n_noise, generator=generator)
        return mels, crops, pitch, phases, noise

    def coarse(self, mels: Tensor, generator: torch.Generator) -> Tensor:
        """Spectrograms (B, T, C) as codes of a drawn number of levels say them."""
        training = self.training
        is_other, is_lines = torch.rand(2, generator=generator).tolist()
        place = int(torch.randint(max(1, len(training.others)), (), generator=generator))
        n_levels = training.n_levels
        if training.others and is_other < training.others_share:
            n_levels = training.others[place]
        if n_levels:
            step = (training.high - training.low) / (n_levels - 1)
            codes = ((mels - training.low) / step).round().clamp(0, n_levels - 1)
            mels = training.low + step * codes
        if is_lines < training.lines_share and not self.spec.causal:
            mels = with_lines(mels[:, ::MOST_LINES], MOST_LINES)[:, : mels.shape[1]]
        return mels

    def made(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The network's sound."""
        return self.made_with_losses(batch)[0]

    def made_with_losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's sound at the tracker's pitch, and the losses of its own pitch."""
        mels, crops, pitch, phases, noise = batch
        made, logits = self.network(mels, crops.shape[1], pitch, phases, noise)
        of_bins, of_voicing = pitch_loss(logits, pitch)
        return made, {"pitch": self.pitch_weight * of_bins, "voicing": of_voicing}


def pitch_of_clips(samples: Tensor, spec: MelSpec) -> Tensor:
    """Pitch in Hz of the frames of clips (N,), 0: unvoiced; stretch by stretch."""
    found = []
    hop = spec.hop_samples
    before = spec.left_samples - spec.n_fft // 2  # frame t is in the middle of its window
    stretches = F.pad(samples, (before, 0)).split(STRETCH_FRAMES * hop)
    with Progress("finding pitch", len(stretches), "stretches") as progress:
        for stretch in stretches:
            found.append(track_pitch(stretch, spec.rate_hz, hop)[:STRETCH_FRAMES])
            progress.advance()
    return torch.cat(found)


class Scale:
    """The distance of sounds at one resolution: of log mel and of log spectral magnitudes, L1.

    Beside them, as Yamamoto et al. 2020 (arXiv 1910.11480, eq. 6), spectral convergence.
    """

    weight_of_bins = 0.3
    weight_of_convergence = 0.3

    def __init__(self, rate_hz: int, window_samples: int, n_mels: int):
        n = window_samples
        spec = MelSpec(rate_hz, n, n, max(1, n // 4), n_mels, 0.0, rate_hz / 2)
        self.filters = mel_filters(spec)
        self.window = torch.hann_window(n)

    def distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Between sounds (B, N)."""
        own, own_mel = self._spectra(made)
        other, other_mel = self._spectra(wanted)
        of_mels = _log_distance(own_mel, other_mel, MEL_FLOOR)
        of_bins = _log_distance(own, other, STFT_FLOOR)
        convergence = (own - other).norm() / other.norm()
        return of_mels + self.weight_of_bins * of_bins + self.weight_of_convergence * convergence

    def _spectra(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) -> magnitudes (B, F, T), and those of mel bands (B, T, C)."""
        n = len(self.window)
        spectra = torch.stft(samples, n, n // 4, window=self.window, return_complex=True)
        magnitudes = (torch.view_as_real(spectra).square().sum(-1) + 1e-10).sqrt()
        return magnitudes, magnitudes.transpose(1, 2) @ self.filters


def _log_distance(a: Tensor, b: Tensor, floor: float) -> Tensor:
    return ((a + floor).log() - (b + floor).log()).abs().mean()
