"""What rounded weights cost in perplexity: a decoder learns a text for a minute, and reads of it
what it has not seen. For bench_engine.py.

A perplexity alone hardly tells, as rounding helps as often as it hurts: two levels on each side of
0 cost it 0.03 %. The divergence from the unrounded model's distributions does: it cannot be below
0, and grows by 5 for each bit that is taken away.
"""

from __future__ import annotations

import copy
import pydoc_data.topics
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from mmtok.core.batch import Batch, pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.model.frame_decoder import FrameDecoder
from mmtok.model.lm import LM
from mmtok.nn.inference_linear import WeightPrecision
from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.tokenizers.text import SentencePieceConfig

PIECES = 253  # of a passage; with its marks 256 positions
HELD_OUT = 10  # every tenth passage


def manual(modality: str, n_pieces: int) -> tuple[list[Document], list[Document]]:
    """The manual that every Python brings along (pydoc_data), in passages as codes of a modality:
    to learn, and held out.
    """
    text = "\n".join(pydoc_data.topics.topics.values())
    lines = [text[i : i + 2000] for i in range(0, len(text), 2000)]
    codes = np.concatenate(
        [s.codes for s in SentencePieceConfig(n_pieces).fit(lines).encode_batch(lines)]
    )
    passages = [
        Document((Segment(modality, codes=codes[i : i + PIECES]),), (True,))
        for i in range(0, len(codes) - PIECES, PIECES)
    ]
    return [p for i, p in enumerate(passages) if i % HELD_OUT], passages[::HELD_OUT]


def learn(
    lm: LM, step: Callable[[Batch], None], documents: list[Document], n_steps: int, n_rows: int = 8
) -> None:
    """n_steps of n_rows documents each, drawn at random."""
    rng = np.random.default_rng(0)
    for _ in range(n_steps):
        chosen = rng.choice(len(documents), n_rows, replace=False)
        step(pack(lm.vocabulary, [[to_stream(lm.vocabulary, documents[i])] for i in chosen]))
    lm.eval()


@torch.inference_mode()
def log_probs(
    lm: LM, documents: list[Document], modality: str, precision: WeightPrecision
) -> torch.Tensor:
    """Of every code, log p of what stands there (N, n + 1), as sampling reckons it in this
    precision of weights.
    """
    batch = pack(lm.vocabulary, [[to_stream(lm.vocabulary, d)] for d in documents])
    h = (
        KVCacheDecoder(lm.model, precision, batch_size=len(documents))
        .forward(lm.embed(batch))[:, 1 : 1 + PIECES]
        .flatten(0, 1)
    )  # from the begin mark on
    return (
        FrameDecoder(lm, modality, precision, len(documents)).id_logits(h).float().log_softmax(-1)
    )


def nats(log_p: torch.Tensor, documents: list[Document]) -> float:
    """Mean -log p of the codes."""
    codes = torch.from_numpy(np.concatenate([d.segments[0].codes for d in documents])).long()
    return -float(log_p.gather(1, codes).mean())


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Mean KL(p || q) in nats: what a code drawn from p costs more under q."""
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def coarse(lm: LM, levels: int) -> LM:
    """A copy whose every linear weight has 2 levels + 1 values for each of its outputs."""
    made = copy.deepcopy(lm)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.data
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / levels
            weight.copy_((weight / scale).round() * scale)
    return made
