"""Sound in m4a, mp4, aac and webm: through PyAV or ffmpeg, whole or in parts, else a line."""

import sys

import numpy as np
import pytest
import soundfile

from mmtok.errors import UserError
from mmtok.sources import media
from mmtok.sources.media import decode_media, media_seconds
from mmtok.sources.sound_files import open_sound
from mmtok.sources.speech import SpeechFolder

RATE_HZ = 16_000
CODECS = {".m4a": "aac", ".mp4": "aac", ".aac": "aac", ".mka": "pcm_s16le", ".webm": "libopus"}


def chirp(rate_hz, seconds=2.0):
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * (200 + 200 * t) * t)).astype(np.float32)


def put_media(path):
    av = pytest.importorskip("av")
    codec = CODECS[path.suffix]
    rate_hz = 48_000 if codec == "libopus" else RATE_HZ
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(chirp(rate_hz)[None], format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(
            format=stream.codec_context.format.name,
            layout="mono",
            rate=rate_hz,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", CODECS)
def test_a_file_and_a_part_of_it(tmp_path, suffix):
    path = put_media(tmp_path / f"a{suffix}")
    sound = open_sound(path)
    wanted = chirp(sound.rate_hz)
    spectrum = np.abs(np.fft.rfft(sound.samples[: len(wanted), 0]))
    assert np.corrcoef(spectrum, np.abs(np.fft.rfft(wanted)))[0, 1] > 0.97
    assert abs(len(sound.samples) / sound.rate_hz - 2) < 0.15  # codecs fill their last frame
    assert abs(media_seconds(path) - 2) < 0.15
    part = open_sound(path, 0.7, 0.5)
    first = round(0.7 * sound.rate_hz)
    assert part.samples.shape == (sound.rate_hz // 2, 1)
    assert np.abs(part.samples - sound.samples[first : first + len(part.samples)]).max() < 1e-5
    if suffix == ".mka":
        assert np.abs(sound.samples[:, 0] - wanted).max() < 1e-4


def test_media_are_clips_like_others(tmp_path):
    put_media(tmp_path / "a.M4A".lower())
    (tmp_path / "a.txt").write_text("one")
    ((caption, n),) = [
        (e["caption"], len(e["speech"].samples))
        for e in SpeechFolder(str(tmp_path)).examples("train")
    ]
    assert caption == "one" and n >= 2 * RATE_HZ


def test_what_is_no_sound_is_refused(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.m4a").write_bytes(b"no sound" * 99)
    for read in (open_sound, media_seconds):
        with pytest.raises(UserError, match="a.m4a: cannot be read as sound") as error:
            read(tmp_path / "a.m4a")
        assert "\n" not in str(error.value)
    path = put_media(tmp_path / "b.m4a")
    for start, duration in ((5.0, 0.0), (1.5, 3.0)):
        with pytest.raises(UserError, match="b.m4a: "):
            open_sound(path, start, duration)


def test_without_either_a_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(b"x")
    monkeypatch.setattr(media, "has_av", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for read in (decode_media, media_seconds):
        with pytest.raises(UserError, match="'mmtok.media.', or the program ffmpeg on the path"):
            read(tmp_path / "a.m4a")


FFMPEG = """#!{python}
import sys, shutil
if "-of" in sys.argv:
    print("0.5")
else:
    assert sys.argv[-6:] == ["-vn", "-c:a", "pcm_f32le", "-f", "wav", "-"], sys.argv
    assert sys.argv[sys.argv.index("-i") + 1] == "file:{folder}/a.m4a"
    name = "part.wav" if "-ss" in sys.argv else "whole.wav"
    shutil.copyfileobj(open("{folder}/" + name, "rb"), sys.stdout.buffer)
"""


def test_ffmpeg_is_asked_where_pyav_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "has_av", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in ("ffmpeg", "ffprobe"):
        path = tmp_path / program
        path.write_text(FFMPEG.format(python=sys.executable, folder=tmp_path))
        path.chmod(0o755)
    samples = chirp(RATE_HZ, 0.5)
    soundfile.write(tmp_path / "whole.wav", samples, RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "part.wav", samples[1600:3200], RATE_HZ, subtype="FLOAT")
    (tmp_path / "a.m4a").write_bytes(b"x")
    assert media_seconds(tmp_path / "a.m4a") == 0.5
    assert np.array_equal(open_sound(tmp_path / "a.m4a").samples[:, 0], samples)
    assert np.array_equal(
        open_sound(tmp_path / "a.m4a", 0.1, 0.1).samples[:, 0], samples[1600:3200]
    )
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho 'a.m4a: Invalid data' >&2; exit 1\n")
    with pytest.raises(UserError, match="ffmpeg cannot read it .a.m4a: Invalid data"):
        open_sound(tmp_path / "a.m4a")
