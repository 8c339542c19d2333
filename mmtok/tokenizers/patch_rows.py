"""Images of one size as learned codes of patches, a row of patches in each frame.

torch is imported only where a network is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.tokenizers.images import VQPatches, VQPatchesConfig

if TYPE_CHECKING:
    import torch

    from mmtok.nn.autoencoder import PatchAutoencoder


@dataclass(frozen=True)
class PatchRowsConfig(VQPatchesConfig):
    """Images of one size as learned codes of patches; a frame holds those of one row.

    An image takes as many positions of the stream as it has rows of patches, so a decoder sees
    several times as many images in the same time. Within a row, a `Chained` head draws code after
    code. A frame is one vector to the decoder, wherever in its row a stroke lies, so pictures that
    are learned from should be shifted ones too.
    """

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the weights."""
        rows, columns = self.grid
        return Signature("image", self.quantizer.levels * columns, frames=rows)

    def _frame_name(self) -> str:
        return "rows of patches"

    def trained(self, network: PatchAutoencoder) -> PatchRows:
        """The tokenizer of a trained network."""
        return PatchRows(self, network)

    def load(self, folder: Path) -> PatchRows:
        """Open the tokenizer that was saved in `folder`."""
        return PatchRows.load(folder)


class PatchRows(VQPatches):
    """Image <-> codes (T, C), a frame per row of patches, C codes of all of its patches. Lossy."""

    config_type = PatchRowsConfig

    def __init__(self, config: PatchRowsConfig, network: PatchAutoencoder):
        super().__init__(config, network)
        self.signature = replace(config.signature(), fingerprint=self.signature.fingerprint)

    def n_units(self, segment: Segment) -> int:
        """How many codes."""
        return segment.values.size

    def _encode_frames(self, images: torch.Tensor) -> np.ndarray:
        codes = self._run(self._network.codes, images, self._n_pixels)
        found: np.ndarray = codes.flatten(2, 3).numpy()
        return found.astype(np.int32)

    def _on_grid(self, frames: torch.Tensor) -> torch.Tensor:
        columns = self.config.grid[1]
        return frames.long().unflatten(2, (columns, -1))
