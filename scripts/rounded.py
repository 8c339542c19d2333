"""What rounded weights cost a trained decoder on text that it was not trained on.

For bench_engine.py. Perplexity alone says little, because rounding helps as often as it hurts: two
levels on each side of 0 cost it 0.03 %. The divergence from the unrounded model's distributions
cannot be below 0, and grows fivefold for each bit that is taken away.
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

CHUNK_PIECES = 253  # with its marks a chunk fills 256 positions
HELD_OUT = 10  # every tenth chunk


def manual(modality: str, n_pieces: int) -> tuple[list[Document], list[Document]]:
    """Python's own manual (pydoc_data) in chunks, as codes of a modality.

    Returns:
        The documents for training, and those held out.
    """
    text = "\n".join(pydoc_data.topics.topics.values())
    lines = [text[i : i + 2000] for i in range(0, len(text), 2000)]
    segments = SentencePieceConfig(n_pieces).fit(lines).encode_batch(lines)
    codes = np.concatenate([s.codes for s in segments])
    starts = range(0, len(codes) - CHUNK_PIECES, CHUNK_PIECES)
    chunks = [
        Document((Segment(modality, codes=codes[i : i + CHUNK_PIECES]),), (True,)) for i in starts
    ]
    training = [chunk for i, chunk in enumerate(chunks) if i % HELD_OUT]
    return training, chunks[::HELD_OUT]


def learn(
    lm: LM, step: Callable[[Batch], None], documents: list[Document], n_steps: int, n_rows: int = 8
) -> None:
    """Trains for n_steps steps on n_rows random documents each."""
    rng = np.random.default_rng(0)
    for _ in range(n_steps):
        chosen = rng.choice(len(documents), n_rows, replace=False)
        step(pack(lm.vocabulary, [[to_stream(lm.vocabulary, documents[i])] for i in chosen]))
    lm.eval()


@torch.inference_mode()
def log_probs(
    lm: LM, documents: list[Document], modality: str, precision: WeightPrecision
) -> torch.Tensor:
    """Log-probabilities (N, n_codes + 1) at every code, as sampling computes them.

    precision: Of the weights.
    """
    n_rows = len(documents)
    batch = pack(lm.vocabulary, [[to_stream(lm.vocabulary, d)] for d in documents])
    h = KVCacheDecoder(lm.model, precision, batch_size=n_rows).forward(lm.embed(batch))
    h = h[:, 1 : 1 + CHUNK_PIECES].flatten(0, 1)  # from the begin mark on
    return FrameDecoder(lm, modality, precision, n_rows).id_logits(h).float().log_softmax(-1)


def nll(log_p: torch.Tensor, documents: list[Document]) -> float:
    """Mean negative log-likelihood of the codes, in nats."""
    codes = torch.from_numpy(np.concatenate([d.segments[0].codes for d in documents])).long()
    return -float(log_p.gather(1, codes).mean())


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Mean KL(p || q) in nats: how much more a code drawn from p costs under q."""
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def coarse(lm: LM, n_levels: int) -> LM:
    """A copy whose linear weights have 2 n_levels + 1 values per output channel."""
    made = copy.deepcopy(lm)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.data
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / n_levels
            weight.copy_((weight / scale).round() * scale)
    return made
