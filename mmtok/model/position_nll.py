"""-log p of every position, as the decoder gives it, and the training loss that is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mmtok.core.batch import Batch, with_index
from mmtok.core.vocabulary import Vocabulary
from mmtok.nn.uncertainty import balanced, relative


@dataclass(frozen=True, eq=False)
class PositionNLL:
    """-log p per position (B, L), in nats; 0 where nothing is predicted.

    Attributes:
        ids: of the stream's id.
        frames: of the frame's channels or latents. In training it is the head's loss; in scoring
            what the head's `kind` says. Of a head that fills in whole segments, each of the T
            frames has a T-th part.
        contrast: the sum over documents of the contrastive loss, of a decoder with an embedding in
            training.
        log_variances: modality -> log sigma^2 that its loss is weighed by; none where it is not.
        log_norms: modality -> log of its gradient's norm, that its loss is divided by; as above.
    """

    ids: Tensor
    frames: Tensor
    contrast: Tensor | None = None
    log_variances: Mapping[str, Tensor] = field(default_factory=dict)
    log_norms: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """-log p of a position, its id and its frame together: (B, L)."""
        return self.ids + self.frames


def loss_sums(
    nll: PositionNLL, batch: Batch, vocabulary: Vocabulary, weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
    """The training loss's numerator, and per modality (nats, number of frames and end marks).

    The numerator is the sum over modalities of weight * nats / sqrt(C). Divide it by the number of
    predicted positions of the whole global batch. The square root keeps a frame of 80 channels from
    drowning a letter; it applies to the channels, while the frame-or-end decision weighs as any
    other id. With a learned sigma, nats / sqrt(C) of n positions become that over sigma^2, and
    n log sigma^2; with balanced gradients, that over the gradient's norm.
    """
    batch = with_index(batch, vocabulary)
    assert batch.index is not None
    total = nll.ids.new_zeros(())
    parts = {}
    for i, (m, signature) in enumerate(vocabulary.signatures.items()):
        here = batch.predict & (batch.modality == i)
        ids = (nll.ids * here).sum()
        frames = (nll.frames * here).sum()
        n_channels = max(1, len(signature.levels))
        loss = ids + frames / n_channels**0.5
        n = len(batch.index.places[m].predicted)
        if m in nll.log_variances:
            loss = relative(loss, nll.log_variances[m], n)
        if m in nll.log_norms:
            loss = balanced(loss, nll.log_norms[m], n)
        total = total + weights.get(m, 1.0) * loss
        parts[m] = ((ids + frames).detach(), n)
    return total, parts
