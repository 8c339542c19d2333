"""What scripts/scale.py takes as measured, measured again on one core.

    python scripts/scale_measured.py [RUN]

Text is Python's own manual (pydoc_data), and ids drawn by Zipf's law. RUN adds the sizes of its
token files.
"""

from __future__ import annotations

import argparse
import os
import pydoc_data.topics
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from bench import jets, speech
from scale import Plan, block_bytes
from side_by_side import machine, median_seconds
from torch.profiler import ProfilerActivity, profile

from mmtok.core.segment import Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import Loader
from mmtok.data.tasks import Task
from mmtok.data.tokens import TokenFile, read_tokens, write_tokens
from mmtok.nn.precision import resolve_precision
from mmtok.nn.transformer import Transformer, TransformerConfig
from mmtok.tokenizers.text import SentencePieceConfig
from mmtok.train.network_fit import products_in

REPEATS = 7
TRUNKS = (
    TransformerConfig(1, 256, 4, 4, 704),
    TransformerConfig(1, 512, 8, 2, 2048),
    TransformerConfig(1, 512, 8, 8, 1376),
)


def text() -> Iterator[str]:
    """Pieces of English: how many bytes one holds, and how fast they are found."""
    manual = "\n".join(pydoc_data.topics.topics.values())
    chunks = [manual[i : i + 2000] for i in range(0, len(manual), 2000)]
    tokenizer = SentencePieceConfig(n_pieces=8000).fit(chunks)
    (s,) = median_seconds([lambda: tokenizer.encode_batch(chunks)], REPEATS)
    n_bytes = sum(len(chunk.encode()) for chunk in chunks)
    n_pieces = sum(map(len, tokenizer.encode_batch(chunks)))
    yield (
        f"text: {n_bytes / n_pieces:.2f} bytes a piece, {n_bytes / s / 1e6:.1f} MB/s,"
        f" {n_pieces / s / 1e6:.2f} M positions/s"
    )


def loading() -> Iterator[str]:
    """Documents of 1,000 positions with Zipf's ids.

    Bytes on disk, and how fast they are packed into rows of 4,096.
    """
    rng = np.random.default_rng(0)
    signature = Signature("text", (32_000,))
    zipf = 1 / np.arange(1, 32_001)
    p = zipf / zipf.sum()
    documents = [Segment("text", codes=rng.choice(32_000, (1000, 1), p=p)) for _ in range(1000)]
    tasks = [Task((), ("text",))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        write_tokens(path, {"text": signature}, ({"text": s} for s in documents))
        yield f"token file of text: {path.stat().st_size / 1e6:.2f} bytes a position"
        vocabulary = Vocabulary([signature])
        loader = Loader([read_tokens(path)], tasks, vocabulary, {}, 8, 4096, 0)
        (s,) = median_seconds([lambda: [loader.batch(step) for step in range(20)]], REPEATS)
        n = sum(int((loader.batch(step).document >= 0).sum()) for step in range(20))
        yield f"loading: {n / s / 1e6:.2f} M positions/s"


def unpacking() -> Iterator[str]:
    """How fast a token file is unpacked into its memory-mapped copy, and what a row of it costs."""
    rng = np.random.default_rng(0)
    signature = Signature("text", (32_000,))
    documents = [Segment("text", codes=rng.zipf(1.2, (1000, 1)) % 32_000) for _ in range(1000)]
    n = 10_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        write_tokens(path, {"text": signature}, ({"text": documents[i % 1000]} for i in range(n)))

        def unpack() -> None:
            shutil.rmtree(path.parent / ".flat", ignore_errors=True)
            read_tokens(path, map_from=0)

        (s,) = median_seconds([unpack], REPEATS)
        yield f"unpacking: {n * 1000 / s / 1e6:.2f} M positions/s"
        rows = rng.integers(0, n, 3000).tolist()

        def read_rows(file: TokenFile) -> None:
            for i in rows:
                file.segment("text", i)

        files = (read_tokens(path), read_tokens(path, map_from=0))
        memory_s, mapped_s = median_seconds([partial(read_rows, f) for f in files], REPEATS)
        yield (
            f"a random row: {memory_s / 3000 * 1e6:.1f} us from memory,"
            f" {mapped_s / 3000 * 1e6:.1f} us from the map"
        )


def backward() -> Iterator[str]:
    """The peak of a block's backward pass, relative to what the block keeps for it.

    Without the weights' gradients; in the precision that a training takes on this machine.
    """
    precision = resolve_precision("auto", torch.device("cpu"))
    for config in TRUNKS:
        kept, again = (peak_share(config, precision, n) for n in (0, 1))
        yield (
            f"a block's backward pass in {precision}, width {config.width}: {kept:.2f} of what"
            f" the block keeps, {again:.2f} when it is computed again"
        )


def peak_share(config: TransformerConfig, precision: str, n_checkpointed: int) -> float:
    """Peak bytes of the backward pass of one block over scale.py's `block_bytes`."""
    n_rows = 2
    n = 1024
    model = Transformer(config, n_ids=1)
    model.checkpoint_activations(n_checkpointed)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    x = torch.randn(n_rows, n, config.width, requires_grad=True)
    position = torch.arange(n).expand(n_rows, n)
    document = torch.zeros(n_rows, n, dtype=torch.long)
    with products_in(precision):
        value = model(x, position, document).sum()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        value.backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    peak = max(np.cumsum([e.nbytes() for e in events]))
    plan = Plan(
        1,
        config.width,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        feed_forward=config.feed_forward,
        seq_len=n,
        precision=precision,
    )
    return peak / (n_rows * n) / block_bytes(plan)


def files(run: Path) -> Iterator[str]:
    """Bytes per frame of every field of a run's token files, without the fields' infos."""
    for path in sorted((run / "tokens").glob("*/*.parquet")):
        metadata = pq.ParquetFile(path).metadata
        sizes: Counter[str] = Counter()
        for g in range(metadata.num_row_groups):
            group = metadata.row_group(g)
            for c in range(metadata.num_columns):
                column = group.column(c)
                name = column.path_in_schema.partition(".list")[0]
                sizes[name] += column.total_compressed_size
        opened = read_tokens(path)
        shown = [f"{f} {sizes[f] / max(1, opened.lengths(f).sum()):.2f}" for f in opened.fields]
        yield f"{path.name}: bytes a frame: {', '.join(shown)}"


def main() -> None:
    """Prints all measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="adds its token files")
    runs = parser.parse_args().runs
    for run in runs:
        if not list(run.glob("tokens/*.parquet")):
            parser.error(f"{run} is no run with token files (tokens/*.parquet)")
    if hasattr(os, "sched_setaffinity"):  # sentencepiece takes all cores otherwise
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    print(machine(("torch", "numpy", "sentencepiece")))
    measurements = [text(), loading(), unpacking(), backward(), speech(REPEATS), jets(REPEATS)]
    measurements += [files(run) for run in runs]
    for lines in measurements:
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
