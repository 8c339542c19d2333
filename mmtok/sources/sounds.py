"""Sound files alone, with or without transcripts: what vocoders are trained on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mmtok.io.messages import counted
from mmtok.io.walk import files_at
from mmtok.sources.base import Example, Listing
from mmtok.sources.clips import Clip, split_clips
from mmtok.sources.media import SOUNDS
from mmtok.sources.screen import Limit, Screen, ScreenedSource
from mmtok.sources.sound_files import open_sound, sound_seconds


@dataclass(frozen=True)
class SoundFolder(ScreenedSource):
    """The sound files in a folder and below, or of a pattern, whatever lies beside them.

    A tenth of the files (at least one of two), chosen by the hash of their names, is held out.

    Attributes:
        path: of the folder, or a pattern.
        min_duration_s: of a clip; shorter ones are left out and counted. 0: any.
        max_duration_s: the most, likewise.
    """

    path: str = ""
    min_duration_s: float = 0.0
    max_duration_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._limits()

    @property
    def fields(self) -> dict[str, str]:
        """A clip."""
        return {"speech": "speech"}

    def listing(self, split: str, cache: Path | None = None) -> Listing:
        """{"speech": Sound} by file name; nothing is cached."""
        self.check_split(split)
        screen = Screen(self._clips(), _look, self, "clips", self._limits(), _path)
        return screen.listing(split_clips(screen.items, "", "")[split], _read, _path, _path)

    def check(self) -> None:
        """Raise UserError where there are no files, or too many are unusable."""
        Screen(self._clips(), _look, self, "clips", self._limits(), _path)

    def found(self) -> str:
        """How many files of each split there are."""
        parts = split_clips(self._clips(), "", "")
        return ", ".join(
            f"{counted(len(clips), 'clip')} in {name}" for name, clips in parts.items()
        )

    def _limits(self) -> tuple[Limit, ...]:
        return (Limit("duration_s", self.min_duration_s, self.max_duration_s),)

    def _clips(self) -> list[Clip]:
        paths = files_at(self.path, SOUNDS, "SoundFolder", "sound files")
        return [Clip(os.fspath(path), "") for path in paths]


def _look(clip: Clip) -> dict[str, float]:
    return {"duration_s": sound_seconds(Path(clip.path))}


def _read(clip: Clip) -> Example:
    return Example({"speech": open_sound(clip.path)}, clip.path)


def _path(clip: Clip) -> str:
    return clip.path
