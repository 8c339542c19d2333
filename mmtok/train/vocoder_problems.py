"""What trainings of vocoders and de-quantisers are: a network, crops of clips, what is wanted.

Letters: B crops, N samples, T frames, C mel channels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.io.progress import Progress
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.nn.harmonic import HarmonicVocoder, n_source_samples
from mmtok.nn.pitch import pitch_loss, track_pitch
from mmtok.nn.vocoder import Dequantiser, ISTFTVocoder
from mmtok.tokenizers.dequantiser import DequantiserDescription, DequantiserTraining
from mmtok.tokenizers.harmonic import (
    MOST_LINES,
    HarmonicDescription,
    HarmonicTraining,
    with_lines,
)
from mmtok.tokenizers.istft import AdversarialTraining, ISTFTDescription, ISTFTTraining
from mmtok.train.adversarial import Problem
from mmtok.train.crops import Crops
from mmtok.train.discriminators import MelDiscriminator, resolutions_of, wave_discriminators
from mmtok.train.spectral_distance import Scale
from mmtok.train.teaching import Taught

STRETCH_FRAMES = 40_000  # whose pitch is found at a time, which bounds the memory


class ClipProblem(Problem):
    """What all trainings here have: settings, and clips to draw crops of."""

    training: Any  # an AdversarialTraining of its own kind
    clips: Crops


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
    step = 1  # samples, of whose multiples crops begin at one

    def __init__(self, spec: MelSpec, training: AdversarialTraining, clips: Crops, hop: int):
        """`hop`: of which the length of a crop is a multiple."""
        self.spec = spec
        self.clips = clips
        self.discriminators = wave_discriminators(spec.n_fft)
        self.scales = [Scale(spec.rate_hz, *sizes) for sizes in resolutions_of(spec.rate_hz)]
        self.n_samples = crop_samples(spec, training, hop)

    @abstractmethod
    def heard(self, mels: Tensor, generator: torch.Generator) -> Tensor:
        """Spectrograms of crops (B, T, C) as the network is given them."""

    def frames_and_crops(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What the network is given (B, T, C), sounds (B, N), and where they begin (B,)."""
        training = self.training
        gain_db = training.gain_db
        if isinstance(self.clips, Taught):
            gain_db = (0.0, 0.0)  # a stretch has the one that its teacher heard
        crops, starts = self.clips.draw_at(
            training.batch_size, self.n_samples, gain_db, generator, self.step
        )
        if isinstance(self.clips, Taught):
            return self.clips.frames(starts, self.spec.n_frames(self.n_samples)), crops, starts
        mels = torch.stack(log_mel(list(crops), self.spec))
        return self.heard(mels, generator), crops, starts

    def wanted(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The crops."""
        return batch[1]

    def distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        """The sum over scales."""
        return torch.stack([scale.distance(made, wanted) for scale in self.scales]).sum()


def crop_samples(spec: MelSpec, training: AdversarialTraining, hop: int) -> int:
    """The length of a crop: at least the longest window of a distance, and a multiple of `hop`."""
    longest = max(n for n, _ in resolutions_of(spec.rate_hz))
    least = max(training.crop_frames * spec.hop_samples, longest)
    return -(-least // hop) * hop


def dequantised(
    network: Dequantiser | None, training: ISTFTTraining, mels: Tensor, generator: torch.Generator
) -> Tensor:
    """Spectrograms (B, T, C), a drawn share of them after codes and the de-quantiser, if any."""
    if network is None:
        return mels
    chosen = torch.rand(len(mels), generator=generator) < training.dequantised_share
    if chosen.any():
        with torch.no_grad():
            codes = codes_of(mels[chosen], network)
            mels[chosen] = network(codes)[:, : mels.shape[1]]
    return mels


def coarse(
    spec: MelSpec, training: HarmonicTraining, mels: Tensor, generator: torch.Generator
) -> Tensor:
    """Spectrograms (B, T, C) as codes of a drawn number of levels say them."""
    is_other, is_lines = torch.rand(2, generator=generator).tolist()
    place = int(torch.randint(max(1, len(training.others)), (), generator=generator))
    n_levels = training.n_levels
    if training.others and is_other < training.others_share:
        n_levels = training.others[place]
    if n_levels:
        step = (training.high - training.low) / (n_levels - 1)
        codes = ((mels - training.low) / step).round().clamp(0, n_levels - 1)
        mels = training.low + step * codes
    if is_lines < training.lines_share and not spec.causal:
        mels = with_lines(mels[:, ::MOST_LINES], MOST_LINES)[:, : mels.shape[1]]
    return mels


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
        mels, crops, _ = self.frames_and_crops(generator)
        return mels, crops

    def heard(self, mels: Tensor, generator: torch.Generator) -> Tensor:
        """As they are, or a share of them after the de-quantiser."""
        return dequantised(self.dequantiser, self.training, mels, generator)

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
        self.step = self.spec.hop_samples
        self.pitch = pitch_of_clips(clips.samples, self.spec)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Spectrograms (B, T, C), crops (B, N), pitch (B, T), phases (B,) and noise of a step."""
        mels, crops, starts = self.frames_and_crops(generator)
        n_frames = mels.shape[1]
        places = starts[:, None] // self.step + torch.arange(n_frames)
        pitch = self.pitch[places.clamp_max(len(self.pitch) - 1)]
        phases = torch.rand(len(crops), generator=generator, dtype=torch.float64)
        n_noise = n_source_samples(self.spec, n_frames)
        noise = torch.randn(len(crops), n_noise, generator=generator)
        return mels, crops, pitch, phases, noise

    def heard(self, mels: Tensor, generator: torch.Generator) -> Tensor:
        """As coarse as codes are."""
        return coarse(self.spec, self.training, mels, generator)

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
