"""Masked diffusion as a head: all codes of a segment of fixed length, in any order.

They are drawn given the state at the segment's begin mark, and any subset of them can be filled in
given the rest. The codes are those that the decoder would write one after another without a head.
In blocks (`block`) the codes of one are drawn in any order, given the blocks before it: between
masked diffusion and autoregression, which blocks of one code are.
Source: Sahoo et al. 2024 (arXiv 2406.07524); Ou et al. 2024 (arXiv 2406.03736); Arriola et al. 2025
(block diffusion, arXiv 2503.09573). Letters: N segments, T frames, K codes of the codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mmtok.core.segment import Signature
from mmtok.diffusion.discrete import Masked, block_sizes
from mmtok.diffusion.random import stratified
from mmtok.heads.base import Callback, Head, HeadConfig, Known, as_user_error, with_frames
from mmtok.heads.patchify import grid_of
from mmtok.heads.sampling import Sampling, mix_guidance
from mmtok.nn.code_denoiser import CodeDenoiser
from mmtok.nn.denoisers import DiTConfig, Past, in_chunks


@dataclass(frozen=True)
class MaskedDiffusion(HeadConfig):
    """Settings of a head that unmasks codes in any order.

    Attributes:
        steps: unmasking steps of a block when sampling; codes of one step are sampled
            independently. 0: one at a time, exact.
        draws: masked subsets per segment in a training step.
        bound_draws: masked subsets per segment when scoring, their sizes evenly spread: the more,
            the less the estimate of the bound varies.
        grid: (rows, columns) of the codes; None: a square where possible, else one row.
        block: codes, row by row, that make one block; 0: all. Blocks lie closer to the truth and
            are drawn with the earlier ones' keys and values kept, but codes can only be infilled
            where none is free in an earlier block.
    """

    kind = "bound"
    autoregressive = False
    frames = "single codes of segments of fixed length"

    network: DiTConfig = DiTConfig()
    steps: int = 0
    draws: int = 1
    bound_draws: int = 64
    grid: tuple[int, int] | None = None
    block: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("draws", 1), ("bound_draws", 1), ("block", 0)):
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
        self.block = min(config.block or self.n_frames, self.n_frames)
        self.in_blocks = self.block < self.n_frames
        self.network = CodeDenoiser(
            config.network, n_levels, grid, width, self.block if self.in_blocks else None
        )

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
        sizes = block_sizes(codes.shape[1], self.block, h.device)
        clean = [codes] if self.in_blocks else []
        total = h.new_zeros(len(h), dtype=torch.float32)
        # The draws of one segment are spread over the sizes that a subset can have; so are those of
        # all segments within each part.
        parts = torch.arange(draws, device=h.device)[:, None]
        quantiles = (stratified(len(codes), codes, generator) + parts) / draws
        for u in quantiles:
            # every block has a size of its own among those that the draws share
            turned = (u[:, None] + torch.arange(len(sizes), device=h.device) / len(sizes)) % 1
            n_hidden = 1 + (turned * sizes).long()
            total = total + self.masked.block_bound(
                self._model([h], *clean), codes, n_hidden, self.block, generator
            )
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
        show = with_frames(callback, lambda codes: codes[..., None])
        with as_user_error():
            if self.in_blocks:
                tokens = self._drawn_in_blocks(tokens, hs, sampling, generator, show)
            else:
                model = self._model(hs, guidance=sampling.guidance)
                tokens = self._drawn(model, tokens, sampling, generator, show)
        return tokens[..., None]

    def _drawn(
        self,
        model: Callable[[Tensor], Tensor],
        tokens: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
        show: Callback | None,
    ) -> Tensor:
        """Tokens (N, n) with the masked ones drawn."""
        temperature = sampling.temperature
        steps = sampling.steps or self.config.steps
        if steps:
            return self.masked.sample(model, tokens, steps, generator, temperature, show)
        return self.masked.fill(model, tokens, generator, temperature=temperature, callback=show)

    def _drawn_in_blocks(
        self,
        tokens: Tensor,
        hs: Sequence[Tensor],
        sampling: Sampling,
        generator: torch.Generator,
        show: Callback | None,
    ) -> Tensor:
        """Tokens (N, T) with the masked ones drawn, block after block."""
        self._check_order(tokens == self.masked.n_levels)
        tokens = tokens.clone()
        pasts = [self.network.begin(h) for h in hs]
        n_shown = 0
        for first in range(0, self.n_frames, self.block):
            span = slice(first, first + self.block)
            model = partial(self._block_logits, hs, pasts, sampling.guidance, first)
            masked = tokens[:, span] == self.masked.n_levels
            if bool(masked.any()):
                watched = show and partial(_show_block, show, tokens, span, n_shown)
                tokens[:, span] = self._drawn(model, tokens[:, span], sampling, generator, watched)
                n_shown += self._block_steps(sampling, int(masked.sum(1).max()))
            if span.stop < self.n_frames:
                model(tokens[:, span], keep=True)
        return tokens

    def _block_logits(
        self,
        hs: Sequence[Tensor],
        pasts: Sequence[list[Past]],
        guidance: float,
        first: int,
        codes: Tensor,
        keep: bool = False,
    ) -> Tensor:
        """Logits (N, n, K) of a block's codes (N, n), under guidance mixed; `keep`: final ones."""
        logits = [
            self.network.next_block(codes, h, first, past, keep)
            for h, past in zip(hs, pasts, strict=True)
        ]
        return mix_guidance(logits, guidance)

    def _check_order(self, free: Tensor) -> None:
        """Raise ValueError where a code is known behind a free one of an earlier block."""
        number = torch.arange(self.n_frames, device=free.device) // self.block
        begun = torch.where(free, number, self.n_frames).amin(1, keepdim=True)
        if bool((~free & (number > begun)).any()):
            raise ValueError(
                f"{self.signature.modality} is drawn in blocks of {self.block} codes, each given"
                " those before it, so no block can be kept behind one that is drawn: infill from"
                " some place to the end, or train with block 0"
            )

    def _masked_tokens(self, n: int, device: torch.device, known: Known | None) -> Tensor:
        """(N, T): codes, masked where they are to be drawn."""
        if known is None:
            return torch.full(
                (n, self.n_frames), self.masked.n_levels, dtype=torch.long, device=device
            )
        return self.masked.hide(known.values[..., 0], known.free)

    def n_steps(self, sampling: Sampling, n_missing: int) -> int:
        """One per missing code where these are drawn one at a time."""
        full, rest = divmod(n_missing, self.block)
        steps = full * self._block_steps(sampling, self.block)
        if rest:
            steps += self._block_steps(sampling, rest)
        return steps

    def _block_steps(self, sampling: Sampling, n_missing: int) -> int:
        return sampling.steps or self.config.steps or n_missing

    def _model(
        self, hs: Sequence[Tensor], *clean: Tensor, guidance: float = 1.0
    ) -> Callable[[Tensor], Tensor]:
        """Tokens (N, T) -> logits (N, T, K) given h, under guidance mixed.

        clean (N, T): the codes, of a head in blocks.
        """

        def logits(tokens: Tensor) -> Tensor:
            return mix_guidance([in_chunks(self.network, tokens, h, *clean) for h in hs], guidance)

        return logits


def _show_block(
    show: Callback, tokens: Tensor, span: slice, n_shown: int, step: int, codes: Tensor
) -> None:
    """Show tokens (N, T) with a block's codes as they are at a step of it."""
    drawn = tokens.clone()
    drawn[:, span] = codes
    show(n_shown + step, drawn)
