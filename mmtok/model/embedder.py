"""How documents become vectors: pooled states of the decoder, and the loss between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mmtok.core.batch import Batch
from mmtok.errors import UserError
from mmtok.nn.contrastive import AttentionPool, ContrastiveLoss


@dataclass(frozen=True)
class EmbeddingConfig:
    """How documents become vectors.

    Attributes:
        size: numbers of a vector.
        n_heads: learned queries of the attention pooling.
        loss: "siglip" judges every pair by itself, "clip" each vector's partner among all others.
        loss_weight: of the contrastive loss, relative to the mean loss of the predicted positions.
        bidirectional: documents that become vectors attend to their future too. All others stay
            causal, so likelihoods do not change.
    """

    size: int = 256
    n_heads: int = 4
    loss: Literal["siglip", "clip"] = "siglip"
    loss_weight: float = 1.0
    bidirectional: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or self.n_heads < 1:
            raise UserError(
                f"model.embedding: size is {self.size} and n_heads {self.n_heads}; both must be at"
                " least 1"
            )
        if self.loss not in ("siglip", "clip"):
            raise UserError(f"model.embedding: loss is {self.loss!r}; it must be siglip or clip")
        if not 0 < self.loss_weight < float("inf"):
            raise UserError(
                f"model.embedding: loss_weight is {self.loss_weight}; it must be above 0, and"
                " finite"
            )


class Embedder(nn.Module):
    """Hidden states of packed rows to a vector for each document, and the loss between them."""

    def __init__(self, config: EmbeddingConfig, width: int):
        super().__init__()
        if width % config.n_heads:
            raise UserError(
                f"model.embedding: n_heads is {config.n_heads}; it must divide the trunk's width,"
                f" {width}"
            )
        self.pool = AttentionPool(width, config.size, config.n_heads)
        self.contrast = ContrastiveLoss(config.loss)

    def vectors(self, states: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The vectors (n, D) of a batch's documents that have a group, and their first places (n,).

        In the order of the rows. states (B, L, M); places in the flattened batch.
        """
        assert batch.group is not None
        flat = states.flatten(0, 1)
        # positions that an encoder has left out have the state 0
        is_read = (batch.group.flatten() >= 0) & flat.any(1)
        places = is_read.nonzero()[:, 0]
        length = batch.ids.shape[1]
        document = places // length * length + batch.document.flatten()[places]
        _, number, counts = document.unique_consecutive(return_inverse=True, return_counts=True)
        first = places[counts.cumsum(0) - counts]
        return self.pool(flat[places], number, len(counts)), first

    def loss(self, states: Tensor, batch: Batch) -> Tensor:
        """The sum of the contrastive loss over the batch's documents that have a group."""
        if batch.group is None or batch.field is None:
            # a batch without them still uses the weights, so that every rank has their gradients
            return sum((p.sum() * 0 for p in self.parameters()), states.new_zeros(()))
        vectors, first = self.vectors(states, batch)
        group = batch.group.flatten()[first]
        field = batch.field.flatten()[first]
        return self.contrast(vectors, group, field).sum()


def n_vectors(batch: Batch) -> int:
    """How many documents of a batch become vectors."""
    if batch.group is None:
        return 0
    return int(((batch.group >= 0) & (batch.position == 0)).sum())
