"""The shared decoder: embed a batch, run the trunk, and give -log p of every predicted position.

One distribution serves training, scoring and sampling: at each position the softmax runs over the
ids that the grammar allows there, and a head per modality fills in many-channel or latent frames.
The weights under `model.` are a Llama's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.core.batch import Batch, BatchIndex, Places, with_index
from mmtok.core.runs import SetPlaces
from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.base import Context, Head, HeadConfig, Kind, SetHead, Sizes
from mmtok.heads.cascade import Cascade
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.flows import NormalisingFlow
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.regression import Regression
from mmtok.heads.sampling import LOGIT_SETTINGS, ROW_SETTINGS, Sampling, check_settings
from mmtok.heads.set_diffusion import SetDiffusion
from mmtok.io.serialize import Kinds
from mmtok.model.architectures import ModelType
from mmtok.model.condense import Condensed, condense
from mmtok.model.embedder import Embedder, EmbeddingConfig
from mmtok.model.frame_embedding import FrameEmbedding
from mmtok.model.origin import Origin
from mmtok.model.position_nll import PositionNLL
from mmtok.nn.cross_entropy import class_nll, upcast
from mmtok.nn.device import constant
from mmtok.nn.lora import BasePrecision, LoRA, without_rows
from mmtok.nn.perceiver import Perceiver, PerceiverConfig
from mmtok.nn.transformer import Transformer, TransformerConfig
from mmtok.nn.uncertainty import TaskVariances, measuring_norm

PackageHeads = (
    Parallel
    | Chained
    | FrameDiffusion
    | GridDiffusion
    | SetDiffusion
    | Cascade
    | MaskedDiffusion
    | Regression
    | NormalisingFlow
)
"""The package's own heads. A recipe may bring others: subclasses of HeadConfig."""


@dataclass(frozen=True)
class DecoderConfig:
    """The trunk, and a head per many-channel or latent modality.

    Such a modality without a head is input-only. A one-channel modality needs no head, as its codes
    are ids of the stream; with MaskedDiffusion they are drawn in any order instead.

    Attributes:
        channel_size: size of a channel value's embedding before the channels are joined and
            projected.
        totals: modality -> how many running totals its frames carry along, see `FrameEmbedding`;
            for sets such as jets.
        untied: the output layer has a table of ids of its own, not the input embedding's.
        model_type: the architecture of `transformers` that it is exported as, if that has the
            trunk's switches.
        lora: rank of the adapters of the trunk's linear maps; 0 is none. Above it the trunk is
            frozen, and what the checkpoint did not have learns as ever: heads, embeddings of
            frames, and, where there is more than text, the embeddings of its ids.
        lora_alpha: adapters are multiplied by it and divided by the rank; None is twice the rank.
        lora_base: of the frozen linear maps; int8 takes a quarter of the memory.
        encoders: modality -> the Perceiver that reads its frames in few positions (condense.py),
            for long conditions: modalities of several channels or of latents, without a head.
        embedding: how documents become vectors of one size, learned from contrasts; None: they
            do not.
        learned_sigma: the training loss of each modality is weighed by a variance that is learned
            beside it (`mmtok.nn.uncertainty`), so that losses of different size count alike. Of one
            that may be negative, as -log of a density, it is left out.
        balanced_gradients: the training loss of each modality is divided by the norm of its
            gradient by the states that predict it, which is learned beside it in the place of a
            variance, so that all pull alike; of one that may be negative too.
    """

    trunk: TransformerConfig = TransformerConfig()
    heads: Mapping[str, Annotated[HeadConfig, Kinds(PackageHeads)]] = field(default_factory=dict)
    channel_size: int = 16
    totals: Mapping[str, int] = field(default_factory=dict)
    untied: bool = False
    model_type: ModelType = "llama"
    lora: int = 0
    lora_alpha: float | None = None
    lora_base: BasePrecision = "float32"
    embedding: EmbeddingConfig | None = None
    encoders: Mapping[str, PerceiverConfig] = field(default_factory=dict)
    learned_sigma: bool = False
    balanced_gradients: bool = False

    def __post_init__(self) -> None:
        if self.learned_sigma and self.balanced_gradients:
            raise UserError(
                "model: learned_sigma and balanced_gradients both weigh the losses: choose one"
            )
        if self.lora < 0 or (self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf):
            raise UserError(
                f"model: lora is {self.lora} and lora_alpha {self.lora_alpha}; the rank must not be"
                " negative, alpha above 0 and finite"
            )
        if not self.lora and (self.lora_alpha is not None or self.lora_base != "float32"):
            raise UserError(
                "model: lora_alpha and lora_base are of adapters, and there are none; give them a"
                " rank, --lora 16"
            )

    def adapters(self) -> LoRA | None:
        """The trunk's adapters, if any."""
        if not self.lora:
            return None
        return LoRA(self.lora, self.lora_alpha or 2.0 * self.lora, self.lora_base)


class LM(nn.Module):
    """One decoder over one vocabulary.

    `forward(batch)` gives the `PositionNLL` of every predicted position.

    Attributes:
        origin: the run that its first values were copied from, if any.
    """

    def __init__(self, config: DecoderConfig, vocabulary: Vocabulary):
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.origin: Origin | None = None
        signatures = vocabulary.signatures
        many = {m: s for m, s in signatures.items() if s.levels and not s.one_channel}
        _check_named("heads", config.heads, signatures, "modalities")
        _check_named("totals", config.totals, many, "many-channel modalities")
        width = config.trunk.width
        self.model = Transformer(config.trunk, vocabulary.size, config.adapters())
        self.lm_head: nn.Linear | None = None  # named as in a Llama
        if config.untied:
            self.lm_head = nn.Linear(width, vocabulary.size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=0.02)
        self.frame_in = nn.ModuleDict(
            {
                m: FrameEmbedding(s.levels, config.channel_size, width, config.totals.get(m, 0))
                for m, s in many.items()
            }
        )
        self.latent_in = nn.ModuleDict(
            {m: nn.Linear(s.latent_size, width) for m, s in signatures.items() if s.latent_size}
        )
        self.heads = nn.ModuleDict(
            {m: build_head(c, width, signatures[m]) for m, c in config.heads.items()}
        )
        self.encoders = self._made_encoders()
        self.embedding: Embedder | None = None
        if config.embedding is not None:
            self.embedding = Embedder(config.embedding, width)
        self.variances: TaskVariances | None = None
        if config.learned_sigma:
            self.variances = TaskVariances(m for m in signatures if self._loss_is_positive(m))
        self.gradient_norms: TaskVariances | None = None
        if config.balanced_gradients:
            self.gradient_norms = TaskVariances(signatures)
        if config.lora:
            self._freeze_text()

    def _loss_is_positive(self, modality: str) -> bool:
        head = self.head(modality)
        return head is None or head.loss_is_positive

    def _made_encoders(self) -> nn.ModuleDict:
        """The encoders of long conditions; raises UserError for those of other modalities."""
        encoders = self.config.encoders
        of_frames = {m: None for m in [*self.frame_in, *self.latent_in] if m not in self.heads}
        _check_named("encoders", encoders, of_frames, "input-only modalities of frames")
        width = self.config.trunk.width
        return nn.ModuleDict({m: Perceiver(c, width, width) for m, c in encoders.items()})

    def _freeze_text(self) -> None:
        """Beside adapters, let only what is not of a text learn of the tables of ids."""
        n_frozen = 0
        if "text" in self.vocabulary.signatures:
            n_frozen = len(self.vocabulary.span("text"))
        for table in (self.model.embed_tokens, self.lm_head):
            if table is None:
                continue
            table.weight.requires_grad_(self.more_than_text)
            if self.more_than_text:
                table.weight.register_hook(partial(without_rows, n=n_frozen))

    @property
    def more_than_text(self) -> bool:
        """Whether there are ids or frames that a language model does not have."""
        return list(self.vocabulary.signatures) != ["text"]

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where a batch must be."""
        return self.model.embed_tokens.weight.device

    @property
    def id_weight(self) -> Tensor:
        """(n_ids, M): the output layer; logits are its products with a hidden state."""
        layer = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return layer.weight

    def head(self, modality: str) -> Head | None:
        """What fills in this modality's frames; None where the ids alone do, or nothing can."""
        if modality in self.heads:
            return cast(Head, self.heads[modality])
        return None

    def kind(self, modality: str) -> Kind:
        """What a score of this modality is: "exact", "bound" or "estimate"."""
        head = self.head(modality)
        if head is None:
            return "exact"
        return head.kind

    def loss_kind(self, modality: str) -> Kind:
        """What this modality's training loss is of its -log p.

        An estimate where blocks are of mixture-of-depths, which look ahead in training.
        """
        if self.config.trunk.mod_capacity:
            return "estimate"
        head = self.head(modality)
        if head is None:
            return "exact"
        return head.loss_kind

    def no_score(self, modality: str) -> str:
        """Why this modality cannot be scored; "" where it can."""
        head = self.head(modality)
        if head is None:
            return ""
        return head.no_score

    def autoregressive(self, modality: str) -> bool:
        """Whether segments of this modality are drawn frame after frame, not all frames at once."""
        head = self.head(modality)
        return head is None or head.autoregressive

    def of_sets(self, modality: str) -> bool:
        """Whether segments of this modality are drawn as sets, their number of frames included."""
        head = self.head(modality)
        return head is not None and head.config.of_sets

    def _ids_are_certain(self, modality: str) -> bool:
        """Whether the head says all of a segment: its codes, or how many frames it has."""
        one_channel = self.vocabulary.signatures[modality].one_channel
        return self.of_sets(modality) or one_channel and not self.autoregressive(modality)

    def validate(self, modality: str, sampling: Sampling) -> None:
        """Raise UserError for settings that what draws this modality does not know."""
        head = self.head(modality)
        if head is None:
            known = LOGIT_SETTINGS
            if self.vocabulary.signatures[modality].rows:
                known |= ROW_SETTINGS
            check_settings(sampling, known, modality)
        else:
            head.validate(sampling)

    # ---- reading

    def embed(self, batch: Batch) -> Tensor:
        """(B, L, M): the id's embedding, plus that of its frame's channels or latents.

        Frames that training hides are left out.
        """
        batch = with_index(batch, self.vocabulary)
        assert batch.index is not None
        x = self.model.embed_tokens(batch.inputs)
        for m in [*self.frame_in, *self.latent_in]:
            places = batch.index.places[m]
            inputs = batch.inputs.flatten()[places.frames]
            kept = (inputs == self.vocabulary.span(m)[0])[:, None]
            # A batch without this modality still uses the weights, so that every rank reduces the
            # same gradients.
            if m in self.frame_in:
                frames = self._embed_codes(m, batch, kept, places)
            else:
                frames = self._embed_latents(m, batch, x.dtype) * kept
            flat = x.flatten(0, 1).index_add(0, places.frames, frames.to(x.dtype))
            x = flat.view(x.shape)
        return x

    def _embed_codes(self, m: str, batch: Batch, kept: Tensor, places: Places) -> Tensor:
        """(N, M) of all frames of a many-channel modality."""
        embedding = cast(FrameEmbedding, self.frame_in[m])
        codes = batch.channels.get(m, batch.ids.new_zeros(0, len(embedding.codebook_sizes)))
        return embedding(codes, batch.channel_mask.get(m), kept, places.runs)

    def _embed_latents(self, m: str, batch: Batch, dtype: torch.dtype) -> Tensor:
        """(N, M) of all frames of a latent modality; hidden numbers are read as 0."""
        project = cast(nn.Linear, self.latent_in[m])
        latents = batch.latents.get(m, self.id_weight.new_zeros(0, project.in_features))
        hidden = batch.channel_mask.get(m)
        if hidden is not None:
            latents = latents.masked_fill(hidden, 0)
        return project(latents.to(dtype))

    def hidden(self, batch: Batch) -> Tensor:
        """(B, L, M): the state at l has read positions up to l of its document."""
        batch = with_index(batch, self.vocabulary)
        index = cast(BatchIndex, batch.index)
        both_ways: Tensor | None = None
        config = self.config.embedding
        if config is not None and config.bidirectional and batch.group is not None:
            both_ways = batch.group >= 0
        if self.encoders:
            return self._condensed_hidden(batch, both_ways)
        return self.model(
            self.embed(batch),
            batch.position,
            batch.document,
            index.document_ends,
            index.one_per_row,
            both_ways,
        )

    def condensed(self, batch: Batch) -> Condensed:
        """Embedded rows in which encoders have read the long conditions."""
        batch = with_index(batch, self.vocabulary)
        encoders = {m: cast(Perceiver, encoder) for m, encoder in self.encoders.items()}
        return condense(self.embed(batch), batch, encoders)

    def _condensed_hidden(self, batch: Batch, both_ways: Tensor | None) -> Tensor:
        """As `hidden`; zero at positions that are left out."""
        condensed = self.condensed(batch)
        if both_ways is not None:
            both_ways = both_ways.gather(1, condensed.column)
        states = self.model(
            condensed.x, condensed.position, condensed.document, both_ways=both_ways
        )
        return condensed.spread(states, batch.ids.shape[1])

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., n_ids) over the whole vocabulary, without the grammar: what a Llama returns."""
        return hidden @ self.id_weight.T

    # ---- the distribution

    def id_logits(self, h: Tensor, modality: str) -> Tensor:
        """Logits of a segment's next id, (N, n + 1): the codes of `modality`, then its end.

        A modality of many channels or of latents has one code, its frame id.
        """
        logits = upcast(F.linear(h, self.id_rows(modality)))
        banned = self.vocabulary.signatures[modality].banned
        if not banned:
            return logits
        return logits.index_fill(1, constant(banned, h.device), float("-inf"))

    def id_rows(self, modality: str) -> Tensor:
        """(n + 1, M): the rows of `id_weight` of a segment's next id."""
        span = self.vocabulary.span(modality)
        end = self.vocabulary.end(modality)
        weight = self.id_weight
        return torch.cat([weight[span[0] : span[-1] + 1], weight[end : end + 1]])

    def forward(self, batch: Batch, seed: int | None = None) -> PositionNLL:
        """-log p of every predicted position.

        seed: None in training, where heads give their losses. In scoring the seed of the random
        draws that bounds and estimates take.

        Raises UserError for frames of a modality without a head.
        """
        signatures = self.vocabulary.signatures
        batch = with_index(batch, self.vocabulary)
        assert batch.index is not None
        predicted = [batch.index.places[m].predicted for m in signatures]
        all_predicted = torch.cat(predicted)
        # One gather for all modalities: each of its own would cost a gradient of the whole (B, L,
        # M).
        hidden = self.hidden(batch)
        contrast: Tensor | None = None
        if self.embedding is not None and seed is None:
            contrast = self.embedding.loss(hidden, batch)
        hidden = hidden.flatten(0, 1)
        states = hidden.index_select(0, all_predicted - 1)
        states = states.split([len(x) for x in predicted])
        log_norms = {}
        if self.gradient_norms is not None and seed is None:
            log_norms = self.gradient_norms()
        ids = []
        frames = []
        for (m, places), h in zip(batch.index.places.items(), states, strict=True):
            target = batch.ids.flatten()[places.predicted]
            if m in log_norms:
                h = measuring_norm(h, log_norms[m])
            if self._ids_are_certain(m):
                ids.append(upcast(h.new_zeros(len(target))))
            else:
                may_end = batch.may_end.flatten()[places.predicted]
                ids.append(self._id_nll(m, h, target, may_end))
            if self.of_sets(m):
                frames.append(self._set_nll(m, places, h, hidden, batch, seed))
            elif not self.autoregressive(m):
                frames.append(self._segment_nll(m, places, h, target, batch, seed))
            elif signatures[m].one_channel:
                frames.append(torch.zeros_like(ids[-1]))
            else:
                frames.append(self._frame_nll(m, places, h, batch, seed))

        def spread(parts: list[Tensor]) -> Tensor:
            flat = parts[0].new_zeros(batch.ids.numel())
            return flat.index_put((all_predicted,), torch.cat(parts)).view(batch.ids.shape)

        log_variances = {}
        if self.variances is not None and seed is None:
            log_variances = self.variances()
        return PositionNLL(spread(ids), spread(frames), contrast, log_variances, log_norms)

    def _id_nll(self, m: str, h: Tensor, target: Tensor, may_end: Tensor) -> Tensor:
        """(N,) -log p of ids of modality m among the codes, and the end mark where it is legal."""
        span = self.vocabulary.span(m)
        index = torch.where(target == self.vocabulary.end(m), len(span), target - span[0])
        return class_nll(h, self.id_rows(m), index, may_end, self.vocabulary.signatures[m].banned)

    def _frame_nll(
        self, m: str, places: Places, h: Tensor, batch: Batch, seed: int | None
    ) -> Tensor:
        """(N,) of the frame's values where the target is a frame, 0 where it is the end mark."""
        head = self.head(m)
        if head is None:
            if len(places.framed):
                raise UserError(
                    f"{m} frames are predicted, but the model has no head for them: {m} is"
                    " input-only here"
                )
            return upcast(h.sum(-1) * 0)
        ceiling = None
        if m in batch.ceiling:
            ceiling = batch.ceiling[m][places.values]
        nll = _head_nll(head, h[places.framed], self._values(m, places, batch), seed, ceiling)
        nll = nll.to(upcast(h).dtype)
        return nll.new_zeros(len(h)).index_put((places.framed,), nll)

    def _segment_nll(
        self, m: str, places: Places, h: Tensor, target: Tensor, batch: Batch, seed: int | None
    ) -> Tensor:
        """(N T,) of N segments of modality m, each spread evenly over its T frames.

        h (N T, M), of which the first of each segment is read. Raises UserError unless each
        segment's T frames follow its begin mark.
        """
        head = cast(Head, self.heads[m])
        n_frames = cast(int, self.vocabulary.signatures[m].frames)
        if not places.are_segments:
            raise UserError(
                f"{m} is drawn as whole segments of {n_frames} frames: it can be neither cut short"
                " nor infilled, nor predicted in part"
            )
        if not len(target):
            return _nothing(head)
        if self.vocabulary.signatures[m].one_channel:
            values = (target - self.vocabulary.span(m)[0])[:, None]
        else:
            values = self._values(m, places, batch)
        first = h.unflatten(0, (-1, n_frames))[:, 0]
        nll = _head_nll(head, first, values.unflatten(0, (-1, n_frames)), seed)
        return (nll / n_frames).to(upcast(h).dtype).repeat_interleave(n_frames)

    def _set_nll(
        self, m: str, places: Places, h: Tensor, hidden: Tensor, batch: Batch, seed: int | None
    ) -> Tensor:
        """(P,) of sets of modality m, each spread evenly over its frames and its end mark.

        h (P, M), of which the first of each set is read; hidden (B L, M): all states. Raises
        UserError unless the sets are predicted as a whole.
        """
        head = cast(SetHead, self.heads[m])
        sets = cast(SetPlaces, places.sets)
        if not sets.are_whole:
            raise UserError(
                f"{m} is drawn as whole sets: they can be neither infilled nor predicted in part"
            )
        if not len(sets.first):
            return _nothing(head)
        values = self._values(m, places, batch)
        # an empty set has room for one frame too, as reductions over nothing are NaN
        padded = values.new_zeros(len(sets.first), max(1, sets.longest), values.shape[1])
        padded = padded.index_put((sets.frame_number, sets.frame_place), values)
        sizes = Sizes(sets.n_frames, sets.truncated)
        context: Context | None = None
        if head.config.reads_context:
            context = Context.before(hidden, places.predicted[sets.first], sets)
        first = h[sets.first]
        if seed is None:
            nll = head.loss(first, padded, sizes=sizes, context=context)
        else:
            generator = torch.Generator(h.device).manual_seed(seed)
            nll = -head.log_prob(first, padded, generator, sizes=sizes, context=context)
        return (nll / sets.n_places).to(upcast(h).dtype)[sets.number]

    def _values(self, m: str, places: Places, batch: Batch) -> Tensor:
        """The predicted frames' channel values (N, C) or latents (N, D)."""
        signature = self.vocabulary.signatures[m]
        if signature.latent_size:
            nothing = self.id_weight.new_zeros(0, signature.latent_size)
            values = batch.latents.get(m, nothing)
        else:
            nothing = batch.ids.new_zeros(0, len(signature.levels))
            values = batch.channels.get(m, nothing)
        return values[places.values]


def _nothing(head: Head) -> Tensor:
    """Nats of no segments: (0,).

    The head's parameters stay in the graph, so that all ranks reduce the same gradients.
    """
    anything = cast(Tensor, sum(p.sum() for p in head.parameters()))
    return upcast(anything).expand(0)


def fitting_heads(signature: Signature) -> str:
    """The package's heads that can fill in frames of this signature, in words; "": none."""
    names = [f"{kind.__name__}()" for kind in get_args(PackageHeads) if kind.fits(signature)]
    return " or ".join(part for part in (", ".join(names[:-1]), "".join(names[-1:])) if part)


def build_head(config: HeadConfig, width: int, signature: Signature) -> Head:
    """`config.build`; what it refuses for the signature names the heads that would fit."""
    try:
        return config.build(width, signature)
    except UserError as error:
        if config.fits(signature):
            raise
        names = fitting_heads(signature)
        remedy = f"give it {names}" if names else "it needs no head"
        if names and signature.one_channel:
            remedy = f"it needs no head, or {names}"
        raise UserError(f"{error}; {remedy}") from None


def _check_named(what: str, named: Mapping, known: Mapping, kind: str) -> None:
    """Raise UserError for keys that are not modalities of this kind."""
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise UserError(f"{what} are given for {unknown}, which are not {kind} of this vocabulary")


def _head_nll(
    head: Head, h: Tensor, y: Tensor, seed: int | None, ceiling: Tensor | None = None
) -> Tensor:
    """(N,): the head's loss in training, where the seed is None; else -log p."""
    if seed is None:
        return head.loss(h, y, ceiling)
    generator = torch.Generator(h.device).manual_seed(seed)
    return -head.log_prob(h, y, generator, ceiling)


@contextmanager
def evaluating(lm: LM) -> Iterator[None]:
    """Without dropout and gradients; afterwards the model is in the mode that it was in."""
    training = lm.training
    lm.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        lm.train(training)


@contextmanager
def trunk_dropout(lm: LM, seed: int | None, place: int = 0) -> Iterator[None]:
    """Dropout in the trunk alone, whose masks the seed and the batch's place decide; None: none.

    A mask is a draw of the weights' posterior (Gal and Ghahramani 2016, arXiv 1506.02142).
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((seed << 32) + place)
        lm.model.train()
        try:
            yield
        finally:
            lm.model.eval()
