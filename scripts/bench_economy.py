"""Economical trunks at equal processor time: mixture-of-depths, parameter tokens, growth.

    python scripts/bench_economy.py TEXT.txt [--seconds 120] [--seed 0] [--only dense mod growth]

Bytes of a text file, the last tenth held out. Every trunk trains for so many processor seconds of
one thread; the learning rate falls to zero over them. Held-out bits per byte are likelihoods: of
mixture-of-depths by the predictor. Beside it stands what the highest weights of a row would give,
which look ahead and are none. `growth` trains a small trunk of parameter tokens, grows it twofold,
trains it for half as many steps as the large one has from scratch, and compares the two.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmtok.core.batch import Batch, pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.core.vocabulary import Vocabulary
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate
from mmtok.model.lm import LM, DecoderConfig, evaluating
from mmtok.nn.perceiver import Perceiver, PerceiverConfig
from mmtok.nn.tokenformer import Pattention
from mmtok.nn.transformer import RoutedBlock, Transformer, TransformerConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig
from mmtok.train.trainer import make_optimizer

LENGTH = 254  # bytes of a document: a row of 256 with its two marks
N_ROWS = 8
N_HELDOUT = 96  # documents
WIDTH = 128
DENSE = TransformerConfig(depth=6, width=WIDTH, n_heads=4, n_kv_heads=4, feed_forward=352)
TRUNKS = {
    "dense": DENSE,
    "mod": replace(DENSE, mod_capacity=0.125),
    # as many parameters: n (M + M) for M M, and for the three maps of a feed-forward
    "tokens": replace(DENSE, attn_tokens=(64,), ffn_tokens=(528,)),
}
SMALL = replace(DENSE, attn_tokens=(32,), ffn_tokens=(264,))
LARGE = replace(DENSE, attn_tokens=(64,), ffn_tokens=(528,))
GROWN = replace(DENSE, attn_tokens=(32, 32), ffn_tokens=(264, 264))
RATE = 2e-3
WARMUP = 0.05  # share of the training


class Text:
    """Documents of a text's bytes."""

    def __init__(self, path: Path):
        self.vocabulary = Vocabulary([BytesConfig().build().signature])
        data = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64)
        n = len(data) * 9 // 10
        self.training = data[:n]
        self.heldout = data[n:]

    def batch(self, starts: np.ndarray, data: np.ndarray) -> Batch:
        """Rows of the documents that begin at these bytes."""
        rows = []
        for start in starts:
            codes = data[start : start + LENGTH, None]
            document = Document((Segment("text", codes=codes, truncated=True),), (True,))
            rows.append([to_stream(self.vocabulary, document)])
        return pack(self.vocabulary, rows)

    def step(self, rng: np.random.Generator) -> Batch:
        """A training batch."""
        return self.batch(rng.integers(0, len(self.training) - LENGTH, N_ROWS), self.training)

    def held_out(self) -> Batch:
        """The same documents each time, spread over what is held out."""
        starts = np.linspace(0, len(self.heldout) - LENGTH - 1, N_HELDOUT).astype(int)
        return self.batch(starts, self.heldout)


def bits_per_byte(lm: LM, text: Text, by_weight: bool = False) -> float:
    """Held-out bits per byte.

    by_weight: keep the positions of the highest weights of each row, as training does: no
    likelihood.
    """
    with evaluating(lm):
        for block in lm.model.blocks():
            if by_weight and isinstance(block, RoutedBlock):
                block.training = True
        batch = text.held_out()
        total = float(lm(batch).total.sum())
    return total / int(batch.predict.sum()) / math.log(2)


def kept_share(lm: LM, text: Text) -> float:
    """The share of positions that pass through routed blocks by the predictor."""
    shares = []

    def look(module: torch.nn.Module, inputs: tuple, _: object) -> None:
        assert isinstance(module, RoutedBlock)
        kept = module.router.predicted(inputs[0]) > 0
        shares.append(float(kept.double().mean()))

    hooks = [b.register_forward_hook(look) for b in lm.model.blocks() if isinstance(b, RoutedBlock)]
    with evaluating(lm):
        lm(text.held_out())
    for hook in hooks:
        hook.remove()
    return float(np.mean(shares))


def train(lm: LM, text: Text, seed: int, progress: Callable[[int], float]) -> tuple[int, float]:
    """Train until progress(step) is 1; steps made, and processor seconds of them.

    progress: the share of the training that is done.
    """
    optimizer = make_optimizer(lm, TrainConfig(learning_rate=RATE))
    rng = np.random.default_rng(seed)
    lm.train()
    start = time.process_time()
    step = 0
    while (done := progress(step)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, done / WARMUP + 0.01) * (1 - done)
        batch = text.step(rng)
        loss = lm(batch).total.sum() / batch.predict.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    return step, time.process_time() - start


def made(config: TransformerConfig, text: Text, seed: int) -> LM:
    """An untrained decoder."""
    torch.manual_seed(seed)
    return LM(DecoderConfig(config), text.vocabulary)


def within(seconds: float) -> Callable[[int], float]:
    """The progress of a training of so many processor seconds."""
    start = time.process_time()
    return lambda step: (time.process_time() - start) / seconds


def bytes_per_second(lm: LM, text: Text, n: int = 200) -> float:
    """Bytes drawn by one row per processor second, at best of three."""
    prompt = Document((Segment("text", codes=np.zeros((0, 1), np.int64)),), (True,), True)
    sampling = Sampling(max_frames=n, precision="float32")
    best = 0.0
    for seed in range(3):
        start = time.process_time()
        [drawn] = generate(lm, [prompt], sampling, torch.Generator().manual_seed(seed))
        best = max(best, len(drawn.segment) / (time.process_time() - start))
    return best


def equal_time(name: str, text: Text, seconds: float, seed: int) -> dict:
    """The figures of a trunk after so many processor seconds."""
    lm = made(TRUNKS[name], text, seed)
    n_steps, took = train(lm, text, seed, within(seconds))
    lm.eval()
    figures = {
        "trunk": name,
        "parameters": sum(p.numel() for p in lm.parameters()),
        "steps": n_steps,
        "processor_s": round(took, 1),
        "bits_per_byte": bits_per_byte(lm, text),
        "bytes_per_processor_s": bytes_per_second(lm, text),
    }
    if name == "mod":
        figures["bits_by_weight"] = bits_per_byte(lm, text, by_weight=True)
        figures["kept_share"] = kept_share(lm, text)
    return figures


def growth(text: Text, seconds: float, seed: int) -> dict:
    """A small trunk grown twofold against the large one from scratch."""
    small = made(SMALL, text, seed)
    n_small, _ = train(small, text, seed, within(seconds / 2))
    large = made(LARGE, text, seed)
    n_large, took_large = train(large, text, seed + 1, within(seconds))
    grown = made(GROWN, text, seed)
    grown.load_state_dict(small.state_dict(), strict=False)
    for module in grown.modules():
        if isinstance(module, Pattention):
            module.silence(1)
    batch = text.held_out()
    with evaluating(small), evaluating(grown):
        is_equal = torch.equal(small(batch).total, grown(batch).total)
    n_half = n_large // 2
    _, took = train(grown, text, seed + 1, lambda step: step / n_half)
    figures = {"small": bits_per_byte(small, text), "large": bits_per_byte(large, text)}
    return {
        "trunk": "growth",
        "bit_equal_before_training": is_equal,
        **figures,
        "grown": bits_per_byte(grown, text),
        "steps": {"small": n_small, "large": n_large, "grown": n_half},
        "processor_s": {"large": round(took_large, 1), "grown": round(took, 1)},
    }


def perceiver() -> dict:
    """Processor milliseconds of reading n inputs by 64 latents, and by a block of the trunk."""
    torch.manual_seed(0)
    encoder = Perceiver(PerceiverConfig(n_latents=64, depth=2), WIDTH, WIDTH)
    block = Transformer(replace(DENSE, depth=1), 1)
    milliseconds: dict[str, dict[int, float]] = {"perceiver": {}, "one_block": {}}
    for n in (1_000, 2_000, 4_000, 8_000, 16_000):
        x = torch.randn(1, n, WIDTH)
        position = torch.arange(n)[None]
        ways: dict[str, Callable[[], object]] = {
            "perceiver": partial(encoder, x),
            "one_block": partial(block, x, position, position * 0, one_per_row=True),
        }
        for name, read in ways.items():
            milliseconds[name][n] = min(_milliseconds(read) for _ in range(3))
    return {"trunk": "perceiver", "processor_ms": milliseconds}


def _milliseconds(read: Callable[[], object]) -> float:
    start = time.process_time()
    with torch.no_grad():
        read()
    return round(1000 * (time.process_time() - start), 1)


def main() -> None:
    """Print a JSON line for each trunk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=(*TRUNKS, "growth", "perceiver"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = Text(given.text)
    for name in given.only or (*TRUNKS, "growth", "perceiver"):
        if name == "perceiver":
            figures = perceiver()
        elif name == "growth":
            figures = growth(text, given.seconds, given.seed)
        else:
            figures = equal_time(name, text, given.seconds, given.seed)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
