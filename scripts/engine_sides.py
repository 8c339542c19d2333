"""The two sides of bench_engine.py: models with the same weights, data and training steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from mmtok.core.batch import Batch, pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.heads.categorical import Parallel
from mmtok.model.llama import to_llama
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.precision import Precision
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.weight_decay import decay_groups

TRUNK = TransformerConfig(depth=6, width=384, n_heads=6, n_kv_heads=6, feed_forward=1024)
N_IDS = 4096  # in all
N_CODES = 4030  # of the one modality

BLOCK_SHAPES = [
    (TRUNK.width, 3 * TRUNK.width),
    (TRUNK.width, TRUNK.width),
    (TRUNK.width, 2 * TRUNK.feed_forward),
    (TRUNK.feed_forward, TRUNK.width),
]
SHAPES = BLOCK_SHAPES * TRUNK.depth + [(TRUNK.width, N_IDS)]  # of all products with weights
N_WEIGHTS = sum(a * b for a, b in SHAPES)


# ---- the two models


def our_model(n_frames: int | None = None, speech: bool = False) -> LM:
    """An untrained decoder over one modality: image codes, or frames of speech.

    Args:
        n_frames: The fixed count of frames; None where streams end by their end mark.
        speech: Whether the modality is speech (80 channels of 16 levels).
    """
    torch.manual_seed(0)
    if speech:
        signature = Signature("speech", (16,) * 80, frames=n_frames)
        config = DecoderConfig(TRUNK, {"speech": Parallel()})
    else:
        signature = Signature("image", (N_CODES,), frames=n_frames)
        config = DecoderConfig(TRUNK, {})
    vocabulary = Vocabulary([signature])
    assert speech or N_IDS - 2 <= vocabulary.size <= N_IDS
    return LM(config, vocabulary).eval()


def their_model(lm: LM, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same weights as a Llama of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        to_llama(lm, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# ---- training


def documents(lengths: list[int]) -> list[Document]:
    """Documents of one segment whose streams have these lengths, marks included."""
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, N_CODES, (n - 3, 1)) for n in lengths]
    return [Document((Segment("image", codes=c),), (True,)) for c in codes]


def make_step(
    model: nn.Module,
    loss: Callable[[Any], torch.Tensor],
    precision: Precision,
    learning_rate: float = 1e-4,
) -> Callable[[Any], None]:
    """A training step on one batch: autocast, clipped gradients, fused AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(decay_groups(0.01, model), lr=learning_rate, fused=True)

    def step(batch: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(lm: LM, precision: Precision, learning_rate: float = 1e-4) -> Callable[[Batch], None]:
    """A training step of our decoder on a packed batch."""

    def loss(batch: Batch) -> torch.Tensor:
        return lm(batch).total.sum() / int(batch.predict.sum())

    return make_step(lm, loss, precision, learning_rate)


def their_step(lm: LM, precision: Precision) -> Callable[[dict], None]:
    """A training step of the same weights in transformers on a padded batch."""
    model = their_model(lm)

    def loss(batch: dict) -> torch.Tensor:
        return model(**batch, use_cache=False).loss

    return make_step(model, loss, precision)


def padded(streams: list, size: int) -> list[dict]:
    """Batches of `size` streams as transformers takes them, padded to their longest."""
    batches = []
    for start in range(0, len(streams), size):
        rows = [torch.from_numpy(s.ids) for s in streams[start : start + size]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in rows], batch_first=True)
        labels = ids.masked_fill(mask == 0, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def full_rows(lm: LM) -> tuple[Batch, dict]:
    """8 documents of 256 positions as each side takes them; no padding, so theirs has no mask."""
    streams = [to_stream(lm.vocabulary, d) for d in documents([256] * 8)]
    theirs = padded(streams, 8)[0]
    del theirs["attention_mask"]
    return pack(lm.vocabulary, [[s] for s in streams]), theirs


def empty_prompts(modality: str, n_rows: int, n_channels: int = 1) -> list[Document]:
    """Documents whose one segment is still to be sampled."""
    segment = Segment(modality, codes=np.zeros((0, n_channels), np.int64))
    return [Document((segment,), (True,), open_end=True)] * n_rows
