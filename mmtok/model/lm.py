"""The shared decoder: embed a batch, run the trunk, and give the nats of every position that is
predicted.

One distribution serves training, scoring and sampling: at each position the softmax runs over the
ids that the grammar allows there, and a head per modality fills many-channel frames in. The weights
under `model.` are a Llama's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.core.batch import Batch
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.cascade import Cascade
from mmtok.heads.categorical import Chained, Parallel, upcast
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.model.frame_embedding import FrameEmbedding
from mmtok.nn.cross_entropy import class_nll
from mmtok.nn.transformer import Transformer, TransformerConfig

HeadConfig = Parallel | Chained | FrameDiffusion | GridDiffusion | Cascade | MaskedDiffusion


@dataclass(frozen=True)
class DecoderConfig:
    """The trunk, and a head per many-channel or latent modality; such a modality without a head is
    input-only.

    A one-channel modality needs no head, as its codes are ids of the stream; with MaskedDiffusion
    they are drawn in any order instead.
    channel_size: size of a channel value's embedding before the channels are joined and projected.
    totals: modality -> how many running totals its frames carry along, see `FrameEmbedding`; for
    sets such as jets.
    untied: ids are written with a table of their own, not the one that they are read with.
    """

    trunk: TransformerConfig = TransformerConfig()
    heads: Mapping[str, HeadConfig] = field(default_factory=dict)
    channel_size: int = 16
    totals: Mapping[str, int] = field(default_factory=dict)
    untied: bool = False


@dataclass(frozen=True, eq=False)
class Nats:
    """-log p per position (B, L): `ids` of the stream's id, `frames` of the frame's channels; 0
    where not predicted.

    Where a head has no exact likelihood, `frames` is what its training lowers (a denoising loss, a
    bound), or an estimate when scoring; of a segment drawn as a whole, its T-th part at each of its
    T frames.
    """

    ids: Tensor
    frames: Tensor

    @property
    def total(self) -> Tensor:
        """-log p of a position, its id and its frame together: (B, L)."""
        return self.ids + self.frames


class LM(nn.Module):
    """One decoder over one vocabulary.

    `forward(batch)` gives the `Nats` of every predicted position.
    """

    def __init__(self, config: DecoderConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        many = {m: s for m, s in vocabulary.signatures.items() if s.levels and not s.one_channel}
        for what, named, known in (
            ("heads", config.heads, vocabulary.signatures),
            ("totals", config.totals, many),
        ):
            unknown = sorted(set(named) - set(known))
            if unknown:
                kind = "many-channel modalities" if known is many else "modalities"
                raise UserError(
                    f"{what} are given for {unknown}, which are not {kind} of this vocabulary"
                )
        width = config.trunk.width
        self.model = Transformer(config.trunk, vocabulary.size)
        self.lm_head = (
            nn.Linear(width, vocabulary.size, bias=False) if config.untied else None
        )  # named as in a Llama
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=0.02)
        self.frame_in = nn.ModuleDict(
            {
                m: FrameEmbedding(s.levels, config.channel_size, width, config.totals.get(m, 0))
                for m, s in many.items()
            }
        )
        self.latent_in = nn.ModuleDict(
            {
                m: nn.Linear(s.latent_size, width)
                for m, s in vocabulary.signatures.items()
                if s.latent_size
            }
        )
        self.heads = nn.ModuleDict(
            {m: c.build(width, vocabulary.signatures[m]) for m, c in config.heads.items()}
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where a batch must be."""
        return self.model.embed_tokens.weight.device

    @property
    def id_weight(self) -> Tensor:
        """(n_ids, M): what a hidden state is compared with to give the next id."""
        return (self.model.embed_tokens if self.lm_head is None else self.lm_head).weight

    def kind(self, modality: str) -> str:
        """What the nats of this modality are when scored: "exact", "bound" or "estimate"."""
        return self.heads[modality].kind if modality in self.heads else "exact"

    def draws_whole(self, modality: str) -> bool:
        """Whether segments of this modality are drawn as a whole, not frame after frame."""
        return modality in self.heads and getattr(self.heads[modality], "whole", False)

    # ---- reading

    def embed(self, batch: Batch) -> Tensor:
        """(B, L, M): the id's embedding; at a frame id its channels or latents too, unless
        corrupted away.
        """
        x = self.model.embed_tokens(batch.inputs)
        # a number per segment of the batch
        segment = (
            torch.arange(len(x), device=x.device)[:, None] * batch.ids.shape[1] + batch.document
        ) * batch.ids.shape[1] + batch.segment
        for m, inner in [*self.frame_in.items(), *self.latent_in.items()]:
            frame = self.vocabulary.span(m)[0]
            where = batch.ids == frame
            kept = (batch.inputs[where] == frame)[:, None]
            if (
                m in self.frame_in
            ):  # a batch without this modality still touches its weights, so that every rank reduces the same gradients
                codes = batch.channels.get(m, batch.ids.new_zeros(0, len(inner.levels)))
                frames = inner(codes, batch.channel_mask.get(m), kept, segment[where])
            else:
                latents, hidden = (
                    batch.latents.get(m, x.new_zeros(0, inner.in_features)),
                    batch.channel_mask.get(m),
                )
                frames = (
                    inner(
                        (latents if hidden is None else latents.masked_fill(hidden, 0)).to(x.dtype)
                    )
                    * kept
                )
            x = (
                x.flatten(0, 1)
                .index_add(0, where.flatten().nonzero()[:, 0], frames.to(x.dtype))
                .view(x.shape)
            )
        return x

    def hidden(self, batch: Batch) -> Tensor:
        """(B, L, M): the state at l has read positions up to l of its document."""
        return self.model(self.embed(batch), batch.position, batch.document)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., n_ids) over the whole vocabulary, the grammar not applied: what a Llama returns."""
        return hidden @ self.id_weight.T

    # ---- the distribution

    def id_logits(self, h: Tensor, modality: str) -> Tensor:
        """Logits of a segment's next id, (N, n + 1): the codes of `modality` (one frame id if it
        has many channels), then its end.
        """
        logits = upcast(F.linear(h, self._id_rows(modality)))
        banned = self.vocabulary.signatures[modality].banned
        return (
            logits.index_fill(1, torch.tensor(banned, device=h.device), float("-inf"))
            if banned
            else logits
        )

    def _id_rows(self, modality: str) -> Tensor:
        """(n + 1, M): the rows of `id_weight` of a segment's next id."""
        span, weight, end = (
            self.vocabulary.span(modality),
            self.id_weight,
            self.vocabulary.end(modality),
        )
        return torch.cat([weight[span[0] : span[-1] + 1], weight[end : end + 1]])

    def forward(self, batch: Batch, seed: int | None = None) -> Nats:
        """Nats of every predicted position. seed: of the random draws that some heads' likelihoods
        take; None is training, in which the heads' losses stand for them.

        Raises UserError when a modality without a head is asked for its frames.
        """
        asked = [
            (batch.predict & (batch.modality == i)).flatten().nonzero()[:, 0]
            for i in range(len(self.vocabulary.signatures))
        ]
        at = torch.cat(asked)
        # one gather for all modalities: each of its own would cost a gradient of the whole (B, L,
        # M)
        states = (
            self.hidden(batch).flatten(0, 1).index_select(0, at - 1).split([len(x) for x in asked])
        )
        ids, frames = [], []
        for m, x, state in zip(self.vocabulary.signatures, asked, states):
            target, one_channel = batch.ids.flatten()[x], self.vocabulary.signatures[m].one_channel
            if one_channel and self.draws_whole(m):
                ids.append(upcast(state.new_zeros(len(x))))
            else:
                ids.append(self._id_nats(m, state, target, batch.may_end.flatten()[x]))
            if one_channel and not self.draws_whole(m):
                frames.append(torch.zeros_like(ids[-1]))
            elif self.draws_whole(m):
                frames.append(self._segment_nats(m, x, state, target, batch, seed))
            else:
                frames.append(self._frame_nats(m, state, target, batch, seed))
        spread = lambda parts: (
            parts[0]
            .new_zeros(batch.ids.numel())
            .index_put((at,), torch.cat(parts))
            .view(batch.ids.shape)
        )
        return Nats(spread(ids), spread(frames))

    def _id_nats(self, m: str, h: Tensor, target: Tensor, may_end: Tensor) -> Tensor:
        """(N,) -log p of ids of modality m among the codes, and the end mark where it is legal."""
        span = self.vocabulary.span(m)
        index = torch.where(target == self.vocabulary.end(m), len(span), target - span[0])
        return class_nll(h, self._id_rows(m), index, may_end, self.vocabulary.signatures[m].banned)

    def _frame_nats(
        self, m: str, h: Tensor, target: Tensor, batch: Batch, seed: int | None
    ) -> Tensor:
        """(N,) of the frame's values where the target is a frame of modality m, 0 where it is the
        end.
        """
        is_frame = target == self.vocabulary.span(m)[0]
        if m not in self.heads:
            if is_frame.any():
                raise UserError(
                    f"{m} frames are predicted, but the model has no head for them: {m} is"
                    " input-only here"
                )
            return upcast(h.sum(-1) * 0)
        head, values = self.heads[m], self._values(m, batch)
        if self.vocabulary.signatures[m].latent_size:
            nats = (
                head.nats(h[is_frame], values, _dice(h, seed))
                if seed is not None
                else head.loss(h[is_frame], values)
            )
        else:
            nats = head.nats(
                h[is_frame],
                values,
                batch.ceiling[m][self._chosen(m, batch)] if m in batch.ceiling else None,
            )
        nats = nats.to(upcast(h).dtype)
        return nats.new_zeros(len(target)).index_put((is_frame,), nats)

    def _segment_nats(
        self, m: str, at: Tensor, h: Tensor, target: Tensor, batch: Batch, seed: int | None
    ) -> Tensor:
        """(N T,) of N whole segments of modality m, spread over their T frames; h (N T, M), of
        which the first of each is read.

        at (N T,): their places in the flattened batch. Raises UserError unless each segment's T
        frames follow its begin mark.
        """
        head, n_frames = self.heads[m], self.vocabulary.signatures[m].frames
        if not self._are_whole(m, at, batch):
            raise UserError(
                f"{m} is drawn as whole segments of {n_frames} frames: it can be neither cut short"
                " nor have holes"
            )
        codes = self.vocabulary.signatures[m].one_channel
        values = (target - self.vocabulary.span(m)[0])[:, None] if codes else self._values(m, batch)
        first, values = h.unflatten(0, (-1, n_frames))[:, 0], values.unflatten(0, (-1, n_frames))
        if not len(first):  # no picture has no shape, but every process reduces the same gradients
            return upcast(sum(p.sum() for p in head.parameters())).expand(0)
        nats = (
            head.nats(first, values, _dice(h, seed))
            if seed is not None
            else head.loss(first, values)
        )
        return (nats / n_frames).to(upcast(h).dtype).repeat_interleave(n_frames)

    def _are_whole(self, m: str, at: Tensor, batch: Batch) -> bool:
        """Whether places (N,) of the flattened batch are runs of as many as a segment of modality m
        has frames, each behind a begin mark.
        """
        n_frames = self.vocabulary.signatures[m].frames
        if len(at) % n_frames:
            return False
        runs = at.unflatten(0, (-1, n_frames))
        begun = batch.ids.flatten()[runs[:, 0] - 1] == self.vocabulary.begin(m)
        return bool(begun.all() and (runs.diff(dim=1) == 1).all())

    def _chosen(self, m: str, batch: Batch) -> Tensor:
        """(N_m,) bool: which rows of m's values are predicted."""
        return batch.predict[batch.ids == self.vocabulary.span(m)[0]]

    def _values(self, m: str, batch: Batch) -> Tensor:
        """The predicted frames' channel values (N, C) or latents (N, D)."""
        signature = self.vocabulary.signatures[m]
        if signature.latent_size:
            return batch.latents.get(m, self.id_weight.new_zeros(0, signature.latent_size))[
                self._chosen(m, batch)
            ]
        return batch.channels.get(m, batch.ids.new_zeros(0, len(signature.levels)))[
            self._chosen(m, batch)
        ]


def _dice(h: Tensor, seed: int) -> torch.Generator:
    """What a likelihood's random draws come from, where h lies."""
    return torch.Generator(h.device).manual_seed(seed)


@contextmanager
def evaluating(lm: LM) -> Iterator[None]:
    """Without dropout and gradients; the mode that the model was in comes back, whatever happens
    inside.
    """
    training = lm.training
    lm.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        lm.train(training)


def loss_sums(
    nats: Nats, batch: Batch, vocabulary: Vocabulary, weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
    """The training loss's numerator, sum over modalities of weight * nats / sqrt(C), and per
    modality (nats, frames and ends).

    Divide by the number of predicted positions of the whole global batch. The square root keeps a
    frame of 80 channels from drowning a letter; it applies to the channels, while the frame-or-end
    decision weighs as any other id.
    """
    total = nats.ids.new_zeros(())
    parts = {}
    for i, (m, signature) in enumerate(vocabulary.signatures.items()):
        here = batch.predict & (batch.modality == i)
        ids, frames = (nats.ids * here).sum(), (nats.frames * here).sum()
        total = total + weights.get(m, 1.0) * (ids + frames / max(1, len(signature.levels)) ** 0.5)
        parts[m] = ((ids + frames).detach(), int(here.sum()))
    return total, parts
