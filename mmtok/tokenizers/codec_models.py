"""Pretrained codecs of sound as `transformers` has them: Mimi, DAC and EnCodec.

Each has its own calls and its own names for the same sizes; here they are one class each, with
`encode` and `decode` of one clip. The checkpoint is a folder with config.json and safetensors.

Defossez et al. 2024, "Moshi" (Mimi); Kumar et al. 2023, "High-Fidelity Audio Compression with
Improved RVQGAN" (DAC); Defossez et al. 2022, "High Fidelity Neural Audio Compression" (EnCodec).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmtok.errors import UserError, missing_extra, reading
from mmtok.io import memory_budget
from mmtok.io.messages import shown
from mmtok.io.strict_json import read_json
from mmtok.tokenizers.base import CODECS, codec_family

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# of memory per sample and channel of the widest layers: 39 were measured of EnCodec, 25 of Mimi
BYTES_PER_CHANNEL = 40


@dataclass(frozen=True)
class CodecSizes:
    """What a tokenizer has to know of a codec.

    Attributes:
        family: "mimi", "dac" or "encodec".
        rate_hz: of the samples.
        hop_samples: samples per frame.
        codebook_size: codes of a codebook.
        least: the fewest codebooks that it can be used with.
        most: how many codebooks it has.
        width: channels of the layers at the rate of the samples.
    """

    family: str
    rate_hz: int
    hop_samples: int
    codebook_size: int
    least: int
    most: int
    width: int


class CodecModel(ABC):
    """A codec's network, with the calls that all families share.

    Attributes:
        sizes: its sizes.
        network: of `transformers`.
    """

    kind: ClassVar[str]  # the class in `transformers`, without Config and Model

    def __init__(self, sizes: CodecSizes, network: Any):
        self.sizes = sizes
        self.network = network

    @staticmethod
    @abstractmethod
    def sizes_of(config: Any) -> CodecSizes:
        """The sizes in a config of `transformers`.

        Raises UserError for a variant that is not supported, without its folder.
        """

    @abstractmethod
    def codes(self, samples: Tensor, n_codebooks: int) -> Tensor:
        """Samples (N,) -> codes (Q, T), T = ceil(N / hop_samples)."""

    @abstractmethod
    def samples(self, codes: Tensor) -> Tensor:
        """Codes (Q, T) -> about T * hop_samples samples."""


class _Mimi(CodecModel):
    kind = "Mimi"

    @staticmethod
    def sizes_of(config: Any) -> CodecSizes:
        _check_mono(config)
        return CodecSizes(
            "mimi",
            config.sampling_rate,
            round(config.sampling_rate / config.frame_rate),
            config.codebook_size,
            config.num_semantic_quantizers,
            config.num_quantizers,
            config.num_filters,
        )

    def codes(self, samples: Tensor, n_codebooks: int) -> Tensor:
        found = self.network.encode(samples[None, None], num_quantizers=n_codebooks)
        return _tensor(found.audio_codes[0])

    def samples(self, codes: Tensor) -> Tensor:
        return _tensor(self.network.decode(codes[None]).audio_values[0, 0])


class _Dac(CodecModel):
    kind = "Dac"

    @staticmethod
    def sizes_of(config: Any) -> CodecSizes:
        return CodecSizes(
            "dac",
            config.sampling_rate,
            config.hop_length,
            config.codebook_size,
            1,
            config.n_codebooks,
            max(
                config.encoder_hidden_size,
                config.decoder_hidden_size // 2 ** len(config.downsampling_ratios),
            ),
        )

    def codes(self, samples: Tensor, n_codebooks: int) -> Tensor:
        # as its feature extractor does; without it the last samples have no frame
        n_missing = -len(samples) % self.sizes.hop_samples
        full = torch.nn.functional.pad(samples, (0, n_missing))
        found = self.network.encode(full[None, None], n_quantizers=n_codebooks)
        return _tensor(found.audio_codes[0])

    def samples(self, codes: Tensor) -> Tensor:
        return _tensor(self.network.decode(audio_codes=codes[None]).audio_values[0])


class _EnCodec(CodecModel):
    kind = "Encodec"

    @staticmethod
    def sizes_of(config: Any) -> CodecSizes:
        _check_mono(config)
        if config.normalize or config.chunk_length_s is not None:
            raise UserError(
                "this EnCodec scales or cuts the sound in chunks of its own, which is not"
                " supported; take facebook/encodec_24khz"
            )
        return CodecSizes(
            "encodec",
            config.sampling_rate,
            config.hop_length,
            config.codebook_size,
            1,
            config.num_quantizers,
            config.num_filters,
        )

    def codes(self, samples: Tensor, n_codebooks: int) -> Tensor:
        # It knows bandwidths, each of so many codebooks. The first codebooks are the same in all.
        network = self.network
        count = network.quantizer.get_num_quantizers_for_bandwidth
        bandwidths = network.config.target_bandwidths
        bandwidth = next((b for b in bandwidths if count(b) >= n_codebooks), bandwidths[-1])
        found = network.encode(samples[None, None], bandwidth=bandwidth)
        return _tensor(found.audio_codes[0, 0, :n_codebooks])

    def samples(self, codes: Tensor) -> Tensor:
        return _tensor(self.network.decode(codes[None, None], [None]).audio_values[0, 0])


FAMILIES: dict[str, type[CodecModel]] = {"mimi": _Mimi, "dac": _Dac, "encodec": _EnCodec}


def library() -> Any:
    """The package `transformers`. Raises UserError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise missing_extra("a pretrained codec", "hub") from None
    return transformers


def read_sizes(folder: Path) -> CodecSizes:
    """The sizes of the codec in a folder.

    Raises UserError for a folder without a codec's config.json, and for a variant that is not
    supported.
    """
    config = folder / CONFIG
    changed = config.stat().st_mtime_ns if config.is_file() else 0
    return _sizes(folder.resolve(), folder, changed)


@lru_cache(maxsize=8)
def _sizes(place: Path, folder: Path, changed: int) -> CodecSizes:
    """The sizes, which every prepared signal asks for; place and changed say which file it is."""
    return _settings(folder)[0]


def open_codec(folder: Path) -> tuple[CodecModel, str]:
    """The codec in a folder, and the SHA-256 of its weights.

    Raises UserError as `read_sizes` does, and for weights that are missing, damaged or not all of
    the codec: one without its decoder gives no sound.
    """
    sizes, config = _settings(folder)
    model = FAMILIES[sizes.family]
    files = weight_files(folder)
    memory_budget.check(2 * sum(file.stat().st_size for file in files), folder, "the weights")
    lib = library()
    load = getattr(lib, f"{model.kind}Model").from_pretrained
    with _silent(lib), reading(folder, f"a {model.kind} codec"):
        network, report = load(
            folder,
            config=config,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
        )
    missing = sorted(report["missing_keys"])
    for part in ("encoder", "decoder"):
        has_none = getattr(network, part, None) is None
        if has_none or any(name.startswith(part) for name in missing):
            raise UserError(
                f"{folder}: the weights of this {model.kind} codec have no {part}, or not all of"
                " it; take the whole checkpoint"
            )
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of the weights of this {model.kind} codec are missing,"
            f" such as {missing[0]}; take the whole checkpoint"
        )
    return model(sizes, network.eval().requires_grad_(False)), _digest(network)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights. Raises UserError where there are none."""
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        found = read_json(folder / INDEX)
        with reading(folder / INDEX, "a list of weights"):
            names = [INDEX, *sorted(set(found["weight_map"].values()))]
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder} has no weights {name}; save_pretrained of transformers writes them"
            )
    return [folder / name for name in names]


def memory_bytes(sizes: CodecSizes, n_samples: int) -> int:
    """About how much memory a clip of so many samples takes."""
    return BYTES_PER_CHANNEL * sizes.width * n_samples


def _settings(folder: Path) -> tuple[CodecSizes, Any]:
    """The sizes, and the config of `transformers`."""
    family = codec_family(folder)
    if family is None:
        raise UserError(
            f"{folder} is no codec of speech: its {CONFIG} must name {', '.join(CODECS)} as"
            f" model_type, and {_named(folder)}"
        )
    model = FAMILIES[family]
    lib = library()
    load = getattr(lib, f"{model.kind}Config").from_pretrained
    with _silent(lib), reading(folder / CONFIG, f"the settings of a {model.kind} codec"):
        config = load(folder, local_files_only=True)
        try:
            sizes = model.sizes_of(config)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
    wrong = [name for name, value in vars(sizes).items() if name != "family" and not value >= 1]
    if wrong:
        raise UserError(f"{folder / CONFIG}: {wrong[0]} is {getattr(sizes, wrong[0])}")
    return sizes, config


def _named(folder: Path) -> str:
    """What a folder's config.json has instead."""
    try:
        found = read_json(folder / CONFIG, nan=True)
    except (OSError, UserError):
        return "there is none to read"
    if not isinstance(found, dict):
        return "it is no object"
    return f"it names {shown(found.get('model_type'))}"


def _tensor(found: Any) -> Tensor:
    """What the library gives, which has no types."""
    assert isinstance(found, Tensor)
    return found


def _check_mono(config: Any) -> None:
    if config.audio_channels != 1:
        raise UserError(
            f"this codec is of {config.audio_channels} channels, and speech has one here; take a"
            " codec of one channel"
        )


def _digest(network: torch.nn.Module) -> str:
    """SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(json.dumps([name, list(value.shape)]).encode())
        digest.update(value.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _silent(lib: Any) -> Iterator[None]:
    """Without the bars and tables that the library prints while it loads."""
    log = lib.utils.logging
    level = log.get_verbosity()
    shows = log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shows:
            log.enable_progress_bar()
