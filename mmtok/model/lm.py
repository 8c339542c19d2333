"""The shared decoder: embed a batch, run the trunk, and give the nats of every position that is predicted.

One distribution serves training, scoring and sampling: at each position the softmax runs over the ids that the grammar
allows there, and a head per modality fills many-channel frames in. The weights under `model.` are a Llama's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.batch import Batch
from mmtok.model.frames import FrameEmbedding
from mmtok.model.heads import HeadConfig, build_head, widened
from mmtok.nn.transformer import Transformer, TransformerConfig
from mmtok.segment import BadInput
from mmtok.vocabulary import Vocabulary


@dataclass(frozen=True)
class DecoderConfig:
    """The trunk, and a head per many-channel modality; a many-channel modality without a head is input-only.

    channel_size: size of a channel value's embedding before the channels are joined and projected.
    totals: modality -> how many running totals its frames carry along, see `FrameEmbedding`; for sets such as jets.
    untied: ids are written with a table of their own, not the one that they are read with.
    """

    trunk: TransformerConfig = TransformerConfig()
    heads: Mapping[str, HeadConfig] = field(default_factory=dict)
    channel_size: int = 16
    totals: Mapping[str, int] = field(default_factory=dict)
    untied: bool = False


@dataclass(frozen=True, eq=False)
class Nats:
    """-log p per position (B, L): `ids` of the stream's id, `frames` of the frame's channels; 0 where not predicted."""

    ids: Tensor
    frames: Tensor

    @property
    def total(self) -> Tensor:
        """-log p of a position, its id and its frame together: (B, L)."""
        return self.ids + self.frames


class LM(nn.Module):
    """One decoder over one vocabulary. `forward(batch)` gives the `Nats` of every predicted position."""

    def __init__(self, config: DecoderConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        many = {m: s for m, s in vocabulary.signatures.items() if len(s.levels) > 1}
        for what, named in (("heads", config.heads), ("totals", config.totals)):
            unknown = sorted(set(named) - set(many))
            if unknown:
                raise BadInput(f"{what} are given for {unknown}, which are not many-channel modalities of this vocabulary")
        width = config.trunk.width
        self.model = Transformer(config.trunk, vocabulary.size)
        self.lm_head = nn.Linear(width, vocabulary.size, bias=False) if config.untied else None  # named as in a Llama
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=0.02)
        self.frame_in = nn.ModuleDict({m: FrameEmbedding(s.levels, config.channel_size, width, config.totals.get(m, 0)) for m, s in many.items()})
        self.latent_in = nn.ModuleDict(
            {m: nn.Linear(s.latent_size, width) for m, s in vocabulary.signatures.items() if s.latent_size}
        )
        self.heads = nn.ModuleDict({m: build_head(c, width, vocabulary.signatures[m]) for m, c in config.heads.items()})

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where a batch must be."""
        return self.model.embed_tokens.weight.device

    @property
    def id_weight(self) -> Tensor:
        """(n_ids, M): what a hidden state is compared with to give the next id."""
        return (self.model.embed_tokens if self.lm_head is None else self.lm_head).weight

    # ---- reading

    def embed(self, batch: Batch) -> Tensor:
        """(B, L, M): the id's embedding; at a frame id its channels or latents too, unless corrupted away."""
        x = self.model.embed_tokens(batch.inputs)
        # a number per segment of the batch
        segment = (torch.arange(len(x), device=x.device)[:, None] * batch.ids.shape[1] + batch.document) * batch.ids.shape[1] + batch.segment
        for m, inner in [*self.frame_in.items(), *self.latent_in.items()]:
            frame = self.vocabulary.span(m)[0]
            where = batch.ids == frame
            kept = (batch.inputs[where] == frame)[:, None]
            if m in self.frame_in:  # a batch without this modality still touches its weights, so that every rank reduces the same gradients
                codes = batch.channels.get(m, batch.ids.new_zeros(0, len(inner.levels)))
                frames = inner(codes, batch.channel_mask.get(m), kept, segment[where])
            else:
                frames = inner(batch.latents.get(m, x.new_zeros(0, inner.in_features)).to(x.dtype)) * kept
            x = x.flatten(0, 1).index_add(0, where.flatten().nonzero()[:, 0], frames.to(x.dtype)).view(x.shape)
        return x

    def hidden(self, batch: Batch) -> Tensor:
        """(B, L, M): the state at l has read positions up to l of its document."""
        return self.model(self.embed(batch), batch.position, batch.document)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., n_ids) over the whole vocabulary, the grammar not applied: what a Llama returns."""
        return hidden @ self.id_weight.T

    # ---- the distribution

    def id_logits(self, h: Tensor, modality: str) -> Tensor:
        """Logits of a segment's next id, (N, n + 1): the codes of `modality` (one frame id if it has many channels), then its end."""
        span = self.vocabulary.span(modality)
        weight, end = self.id_weight, self.vocabulary.end(modality)
        logits = widened(F.linear(h, torch.cat([weight[span[0] : span[-1] + 1], weight[end : end + 1]])))
        banned = self.vocabulary.signatures[modality].banned
        return logits.index_fill(1, torch.tensor(banned, device=h.device), float("-inf")) if banned else logits

    def forward(self, batch: Batch) -> Nats:
        """Nats of every predicted position. Raises BadInput when a modality without a head is asked for its frames."""
        asked = [(batch.predict & (batch.modality == i)).flatten().nonzero()[:, 0] for i in range(len(self.vocabulary.signatures))]
        at = torch.cat(asked)
        # one gather for all modalities: each of its own would cost a gradient of the whole (B, L, M)
        states = self.hidden(batch).flatten(0, 1).index_select(0, at - 1).split([len(x) for x in asked])
        ids, frames = [], []
        for m, x, state in zip(self.vocabulary.signatures, asked, states):
            target = batch.ids.flatten()[x]
            ids.append(self._id_nats(m, state, target, batch.may_end.flatten()[x]))
            one_channel = self.vocabulary.signatures[m].one_channel
            frames.append(torch.zeros_like(ids[-1]) if one_channel else self._frame_nats(m, state, target, batch))
        spread = lambda parts: parts[0].new_zeros(batch.ids.numel()).index_put((at,), torch.cat(parts)).view(batch.ids.shape)
        return Nats(spread(ids), spread(frames))

    def _id_nats(self, m: str, h: Tensor, target: Tensor, may_end: Tensor) -> Tensor:
        """(N,) -log p of ids of modality m among the codes, and the end mark where it is legal."""
        span = self.vocabulary.span(m)
        logits = self.id_logits(h, m)
        never_end = torch.zeros_like(logits, dtype=torch.bool)
        never_end[:, -1] = ~may_end
        index = torch.where(target == self.vocabulary.end(m), len(span), target - span[0])
        return F.cross_entropy(logits.masked_fill(never_end, float("-inf")), index, reduction="none")

    def _frame_nats(self, m: str, h: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """(N,) -log p of the channel values where the target is a frame of modality m, 0 where it is the end."""
        frame = self.vocabulary.span(m)[0]
        is_frame = target == frame
        if m not in self.heads:
            if is_frame.any():
                raise BadInput(f"{m} frames are predicted, but the model has no head for them: {m} is input-only here")
            return widened(h.sum(-1) * 0)
        head = self.heads[m]
        chosen = batch.predict[batch.ids == frame]  # over the rows of channels[m]
        values = batch.channels.get(m, batch.ids.new_zeros(0, len(head.levels)))[chosen]
        ceiling = batch.ceiling[m][chosen] if m in batch.ceiling else None
        nats = head.nats(h[is_frame], values, ceiling)
        return nats.new_zeros(len(target)).index_put((is_frame,), nats)


@contextmanager
def evaluating(lm: LM) -> Iterator[None]:
    """Without dropout and gradients; the mode that the model was in comes back, whatever happens inside."""
    training = lm.training
    lm.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        lm.train(training)


def loss_sums(nats: Nats, batch: Batch, vocabulary: Vocabulary,
              weights: Mapping[str, float]) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
    """The training loss's numerator, sum over modalities of weight * nats / sqrt(C), and per modality (nats, frames and ends).

    Divide by the number of predicted positions of the whole global batch. The square root keeps a frame of 80 channels
    from drowning a letter; it applies to the channels, while the frame-or-end decision weighs as any other id.
    """
    total = nats.ids.new_zeros(())
    parts = {}
    for i, (m, signature) in enumerate(vocabulary.signatures.items()):
        here = batch.predict & (batch.modality == i)
        ids, frames = (nats.ids * here).sum(), (nats.frames * here).sum()
        total = total + weights.get(m, 1.0) * (ids + frames / max(1, len(signature.levels)) ** 0.5)
        parts[m] = ((ids + frames).detach(), int(here.sum()))
    return total, parts
