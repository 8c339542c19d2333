"""The suffixes of sound files, and containers that libsndfile does not read: m4a, mp4, webm, aac.

They are read through PyAV where it is installed, else through the programs ffmpeg and ffprobe.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io import memory_budget
from mmtok.sources.base import Sound

SUFFIXES = (
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au",
    ".snd", ".caf", ".w64", ".rf64", ".sph", ".voc",
)  # fmt: skip
MEDIA = (".m4a", ".m4b", ".mp4", ".mov", ".aac", ".webm", ".mka", ".mkv", ".wma", ".amr")
SOUNDS = (*SUFFIXES, *MEDIA)
SAMPLE_BYTES = 8  # of memory per sample, while frames are joined
PREROLL_S = 0.5  # that is decoded before a part, as codecs overlap their frames
TIMEOUT_S = 600  # of ffmpeg, for one file


def is_media(path: Path) -> bool:
    """Whether a file is read here, by its suffix."""
    return path.suffix.lower() in MEDIA


def media_seconds(path: Path) -> float:
    """The length of a file's sound in seconds, from its header where that says it.

    Raises UserError for a file without sound, one that cannot be read, and where neither PyAV nor
    ffmpeg is there.
    """
    if has_av():
        with _opened(path) as (container, stream):
            if stream.duration:
                return float(stream.duration * stream.time_base)
            if container.duration:
                return container.duration / 1e6
        return _seconds_of(decode_media(path))
    if shutil.which("ffprobe"):
        said = _run(path, "ffprobe", "-show_entries", "format=duration", "-of", "csv=p=0", "-i")
        try:
            return float(said)
        except ValueError:  # N/A: a stream that was never closed
            pass
    return _seconds_of(decode_media(path))


def _seconds_of(sound: Sound) -> float:
    return len(sound.samples) / sound.rate_hz


def decode_media(path: Path, start_s: float = 0.0, duration_s: float = 0.0) -> Sound:
    """The sound of a file, float32 (N, channels), or a part of it; a duration of 0 is the rest.

    Raises UserError as `media_seconds` does, and for a file without samples there.
    """
    if has_av():
        sound = _decode_with_av(path, start_s, duration_s)
    elif shutil.which("ffmpeg"):
        sound = _decode_with_ffmpeg(path, start_s, duration_s)
    else:
        raise UserError(
            f"{path}: reading {path.suffix.lower()} needs the extra: pip install 'mmtok[media]', or"
            " the program ffmpeg on the path"
        )
    if not len(sound.samples):
        raise UserError(f"{path}: the file holds no samples there")
    return sound


def has_av() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


# ---- PyAV


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first stream of sound)."""
    import av

    with reading(path, "sound"), av.open(str(path)) as container:
        if not container.streams.audio:
            raise UserError(f"{path}: the file holds no sound")
        yield container, container.streams.audio[0]


def _decode_with_av(path: Path, start_s: float, duration_s: float) -> Sound:
    import av

    with _opened(path) as (container, stream):
        rate_hz = stream.rate
        resampler = av.AudioResampler(format="fltp")
        first = round(start_s * rate_hz)
        stop = first + round(duration_s * rate_hz) if duration_s else None
        begins_s = float((stream.start_time or 0) * stream.time_base)
        if first:
            before_s = max(start_s - PREROLL_S, 0.0) + begins_s
            container.seek(int(before_s / stream.time_base), stream=stream)
        parts = []
        at = None  # of the next sample, from the beginning of the file
        n_bytes = 0
        for frame in container.decode(stream):
            if at is None:
                at = round((float(frame.time or 0.0) - begins_s) * rate_hz)
            for same in resampler.resample(frame):
                samples = same.to_ndarray().T  # (N, channels)
                kept = samples[max(first - at, 0) : None if stop is None else max(stop - at, 0)]
                at += len(samples)
                n_bytes += SAMPLE_BYTES * kept.size
                memory_budget.check(n_bytes, path, "its sound")
                parts.append(kept)
            if stop is not None and at >= stop:
                break
    if not parts:
        raise UserError(f"{path}: the file holds no samples")
    return Sound(np.concatenate(parts), rate_hz, str(path))


# ---- ffmpeg


def _decode_with_ffmpeg(path: Path, start_s: float, duration_s: float) -> Sound:
    import soundfile

    part = ["-ss", f"{start_s:.6f}"] if start_s else []
    if duration_s:
        part += ["-t", f"{duration_s:.6f}"]
    output = ["-vn", "-c:a", "pcm_f32le", "-f", "wav", "-"]
    content = _run(path, "ffmpeg", "-nostdin", *part, "-i", then=output)
    with reading(path, "sound"):
        samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return Sound(samples, rate_hz, str(path))


def _run(path: Path, program: str, *options: str, then: list[str] | None = None) -> bytes:
    """What ffmpeg or ffprobe writes about a file. Raises UserError where it fails."""
    # without file: a colon in the name would be taken for a protocol
    command = [program, "-v", "error", *options, f"file:{path}", *(then or [])]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{path}: {program} cannot read it ({error})") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise UserError(f"{path}: {program} cannot read it ({lines[-1][:200]})")
    return done.stdout
