"""Masked diffusion as a head: all codes of a segment of fixed length, in any order.

They are drawn given the state at the segment's begin mark, and any subset of them can be filled in
given the rest. The codes are those that the decoder would write one after another without a head.
Source: Sahoo et al. 2024 (arXiv 2406.07524); Ou et al. 2024 (arXiv 2406.03736). Letters: N
segments, T frames, K codes of the codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.core.segment import Signature
from mmtok.diffusion.discrete import Masked
from mmtok.diffusion.random import stratified
from mmtok.heads.base import Callback, Head, HeadConfig, Known, as_user_error, with_frames
from mmtok.heads.patchify import grid_of
from mmtok.heads.sampling import Sampling, mix_guidance
from mmtok.nn.denoisers import CodeDenoiser, DiTConfig, in_chunks


@dataclass(frozen=True)
class MaskedDiffusion(HeadConfig):
    """Settings of a head that unmasks codes in any order.

    Attributes:
        steps: unmasking steps when sampling; codes of one step are sampled independently. 0: one at
            a time, exact.
        draws: masked subsets per segment in a training step.
        bound_draws: masked subsets per segment when scoring, their sizes evenly spread: the more,
            the less the estimate of the bound varies.
        grid: (rows, columns) of the codes; None: a square where possible, else one row.
    """

    kind = "bound"
    autoregressive = False
    frames = "single codes of segments of fixed length"

    network: DiTConfig = DiTConfig()
    steps: int = 0
    draws: int = 1
    bound_draws: int = 64
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("draws", 1), ("bound_draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        # rotary positions by row and by column need a pair of numbers for each
        if self.network.width // self.network.n_heads % 4:
            raise ValueError(
                "any-order codes need heads of a multiple of 4 numbers, got width"
                f" {self.network.width} for {self.network.n_heads} heads"
            )

    @classmethod
    def fits(cls, signature: Signature) -> bool:
        """Single codes of a fixed count of frames."""
        return signature.one_channel and signature.frames is not None

    def build(self, width: int, signature: Signature) -> MaskedDiffusionHead:
        """The head for hidden states of this width and segments of this signature."""
        return MaskedDiffusionHead(self, width, signature)


class MaskedDiffusionHead(Head):
    """Segments of codes (N, T, 1), one for each hidden state at a begin mark."""

    settings = frozenset({"steps"})

    def __init__(self, config: MaskedDiffusion, width: int, signature: Signature):
        super().__init__(config, signature)
        self.config: MaskedDiffusion = config
        n_levels = signature.levels[0]
        self.masked = Masked(n_levels)
        grid = grid_of(signature, config.grid)
        self.n_frames = grid[0] * grid[1]
        self.network = CodeDenoiser(config.network, n_levels, grid, width)

    def loss(self, h: Tensor, y: Tensor, ceiling: Tensor | None = None) -> Tensor:
        """An unbiased estimate of the bound of -log p(y | h) (N,)."""
        return self._bound(h, y, self.config.draws, None)

    def log_prob(
        self,
        h: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """A lower bound of log p(y | h) (N,), estimated from `bound_draws` subsets."""
        return -self._bound(h, y, self.config.bound_draws, generator)

    def _bound(self, h: Tensor, y: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        codes = y[..., 0]
        n_frames = codes.shape[1]
        total = h.new_zeros(len(h), dtype=torch.float32)
        # The draws of one segment are spread over the sizes that a subset can have; so are those of
        # all segments within each part.
        parts = torch.arange(draws, device=h.device)[:, None]
        quantiles = (stratified(len(codes), codes, generator) + parts) / draws
        for u in quantiles:
            n_hidden = 1 + (u * n_frames).long()
            total = total + self.masked.order_bound(self._model([h]), codes, n_hidden, generator)
        return total / draws

    def sample(
        self,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        known: Known | None = None,
        callback: Callback | None = None,
        ceiling: Tensor | None = None,
    ) -> Tensor:
        """Draw the free codes of segments (N, T, 1), given the others.

        callback: x is segments whose masked codes are K.
        """
        tokens = self._masked_tokens(len(hs[0]), hs[0].device, known)
        model = self._model(hs, sampling.guidance)
        show = with_frames(callback, lambda codes: codes[..., None])
        temperature = sampling.temperature
        steps = sampling.steps or self.config.steps
        with as_user_error():
            if steps:
                tokens = self.masked.sample(model, tokens, steps, generator, temperature, show)
            else:
                tokens = self.masked.fill(
                    model, tokens, generator, temperature=temperature, callback=show
                )
        return tokens[..., None]

    def _masked_tokens(self, n: int, device: torch.device, known: Known | None) -> Tensor:
        """(N, T): codes, masked where they are to be drawn."""
        if known is None:
            return torch.full(
                (n, self.n_frames), self.masked.n_levels, dtype=torch.long, device=device
            )
        return self.masked.hide(known.values[..., 0], known.free)

    def n_steps(self, sampling: Sampling, n_missing: int) -> int:
        """One per missing code where these are drawn one at a time."""
        return sampling.steps or self.config.steps or n_missing

    def _model(self, hs: Sequence[Tensor], guidance: float = 1.0) -> Callable[[Tensor], Tensor]:
        """Tokens (N, T) -> logits (N, T, K) given h, under guidance mixed."""

        def logits(tokens: Tensor) -> Tensor:
            return mix_guidance([in_chunks(self.network, tokens, h) for h in hs], guidance)

        return logits
