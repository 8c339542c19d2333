"""Videos before they are tokenised: which pictures, in the colours and size of the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mmtok.data.image_preparation import ImagePreparation
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.video_files import Video


@dataclass(frozen=True)
class VideoPreparation(ImagePreparation):
    """Which pictures of a video are taken; each is then prepared as a picture.

    Attributes:
        every: take every so manieth picture.
        max_pictures: the most of those; 0: all.
    """

    modality: ClassVar[str] = "video"

    every: int = 1
    max_pictures: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or self.max_pictures < 0:
            raise UserError(
                f"VideoPreparation: every is {self.every} and max_pictures {self.max_pictures};"
                " they must be at least 1, and at least 0"
            )

    def prepare(  # type: ignore[override]  # of videos
        self, video: Video | np.ndarray, name: str, tally: Tally, **takes: Any
    ) -> np.ndarray:
        """A video -> uint8 (F, height, width) or (F, height, width, 3)."""
        pictures: Any = video
        if isinstance(video, Video):
            pictures = video.pictures
            for what in video.done:
                tally.add(what, name)
        chosen = list(pictures)[:: self.every]
        if len(chosen) < len(pictures):
            tally.add(f"thinned to every {self.every}th picture", name)
        if 0 < self.max_pictures < len(chosen):
            chosen = chosen[: self.max_pictures]
            tally.add(f"cut to the first {self.max_pictures} pictures", name)
        of_pictures = Tally("pictures")  # each thing is said once of a video
        ready = [
            super(VideoPreparation, self).prepare(p, name, of_pictures, **takes) for p in chosen
        ]
        for what in of_pictures.counts:
            tally.add(what, name)
        return np.stack(ready)
