"""Jets as learned codes, one or several for each constituent: k-means in the place of a grid.

A grid spends codes on cells that no constituent is in; the centres of k-means are where the pt is.
With several codebooks each says what those before it leave out (residual quantisation: Zeghidour et
al. 2021, arXiv 2107.03312, algorithm 1). Constituents are a set, as in the grid: frames fall in
their codes, and centres are numbered by rising pt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError, check_ranges
from mmtok.tokenizers.base import (
    TokenizerConfig,
    checked_codes,
    fingerprint,
    learned,
    load_config,
    with_weights,
    write_learned,
)
from mmtok.tokenizers.jet_clipping import Clipping, ClippingTokenizer
from mmtok.tokenizers.jet_order import ordered
from mmtok.tokenizers.jet_particles import FEATURES, counted, hardest, stretched, unstretched

if TYPE_CHECKING:
    from torch import Tensor

    from mmtok.nn.quantize import ResidualCodebooks

MOST_CODES = 2**16
MOST_BOOKS = 16
PER_CODE = 25  # constituents that k-means takes for each centre, at most
LEAST_PER_CODE = 2
ITERATIONS = 12  # of Lloyd's


@dataclass(frozen=True)
class JetCodesConfig(TokenizerConfig):
    """Codes of constituents by k-means, weighted by pt.

    Attributes:
        n_codes: of each codebook.
        n_books: codebooks, each of what those before it leave out; a frame has a code of each.
        weight: constituents count as pt to this power while centres are found; 0: all alike.
        max_constituents: so many are kept, the hardest; a jet with more becomes a truncated
            segment.
        seed: of the constituents that are taken, and of the centres at first.
    """

    modality: ClassVar[str] = "jets"
    learns: ClassVar[bool] = True
    features: ClassVar[tuple[str, ...]] = FEATURES
    totals: ClassVar[tuple[str, ...]] = ()

    n_codes: int = 8192
    n_books: int = 1
    weight: float = 0.5
    max_constituents: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            n_codes=(2, MOST_CODES),
            n_books=(1, MOST_BOOKS),
            weight=(0, 2),
            max_constituents=(1, 10**6),
            seed=(0, 2**32),
        )

    @property
    def takes(self) -> dict[str, tuple[str, ...]]:
        """The jets that the tokenizer takes: these columns."""
        return {"features": FEATURES}

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the centres."""
        return Signature("jets", (self.n_codes,) * self.n_books, descending=True)

    def books(self) -> ResidualCodebooks:
        """Empty codebooks."""
        from mmtok.nn.quantize import ResidualCodebooks

        return ResidualCodebooks(self.n_books, self.n_codes, len(FEATURES))

    def fit(self, signals: Sequence[np.ndarray]) -> JetCodes:
        """The tokenizer, its centres learned from jets (P, 3).

        Raises UserError where they have too few constituents.
        """
        import torch

        values, _, _ = hardest(signals, self.max_constituents, counted(self.max_constituents))
        least = LEAST_PER_CODE * self.n_codes
        if len(values) < least:
            raise UserError(
                f"JetCodesConfig: {len(values):,} constituents are too few for {self.n_codes:,}"
                f" codes; give at least {least:,}, or fewer codes"
            )
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(values), generator=generator)[: PER_CODE * self.n_codes]
        values = values[chosen.numpy()]
        rest = torch.from_numpy(stretched(values)).float()
        weights = torch.from_numpy(values[:, 0] ** self.weight).float()
        books = self.books()
        for book in books.vectors:
            book.copy_(k_means(rest, weights, self.n_codes, generator))
            rest = rest - book[_nearest(rest, book)]
        return JetCodes(self, books)

    def load(self, folder: Path) -> JetCodes:
        """Open the tokenizer that was saved in `folder`."""
        return JetCodes.load(folder)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Bits of a particle."""
        return [f"{signature.bits_per_frame:.4g} bits a particle"]


def k_means(vectors: Tensor, weights: Tensor, n: int, generator: Any) -> Tensor:
    """The centres (n, D) of vectors (P, D) with weights (P,), by rising first number.

    Lloyd's iterations from centres drawn by weight; those that nothing is near are drawn anew.
    """
    import torch

    centres = vectors[torch.multinomial(weights, n, generator=generator)]
    for _ in range(ITERATIONS):
        code = _nearest(vectors, centres)
        mass = torch.zeros(n).index_add_(0, code, weights)
        sums = torch.zeros_like(centres).index_add_(0, code, weights[:, None] * vectors)
        is_empty = mass == 0
        centres = sums / mass.clamp(min=torch.finfo(mass.dtype).tiny)[:, None]
        n_empty = int(is_empty.sum())
        if n_empty:
            centres[is_empty] = vectors[torch.multinomial(weights, n_empty, generator=generator)]
    return centres[centres[:, 0].argsort(stable=True)]


def _nearest(vectors: Tensor, book: Tensor) -> Tensor:
    from mmtok.nn.quantize import nearest_code

    return nearest_code(vectors, book)


class JetCodes(ClippingTokenizer):
    """Constituents (P, 3) <-> codes (P, n_books); lossy.

    They come back as the centres, pt in GeV. `fidelity` adds the use of the codebooks.
    """

    config: JetCodesConfig
    config_type: ClassVar[type] = JetCodesConfig

    def __init__(self, config: JetCodesConfig, books: ResidualCodebooks):
        super().__init__(config)
        self._books = books.eval()
        mark = fingerprint("JetCodes", asdict(config), *learned(books))
        levels = (config.n_codes,) * config.n_books
        self.signature = Signature("jets", levels, fingerprint=mark, descending=True)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Jets (P, 3) -> segments of codes (P, C) int32, P at most max_constituents.

        Particles of zero pt are padding and left out. Raises UserError for another shape, NaN,
        infinities and negative pt.
        """
        import torch

        with self.count_of_call() as count:
            values, n, is_cut = hardest(signals, self.config.max_constituents, count)
        codes = self._books.codes(torch.from_numpy(stretched(values)).float()).numpy()
        jet = np.repeat(np.arange(len(n)), n)
        _, codes = ordered(values, codes.astype(np.int32), jet, self.signature.levels)
        pieces = np.split(codes, np.cumsum(n)[:-1]) if len(n) else []
        return [
            Segment("jets", codes=piece, truncated=cut)
            for piece, cut in zip(pieces, is_cut.tolist(), strict=True)
        ]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments of codes (P, C) -> constituents (P, 3) float32."""
        import torch

        if not segments:
            return []
        codes = np.concatenate([checked_codes(segment, self.signature) for segment in segments])
        numbers = self._books(torch.from_numpy(codes.astype(np.int64))).numpy()
        n = [len(segment) for segment in segments]
        return np.split(unstretched(numbers), np.cumsum(n)[:-1])

    def new_count(self) -> Clipping:
        """Of jets that are cut."""
        return counted(self.config.max_constituents)

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Use and perplexity of the codebooks; the median of decoded over true summed pt."""
        import torch

        from mmtok.nn.quantize import codebook_figures

        with self.counting(quiet=True):
            segments = self.encode_batch(signals)
        codes = np.concatenate([segment.values for segment in segments])
        if not len(codes):
            raise UserError("fidelity of jets needs at least one constituent")
        use, perplexity = codebook_figures(torch.from_numpy(codes), self.signature.levels)
        cut = [len(segment) for segment in segments]
        true = np.array([np.sum(x, 0)[0] for x, n in zip(signals, cut, strict=True) if n])
        back = np.array([x[:, 0].sum() for x in self.decode_batch(segments) if len(x)])
        return {
            "codebook_use": use,
            "codebook_perplexity": perplexity,
            "pt_ratio_median": float(np.median(back / true)),
            "truncated_share": float(np.mean([segment.truncated for segment in segments])),
        }

    def save(self, folder: Path) -> None:
        """Write the config and the centres."""
        write_learned(Path(folder), "JetCodes", asdict(self.config), self._books)

    @classmethod
    def load(cls, folder: Path) -> JetCodes:
        """Open what `save` wrote.

        Raises UserError when the centres are missing, broken or of other sizes.
        """
        config = load_config(folder, "JetCodes", JetCodesConfig)
        return cls(config, with_weights(folder, config.books))
