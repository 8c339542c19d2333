"""Videos as pictures in time: a grid of codes with one more axis, whose rows are whole pictures.

A picture's codes are those of a tokenizer of pictures, one code a patch or pixel, and each picture
is a row that is closed by a row mark (`Signature.rows`, of known columns): so a video has any
number of pictures, and the first of them are a beginning that sampling continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmtok.core.rows import in_rows, of_rows
from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io.serialize import to_plain
from mmtok.tokenizers.base import (
    BatchTokenizer,
    Tokenizer,
    TokenizerConfig,
    checked_codes,
    fingerprint,
    load_config,
    write_config,
)
from mmtok.tokenizers.images import PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.patches import image_error

PICTURE = "picture"  # the folder of the tokenizer of pictures


@dataclass(frozen=True)
class VideoConfig(TokenizerConfig):
    """Videos whose pictures are all of one size.

    Attributes:
        picture: the tokenizer of a picture; it learns from the pictures of videos, each by itself.
            Of one size, and of one code a patch (VQ, FSQ, LFQ).
    """

    modality: ClassVar[str] = "video"

    picture: VQPatchesConfig | PixelsConfig = VQPatchesConfig()

    def __post_init__(self) -> None:
        # AnySizePatchesConfig derives from VQPatchesConfig, and has no fixed number of codes
        signature = self.picture.signature()
        if signature is None or signature.frames is None or not signature.one_channel:
            raise UserError(
                f"VideoConfig: picture is {type(self.picture).__name__} without a fixed number of"
                " single codes; give it a height and a width, and a quantizer of one code a patch"
            )

    @property
    def learns(self) -> bool:  # type: ignore[override]  # as the tokenizer of pictures does
        """Whether the tokenizer of pictures does."""
        return self.picture.learns

    @property
    def takes(self) -> Mapping[str, Any]:
        """What each picture must be like."""
        return self.picture.takes

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the tokenizer of pictures."""
        of_picture = self.picture.signature()
        assert of_picture is not None and of_picture.frames is not None
        return Signature("video", of_picture.levels, rows=True, columns=of_picture.frames)

    def build(self) -> Videos:
        """The tokenizer, where that of pictures learns nothing."""
        return Videos(self, self.picture.build())

    def load(self, folder: Path) -> Videos:
        """Open the tokenizer that was saved in `folder`."""
        return Videos.load(folder)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Codes and bits of a picture."""
        bits = signature.bits_per_frame * signature.columns
        return [f"{signature.columns} codes and a mark a picture", f"{bits:.4g} bits a picture"]


def as_video(signal: Any) -> np.ndarray:
    """A video as (F, Y, X) or (F, Y, X, 3). Raises UserError for what is none."""
    video = np.asarray(signal)
    if video.ndim not in (3, 4) or not len(video):
        raise UserError(
            "video: expected uint8 values of shape (pictures, height, width) or (pictures, height,"
            f" width, 3), with at least one picture; got {video.dtype} {video.shape}"
        )
    return video


class Videos(BatchTokenizer):
    """Video (F, Y, X) or (F, Y, X, 3) <-> codes (T, 1), T = F x (codes of a picture + 1).

    As lossy as the tokenizer of pictures.
    """

    config_type = VideoConfig
    fewer_frames = (
        "one for each patch of each picture and one for each picture: fewer pictures make fewer"
        " (--prepare max_pictures=N, or preparation.video.every of a recipe)"
    )

    def __init__(self, config: VideoConfig, picture: Tokenizer) -> None:
        super().__init__(config)
        self.picture = picture
        of_picture = picture.signature
        self.signature = Signature(
            "video",
            of_picture.levels,
            fingerprint=fingerprint("Videos", {"picture": of_picture.fingerprint}),
            rows=True,
            columns=of_picture.frames or 0,
        )

    @property
    def _mark(self) -> int:
        return self.signature.levels[0]

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """uint8 videos of the pictures' size -> segments. Raises UserError for others."""
        videos = list(map(as_video, signals))
        pictures = self.picture.encode_batch([picture for video in videos for picture in video])
        codes = np.array([segment.values[:, 0] for segment in pictures], np.int32)
        stops = np.cumsum([len(video) for video in videos])
        parts = np.split(codes, stops[:-1]) if videos else []
        return [Segment("video", codes=in_rows(part, self._mark)[:, None]) for part in parts]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> videos; a picture that was cut off at a cap is left out.

        Raises UserError for codes that are no rows of pictures. A video without a whole picture is
        a black one.
        """
        columns = self.signature.columns
        grids = [
            of_rows(checked_codes(s, self.signature)[:, 0], self._mark, "video", columns)
            for s in segments
        ]
        modality = self.picture.signature.modality
        rows = [Segment(modality, codes=row[:, None]) for grid in grids for row in grid]
        pictures = self.picture.decode_batch(rows)
        found = []
        start = 0
        for grid in grids:
            some = pictures[start : start + len(grid)]
            start += len(grid)
            found.append(np.stack(some) if some else self._black())
        return found

    def _black(self) -> np.ndarray:
        takes = self.config.takes
        colours = (3,) if takes["channels"] == 3 else ()
        return np.zeros((1, takes["height"], takes["width"], *colours), np.uint8)

    def n_units(self, segment: Segment) -> int:
        """Codes of pictures, without the row marks."""
        return int((segment.values != self._mark).sum())

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """`image_error` of the round trip of all pictures; {} of none."""
        if not len(signals):
            return {}
        pictures = [picture for signal in signals for picture in as_video(signal)]
        again = [p for video in self.decode_batch(self.encode_batch(signals)) for p in video]
        return image_error(pictures, again)

    def save(self, folder: Path) -> None:
        """Write the tokenizer of pictures, and the config."""
        self.picture.save(Path(folder) / PICTURE)
        plain = to_plain(self.config)
        del plain["kind"]
        write_config(Path(folder), "Videos", plain)

    @classmethod
    def load(cls, folder: Path) -> Videos:
        """Open what `save` wrote."""
        config = load_config(folder, "Videos", VideoConfig)
        return cls(config, config.picture.load(Path(folder) / PICTURE))
