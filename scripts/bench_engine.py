"""The decoder beside `transformers`, with the same weights.

    .venv/bin/python scripts/bench_engine.py [ROW ...] [--json FILE] [--compiled]

Both sides alternate in one run, and figures are medians of the repeats; what the machine can do at
most is measured in the same run. On a shared machine only ratios mean much. Both sides compute in
the precision that this machine multiplies faster, bfloat16 or float32 (--precision names one).
Shape: 6 layers, width 384, 6 heads, feed-forward 1024, 4096 ids, tied.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from engine_sides import (
    N_CODES,
    N_WEIGHTS,
    SHAPES,
    TRUNK,
    documents,
    empty_prompts,
    full_rows,
    our_model,
    our_step,
    padded,
    their_model,
    their_step,
)
from rounded import coarse, divergence, learn, log_probs, manual, nll
from side_by_side import (
    Line,
    called,
    check_peers,
    machine,
    matrix_products,
    median_seconds,
    parsed,
    parser,
    reading,
    report,
)

from mmtok.core.batch import pack, plan_rows
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate
from mmtok.model.queue import DrawQueue
from mmtok.nn.precision import DTYPES, PRECISIONS, Precision, resolve_precision


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    repeats: int
    compiled: bool
    precision: Precision  # resolved: not "auto"

    @property
    def dtype(self) -> torch.dtype:
        """Of both sides' matrix products."""
        return DTYPES[self.precision]


# ---- training


def train_full(options: Options) -> Iterator[Line]:
    """8 full rows of 256 positions; with --compiled, ours compiled too."""
    lm = our_model()
    our_batch, their_batch = full_rows(lm)
    products, n_flop = matrix_products(2048, SHAPES, options.dtype)
    sides = [
        partial(our_step(lm, options.precision), our_batch),
        partial(their_step(lm, options.precision), their_batch),
        products,
    ]
    names = [""]
    if options.compiled:
        compiled = our_model()
        compiled.model.compile_blocks()
        sides.append(partial(our_step(compiled, options.precision), our_batch))
        names.append(", compiled")
    uncompiled_s, their_s, products_s, *more_s = median_seconds(sides, options.repeats)
    # Chowdhery et al. 2022, appendix B
    flop = 2048 * (6 * N_WEIGHTS + 12 * TRUNK.depth * TRUNK.width * 256)
    for name, s in zip(names, (uncompiled_s, *more_s), strict=True):
        yield Line.ratio(
            f"training, 8 full rows of 256{name}",
            "tokens/s",
            2048 / s,
            "transformers",
            2048 / their_s,
            bar=1.04,
        )
        peak = n_flop / products_s
        yield Line(
            "  share of the matrix-product rate",
            "GFLOP/s",
            flop / s / 1e9,
            "products alone",
            peak / 1e9,
            "share",
            flop / s / peak,
            0.85,
            stretch=0.92,
        )


def train_ragged(options: Options) -> Iterator[Line]:
    """Documents of 16 to 512 positions, log-uniform: packed rows against padded batches.

    The padded batches are random ones, and ones of documents of similar lengths; all sides take as
    many steps.
    """
    lm = our_model()
    rng = np.random.default_rng(1)
    lengths = np.exp(rng.uniform(np.log(16), np.log(513), 64)).astype(int).tolist()
    streams = [to_stream(lm.vocabulary, d) for d in documents(lengths)]
    random = padded(streams, 8)
    bucketed = padded(sorted(streams, key=len), 8)
    rows = [[streams[i] for i in row] for row in plan_rows(lengths, 512)]
    bounds = np.linspace(0, len(rows), len(random) + 1).astype(int)
    packed = [pack(lm.vocabulary, rows[a:b], 512) for a, b in pairwise(bounds)]
    ours = our_step(lm, options.precision)
    theirs = their_step(lm, options.precision)

    def each(step: Callable[[Any], None], batches: list) -> None:
        for batch in batches:
            step(batch)

    sides = [
        partial(each, ours, packed),
        partial(each, theirs, random),
        partial(each, theirs, bucketed),
    ]
    packed_s, random_s, bucketed_s = median_seconds(sides, max(1, options.repeats // 3))
    n = sum(lengths)
    yield Line.ratio(
        "training, ragged documents",
        "tokens/s",
        n / packed_s,
        "random padded batches",
        n / random_s,
        bar=2.0,
    )
    yield Line.ratio(
        "  beside batches of like lengths",
        "tokens/s",
        n / packed_s,
        "bucketed",
        n / bucketed_s,
        bar=1.2,
    )


def train_auto(options: Options) -> Iterator[Line]:
    """The precision that "auto" chooses beside the better of float32 and bf16.

    On one row of 256: where bf16 is emulated, more would take minutes.
    """
    chosen = resolve_precision("auto", torch.device("cpu"))
    lm = our_model()
    batch = pack(lm.vocabulary, [[to_stream(lm.vocabulary, d) for d in documents([256])]])
    sides = [partial(our_step(our_model(), p), batch) for p in (chosen, "float32", "bf16")]
    auto_s, *named_s = median_seconds(sides, max(1, options.repeats // 3))
    yield Line.ratio(
        f"training in auto, {chosen} here",
        "tokens/s",
        256 / auto_s,
        "better by name",
        256 / min(named_s),
        bar=0.97,
    )


def memory(options: Options) -> Iterator[Line]:
    """How much three training steps raise a process's peak memory, each in a process of its own.

    The allocator moves it by a tenth from run to run, so these are medians too.
    """
    measured = {"ours": [], "theirs": []}
    for _ in range(options.repeats):
        for side, values in measured.items():
            values.append(_grown_mib(side, options))
    ours, theirs = (median(values) for values in measured.values())
    yield Line.ratio(
        "training, memory at its peak", "MiB", ours, "transformers", theirs, bar=1.0, least=False
    )


def _grown_mib(side: str, options: Options) -> float:
    """What a child process prints that runs `print_grown_mib`."""
    command = [sys.executable, __file__, "--memory-of", side]
    command += ["--threads", str(torch.get_num_threads()), "--precision", options.precision]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def print_grown_mib(side: str, precision: Precision) -> None:
    """Prints by how many MiB the steps raise this process's peak, once all is imported."""
    lm = our_model()
    our_batch, their_batch = full_rows(lm)
    if side == "theirs":
        their_model(lm)  # imports its modules
    before = peak_mib()
    if side == "ours":
        step = partial(our_step(lm, precision), our_batch)
    else:
        step = partial(their_step(lm, precision), their_batch)
    for _ in range(3):
        step()
    print(peak_mib() - before)


def peak_mib() -> float:
    """This process's peak memory so far, from Linux's /proc.

    getrusage's maximum is inherited from the parent, which is larger here.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


# ---- decoding


@dataclass(frozen=True)
class DecodingRates:
    """Tokens/s of three ways to sample, and bytes/s of reading memory."""

    ours: float
    theirs: float
    int8: float
    bandwidth: float

    def limit(self, dtype: torch.dtype) -> float:
        """Tokens/s of one stream when each token reads all weights once."""
        return self.bandwidth / (dtype.itemsize * N_WEIGHTS)


def decode(n_rows: int, options: Options, compiled: bool = False) -> DecodingRates:
    """Samples 128 frames in each of n_rows streams: ours, `generate`, and ours with int8 weights.

    All sides sample from the full distribution, without top-k or top-p.
    """
    n_frames = 128
    lm = our_model(n_frames)
    theirs = their_model(lm, options.dtype)
    prompts = empty_prompts("image", n_rows)
    vocabulary = lm.vocabulary
    ids = torch.tensor([[vocabulary.document_mark, vocabulary.begin("image")]] * n_rows)

    def ours(sampling: Sampling) -> None:
        generate(lm, prompts, sampling, torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def peer() -> None:
        theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            min_new_tokens=n_frames,
            max_new_tokens=n_frames,
        )

    read, n_bytes = reading(options.dtype.itemsize * N_WEIGHTS)
    sides = [
        partial(ours, Sampling(precision=options.precision, compiled=compiled)),
        peer,
        partial(ours, Sampling(precision="int8")),
        read,
    ]
    *decoding_s, reading_s = median_seconds(sides, max(3, options.repeats // 2))
    return DecodingRates(*(n_rows * n_frames / s for s in decoding_s), n_bytes / reading_s)


def decode_1(options: Options) -> Iterator[Line]:
    """One stream: in the chosen precision, with int8 weights, and compiled with --compiled."""
    rates = decode(1, options)
    yield _beside_generate(1, options, rates, bar=1.6)
    yield _share_of_bandwidth(options, rates)
    try:
        peer = f"torchao {version('torchao')} not compared; ours {options.precision}"
    except PackageNotFoundError:
        peer = f"torchao not installed; ours {options.precision}"
    yield Line.ratio(
        "decoding, batch 1, int8 weights", "tokens/s", rates.int8, peer, rates.ours, bar=1.3
    )
    if options.compiled:
        rates = decode(1, options, compiled=True)
        yield _beside_generate(1, options, rates, bar=2.5, stretch=4.0, compiled=True)
        yield _share_of_bandwidth(options, rates)


def _beside_generate(
    n_rows: int,
    options: Options,
    rates: DecodingRates,
    bar: float,
    stretch: float | None = None,
    compiled: bool = False,
) -> Line:
    how = "compiled" if compiled else "uncompiled"
    return Line.ratio(
        f"decoding, batch {n_rows}, {options.precision}, {how}",
        "tokens/s",
        rates.ours,
        "generate",
        rates.theirs,
        bar,
        stretch,
    )


def _share_of_bandwidth(options: Options, rates: DecodingRates) -> Line:
    limit = rates.limit(options.dtype)
    return Line(
        "  of what the bandwidth allows",
        "tokens/s",
        rates.ours,
        f"by {rates.bandwidth / 1e9:.1f} GB/s at most",
        limit,
        "share",
        rates.ours / limit,
        0.6,
    )


def rounding(options: Options) -> Iterator[Line]:
    """What int8 weights cost a trained decoder on text held out from its training.

    Its perplexity, and the divergence from the full weights beside that of four-bit weights.
    """
    lm = our_model()
    training, heldout = manual("image", N_CODES)
    learn(lm, our_step(lm, options.precision, 1e-3), training, n_steps=200)
    full = log_probs(lm, heldout, "image", "float32")
    int8 = log_probs(lm, heldout, "image", "int8")
    four_bits = log_probs(coarse(lm, 7), heldout, "image", "float32")
    perplexity = [float(np.exp(nll(x, heldout))) for x in (int8, full)]
    yield Line.ratio(
        "perplexity with int8 weights",
        "",
        perplexity[0],
        "float32",
        perplexity[1],
        bar=1.01,
        least=False,
    )
    yield Line.ratio(
        "  divergence from the full ones",
        "nats",
        divergence(full, int8),
        "of four bits",
        divergence(full, four_bits),
        bar=0.2,
        least=False,
    )


def decode_many(options: Options) -> Iterator[Line]:
    """8 and 32 streams at once, in the chosen precision."""
    for n_rows in (8, 32):
        rates = decode(n_rows, options)
        yield _beside_generate(n_rows, options, rates, bar=1.7, stretch=3.0)


def speech(options: Options) -> Iterator[Line]:
    """Frames of 80 channels of 16 levels at 40 Hz, one stream."""
    n_frames = 128
    lm = our_model(n_frames, speech=True)
    prompts = empty_prompts("speech", 1, 80)

    def draw(precision: str) -> None:
        generate(lm, prompts, Sampling(precision=precision), torch.Generator().manual_seed(0))

    precisions = ("float32", "bf16", "int8")
    sides = [partial(draw, precision) for precision in precisions]
    times = median_seconds(sides, max(3, options.repeats // 2))
    for precision, s in zip(precisions, times, strict=True):
        yield Line(
            f"speech, 40 Hz, 80 channels, {precision}",
            "frames/s",
            n_frames / s,
            "",
            None,
            "x real time",
            n_frames / s / 40,
            8.0,
            stretch=16.0,
        )


def queue(options: Options) -> Iterator[Line]:
    """48 pictures of which 8 to 248 codes are missing: a queue of 16 rows against batches of 16."""
    n_frames = 256
    lm = our_model(n_frames)
    rng = np.random.default_rng(0)
    missing = np.geomspace(8, 248, 48).astype(int)[rng.permutation(48)]
    codes = rng.integers(0, N_CODES, (n_frames, 1))
    prompts = [
        Document((Segment("image", codes=codes[: n_frames - n]),), (True,), open_end=True)
        for n in missing
    ]
    sampling = Sampling(precision=options.precision)

    def queued() -> None:
        waiting = DrawQueue(lm, "image", sampling, rows=16)
        for seed, prompt in enumerate(prompts):
            waiting.put(prompt, seed)
        assert len(dict(waiting.drain())) == len(prompts)

    def batches() -> None:
        for start in range(0, len(prompts), 16):
            some = prompts[start : start + 16]
            generate(lm, some, sampling, torch.Generator().manual_seed(0))

    ours, theirs = median_seconds([queued, batches], max(3, options.repeats // 2))
    yield Line(
        "48 pictures, 8 to 248 codes missing: queue of 16 rows",
        "codes/s",
        missing.sum() / ours,
        "batches of 16",
        missing.sum() / theirs,
        "ratio",
        theirs / ours,
        1.2,
    )


def first_frame(options: Options) -> Iterator[Line]:
    """`mmtok sample` from start to end, one picture of the tests' tiny run.

    This bounds the time to the first frame.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.conftest import TINY, make_tiny_data, tiny_overrides

    def mmtok(*words: object) -> None:
        command = [sys.executable, "-m", "mmtok", *map(str, words)]
        subprocess.run(command, check=True, capture_output=True)

    def import_torch() -> None:
        subprocess.run([sys.executable, "-c", "import torch"], check=True)

    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        home = make_tiny_data(Path(folder) / "data")
        mmtok("train", TINY, *tiny_overrides(home), "--out", run)
        prompt = ["--prompt", "dark", "--to", "image"]
        sample = partial(mmtok, "sample", run, *prompt, "-n", 1, "-o", f"{folder}/out")
        ours, bare = median_seconds([sample, import_torch], 3)
    yield Line(
        "mmtok sample, to its end",
        "s",
        ours,
        "import torch alone",
        bare,
        "s",
        ours,
        3.0,
        least=False,
    )


ROWS = {
    row.__name__: row
    for row in (
        train_full,
        train_ragged,
        train_auto,
        memory,
        decode_1,
        rounding,
        decode_many,
        speech,
        queue,
        first_frame,
    )
}

# row -> package, extra
PEERS = {
    row: ("transformers", "hub")
    for row in ("train_full", "train_ragged", "memory", "decode_1", "decode_many")
}


def limits(options: Options) -> dict[str, float]:
    """What the machine does at most: matrix products and reading memory."""
    found = {}
    for name, (work, amount) in {
        "matrix_gflop_per_s": matrix_products(2048, SHAPES, options.dtype),
        "bandwidth_gb_per_s": reading(options.dtype.itemsize * N_WEIGHTS),
    }.items():
        (s,) = median_seconds([work], 7)
        found[name] = amount / s / 1e9
    return found


def main() -> None:
    """Runs the rows that the command line names."""
    made = parser(__doc__.splitlines()[0], ROWS, threads=2)
    add = made.add_argument
    add("--compiled", action="store_true", help="compiled decoding too")
    add("--precision", choices=PRECISIONS, default="auto", help="of both sides' products")
    add("--memory-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    words = parsed(made, ROWS)
    precision = resolve_precision(words.precision, torch.device("cpu"))
    if words.memory_of:
        print_grown_mib(words.memory_of, precision)
        return
    check_peers(words.rows, PEERS)
    options = Options(words.repeats, words.compiled, precision)
    about = machine(("torch", "transformers", "numpy")) | {"precision": precision}
    lines = (line for name in words.rows for line in ROWS[name](options))
    report(lines, words.json, machine=about, limits=limits(options))


if __name__ == "__main__":
    called(main)
