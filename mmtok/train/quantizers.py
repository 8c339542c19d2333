"""Quantisers while they are learned, by vector-quantize-pytorch.

What they learn is copied into a look-up of our own (mmtok.nn.quantize), which is what is kept. All
run in float32, outside of autocast.

Letters: N vectors, D numbers of a vector, C codes of a vector, K codes of a codebook.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.quantize import Codebook, LookUp, ResidualCodebooks, nearest_code
from mmtok.tokenizers.quantizers import FSQ, LFQ, VQ, Quantizer, ResidualVQ

COMMITMENT = 0.25  # weight of |encoder output - its code|^2
DECAY = 0.99  # of the codebook's moving average; the library's own 0.8 follows single batches
# A code is replaced when it is used less than this share of an even use.
DEAD_SHARE = 1 / 8


class Learner(nn.Module):
    """A quantiser that is being learned.

    Attributes:
        n_revived: codes that were replaced since it was last set to 0, as none used them.
    """

    n_revived: int = 0

    @abstractmethod
    def quantized(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (N, D) -> those of their codes, with gradients, and a loss ()."""

    def frozen(self, vectors: Tensor) -> Tensor:
        """Vectors (N, D) -> those of their codes, with gradients; codebooks stay as they are."""
        return self.quantized(vectors)[0]

    def forward(self, vectors: Tensor, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Vectors (..., D) of any float type -> (..., D) float32, and a loss ().

        drawn (n,): indices of the vectors, counted row by row, that the loss is of and that
        codebooks learn from, some more often than others; None: all of them once.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            flat = vectors.float().reshape(-1, vectors.shape[-1])
            if drawn is None:
                found, loss = self.quantized(flat)
            else:
                _, loss = self.quantized(flat[drawn])
                found = self.frozen(flat)
        return found.reshape(vectors.shape), loss

    def write_to(self, look_up: LookUp) -> None:
        """Copy what was learned; nothing where nothing is learned."""


class _Books(Learner):
    """Codebooks as moving averages."""

    network: Any

    def _count_revived(self, books: Iterator[Any]) -> None:
        for book in books:
            book.replace = self._counted(book.replace)

    def _counted(self, replace: Any) -> Any:
        def counted(samples: Tensor, batch_mask: Tensor, **settings: Any) -> None:
            n_dead = int(batch_mask.sum())
            self.n_revived += min(n_dead, samples.shape[-2])
            replace(samples, batch_mask=batch_mask, **settings)

        return counted


class _VQ(_Books):
    def __init__(self, config: VQ, even_use: float):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.network = VectorQuantize(
            config.code_size,
            config.n_codes,
            decay=DECAY,
            kmeans_init=True,
            kmeans_iters=20,
            use_cosine_sim=config.normalised,
            rotation_trick=config.rotation,
            commitment_weight=COMMITMENT,
            threshold_ema_dead_code=DEAD_SHARE * even_use,
        )
        self._count_revived(iter([self.network._codebook]))
        self.config = config

    def frozen(self, vectors: Tensor) -> Tensor:
        """Straight through our look-up, which takes a fifth of the library's time."""
        if self.config.rotation:
            return _library_frozen(self.network, vectors)
        if self.config.normalised:
            vectors = F.normalize(vectors, dim=-1)
        book = self.network.codebook.detach()
        found = book[nearest_code(vectors.detach(), book)]
        return vectors + (found - vectors).detach()

    def quantized(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        found, _, loss = self.network(vectors[None])
        return found[0], loss.sum()

    def write_to(self, look_up: LookUp) -> None:
        assert isinstance(look_up, Codebook)
        look_up.vectors.copy_(self.network.codebook.detach())


class _ResidualVQ(_Books):
    def __init__(self, config: ResidualVQ, even_use: float):
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ as LibraryResidualVQ

        self.network = LibraryResidualVQ(
            dim=config.code_size,
            num_quantizers=config.n_books,
            codebook_size=config.n_codes,
            decay=DECAY,
            kmeans_init=True,
            kmeans_iters=20,
            rotation_trick=config.rotation,
            commitment_weight=COMMITMENT,
            threshold_ema_dead_code=DEAD_SHARE * even_use,
        )
        self._count_revived(layer._codebook for layer in self.network.layers)

    def frozen(self, vectors: Tensor) -> Tensor:
        """By the library."""
        return _library_frozen(self.network, vectors)

    def quantized(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        found, _, losses = self.network(vectors[None])
        return found[0], losses.sum()

    def write_to(self, look_up: LookUp) -> None:
        assert isinstance(look_up, ResidualCodebooks)
        for vectors, layer in zip(look_up.vectors, self.network.layers, strict=True):
            vectors.copy_(layer.codebook.detach())


class _FSQ(Learner):
    def __init__(self, config: FSQ):
        super().__init__()
        from vector_quantize_pytorch import FSQ as LibraryFSQ

        self.network = LibraryFSQ(config.n_levels)

    def quantized(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(vectors[None])[0][0], vectors.new_zeros(())


class _LFQ(Learner):
    def __init__(self, config: LFQ):
        super().__init__()
        from vector_quantize_pytorch import LFQ as LibraryLFQ

        self.network = LibraryLFQ(
            dim=config.n_bits,
            codebook_size=2**config.n_bits,
            spherical=config.spherical,
            entropy_loss_weight=config.entropy_weight,
            commitment_loss_weight=COMMITMENT,
        )

    def quantized(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        found, _, loss = self.network(vectors[None])
        return found[0], loss


def _library_frozen(network: Any, vectors: Tensor) -> Tensor:
    """Vectors (N, D) -> those of their codes; no moving average is updated."""
    found: Tensor = network(vectors[None], freeze_codebook=True)[0][0]
    return found


def learner(config: Quantizer, vectors_per_step: int) -> Learner:
    """The quantiser of these settings, before it has learned anything.

    vectors_per_step: how many it sees a step, which says how often a code is used if all are.
    """
    if isinstance(config, VQ):
        return _VQ(config, vectors_per_step / config.n_codes)
    if isinstance(config, ResidualVQ):
        return _ResidualVQ(config, vectors_per_step / config.n_codes)
    if isinstance(config, FSQ):
        return _FSQ(config)
    return _LFQ(config)
