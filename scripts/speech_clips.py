"""What the benchmark of speech reads and writes: clips of a folder or a tar; a page of sounds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from speech_tokenizers import RATE_HZ

from mmtok.data.speech_preparation import SpeechPreparation
from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.tally import Tally
from mmtok.io.terminal import print_status
from mmtok.io.walk import walk
from mmtok.nn.audio import MelSpec, log_mel
from mmtok.report.html import page, tag
from mmtok.report.speech import SoundClip, sound_figure
from mmtok.sources.media import SOUNDS as SUFFIXES
from mmtok.sources.sound_files import decode_sound, open_sound

TEXTS = (".txt", ".lab")
TARS = (".tar", ".tar.gz", ".tgz")
SHOWN_BYTES = 24_000_000  # of all sounds of a page


@dataclass(frozen=True)
class Clip:
    """A recording: its name, samples (N,) at RATE_HZ, its own rate, and what is said in it."""

    name: str
    samples: np.ndarray
    rate_hz: int
    text: str | None


def find_clips(path: Path, every: int = 1, limit: int = 0) -> list[Clip]:
    """Every n-th clip of a folder or a tar, by name, at most `limit` of them (0: all).

    What cannot be used is counted and said. Raises UserError where nothing is left.
    """
    if every < 1 or limit < 0:
        raise UserError(f"--every {every} --limit {limit}: at least 1 and 0")
    readers = _in_folder(path) if path.is_dir() else _in_tar(path)
    chosen = list(readers)[::every][: limit or None]
    clips = []
    refused = []
    with Tally("clips") as tally:
        for name, read, text in chosen:
            tally.count()
            try:
                sound = read()
                samples = SpeechPreparation().prepare(sound, name, tally, RATE_HZ)
            except UserError as error:
                refused.append(f"{name}: {error}")
                continue
            clips.append(Clip(name, samples, sound.rate_hz, text))
    if refused:
        print_status(f"left out {len(refused)} clips that cannot be read (first {refused[0]})")
    if not clips:
        raise UserError(f"{path}: no clip to measure; it needs sound files ({' '.join(SUFFIXES)})")
    return clips


def _in_folder(path: Path) -> Iterator[tuple]:
    """(name, how to read it, its text) of each sound file below a folder."""
    for name in walk(path, SUFFIXES).names:
        file = path / name
        texts = [file.with_suffix(suffix) for suffix in TEXTS]
        text = next((t.read_text().strip() for t in texts if t.is_file()), None)
        yield name, lambda file=file: open_sound(file), text


def _in_tar(path: Path) -> Iterator[tuple]:
    """The same of a tar, packed or not, whose members are read at once."""
    if not path.is_file() or not path.name.lower().endswith(TARS):
        raise UserError(f"{path}: no folder, and no tar ({', '.join(TARS)})")
    contents = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith((*SUFFIXES, *TEXTS)):
                    contents[member.name] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a tar ({error})") from None
    for name in sorted(contents):
        if not name.lower().endswith(TEXTS):
            stem = PurePosixPath(name)
            texts = [contents.get(str(stem.with_suffix(suffix))) for suffix in TEXTS]
            text = next((t.decode().strip() for t in texts if t is not None), None)
            data = contents[name]
            yield name, lambda data=data, name=name: decode_sound(io.BytesIO(data), name), text


def clip_page(path: Path, clips: list[Clip], sounds: Mapping[str, list[np.ndarray]]) -> None:
    """Write a self-contained page: recordings and their round trips, with spectrograms.

    Args:
        path: Of the page.
        clips: The recordings.
        sounds: Way -> its sound (N_i,) of every clip.

    As many of the shortest clips as SHOWN_BYTES hold.
    """
    spec = MelSpec()
    n_bytes = 0
    blocks = []
    for i in sorted(range(len(clips)), key=lambda i: len(clips[i].samples)):
        n_bytes += 2 * len(clips[i].samples) * (1 + len(sounds))
        if n_bytes > SHOWN_BYTES and blocks:
            break
        named = {"recording": clips[i].samples} | {way: some[i] for way, some in sounds.items()}
        shown = [
            SoundClip(way, x, log_mel([torch.from_numpy(x)], spec)[0].numpy())
            for way, x in named.items()
        ]
        loudest = max(float(clip.log_mel.max()) for clip in shown)
        longest = len(clips[i].samples)
        figures = [sound_figure(clip, spec, longest, loudest) for clip in shown]
        title = f"{clips[i].name}: {clips[i].text}" if clips[i].text else clips[i].name
        block = tag("div", tag("h3", title), tag("div", *figures, cls="sounds"), cls="prompt full")
        blocks.append(block)
    heading = f"{len(blocks)} of {len(clips)} clips, beside the recordings"
    remark = "Mel spectrograms of one clip share their colours, 80 dB from black to the loudest."
    body = [tag("h1", heading), tag("p", remark), tag("div", *blocks, cls="prompts")]
    write_text(path, page("Round trips of speech", body))
