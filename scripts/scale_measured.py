"""What scripts/scale.py takes as measured, measured again on one core: python
scripts/scale_measured.py [RUN]

Text is the Python manual's, which every Python brings along (pydoc_data), and ids drawn by Zipf's
law. RUN: the bytes of its token files.
"""

from __future__ import annotations

import os
import pydoc_data.topics
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from bench import jets, speech
from scale import Plan, block_bytes
from side_by_side import machine, turn_about
from torch.profiler import ProfilerActivity, profile

from mmtok.core.segment import Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import Loader
from mmtok.data.tasks import Task
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.nn.precision import resolve_precision
from mmtok.nn.transformer import Transformer, TransformerConfig
from mmtok.tokenizers.text import SentencePieceConfig
from mmtok.train.tokenizer_fit import products_in

REPEATS = 7
TRUNKS = (
    TransformerConfig(1, 256, 4, 4, 704),
    TransformerConfig(1, 512, 8, 2, 2048),
    TransformerConfig(1, 512, 8, 8, 1376),
)


def text() -> Iterator[str]:
    """Pieces of English: how many bytes one holds, and how fast they are found."""
    manual = "\n".join(pydoc_data.topics.topics.values())
    passages = [manual[i : i + 2000] for i in range(0, len(manual), 2000)]
    tokenizer = SentencePieceConfig(n_pieces=8000).fit(passages)
    (s,) = turn_about([lambda: tokenizer.encode_batch(passages)], REPEATS)
    n_bytes, n_pieces = (
        sum(len(p.encode()) for p in passages),
        sum(map(len, tokenizer.encode_batch(passages))),
    )
    yield (
        f"text: {n_bytes / n_pieces:.2f} bytes a piece, {n_bytes / s / 1e6:.1f} MB/s,"
        f" {n_pieces / s / 1e6:.2f} M positions/s"
    )


def loading() -> Iterator[str]:
    """Documents of 1,000 positions of Zipf's ids: bytes on disk, and how fast rows of 4,096 are
    packed of them.
    """
    rng, signature = np.random.default_rng(0), Signature("text", (32_000,))
    share = 1 / np.arange(1, 32_001)
    documents = [
        Segment("text", codes=rng.choice(32_000, (1000, 1), p=share / share.sum()))
        for _ in range(1000)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        write_tokens(path, {"text": signature}, ({"text": s} for s in documents))
        yield f"token file of text: {path.stat().st_size / 1e6:.2f} bytes a position"
        loader = Loader(
            [read_tokens(path)], [Task((), ("text",))], Vocabulary([signature]), {}, 8, 4096, 0
        )
        (s,) = turn_about([lambda: [loader.batch(step) for step in range(20)]], REPEATS)
        n = sum(int((loader.batch(step).document >= 0).sum()) for step in range(20))
        yield f"loading: {n / s / 1e6:.2f} M positions/s"


def unpacking() -> Iterator[str]:
    """How fast a token file of such documents is unpacked into the flat copy that is mapped, and
    what rows cost that are read from it.
    """
    rng, signature = np.random.default_rng(0), Signature("text", (32_000,))
    documents = [Segment("text", codes=rng.zipf(1.2, (1000, 1)) % 32_000) for _ in range(1000)]
    with tempfile.TemporaryDirectory() as folder:
        path, n = Path(folder) / "t.parquet", 10_000
        write_tokens(path, {"text": signature}, ({"text": documents[i % 1000]} for i in range(n)))
        drop = lambda: shutil.rmtree(path.parent / ".flat", ignore_errors=True)
        (s,) = turn_about([lambda: (drop(), read_tokens(path, map_from=0))], REPEATS)
        yield f"unpacking: {n * 1000 / s / 1e6:.2f} M positions/s"
        rows, opened = (
            rng.integers(0, n, 3000).tolist(),
            (
                read_tokens(path),
                read_tokens(path, map_from=0),
            ),
        )
        a, b = turn_about(
            [lambda file=file: [file.segment("text", i) for i in rows] for file in opened], REPEATS
        )
        yield (
            f"a random row: {a / 3000 * 1e6:.1f} us from memory, {b / 3000 * 1e6:.1f} us from"
            " the map"
        )


def backward() -> Iterator[str]:
    """The most that a block's backward pass holds at once, beside what was kept for it and the
    weights' gradients, in the precision that a training takes on this machine.
    """
    precision = resolve_precision("auto", torch.device("cpu"))
    for config in TRUNKS:
        shares = []
        for again in (0, 1):
            model, n = Transformer(config, n_ids=1), 1024
            model.checkpoint_activations(again)
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            x, position, document = (
                torch.randn(2, n, config.width),
                torch.arange(n).expand(2, n),
                torch.zeros(2, n, dtype=torch.long),
            )
            with products_in(precision):
                value = model(x.requires_grad_(), position, document).sum()
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                value.backward()
            events = sorted(
                (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"),
                key=lambda e: e.start_ns(),
            )
            most = max(np.cumsum([e.nbytes() for e in events]))
            plan = Plan(
                1,
                config.width,
                n_heads=config.n_heads,
                n_kv_heads=config.n_kv_heads,
                feed_forward=config.feed_forward,
                seq_len=n,
                precision=precision,
            )
            shares.append(most / (2 * n) / block_bytes(plan))
        yield (
            f"a block's backward pass in {precision}, width {config.width}: {shares[0]:.2f} of what"
            f" the block keeps, {shares[1]:.2f} when it is computed again"
        )


def files(run: Path) -> Iterator[str]:
    """Bytes per frame of every field of a run's token files, without what is stored beside the
    frames.
    """
    for path in sorted((run / "tokens").glob("*.parquet")):
        about, columns = pq.ParquetFile(path).metadata, {}
        for column in (
            about.row_group(g).column(c)
            for g in range(about.num_row_groups)
            for c in range(about.num_columns)
        ):
            name = column.path_in_schema.partition(".list")[0]
            columns[name] = columns.get(name, 0) + column.total_compressed_size
        opened = read_tokens(path)
        told = ", ".join(
            f"{f} {columns[f] / max(1, opened.lengths(f).sum()):.2f}" for f in opened.fields
        )
        yield f"{path.name}: bytes a frame: {told}"


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(
            0, {min(os.sched_getaffinity(0))}
        )  # sentencepiece takes all cores otherwise
    torch.set_num_threads(1)
    print(machine(("torch", "numpy", "sentencepiece")))
    for rows in (
        text(),
        loading(),
        unpacking(),
        backward(),
        speech(REPEATS),
        jets(REPEATS),
        *(files(Path(run)) for run in sys.argv[1:]),
    ):
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
