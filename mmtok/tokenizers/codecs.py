"""Speech as the codes of a pretrained codec: Mimi, DAC or EnCodec, Q residual codebooks a frame.

The first codebook says most, each of the others what those before it leave out. So the codebooks of
a frame depend on each other: a `Chained` head draws them in order, and with the delay pattern
(delay.py) a `Parallel` head loses nothing either.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.files import atomic_write
from mmtok.io.tally import Tally
from mmtok.tokenizers.base import (
    BatchTokenizer,
    TokenizerConfig,
    checked_codes,
    fingerprint,
    load_config,
    write_config,
)
from mmtok.tokenizers.codec_models import (
    CONFIG,
    CodecSizes,
    memory_bytes,
    open_codec,
    read_sizes,
    weight_files,
)
from mmtok.tokenizers.delay import delayed, n_moments, undelayed
from mmtok.tokenizers.mel import checked_samples, sound_error
from mmtok.tokenizers.pretrained import checkpoint_folder

CHECKPOINT = "codec"  # in a tokenizer's folder: a copy of the checkpoint
N_CODEBOOKS = 8
# Longer clips go through the codec in blocks, each with what is around it. Constants, not a share
# of the memory: codes must not depend on the machine.
WHOLE_S = 30.0
BLOCK_S = 20.0
BEFORE_S = 10.0  # what an LSTM and an attention remember of before
AFTER_S = 1.0  # more than convolutions look ahead


@dataclass(frozen=True)
class CodecConfig(TokenizerConfig):
    """A pretrained codec; the rate of samples and of frames is the checkpoint's.

    Attributes:
        path: the checkpoint of a Mimi, a DAC or an EnCodec, as `transformers` saves it: a folder,
            or a name on the Hugging Face hub (kyutai/mimi, descript/dac_16khz,
            facebook/encodec_24khz). A run keeps a copy.
        n_codebooks: how many codebooks are used, from the first. A bandwidth of EnCodec is frames
            per second x n_codebooks x log2(codebook size).
        delay: codebook q of a moment stands q frames later (MusicGen's delay pattern), for heads
            that draw the channels of a frame independently. Cells without sound hold a code of
            their own, the last of each channel; a clip has n_codebooks - 1 frames more.
    """

    modality: ClassVar[str] = "speech"

    path: str
    n_codebooks: int = N_CODEBOOKS
    delay: bool = False

    def __post_init__(self) -> None:
        if self.n_codebooks < 1:
            raise UserError(
                f"CodecConfig: n_codebooks is {self.n_codebooks}; it must be at least 1"
            )
        if self.delay and self.n_codebooks == 1:
            raise UserError("CodecConfig: a delay needs at least 2 codebooks; leave it out")

    @property
    def sizes(self) -> CodecSizes:
        """The checkpoint's sizes; a checkpoint of the hub is fetched.

        Raises UserError for what is no such checkpoint, and where it has fewer codebooks.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            folder = _fetched(self.path)
        sizes = read_sizes(folder)
        if not sizes.least <= self.n_codebooks <= sizes.most:
            raise UserError(
                f"{self.path}: n_codebooks is {self.n_codebooks}; this codec has {sizes.most}, of"
                f" which at least {sizes.least} must be used"
            )
        return sizes

    @property
    def takes(self) -> dict[str, int]:
        """The signals that the codec takes: mono at this rate."""
        return {"rate_hz": self.sizes.rate_hz}

    def signature(self) -> Signature | None:
        """Without the fingerprint, which is of the weights; None for one that is on the hub."""
        if not Path(self.path).is_dir():
            return None
        return self.signature_of(self.sizes)

    def signature_of(self, sizes: CodecSizes, mark: str = "") -> Signature:
        """The signature with a codec of these sizes; mark: the fingerprint."""
        n_codes = sizes.codebook_size + self.delay
        return Signature("speech", (n_codes,) * self.n_codebooks, fingerprint=mark)

    def check(self) -> None:
        """Raise UserError for what is no such checkpoint."""
        weight_files(checkpoint_folder(self.path))
        _ = self.sizes

    def build(self) -> Codec:
        """Open the checkpoint.

        Raises UserError as `open_codec` does, and where it has fewer codebooks.
        """
        return Codec(self, checkpoint_folder(self.path))

    def load(self, folder: Path) -> Codec:
        """Open the tokenizer that was saved in `folder`."""
        return Codec.load(folder)

    def kept_in(self, folder: Path) -> Self:
        """This config with the copy of the checkpoint that a tokenizer's folder holds."""
        copy = Path(folder) / CHECKPOINT
        if not copy.is_dir():
            return self
        return replace(self, path=str(copy))

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Frames and bits per second."""
        sizes = self.sizes
        texts = [
            f"{sizes.rate_hz / sizes.hop_samples:.4g} frames/s",
            f"{self.kbps(sizes) * 1000:.5g} bit/s",
        ]
        if self.delay:
            texts.append(f"delayed by up to {self.n_codebooks - 1} frames")
        return texts

    def kbps(self, sizes: CodecSizes) -> float:
        """Bits of the codes per millisecond, without cells that hold no sound."""
        bits_per_frame = self.n_codebooks * math.log2(sizes.codebook_size)
        return bits_per_frame * sizes.rate_hz / sizes.hop_samples / 1000


@dataclass(frozen=True)
class _Block:
    """Frames [first, last) that go through the codec together, of which `kept` are kept."""

    first: int
    last: int
    kept: slice


class Codec(BatchTokenizer):
    """np.float32 (N,) mono <-> codes (T, Q), T = ceil(N / hop), of a pretrained codec.

    Sound comes back with exactly N samples, as the codec makes them. Clips are encoded one by one,
    so batches equal single calls. Those of more than WHOLE_S go through the codec block by block:
    DAC's codes and sound are those of the whole clip, Mimi's and EnCodec's nearly, as these
    remember more than BEFORE_S. With the delay T has Q - 1 more.
    """

    config_type: ClassVar[type] = CodecConfig

    def __init__(self, config: CodecConfig, folder: Path):
        """folder: of the checkpoint."""
        super().__init__(config)
        self.folder = Path(folder)
        self.sizes = replace(config, path=str(folder)).sizes
        self.codec, digest = open_codec(self.folder)
        about = {"n_codebooks": config.n_codebooks, "delay": config.delay}
        mark = fingerprint("Codec", about, digest.encode())
        self.signature = config.signature_of(self.sizes, mark)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: EnCodec's weights cannot be pickled, so it opens them itself."""
        return type(self), (self.config, self.folder)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Samples (N,) each -> segments of T frames, equal to the single calls.

        Raises UserError, see `checked_samples`.
        """
        clips = [checked_samples(signal) for signal in signals]
        return [self._encode(clip) for clip in clips]

    def _encode(self, clip: Tensor) -> Segment:
        hop = self.sizes.hop_samples
        parts = []
        for block in self._blocks(-(-len(clip) // hop)):
            part = clip[block.first * hop : block.last * hop]
            with torch.inference_mode():
                found = self.codec.codes(part, self.config.n_codebooks)
            parts.append(found[:, block.kept])
        codes = torch.cat(parts, 1).T.numpy().astype(np.int32)
        if self.config.delay:
            codes = delayed(codes, self.sizes.codebook_size)
        info = {"n_samples": len(clip), "rate_hz": self.sizes.rate_hz}
        return Segment("speech", codes=codes, info=info)

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> samples, equal to the single calls.

        As many as info's n_samples, where T frames fit it, else hop_samples per frame. A clip whose
        peak would exceed 1 is scaled down as a whole. With the delay, moments without all their
        codebooks at the end of a segment that was cut are dropped, and a fill code where sound
        should be counts as code 0; both are said.

        Raises UserError for codes that are not of this tokenizer.
        """
        with Tally("clips") as tally:
            codes = [self._codes(segment, f"clip {i}", tally) for i, segment in enumerate(segments)]
        return [
            self._decode(found, segment) for found, segment in zip(codes, segments, strict=True)
        ]

    def _codes(self, segment: Segment, name: str, tally: Tally) -> np.ndarray:
        """The codes (T, Q) of the moments of a segment, without the delay."""
        rate_hz = segment.info.get("rate_hz", self.sizes.rate_hz)
        if rate_hz != self.sizes.rate_hz:
            raise UserError(
                f"speech: the segment is at {rate_hz} Hz, this tokenizer at {self.sizes.rate_hz} Hz"
            )
        frames = checked_codes(segment, self.signature)
        tally.count()
        if not self.config.delay:
            return frames
        fill = self.sizes.codebook_size
        codes = undelayed(frames)
        if (frames[len(codes) :, 0] != fill).any():
            tally.add("cut off: the last moments, without all codebooks, were dropped", name)
        is_fill = codes == fill
        if is_fill.any():
            tally.add("drawn with fill codes where sound should be, taken as code 0", name)
        return np.where(is_fill, 0, codes)

    def _decode(self, codes: np.ndarray, segment: Segment) -> np.ndarray:
        hop = self.sizes.hop_samples
        n_samples = int(segment.info.get("n_samples", 0))
        if -(-n_samples // hop) != len(codes):  # sampled, or truncated
            n_samples = len(codes) * hop
        if not n_samples:
            return np.zeros(0, np.float32)
        rows = torch.from_numpy(np.ascontiguousarray(codes.T, np.int64))
        parts = []
        for block in self._blocks(len(codes)):
            with torch.inference_mode():
                part = self.codec.samples(rows[:, block.first : block.last])
            parts.append(part[block.kept.start * hop : block.kept.stop * hop])
        clip = torch.cat(parts)[:n_samples]
        clip = torch.nn.functional.pad(clip, (0, n_samples - len(clip)))
        sound: np.ndarray = (clip / clip.abs().max().clamp_min(1)).numpy()
        return sound

    def _blocks(self, n_frames: int) -> list[_Block]:
        """The blocks in which a clip of so many frames goes through the codec; one of short ones.

        Raises UserError where one takes more memory than the budget.
        """
        hop = self.sizes.hop_samples
        whole, size, before, after = (
            math.ceil(seconds * self.sizes.rate_hz / hop)
            for seconds in (WHOLE_S, BLOCK_S, BEFORE_S, AFTER_S)
        )
        if n_frames <= whole:
            size = max(1, n_frames)
        blocks = []
        for start in range(0, n_frames, size):
            first = max(0, start - before)
            stop = min(n_frames, start + size)
            last = min(n_frames, stop + after)
            blocks.append(_Block(first, last, slice(start - first, stop - first)))
        longest = hop * max((block.last - block.first for block in blocks), default=0)
        memory_budget.check(memory_bytes(self.sizes, longest), "speech", "the clip in the codec")
        return blocks

    def n_units(self, segment: Segment) -> int:
        """How many frames the codec has for it, without those that the delay adds."""
        if not self.config.delay:
            return len(segment)
        return n_moments(len(segment), self.config.n_codebooks)

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """`sound_error` of the round trip, and kilobits per second; {} of no clips."""
        clips = [checked_samples(signal) for signal in signals]
        if not clips:
            return {}
        segments = self.encode_batch(signals)
        error = sound_error(clips, lambda: self.decode_batch(segments), self.sizes.rate_hz)
        return {**error, "kbps": self.config.kbps(self.sizes)}

    def remarks(self) -> list[str]:
        """Which codec it is."""
        return [
            f"a {self.codec.kind} codec at {self.sizes.rate_hz:,} Hz: the first"
            f" {self.config.n_codebooks} of its {self.sizes.most} codebooks"
        ]

    def save(self, folder: Path) -> None:
        """Write the config, and a copy of the checkpoint."""
        copy = Path(folder) / CHECKPOINT
        copy.mkdir(parents=True, exist_ok=True)
        for source in (*weight_files(self.folder), self.folder / CONFIG):
            target = copy / source.name
            if target.exists() and target.samefile(source):
                continue
            with atomic_write(target) as temporary:
                shutil.copyfile(source, temporary)
        write_config(Path(folder), "Codec", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `save` wrote.

        Raises UserError when a file is missing or broken.
        """
        config = load_config(folder, "Codec", CodecConfig)
        copy = Path(folder) / CHECKPOINT
        return cls(replace(config, path=str(copy)), copy)


@lru_cache(maxsize=8)
def _fetched(name: str) -> Path:
    """A checkpoint of the hub, which is asked for it once."""
    return checkpoint_folder(name)


def opened_checkpoint(folder: Path) -> Codec:
    """The tokenizer of a codec's own folder: its first codebooks, `N_CODEBOOKS` at most."""
    return CodecConfig(str(folder), min(N_CODEBOOKS, read_sizes(folder).most)).build()
