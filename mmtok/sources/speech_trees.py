"""Layouts of speech corpora that are trees of folders: LibriSpeech, LibriTTS, VCTK, Kaldi."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.table_rows import text_lines
from mmtok.io.tables import decoded
from mmtok.io.tally import Tally
from mmtok.io.walk import walk
from mmtok.sources.clips import Clip
from mmtok.sources.layouts import is_part
from mmtok.sources.media import SOUNDS
from mmtok.sources.sound_names import SoundFiles, missing
from mmtok.sources.speech_columns import ReadSettings, seconds
from mmtok.sources.speech_tables import folder_below
from mmtok.sources.transcripts import caption_of

NO_TEXT = "left out: they have no transcript"
NO_SOUND = "left out: no sound file has that name"
LIBRITTS = {"original": ".original.txt", "normalized": ".normalized.txt"}
MICROPHONE = re.compile(r"(.+)_(mic\d)")
MICS = ("mic1", "mic2", "both")
N_ABOVE = 4  # folders above a Kaldi one where paths of wav.scp may begin


def librispeech_clips(folder: Path, settings: ReadSettings, tally: Tally) -> Iterator[Clip]:
    """LibriSpeech: SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, a line each: NAME TRANSCRIPT."""
    found = walk(folder, SOUNDS, (".trans.txt",))
    texts: dict[str, str] = {}
    for path in found.companions:
        for _, name, text in keyed_lines(path, once=True):
            texts[str(path.parent / name)] = text
    n_texts = len(texts)
    for sound in found.files:
        tally.count()
        said = texts.pop(os.path.splitext(sound)[0], None)
        if said is None:
            tally.add(NO_TEXT, sound)
            continue
        speaker = sound.stem.split("-")[0]
        yield _clip(sound, said, speaker, _split(folder, sound))
    _count_unused(texts, n_texts)


def libritts_clips(folder: Path, settings: ReadSettings, tally: Tally) -> Iterator[Clip]:
    """LibriTTS: NAME.normalized.txt and NAME.original.txt beside NAME.wav."""
    suffix = LIBRITTS[settings.transcript]
    found = walk(folder, SOUNDS, (suffix,))
    if not found.companion_names:
        for transcript, other in LIBRITTS.items():
            if walk(folder, (other,)).names:
                raise UserError(
                    f"{folder}: has no {suffix}, but {other} beside its sounds; take --transcript"
                    f" {transcript}"
                )
    texts = {str(path)[: -len(suffix)]: path for path in found.companions}
    n_texts = len(texts)
    for sound in found.files:
        tally.count()
        text = texts.pop(os.path.splitext(sound)[0], None)
        if text is None:
            tally.add(f"left out: no {suffix} is beside them", sound)
            continue
        speaker = sound.stem.split("_")[0]
        yield _read(sound, text, speaker, _split(folder, sound))
    _count_unused(list(texts.values()), n_texts)


def vctk_clips(folder: Path, settings: ReadSettings, tally: Tally) -> Iterator[Clip]:
    """VCTK: txt/SPEAKER/NAME.txt, and NAME.wav or NAME_mic1.flac in wav48*/SPEAKER."""
    trees = vctk_trees(folder)
    if not trees or not (folder / "txt").is_dir():
        raise UserError(f"{folder}: has no folders txt and wav48, as VCTK has")
    if len(trees) > 1:
        raise UserError(
            f"{folder}: holds {listed(trees)}, recordings of the same texts; keep one of them"
        )
    texts = {
        os.path.splitext(path.relative_to(folder / "txt"))[0]: path
        for path in walk(folder / "txt", (".txt",)).files
    }
    used = set()
    for sound in walk(folder / trees[0], SOUNDS).files:
        tally.count()
        name = sound.stem
        with_mic = MICROPHONE.fullmatch(name)
        if with_mic is not None:
            name = with_mic[1]
            if settings.mic not in ("both", with_mic[2]):
                tally.add(f"left out: not of {settings.mic} (--mic {' or '.join(MICS)})", sound)
                continue
        key = f"{sound.parent.name}/{name}"
        text = texts.get(key)
        if text is None:
            tally.add(NO_TEXT, sound)
            continue
        used.add(key)
        group = str(sound.parent / name)
        yield _read(sound, text, sound.parent.name, "")._replace(group=group)
    _count_unused([texts[key] for key in sorted(texts.keys() - used)], len(texts))


def _count_unused(texts: Collection[object], n_texts: int) -> None:
    """Count the transcripts, of so many, that no sound is there for."""
    with Tally("transcripts") as tally:
        tally.count(n_texts)
        for text in texts:
            tally.add(NO_SOUND, text)


def vctk_trees(folder: Path) -> list[str]:
    """The folders of VCTK's recordings."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [name for name in names if name.startswith("wav48") and (folder / name).is_dir()]


def _read(sound: Path, text: Path, speaker: str, split: str) -> Clip:
    """A clip whose transcript is a file."""
    try:
        return _clip(sound, decoded(text), speaker, split)
    except UserError as error:
        return Clip(str(sound), "", speaker, split, fault=str(error))


def _clip(sound: Path, text: str, speaker: str, split: str) -> Clip:
    caption = caption_of(text)
    fault = ""
    if not caption:
        fault = f"{sound}: its transcript is empty; write it, or remove the file"
    return Clip(str(sound), caption, speaker, split, fault=fault)


def _split(folder: Path, sound: Path) -> str:
    """The folders above SPEAKER/CHAPTER, such as train-clean-100."""
    return folder_below(folder, str(sound), n_inner=2)


def keyed_lines(path: Path, once: bool = False) -> Iterator[tuple[str, str, str]]:
    """(where, key, rest) of each line that is not empty.

    Raises UserError for a key that comes a second time, where it may come but `once`.
    """
    seen: set[str] = set()
    for number, line in text_lines(path, "\n"):
        parts = line.strip().split(None, 1)
        if not parts:
            continue
        where = f"{path}: line {number}"
        if once:
            if parts[0] in seen:
                raise UserError(f"{where}: names {parts[0]} a second time; remove one of them")
            seen.add(parts[0])
        yield where, parts[0], next(iter(parts[1:]), "")


# ---- Kaldi


def kaldi_folders(folder: Path) -> list[Path]:
    """The data folders of Kaldi: this one, or those directly below."""
    if (folder / "wav.scp").is_file():
        return [folder]
    with os.scandir(folder) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir())
    return [folder / name for name in below if (folder / name / "wav.scp").is_file()]


def kaldi_clips(folder: Path, settings: ReadSettings, tally: Tally) -> Iterator[Clip]:
    """Kaldi: wav.scp, text, and where they are there utt2spk, segments, utt2dur."""
    folders = kaldi_folders(folder)
    if not folders:
        raise UserError(f"{folder}: holds no wav.scp, and no folder that does")
    names = [name for name in (settings.train, settings.heldout) if name]
    named = [path for path in folders if any(is_part(name, path.name) for name in names)]
    if named and settings.train:
        folders = named
    for data in folders:
        yield from _kaldi_folder(data, tally)


def _kaldi_folder(data: Path, tally: Tally) -> Iterator[Clip]:
    """The utterances of a data folder."""
    if not (data / "text").is_file():
        raise UserError(f"{data}: has a wav.scp and no text; transcripts stand there, a line each")
    texts = {key: text for _, key, text in keyed_lines(data / "text", once=True)}
    speakers = _values(data / "utt2spk")
    n_found = 0
    for key, clip in _kaldi_sounds(data, tally):
        tally.count()
        text = texts.pop(key, None)
        if text is None:
            tally.add(NO_TEXT, f"{key} of {data}")
            continue
        fault = clip.fault
        if not fault:
            n_found += 1
            fault = "" if text.strip() else f"{data / 'text'}: the transcript of {key} is empty"
        yield clip._replace(
            caption=caption_of(text), speaker=speakers.get(key, ""), split=data.name, fault=fault
        )
    tally.count(len(texts))
    for key in texts:
        tally.add("left out: no sound is named for them", f"{key} of {data / 'text'}")
    if not n_found:
        raise UserError(
            f"{data}: no utterance of its text has a sound file that is there; paths of wav.scp are"
            f" looked up from {data} and the folders above"
        )


def _kaldi_sounds(data: Path, tally: Tally) -> Iterator[tuple[str, Clip]]:
    """(utterance, its sound) by wav.scp, or by segments of what stands there.

    Those whose file is not there have that as their fault.
    """
    files = SoundFiles(data, [data, *data.resolve().parents[:N_ABOVE]])
    if not (data / "segments").is_file():
        lengths = _values(data / "utt2dur")
        for where, key, name in keyed_lines(data / "wav.scp", once=True):
            clip = _kaldi_file(files, name, where, tally)
            yield key, clip._replace(length_s=seconds(lengths.get(key), "utt2dur", where))
        return
    recordings = {}
    for where, key, name in keyed_lines(data / "wav.scp", once=True):
        recordings[key] = _kaldi_file(files, name, where, tally)
    for where, key, rest in keyed_lines(data / "segments", once=True):
        parts = rest.split()
        if len(parts) < 3:
            raise UserError(f"{where}: needs UTTERANCE RECORDING START END, has {key} {rest}")
        start = seconds(parts[1], "start", where)
        duration = 0.0
        if parts[2] != "-1":  # to the end of the recording
            duration = seconds(parts[2], "end", where) - start
            if duration <= 0:
                raise UserError(f"{where}: begins at {start:g} s and ends at {parts[2]} s")
        recording = recordings.get(parts[0])
        if recording is None:
            fault = f"{where}: names the recording {parts[0]}, which wav.scp does not have"
            recording = Clip(str(data / parts[0]), "", fault=fault)
        yield key, recording._replace(start_s=start, duration_s=duration, length_s=duration)


def _kaldi_file(files: SoundFiles, name: str, where: str, tally: Tally) -> Clip:
    """The file of a line of wav.scp; its fault says where it is not there.

    Raises UserError for a command and for a place in an archive.
    """
    if name.rstrip().endswith("|"):
        raise UserError(
            f"{where}: is a command ({name[:60]}), and commands are not run; write what it gives to"
            " files (utils/copy_data_dir.sh and wav-copy, or ffmpeg), and name these in wav.scp"
        )
    if re.search(r"\.ark:\d+$", name):
        raise UserError(
            f"{where}: is a place in an archive ({name[:60]}); write the sounds to files, and name"
            " these in wav.scp"
        )
    path = files.file(name, where, tally)
    if path is None:
        return Clip(str(files.folder / name.strip()), "", fault=missing(where, name.strip()))
    return Clip(path, "")


def _values(path: Path) -> dict[str, str]:
    """Key -> the rest of its line; {} where there is no such file."""
    if not path.is_file():
        return {}
    values: dict[str, str] = {}
    shared: dict[str, str] = {}
    for _, key, value in keyed_lines(path, once=True):
        values[key] = shared.setdefault(value.strip(), value.strip())
    return values
