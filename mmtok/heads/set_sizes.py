"""How many frames a set has: an exact distribution over counts, given the decoder's hidden state.

The counts are 0 to `most`, and "more", which is what a set that was cut off has. Letters: N sets, K
= most + 2 classes, M model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.errors import UserError
from mmtok.heads.base import Sizes
from mmtok.heads.sampling import Sampling, mix_guidance, pick
from mmtok.nn.conditioning import zero_module

HIDDEN = 128


class SetSizes(nn.Module):
    """p(number of frames | h): a softmax over all counts, uniform before training."""

    def __init__(self, width: int, most: int, modality: str):
        super().__init__()
        self.most = most
        self.modality = modality
        self.enter = nn.Linear(width, HIDDEN)
        self.out = nn.Linear(HIDDEN, most + 2)
        zero_module(self.out)

    def logits(self, h: Tensor) -> Tensor:
        """States (N, M) -> (N, K), in the weights' type, under autocast too."""
        with torch.autocast(h.device.type, enabled=False):
            return self.out(F.silu(self.enter(h.to(self.enter.weight.dtype))))

    def log_prob(self, h: Tensor, sizes: Sizes) -> Tensor:
        """Log p of the sizes, in nats (N,). Of a set that was cut off: that it has more frames."""
        log_p = self.logits(h).float().log_softmax(1)
        # from the back: log of the probability of so many or more
        or_more = log_p.flip(1).logcumsumexp(1).flip(1)
        n = sizes.n_frames[:, None]
        exact = log_p.gather(1, n)[:, 0]
        more = or_more.gather(1, n + 1)[:, 0]
        return torch.where(sizes.truncated, more, exact)

    def check(self, longest: int) -> None:
        """Raise UserError for a set of more frames than there are counts."""
        if longest > self.most:
            raise UserError(
                f"{self.modality} has a set of {longest} frames, but its head counts to"
                f" {self.most}: set model.heads.{self.modality}.max_frames to {longest} or more,"
                " or cut the sets in their tokenizer"
            )

    def check_training(self, sizes: Sizes) -> None:
        """Raise UserError for sets that training cannot count.

        Of a set that was cut off below `most`, all larger numbers would be as likely, those too
        that no set ever has.
        """
        if not len(sizes.n_frames):
            return
        longest = int(sizes.n_frames.max())
        self.check(longest)
        cut = sizes.n_frames[sizes.truncated]
        if len(cut) and int(cut.min()) < self.most:
            raise UserError(
                f"{self.modality} has sets that were cut at {int(cut.min())} frames, but its head"
                f" counts to {self.most}: set model.heads.{self.modality}.max_frames to {longest},"
                " the number at which their tokenizer cuts"
            )

    def sample(self, hs: Sequence[Tensor], sampling: Sampling, generator: torch.Generator) -> Sizes:
        """Draw sizes; under guidance hs has the states with the condition and without it.

        "More" is drawn as `most` frames of a set that goes on.
        """
        logits = mix_guidance([self.logits(h).float() for h in hs], sampling.guidance)
        n = pick(logits, sampling, generator)
        if bool((n > self.most + 1).any()):
            raise UserError(
                f"the model's counts of {self.modality} are not numbers: its weights have"
                " overflowed; train with a lower learning rate"
            )
        return Sizes(n.clamp(max=self.most), n > self.most)
