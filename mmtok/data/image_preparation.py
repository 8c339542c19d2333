"""Pictures before they are tokenised: an opaque ground, the tokenizer's colours, its size.

A raw picture is uint8: (Y, X) grey, (Y, X, 2) grey with opacity, (Y, X, 3) RGB, (Y, X, 4) RGB with
opacity.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image, ImageColor

from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.base import Picture
from mmtok.sources.images import open_image

SAME_ASPECT = 0.01  # sides whose ratios differ by less look alike
SMOOTH = Image.Resampling.BICUBIC  # with smoothing where a picture shrinks


@dataclass(frozen=True)
class ImagePreparation:
    """How a picture gets the size and the colours that the tokenizer takes; one that takes any is
    given it as it is.

    fit         stretch: both sides are scaled, each by itself; crop: scaled until it covers the
                size, and cut to its middle; pad: scaled until it fits inside, and set on the
                background
    background  under what is transparent, and around what is padded: a colour by name, or as
                #rrggbb
    """

    modality: ClassVar[str] = "image"

    fit: Literal["stretch", "crop", "pad"] = "stretch"
    background: str = "white"

    def __post_init__(self):
        try:
            opaque = len(ImageColor.getrgb(self.background)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise UserError(
                f"ImagePreparation: background is {self.background!r}; "
                "it must be a colour, such as white or #808080"
            )

    def prepare(
        self,
        picture: Picture | np.ndarray,
        name: str,
        tally: Tally,
        height: int | None = None,
        width: int | None = None,
        channels: int | None = None,
    ) -> np.ndarray:
        """A picture -> uint8 (height, width) or (height, width, 3); None: as it is.

        What is no picture the tokenizer refuses.
        """
        done = picture.done if isinstance(picture, Picture) else ()
        pixels = picture.pixels if isinstance(picture, Picture) else np.asarray(picture)
        for what in done:
            tally.add(what, name)
        if (
            pixels.dtype != np.uint8
            or 0 in pixels.shape
            or not (pixels.ndim == 2 or pixels.ndim == 3 and 1 <= pixels.shape[2] <= 4)
        ):
            return pixels
        image = Image.fromarray(
            pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        )
        image = self._opaque(image, name, tally)
        if channels == 1 and image.mode == "RGB":
            tally.add("turned grey", name)
        if channels is not None:
            image = image.convert("L" if channels == 1 else "RGB")
        if height is not None and width is not None and image.size != (width, height):
            image = self._sized(image, (width, height), name, tally)
        return np.array(image)

    def _opaque(self, image: Image.Image, name: str, tally: Tally) -> Image.Image:
        """Grey or RGB: what is transparent shows the background."""
        if image.mode not in ("LA", "RGBA"):
            return image
        layer = image.convert("RGBA")
        if layer.getextrema()[3][0] < 255:
            tally.add(f"laid over {self.background} where there is transparency", name)
        ground = Image.new("RGBA", layer.size, self.background)
        over = Image.alpha_composite(ground, layer)
        return over.convert("L" if image.mode == "LA" else "RGB")

    def _sized(
        self, image: Image.Image, size: tuple[int, int], name: str, tally: Tally
    ) -> Image.Image:
        """The picture with (width, height) = size."""
        x_scale, y_scale = size[0] / image.size[0], size[1] / image.size[1]
        stretched = abs(x_scale / y_scale - 1) > SAME_ASPECT
        way = {
            "stretch": ", its proportions changed",
            "crop": ", its edges cut off",
            "pad": ", padded",
        }[self.fit]
        tally.add(f"resized to {size[1]} x {size[0]} (height x width){way * stretched}", name)
        if self.fit == "stretch":
            return image.resize(size, SMOOTH)
        if self.fit == "crop":
            scale = max(x_scale, y_scale)
            spare = [max(0.0, (have - want / scale) / 2) for have, want in zip(image.size, size)]
            box = (spare[0], spare[1], image.size[0] - spare[0], image.size[1] - spare[1])
            return image.resize(size, SMOOTH, box=box)
        scale = min(x_scale, y_scale)
        inside = [min(want, max(1, round(have * scale))) for have, want in zip(image.size, size)]
        padded = Image.new(image.mode, size, ImageColor.getcolor(self.background, image.mode))
        padded.paste(
            image.resize(inside, SMOOTH),
            tuple((want - new) // 2 for want, new in zip(size, inside)),
        )
        return padded


def read_image(path: Path) -> np.ndarray:
    """A picture as uint8 (Y, X) or (Y, X, 3); what is transparent is laid over white.

    Whatever was done to it is said in one warning.

    Raises UserError as `open_image` does.
    """
    with Tally("images") as tally:
        tally.count()
        return ImagePreparation().prepare(open_image(path), str(path), tally)
