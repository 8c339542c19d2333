"""What bench_gpu.py measures: shapes, models, batches, and the training of either side."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmtok.core.batch import Batch, pack, plan_rows
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import Batches
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.model.llama import to_llama
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.precision import matmul_rate
from mmtok.nn.transformer import TransformerConfig
from mmtok.train.config import TrainConfig
from mmtok.train.trainer import Trainer

LENGTH = 2048  # positions of a row


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, and the rows of a training step."""

    name: str
    trunk: TransformerConfig
    n_ids: int
    n_rows: int
    length: int = LENGTH

    @property
    def n_weights(self) -> int:
        """Of the matrices, the output layer included and the embedding left out."""
        t = self.trunk
        shared = t.n_kv_heads / t.n_heads
        attention = int((2 + 2 * shared) * t.width**2)
        return t.depth * (attention + 3 * t.width * t.feed_forward) + self.n_ids * t.width

    @property
    def flop(self) -> float:
        """Per position of a training step."""
        return 6 * self.n_weights + 12 * self.trunk.depth * self.trunk.width * self.length


SHAPES = {
    "124M": Shape("124M", TransformerConfig(12, 768, 12, 12, 2048), 32_000, 16),
    "350M": Shape("350M", TransformerConfig(24, 1024, 16, 16, 2816), 32_000, 8),
    "1B": Shape("1B", TransformerConfig(16, 2048, 32, 8, 8192), 128_256, 4),
}
SMALL = Shape("small", TransformerConfig(2, 64, 4, 2, 128), 500, 2, 64)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    device: torch.device
    repeats: int
    profile: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the figures mean something."""
        return self.device.type == "cuda"

    def shape(self, name: str) -> Shape:
        """The shape of this name, or the small one."""
        return SHAPES[name] if self.on_gpu else SMALL

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    @property
    def flop_per_s(self) -> float:
        """Of matrix products."""
        return _flop_per_s(self.device)

    @property
    def bytes_per_s(self) -> float:
        """Of a copy, read and written."""
        return _bytes_per_s(self.device)


@cache
def _flop_per_s(device: torch.device) -> float:
    n = 8192 if device.type == "cuda" else 256
    return matmul_rate(device, torch.bfloat16, n, 0.5)


@cache
def _bytes_per_s(device: torch.device) -> float:
    n = 2**30 if device.type == "cuda" else 2**22
    x = torch.empty(n, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    took = []
    for _ in range(20):
        start = time.perf_counter()
        y.copy_(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return 2 * n / min(took)


# ---- models and data


def text_model(shape: Shape, device: torch.device, n_frames: int | None = None) -> LM:
    """An untrained decoder over text pieces, so many ids in all."""
    torch.manual_seed(0)
    marks = Vocabulary([Signature("text", (1,))]).size - 1
    signature = Signature("text", (shape.n_ids - marks,), frames=n_frames)
    return LM(DecoderConfig(shape.trunk), Vocabulary([signature])).to(device)


def text_rows(lm: LM, lengths: Sequence[int], shape: Shape) -> Batch:
    """Documents of these lengths, marks included, packed into the shape's rows."""
    rng = np.random.default_rng(0)
    n_codes = lm.vocabulary.signatures["text"].levels[0]
    streams = []
    for n in lengths:
        codes = rng.integers(0, n_codes, (n - 3, 1))
        streams.append(to_stream(lm.vocabulary, Document((Segment("text", codes=codes),), (True,))))
    rows = plan_rows(lengths, shape.length)[: shape.n_rows]
    return pack(lm.vocabulary, [[streams[i] for i in row] for row in rows], shape.length)


def ragged_lengths(shape: Shape) -> list[int]:
    """Of documents from 1/32 of a row to a whole one, log-uniform, enough for a step."""
    rng = np.random.default_rng(1)
    least = np.log(max(8, shape.length // 32))
    n = 16 * shape.n_rows
    return np.exp(rng.uniform(least, np.log(shape.length), n)).astype(int).tolist()


class Constant:
    """The same batch at every step."""

    is_pure = True

    def __init__(self, vocabulary: Vocabulary, batch: Batch):
        self.vocabulary = vocabulary
        self._batch = batch

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch."""
        return self._batch


class Drawn:
    """Batches of random documents, a function of the step."""

    is_pure = True

    def __init__(self, vocabulary: Vocabulary, documents: list[Document], n_rows: int):
        self.vocabulary = vocabulary
        self._documents = documents
        self._n_rows = n_rows

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng(step)
        chosen = rng.choice(len(self._documents), self._n_rows, replace=False)
        rows = [[to_stream(self.vocabulary, self._documents[i])] for i in chosen]
        return pack(self.vocabulary, rows)


# ---- training

Work = Callable[[int], None]  # so many steps


def our_training(
    lm: LM, loader: Batches, shape: Shape, options: Options, stack: ExitStack, **settings: Any
) -> Work:
    """Our trainer without its log and checkpoints."""
    config = TrainConfig(
        steps=100_000,
        batch_size=shape.n_rows,
        seq_len=shape.length,
        learning_rate=1e-4,
        ema_decay=0.0,
        precision="bf16",
        compile=options.on_gpu,
    )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    trainer = Trainer(lm.train(), loader, replace(config, **settings), folder, print)
    stack.enter_context(trainer.feed)

    def run(n: int) -> None:
        launched: deque = deque()
        for _ in range(n):
            launched.append(trainer._launch())
            if len(launched) > trainer.steps_ahead:
                trainer._result(launched.popleft())
        options.wait()

    return run


def their_training(lm: LM, shape: Shape, options: Options) -> Work:
    """The same weights in transformers, compiled whole."""
    model = their_model(lm, torch.float32, options).train()
    ids = torch.randint(0, shape.n_ids, (shape.n_rows, shape.length), device=options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward: Any = model
    if options.on_gpu:
        forward = torch.compile(model)

    def run(n: int) -> None:
        for _ in range(n):
            with torch.autocast(options.device.type, torch.bfloat16):
                loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        options.wait()

    return run


def their_model(lm: LM, dtype: torch.dtype, options: Options) -> nn.Module:
    """The same weights as a Llama of transformers."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        to_llama(lm, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(
            options.device
        )


# ---- several modalities


def text_alone(shape: Shape, device: torch.device) -> tuple[LM, Batch]:
    """Ragged documents of text."""
    lm = text_model(shape, device)
    return lm, text_rows(lm, ragged_lengths(shape), shape)


def four_modalities(shape: Shape, device: torch.device) -> tuple[LM, Batch]:
    """As many documents of each modality, of the lengths of `ragged_lengths`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    signatures = [
        Signature("text", (shape.n_ids // 2,)),
        Signature("speech", (16,) * 80),
        Signature("image", (shape.n_ids // 4,)),
        Signature("jets", (41, 61, 61), descending=True),
        Signature("voice", latent_size=8),
    ]
    heads = {"speech": Parallel(), "jets": Chained(), "voice": FrameDiffusion()}
    vocabulary = Vocabulary(signatures)
    lm = LM(DecoderConfig(shape.trunk, heads, totals={"jets": 8}), vocabulary).to(device)
    lengths = ragged_lengths(shape)
    streams = []
    for k, n in enumerate(lengths):
        signature = signatures[k % len(signatures)]
        if signature.latent_size:
            latents = rng.standard_normal((n - 3, signature.latent_size)).astype(np.float32)
            segment = Segment(signature.modality, latents=latents)
        else:
            codes = np.stack([rng.integers(0, size, n - 3) for size in signature.levels], 1)
            if signature.descending:
                codes = codes[np.lexsort(codes.T[::-1])[::-1]]
            segment = Segment(signature.modality, codes=codes)
        streams.append(to_stream(vocabulary, Document((segment,), (True,))))
    rows = plan_rows(lengths, shape.length)[: shape.n_rows]
    return lm, pack(vocabulary, [[streams[i] for i in row] for row in rows], shape.length)
