"""Long conditions in few positions: an encoder reads a segment's frames, the trunk its latents.

In the stream a segment keeps all its frames. Before the trunk, the first N of them are replaced by
the N latents of a Perceiver that has read all, and the others are left out. A segment of fewer
frames keeps as many latents as it has frames. Such segments are never predicted, so p stays causal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.core.batch import Batch, Places
from mmtok.nn.perceiver import Perceiver


@dataclass(frozen=True, eq=False)
class Condensed:
    """Rows without the positions that are left out, filled up at their ends to K positions.

    Attributes:
        x: (B, K, M), embedded.
        column: (B, K), where they were in the row.
        document: (B, K), -1 at what fills up.
        position: (B, K), counted anew.
        length: (B,), of each row.
    """

    x: Tensor
    column: Tensor
    document: Tensor
    position: Tensor
    length: Tensor

    def spread(self, states: Tensor, length: int) -> Tensor:
        """States (B, K, M) at their former places of (B, L, M), zeros elsewhere."""
        column = self.column[..., None].expand_as(states)
        return states.new_zeros(len(states), length, states.shape[2]).scatter(1, column, states)


def condense(x: Tensor, batch: Batch, encoders: Mapping[str, Perceiver]) -> Condensed:
    """Embedded rows x (B, L, M) of a batch with its index, condensed by modality."""
    assert batch.index is not None
    flat = x.flatten(0, 1)
    is_kept = torch.ones(len(flat), dtype=torch.bool, device=x.device)
    for m, encoder in encoders.items():
        places = batch.index.places[m]
        latents = _latents(flat, places, encoder)
        has_latent = places.runs.place < encoder.config.n_latents
        number = places.runs.number[has_latent]
        place = places.runs.place[has_latent]
        flat = flat.index_copy(0, places.frames[has_latent], latents[number, place].to(flat.dtype))
        is_kept[places.frames[~has_latent]] = False
    kept = is_kept.view(batch.ids.shape)
    length = kept.sum(1)
    n = int(length.max())
    column = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :n]
    is_row = torch.arange(n, device=x.device) < length[:, None]
    left_out = (~kept).long().cumsum(1)  # before a position, in its row
    start = torch.arange(kept.shape[1], device=x.device) - batch.position  # of its document
    left_out = left_out - left_out.gather(1, start.clamp(min=0))
    position = (batch.position - left_out).gather(1, column)
    return Condensed(
        x=flat.view(x.shape).gather(1, column[..., None].expand(-1, -1, x.shape[2])),
        column=column,
        document=batch.document.gather(1, column).masked_fill(~is_row, -1),
        position=position.masked_fill(~is_row, 0),
        length=length,
    )


def _latents(flat: Tensor, places: Places, encoder: Perceiver) -> Tensor:
    """(n, N, M): the latents of each of the n segments of a modality."""
    runs = places.runs
    # without a segment the encoder still reads one frame, so that every rank has its gradients
    inputs = flat.new_zeros(max(1, runs.n), max(1, runs.longest), flat.shape[1])
    inputs = inputs.index_put((runs.number, runs.place), flat[places.frames])
    mask = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=flat.device)
    mask[runs.number, runs.place] = True
    if not runs.n:
        mask[:] = True
    return encoder(inputs, mask)
