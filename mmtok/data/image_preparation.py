"""Pictures before they are tokenised: opaque, in the colours and the size of the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageColor

from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.base import Altered, Picture
from mmtok.sources.image_files import open_image

SAME_ASPECT = 0.01  # a smaller relative change of the aspect ratio is not visible
SMOOTH = Image.Resampling.BICUBIC  # antialiased where a picture shrinks
# what each fit does to a picture of another aspect ratio, as it is reported
EFFECTS = {
    "stretch": ", its proportions changed",
    "crop": ", its edges cut off",
    "pad": ", padded",
}


@dataclass(frozen=True)
class ImagePreparation:
    """How a picture gets the size and the colours that the tokenizer takes.

    A tokenizer of any size takes pictures as they are, up to `max_pixels`.

    Attributes:
        fit: to a tokenizer of one size. stretch: scale both sides, each by itself; crop: scale
            until it covers the size, and cut out the centre; pad: scale until it fits inside, and
            centre on the background.
        background: shown through transparency and around padded pictures: a colour by name, or
            #rrggbb.
        max_pixels: for a tokenizer of any size: the most that a picture may have, height times
            width; larger ones are scaled down to it. 0: any.
    """

    modality: ClassVar[str] = "image"

    fit: Literal["stretch", "crop", "pad"] = "stretch"
    background: str = "white"
    max_pixels: int = 0

    def __post_init__(self) -> None:
        try:
            opaque = len(ImageColor.getrgb(self.background)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise UserError(
                f"ImagePreparation: background is {self.background!r}; "
                "it must be a colour, such as white or #808080"
            )
        if self.max_pixels < 0:
            raise UserError(
                f"ImagePreparation: max_pixels is {self.max_pixels}; it must be at least 1, or 0"
                " for any"
            )

    def check_takes(self, takes: Mapping[str, Any]) -> None:
        """Raise UserError for a choice that does nothing with a tokenizer that takes these."""
        any_size = takes.get("height") is None
        if self.max_pixels and not any_size:
            raise UserError(
                f"ImagePreparation: max_pixels is {self.max_pixels}, but the tokenizer takes"
                f" {takes['height']} x {takes['width']} pixels; leave it out, or take a tokenizer"
                " of any size (AnySizePatchesConfig)"
            )
        if self.fit != "stretch" and any_size:
            raise UserError(
                f"ImagePreparation: fit is {self.fit!r}, but the tokenizer takes pictures of any"
                " size as they are; leave it out"
            )

    def prepare(
        self,
        picture: Picture | Altered | np.ndarray,
        name: str,
        tally: Tally,
        height: int | None = None,
        width: int | None = None,
        channels: int | None = None,
        least_side: int = 1,
    ) -> np.ndarray:
        """A picture -> uint8 (height, width) or (height, width, 3); None keeps what it has.

        What is no picture is returned as it is: the tokenizer refuses it. An `Altered` one is
        changed last.

        Raises UserError for a picture of which a side is less than `least_side`.
        """
        if isinstance(picture, Altered):
            sizes = (height, width, channels, least_side)
            return picture.change(self.prepare(picture.picture, name, tally, *sizes))
        if isinstance(picture, Picture):
            pixels = picture.pixels
            for what in picture.done:
                tally.add(what, name)
        else:
            pixels = np.asarray(picture)
        has_shape = pixels.ndim == 2 or (pixels.ndim == 3 and 1 <= pixels.shape[-1] <= 4)
        if pixels.dtype != np.uint8 or 0 in pixels.shape or not has_shape:
            return pixels
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[:, :, 0]
        image = self._opaque(Image.fromarray(pixels), name, tally)
        if channels == 1 and image.mode == "RGB":
            tally.add("turned grey", name)
        if channels is not None:
            image = image.convert("L" if channels == 1 else "RGB")
        if height is not None and width is not None and image.size != (width, height):
            image = self._resized(image, (width, height), name, tally)
        if height is None:
            image = self._limited(image, least_side, name, tally)
        return np.array(image)

    def _opaque(self, image: Image.Image, name: str, tally: Tally) -> Image.Image:
        """The picture as grey or RGB, over the background where it is transparent."""
        if image.mode not in ("LA", "RGBA"):
            return image
        layer = image.convert("RGBA")
        if np.asarray(layer.getchannel("A")).min() < 255:
            tally.add(f"laid over {self.background} where there is transparency", name)
        ground = Image.new("RGBA", layer.size, self.background)
        over = Image.alpha_composite(ground, layer)
        return over.convert("L" if image.mode == "LA" else "RGB")

    def _limited(self, image: Image.Image, least_side: int, name: str, tally: Tally) -> Image.Image:
        """The picture with at most `max_pixels`, in its own proportions."""
        width, height = image.size
        if min(image.size) < least_side:
            raise UserError(
                f"a picture of {height} x {width} (height x width) is less than a patch of"
                f" {least_side} x {least_side}; leave it out (min_pixels of a source), or set"
                " patch lower"
            )
        if not self.max_pixels or width * height <= self.max_pixels:
            return image
        scale = (self.max_pixels / (width * height)) ** 0.5
        tally.add(f"scaled down to at most {self.max_pixels:,} pixels", name)
        size = [max(least_side, int(side * scale)) for side in image.size]
        return image.resize((size[0], size[1]), SMOOTH)

    def _resized(
        self, image: Image.Image, size: tuple[int, int], name: str, tally: Tally
    ) -> Image.Image:
        """The picture with (width, height) = size."""
        width, height = size
        x_scale = width / image.width
        y_scale = height / image.height
        what = f"resized to {height} x {width} (height x width)"
        if abs(x_scale / y_scale - 1) > SAME_ASPECT:
            what += EFFECTS[self.fit]
        tally.add(what, name)
        if self.fit == "stretch":
            return image.resize(size, SMOOTH)
        if self.fit == "crop":
            scale = max(x_scale, y_scale)
            left = max(0.0, (image.width - width / scale) / 2)
            top = max(0.0, (image.height - height / scale) / 2)
            box = (left, top, image.width - left, image.height - top)
            return image.resize(size, SMOOTH, box=box)
        scale = min(x_scale, y_scale)
        inner_width = min(width, max(1, round(image.width * scale)))
        inner_height = min(height, max(1, round(image.height * scale)))
        padded = Image.new(image.mode, size, ImageColor.getcolor(self.background, image.mode))
        padded.paste(
            image.resize((inner_width, inner_height), SMOOTH),
            ((width - inner_width) // 2, (height - inner_height) // 2),
        )
        return padded


def read_image(path: Path) -> np.ndarray:
    """A picture as uint8 (Y, X) or (Y, X, 3); what is transparent is laid over white.

    One warning reports what was done to it.

    Raises UserError as `open_image` does.
    """
    with Tally("images") as tally:
        tally.count()
        return ImagePreparation().prepare(open_image(path), str(path), tally)
