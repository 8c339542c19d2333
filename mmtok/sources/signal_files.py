"""The files of the package's own modalities: SIGNAL_FILES, modality -> its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.io.arrays import read_npy
from mmtok.io.files import atomic_write
from mmtok.io.signal_files import SignalFiles
from mmtok.sources import image_files, jet_formats, jets, media, sound_files, text, video_files
from mmtok.sources.base import Picture, Sound
from mmtok.sources.jet_reader import ReadSettings

Takes = Mapping[str, Any]


def _read_text(path: Path, takes: Takes) -> str:
    return text.read_text(path)


def _write_text(path: Path, signal: str, takes: Takes) -> None:
    text.write_text(path, signal)


def _read_sound(path: Path, takes: Takes) -> Sound:
    return sound_files.open_sound(path)


def _write_sound(path: Path, samples: np.ndarray, takes: Takes) -> None:
    sound_files.write_sound(path, samples, takes["rate_hz"])


def _read_picture(path: Path, takes: Takes) -> Picture:
    return image_files.open_image(path)


def _write_picture(path: Path, pixels: np.ndarray, takes: Takes) -> None:
    image_files.write_image(path, pixels)


def _read_video(path: Path, takes: Takes) -> video_files.Video:
    return video_files.read_video(path)


def _write_video(path: Path, video: np.ndarray, takes: Takes) -> None:
    video_files.write_video(path, video)


def _jet_settings(takes: Takes) -> ReadSettings:
    names = [field.name for field in fields(ReadSettings)]
    return ReadSettings(**{name: takes[name] for name in names if name in takes})


def _read_jets(path: Path, takes: Takes) -> Iterator[np.ndarray]:
    layout = takes.get("layout", "")
    return jets.each_jet(path, takes["features"], _jet_settings(takes), layout)


def _jets_of_folder(folder: Path, files: Sequence[Path], takes: Takes) -> list[Path]:
    return list(jets.layouts_of(folder, files, _jet_settings(takes), takes.get("layout", "")))


def _write_jets(path: Path, signals: Sequence[np.ndarray], takes: Takes) -> None:
    jet_formats.write_jets(path, signals, takes["features"])


def _read_array(path: Path, takes: Takes) -> np.ndarray:
    return read_npy(path, "an array")


def _write_array(path: Path, array: np.ndarray, takes: Takes) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


# modality -> its files. A tokenizer's config from outside the package may bring those of its own
# modality: the method `signal_files`.
SIGNAL_FILES: dict[str, SignalFiles] = {
    "text": SignalFiles((".txt",), ".txt", _read_text, _write_text, unit="texts"),
    "speech": SignalFiles(
        media.SOUNDS,
        ".wav",
        _read_sound,
        _write_sound,
        unit="clips",
        check=sound_files.sound_seconds,
    ),
    "image": SignalFiles(
        image_files.PICTURES,
        ".png",
        _read_picture,
        _write_picture,
        unit="images",
        check=image_files.picture_size,
    ),
    "video": SignalFiles(  # after images: of a suffix that both have, a run's own counts
        video_files.SUFFIXES,
        video_files.WRITTEN,
        _read_video,
        _write_video,
        unit="videos",
        check=video_files.check_video,
    ),
    "jets": SignalFiles(
        jet_formats.SUFFIXES,
        ".npz",
        _read_jets,
        _write_jets,
        many=True,
        unit="jets",
        options=("layout", *(field.name for field in fields(ReadSettings))),
        of_folder=_jets_of_folder,
    ),
}
# arrays of a modality from outside the package that brings no files of its own
ARRAYS = SignalFiles((".npy",), ".npy", _read_array, _write_array, unit="arrays")
# likewise of modalities that are only read, and that a prompt names: voice=clip.wav
CONDITION_FILES: dict[str, SignalFiles] = {
    "voice": replace(SIGNAL_FILES["speech"], unit="voices"),
}
