"""Sound files: their clips and parts of them, their lengths from headers; clips written."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.files import write_bytes
from mmtok.nn.resample import check_rate
from mmtok.sources.base import Sound
from mmtok.sources.media import decode_media, is_media, media_seconds
from mmtok.sources.screen import looks_once

SAMPLE_BYTES = 8  # of memory per sample, while channels are mixed and rates changed
# what soundfile raises on damaged files
UNREADABLE = (RuntimeError, ValueError, TypeError, OverflowError, MemoryError)
ROUNDING_S = 0.05  # by which a part may seem to end after its file
UNKNOWN_LENGTH = 2**62  # libsndfile's number of frames, or more, where the header does not say


def open_sound(path: str | Path, start_s: float = 0.0, duration_s: float = 0.0) -> Sound:
    """The clip in a sound file, or a part of it: float32 (N, channels) at the file's rate.

    A part is read without what comes before. A duration of 0 is all that follows.

    Raises UserError for a file that is missing, empty, not sound, truncated to nothing, or holds
    NaN or infinite samples, and for a part that is not in it.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a sound file")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    if not is_media(path):
        return decode_sound(path, str(path), start_s, duration_s)
    sound = decode_media(path, start_s, duration_s)
    _check_rate(str(path), sound.rate_hz)
    _check_finite(str(path), sound.samples)
    if len(sound.samples) < (duration_s - ROUNDING_S) * sound.rate_hz:
        raise UserError(f"{path}: ends before {start_s + duration_s:g} s")
    return sound


@looks_once
def sound_seconds(path: Path) -> float:
    """The length of a sound file in seconds, from its header.

    Raises UserError as `open_sound` does, but for what only the samples tell.
    """
    if is_media(path):
        return media_seconds(path)
    return seconds_of(path, str(path))


def seconds_of(source: Path | BinaryIO, name: str) -> float:
    """As `sound_seconds`, of a path or an open file, which messages call `name`."""
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:
            n_samples = file.frames
            rate_hz = file.samplerate
            log = file.extra_info
    except UNREADABLE as error:
        raise UserError(
            f"{name}: not a sound file that libsndfile can read ({reason_of(error)})"
        ) from None
    if n_samples < 1:
        raise UserError(f"{name}: the file holds no samples")
    _check_rate(name, rate_hz)
    if _cut_short(log):
        raise UserError(f"{name}: truncated, its header promises more samples than are there")
    return n_samples / rate_hz


def decode_sound(
    source: Path | BinaryIO, name: str, start_s: float = 0.0, duration_s: float = 0.0
) -> Sound:
    """As `open_sound`, of a path or an open file, which messages call `name`."""
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:
            rate_hz = file.samplerate
            log = file.extra_info
            first, n_promised = _part(name, file.frames, rate_hz, start_s, duration_s)
            _check_size(name, n_promised, file.channels)
            if first:
                file.seek(first)
            count = n_promised if duration_s else -1
            samples = file.read(count, dtype="float32", always_2d=True)  # (N, channels)
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{name}: not a sound file that libsndfile can read ({reason_of(error)})"
        ) from None
    if not len(samples):
        raise UserError(f"{name}: the file holds no samples")
    _check_rate(name, rate_hz)
    if len(samples) < n_promised or _cut_short(log):
        raise UserError(
            f"{name}: truncated, its header promises more samples than the {len(samples)} that are"
            " there"
        )
    _check_finite(name, samples)
    return Sound(samples, rate_hz, name)


def _part(
    name: str, n_samples: int, rate_hz: int, start_s: float, duration_s: float
) -> tuple[int, int]:
    """(first sample, how many) of a part of n_samples; a duration of 0 is all that follows."""
    first = round(start_s * rate_hz)
    count = n_samples - first
    if duration_s:
        count = round(duration_s * rate_hz)
    beyond = first + count - n_samples
    if (first or duration_s) and (first >= n_samples or beyond > ROUNDING_S * rate_hz):
        raise UserError(
            f"{name}: has no part from {start_s:g} s to {(first + count) / rate_hz:g} s, as it ends"
            f" at {n_samples / rate_hz:.2f} s"
        )
    return first, count - max(beyond, 0)


def _check_finite(name: str, samples: np.ndarray) -> None:
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: holds NaN or infinite samples")


def _check_size(name: str, n_samples: int, n_channels: int) -> None:
    """Raise UserError for a clip of unknown length, or larger than the memory budget."""
    if n_samples >= UNKNOWN_LENGTH:
        raise UserError(
            f"{name}: its header does not say how long it is; convert it first, e.g. ffmpeg -i IN"
            " OUT.wav"
        )
    memory_budget.check(
        SAMPLE_BYTES * n_samples * (n_channels + 2),
        name,
        f"a sound of {n_samples:,} samples in {n_channels} channels",
    )


def _check_rate(name: str, rate_hz: int) -> None:
    try:
        check_rate(rate_hz)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _cut_short(log: str) -> bool:
    """Whether libsndfile's log of a wav file says that its data chunk is cut short.

    Sizes near 2^31 and 2^32 do not count: programs that write into a pipe cannot know the length.
    """
    found = re.search(r"^data\s*:\s*(\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if found is None:
        return False
    return int(found[2]) < int(found[1]) < 2**31 - 2**16


def write_sound(path: str | Path, samples: np.ndarray, rate_hz: int = 16_000) -> None:
    """Write samples (N,) within [-1, 1] atomically, in the format of the suffix (wav, flac, ...).

    wav, flac and aiff have 16 bits. Samples outside are clipped, with a warning.

    Raises UserError for what cannot be written.
    """
    import soundfile

    path = Path(path)
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
        raise UserError(
            f"{path}: expected finite floating samples of shape (n,), got {samples.dtype}"
            f" {samples.shape}"
        )
    if len(samples) and np.abs(samples).max() > 1:
        warnings.warn(f"{path}: peak {np.abs(samples).max():.2f} clipped to 1", stacklevel=2)
    subtype = "PCM_16" if path.suffix.lower() in (".wav", ".flac", ".aiff") else None
    content = io.BytesIO()
    try:
        soundfile.write(
            content,
            np.clip(samples, -1, 1),
            rate_hz,
            subtype=subtype,
            format=path.suffix[1:].upper(),
        )
        write_bytes(path, content.getvalue())
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})"
        ) from None
