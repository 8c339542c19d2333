"""Masked diffusion as a head: all codes of a fixed-length segment, in any order, given the state at
its begin mark.

The same codes that the decoder would write one after another; any subset of them can be filled in
given the rest.
Source: Sahoo et al. 2024 (arXiv 2406.07524); Ou et al. 2024 (arXiv 2406.03736). Letters: N
segments, T frames, K levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmtok.core.segment import Signature
from mmtok.diffusion.masked import Masked
from mmtok.diffusion.random import stratified
from mmtok.errors import UserError
from mmtok.heads.diffusion import as_user_error
from mmtok.heads.patchify import grid_of
from mmtok.nn.denoisers import CodeDenoiser, DiTConfig, in_chunks


@dataclass(frozen=True)
class MaskedDiffusion:
    """steps        in which codes appear when drawn, those of one step apart from each other; 0:
                    one at a time, which makes no error
    draws        subsets hidden per segment in a training step
    bound_draws  subsets per segment when scoring, their sizes evenly spread: the estimate of the
                 bound tightens with them
    grid         (rows, columns) of the codes; None: a square where their count is one, else a row
    """

    network: DiTConfig = DiTConfig()
    steps: int = 0
    draws: int = 1
    bound_draws: int = 64
    grid: tuple[int, int] | None = None

    def __post_init__(self):
        for name, least in (("steps", 0), ("draws", 1), ("bound_draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if (
            self.network.width // self.network.n_heads % 4
        ):  # they are turned by row and column, a pair for each
            raise ValueError(
                "any-order codes need heads of a multiple of 4 numbers, got width"
                f" {self.network.width} for {self.network.n_heads} heads"
            )

    def build(self, width: int, signature: Signature) -> MaskedDiffusionHead:
        """The head on hidden states of this width, for codes of this signature."""
        return MaskedDiffusionHead(self, width, signature)


class MaskedDiffusionHead(nn.Module):
    """Segments of codes (N, T, 1)."""

    whole, kind = True, "bound"

    def __init__(self, config: MaskedDiffusion, width: int, signature: Signature):
        super().__init__()
        if not signature.one_channel:
            raise UserError(
                f"MaskedDiffusion draws single codes, but a frame of {signature.modality} has"
                f" {len(signature.levels) or 'latents, not'} codes"
            )
        self.config, self.masked = config, Masked(signature.levels[0])
        self.network = CodeDenoiser(
            config.network, signature.levels[0], grid_of(signature, config.grid), width
        )

    def loss(self, h: Tensor, values: Tensor) -> Tensor:
        """An unbiased estimate of the bound of -log p(values | h) (N,)."""
        return self._bound(h, values, self.config.draws, None)

    def nats(self, h: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
        """The same, from more subsets."""
        return self._bound(h, values, self.config.bound_draws, generator)

    def _bound(
        self, h: Tensor, values: Tensor, draws: int, generator: torch.Generator | None
    ) -> Tensor:
        codes = values[..., 0]
        total = h.new_zeros(len(h), dtype=torch.float32)
        # of one segment the draws are spread over the sizes that a subset can have, and those of
        # all segments within each share
        share = (
            stratified(len(codes), codes, generator) + torch.arange(draws, device=h.device)[:, None]
        ) / draws
        for u in share:
            total = total + self.masked.order_bound(
                self._model([h]), codes, 1 + (u * codes.shape[1]).long(), generator
            )
        return total / draws

    def sample(
        self,
        hs: list[Tensor],
        values: Tensor,
        free: Tensor,
        sampling,
        generator: torch.Generator,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw segments (N, T, 1): the codes that are free (N, T); the others are kept, and read.

        watch is given segments whose hidden codes are K. Raises UserError for top_k or top_p, which
        this head does not know, and where the network returns NaN, naming the step.
        """
        if sampling.top_k or sampling.top_p < 1:
            raise UserError("codes drawn in any order know no top_k or top_p; use the temperature")
        tokens, model = self.masked.hide(values[..., 0], free), self._model(hs, sampling.guidance)
        seen = None if callback is None else lambda step, codes: callback(step, codes[..., None])
        steps = sampling.steps or self.config.steps
        with as_user_error():
            if steps:
                tokens = self.masked.sample(
                    model, tokens, steps, generator, sampling.temperature, seen
                )
            else:
                tokens = self.masked.fill(
                    model, tokens, generator, temperature=sampling.temperature, callback=seen
                )
        return tokens[..., None]

    def _model(self, hs: list[Tensor], guidance: float = 1.0) -> Callable[[Tensor], Tensor]:
        """Tokens (N, T) -> logits (N, T, K), under guidance joined as Ho and Salimans 2022 join
        scores.
        """
        if len(hs) == 1:
            return lambda tokens: in_chunks(self.network, tokens, hs[0])

        def joined(tokens: Tensor) -> Tensor:
            given, null = (in_chunks(self.network, tokens, h).log_softmax(-1) for h in hs)
            return null + guidance * (given - null)

        return joined
