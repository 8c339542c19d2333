"""The engine beside `transformers`, same weights: .venv/bin/python scripts/bench_engine.py [ROW
...] [--json FILE] [--compiled]

Both sides take turns in one run, medians of the repeats; what the machine could do at most is
measured in the same run. On a shared machine only ratios mean much. Both sides compute in what this
machine multiplies faster, bfloat16 or float32 (--precision takes one by name). Shape: 6 layers,
width 384, 6 heads, feed-forward 1024, 4096 ids, tied.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rounded import coarse, divergence, learn, log_probs, manual, nats
from side_by_side import (
    Line,
    machine,
    matrix_products,
    parsed,
    parser,
    reading,
    report,
    turn_about,
)

from mmtok.core.batch import Batch, pack, plan_rows
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.heads.categorical import Parallel
from mmtok.model.generate import generate
from mmtok.model.llama import to_llama
from mmtok.model.lm import LM, DecoderConfig
from mmtok.model.sampling import Sampling
from mmtok.nn.precision import DTYPES, PRECISIONS, Precision, resolve_precision
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.weight_decay import decay_groups

TRUNK = TransformerConfig(depth=6, width=384, n_heads=6, n_kv_heads=6, feed_forward=1024)
N_IDS, N_CODES = 4096, 4030  # ids in all; codes of the one modality

SHAPES = [
    (TRUNK.width, 3 * TRUNK.width),
    (TRUNK.width, TRUNK.width),
    (TRUNK.width, 2 * TRUNK.feed_forward),
    (TRUNK.feed_forward, TRUNK.width),
]
SHAPES = SHAPES * TRUNK.depth + [(TRUNK.width, N_IDS)]  # of the products with weights
N_WEIGHTS = sum(a * b for a, b in SHAPES)


@dataclass(frozen=True)
class Setting:
    """What the words on the command line ask for."""

    repeats: int
    compiled: bool
    precision: Precision  # resolved

    @property
    def dtype(self) -> torch.dtype:
        """Of both sides' products."""
        return DTYPES[self.precision]


# ---- the two models


def our_model(frames: int | None = None, speech: bool = False) -> LM:
    """Untrained, over one modality: codes of images, or frames of speech; frames: their fixed
    count.
    """
    torch.manual_seed(0)
    one = (
        Signature("speech", (16,) * 80, frames=frames)
        if speech
        else Signature("image", (N_CODES,), frames=frames)
    )
    vocabulary = Vocabulary([one])
    lm = LM(DecoderConfig(TRUNK, {"speech": Parallel()} if speech else {}), vocabulary)
    assert speech or N_IDS - 2 <= vocabulary.size <= N_IDS
    return lm.eval()


def their_model(lm: LM, dtype: torch.dtype = torch.float32):
    """The same weights as a Llama of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        to_llama(lm, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# ---- training


def documents(lengths: list[int]) -> list[Document]:
    """One segment each, so long that the stream has as many positions."""
    rng = np.random.default_rng(0)
    return [
        Document((Segment("image", codes=rng.integers(0, N_CODES, (n - 3, 1))),), (True,))
        for n in lengths
    ]


def stepper(
    model, loss: Callable[[object], torch.Tensor], precision: Precision, rate: float = 1e-4
) -> Callable[[object], None]:
    """A training step on one batch: products in this precision, clipped gradients, fused AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(decay_groups(0.01, model), lr=rate, fused=True)

    def step(batch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_stepper(lm: LM, precision: Precision, rate: float = 1e-4) -> Callable[[Batch], None]:
    """A training step of our decoder on a packed batch."""
    return stepper(
        lm, lambda batch: lm(batch).total.sum() / int(batch.predict.sum()), precision, rate
    )


def their_stepper(lm: LM, precision: Precision) -> Callable[[dict], None]:
    """A training step of the same weights in transformers on a padded batch."""
    model = their_model(lm)
    return stepper(model, lambda batch: model(**batch, use_cache=False).loss, precision)


def padded(streams: list, size: int) -> list[dict]:
    """Batches of `size` streams as transformers takes them, padded to their longest."""
    made = []
    for start in range(0, len(streams), size):
        ids = [torch.from_numpy(s.ids) for s in streams[start : start + size]]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        made.append(
            {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        )
    return made


def full_rows(lm: LM) -> tuple[Batch, dict]:
    """8 documents of 256 positions, as each side takes them; theirs without a mask, since there is
    no padding.
    """
    streams = [to_stream(lm.vocabulary, d) for d in documents([256] * 8)]
    theirs = padded(streams, 8)[0]
    del theirs["attention_mask"]
    return pack(lm.vocabulary, [[s] for s in streams]), theirs


def train_full(setting: Setting) -> Iterator[Line]:
    """Full rows of 256, 8 of them; compiled too where asked, ours alone."""
    lm = our_model()
    ours, theirs = full_rows(lm)
    ours_step, theirs_step, (products, n_flop) = (
        our_stepper(lm, setting.precision),
        their_stepper(lm, setting.precision),
        matrix_products(2048, SHAPES, setting.dtype),
    )
    sides = [lambda: ours_step(ours), lambda: theirs_step(theirs), products]
    if setting.compiled:
        compiled = our_model()
        compiled.model.compile_blocks()
        compiled_step = our_stepper(compiled, setting.precision)
        sides.append(lambda: compiled_step(ours))
    a, b, c, *more = turn_about(sides, setting.repeats)
    flop = 2048 * (
        6 * N_WEIGHTS + 12 * TRUNK.depth * TRUNK.width * 256
    )  # Chowdhery et al. 2022, appendix B
    for how, s in zip(("", ", compiled"), (a, *more)):
        yield Line(
            f"training, 8 full rows of 256{how}",
            "tokens/s",
            2048 / s,
            "transformers",
            2048 / b,
            "ratio",
            b / s,
            1.04,
        )
        yield Line("  share of the matrix-product rate", "GFLOP/s", flop / s / 1e9, "products alone", n_flop / c / 1e9,
                   "share", flop / s / (n_flop / c), 0.85, 0.92)  # fmt: skip


def train_ragged(setting: Setting) -> Iterator[Line]:
    """Documents of 16 to 512 positions, log-uniform: packed rows against padded batches, random and
    of like lengths, in as many steps.
    """
    lm = our_model()
    lengths = (
        np.exp(np.random.default_rng(1).uniform(np.log(16), np.log(513), 64)).astype(int).tolist()
    )
    streams = [to_stream(lm.vocabulary, d) for d in documents(lengths)]
    random, bucketed = padded(streams, 8), padded(sorted(streams, key=len), 8)
    rows = [[streams[i] for i in row] for row in plan_rows(lengths, 512)]
    ours = [
        pack(lm.vocabulary, rows[a:b], 512)
        for a, b in pairwise(np.linspace(0, len(rows), len(random) + 1).astype(int))
    ]
    ours_step, theirs_step = (
        our_stepper(lm, setting.precision),
        their_stepper(lm, setting.precision),
    )
    sides = [
        lambda: [ours_step(x) for x in ours],
        *(lambda x=x: [theirs_step(y) for y in x] for x in (random, bucketed)),
    ]
    a, b, c = turn_about(sides, max(1, setting.repeats // 3))
    total = sum(lengths)
    yield Line(
        "training, ragged documents",
        "tokens/s",
        total / a,
        "random padded batches",
        total / b,
        "ratio",
        b / a,
        2.0,
    )
    yield Line(
        "  beside batches of like lengths",
        "tokens/s",
        total / a,
        "bucketed",
        total / c,
        "ratio",
        c / a,
        1.2,
    )


def train_auto(setting: Setting) -> Iterator[Line]:
    """What precision "auto" chooses beside the better one of both by name, on one row of 256: where
    bf16 is emulated, more takes minutes.
    """
    chosen = resolve_precision("auto", torch.device("cpu"))
    lm = our_model()
    batch = pack(lm.vocabulary, [[to_stream(lm.vocabulary, d) for d in documents([256])]])
    steppers = [our_stepper(our_model(), precision) for precision in (chosen, "float32", "bf16")]
    auto, float32, bf16 = turn_about(
        [lambda step=step: step(batch) for step in steppers], max(1, setting.repeats // 3)
    )
    best = min(float32, bf16)
    yield Line(
        f"training in auto, {chosen} here",
        "tokens/s",
        256 / auto,
        "better by name",
        256 / best,
        "ratio",
        best / auto,
        0.97,
    )


def memory(setting: Setting) -> Iterator[Line]:
    """What three training steps add to a process's largest size: the allocator's luck moves it by a
    tenth, so medians here too.
    """
    grown = lambda side: float(subprocess.run([sys.executable, __file__, "--memory-of", side, "--threads", str(torch.get_num_threads()),
                                               "--precision", setting.precision],
                                              check=True, capture_output=True, text=True).stdout.split()[-1])  # fmt: skip
    ours, theirs = map(
        median, zip(*((grown("ours"), grown("theirs")) for _ in range(setting.repeats)))
    )
    yield Line(
        "training, memory at its peak",
        "MiB",
        ours,
        "transformers",
        theirs,
        "ratio",
        ours / theirs,
        1.0,
        least=False,
    )


def grow(side: str, precision: Precision) -> None:
    """The child of `memory`: prints MiB that the steps took, once all is imported."""
    lm = our_model()
    batches = dict(zip(("ours", "theirs"), full_rows(lm)))
    if side == "theirs":
        their_model(lm)  # so that its modules are imported
    before = largest_mib()
    step = {"ours": our_stepper, "theirs": their_stepper}[side](lm, precision)
    for _ in range(3):
        step(batches[side])
    print(largest_mib() - before)


def largest_mib() -> float:
    """This process's largest size so far.

    Linux's own word: getrusage's maximum is handed down by the parent, which is larger here.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


# ---- decoding


def open_prompts(modality: str, n_rows: int, n_channels: int = 1) -> list[Document]:
    """So many documents that are still empty, to be drawn."""
    return [
        Document(
            (Segment(modality, codes=np.zeros((0, n_channels), np.int64)),), (True,), open_end=True
        )
    ] * n_rows


def decode(
    n_rows: int, setting: Setting, n_frames: int = 128, compiled: bool = False
) -> tuple[float, float, float, float]:
    """Tokens/s of ours and of `generate` in the setting's precision, of ours in int8, all drawing
    from everything; and bytes/s of reading.
    """
    lm = our_model(n_frames)
    theirs = their_model(lm, setting.dtype)
    prompts, v = open_prompts("image", n_rows), lm.vocabulary
    ids = torch.tensor([[v.document_mark, v.begin("image")]] * n_rows)
    draw = lambda way: generate(lm, prompts, way, torch.Generator().manual_seed(0))
    plain, int8 = (
        Sampling(precision=setting.precision, compiled=compiled),
        Sampling(precision="int8"),
    )

    def peer() -> None:
        with torch.inference_mode():
            theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                min_new_tokens=n_frames,
                max_new_tokens=n_frames,
            )

    read, n_bytes = reading(setting.dtype.itemsize * N_WEIGHTS)
    *times, s = turn_about(
        [lambda: draw(plain), peer, lambda: draw(int8), read], max(3, setting.repeats // 2)
    )
    return *(n_rows * n_frames / t for t in times), n_bytes / s


def decode_1(setting: Setting) -> Iterator[Line]:
    """One stream: in the setting's precision, compiled too where asked; with int8 weights."""
    ours, theirs, rounded, bandwidth = decode(1, setting)
    limit = bandwidth / (setting.dtype.itemsize * N_WEIGHTS)
    share = lambda ours: Line(
        "  of what the bandwidth allows",
        "tokens/s",
        ours,
        f"by {bandwidth / 1e9:.1f} GB/s at most",
        limit,
        "share",
        ours / limit,
        0.6,
    )
    yield Line(
        f"decoding, batch 1, {setting.precision}, uncompiled",
        "tokens/s",
        ours,
        "generate",
        theirs,
        "ratio",
        ours / theirs,
        1.6,
    )
    yield share(ours)
    try:
        peer = f"torchao {version('torchao')} not compared; ours {setting.precision}"
    except PackageNotFoundError:
        peer = f"torchao not installed; ours {setting.precision}"
    yield Line(
        "decoding, batch 1, int8 weights",
        "tokens/s",
        rounded,
        peer,
        ours,
        "ratio",
        rounded / ours,
        1.3,
    )
    if setting.compiled:
        ours, theirs, _, bandwidth = decode(1, setting, compiled=True)
        limit = bandwidth / (setting.dtype.itemsize * N_WEIGHTS)
        yield Line(
            f"decoding, batch 1, {setting.precision}, compiled",
            "tokens/s",
            ours,
            "generate",
            theirs,
            "ratio",
            ours / theirs,
            2.5,
            4.0,
        )
        yield share(ours)


def rounding(setting: Setting) -> Iterator[Line]:
    """What int8 weights cost a trained decoder on text that it has not seen: perplexity, and
    divergence beside that of four bits.
    """
    lm = our_model()
    learned, unseen = manual("image", N_CODES)
    learn(lm, our_stepper(lm, setting.precision, 1e-3), learned, n_steps=200)
    full, int8 = (log_probs(lm, unseen, "image", precision) for precision in ("float32", "int8"))
    a, b = (float(np.exp(nats(x, unseen))) for x in (int8, full))
    yield Line(
        "perplexity with int8 weights", "", a, "float32", b, "ratio", a / b, 1.01, least=False
    )
    a, b = (
        divergence(full, x) for x in (int8, log_probs(coarse(lm, 7), unseen, "image", "float32"))
    )
    yield Line(
        "  divergence from the full ones",
        "nats",
        a,
        "of four bits",
        b,
        "ratio",
        a / b,
        0.2,
        least=False,
    )


def decode_many(setting: Setting) -> Iterator[Line]:
    """8 and 32 streams at once, in the setting's precision."""
    for n_rows in (8, 32):
        ours, theirs, *_ = decode(n_rows, setting)
        yield Line(
            f"decoding, batch {n_rows}, {setting.precision}, uncompiled",
            "tokens/s",
            ours,
            "generate",
            theirs,
            "ratio",
            ours / theirs,
            1.7,
            3.0,
        )


def speech(setting: Setting) -> Iterator[Line]:
    """Frames of 80 channels of 16 levels at 40 Hz, one stream."""
    n_frames = 128
    lm = our_model(n_frames, speech=True)
    draw = lambda way: generate(
        lm, open_prompts("speech", 1, 80), way, torch.Generator().manual_seed(0)
    )
    ways = [Sampling(precision=p) for p in ("float32", "bf16", "int8")]
    for way, s in zip(
        ways, turn_about([lambda way=way: draw(way) for way in ways], max(3, setting.repeats // 2))
    ):
        yield Line(
            f"speech, 40 Hz, 80 channels, {way.precision}",
            "frames/s",
            n_frames / s,
            "",
            None,
            "x real time",
            n_frames / s / 40,
            8.0,
            16.0,
        )


def first_frame(setting: Setting) -> Iterator[Line]:
    """`mmtok sample` from its start to its end, one picture of the tests' tiny run: no less than to
    its first frame.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.conftest import TINY, make_tiny_data, tiny_overrides

    with tempfile.TemporaryDirectory() as folder:
        home = make_tiny_data(Path(folder) / "data")
        run = lambda *words: subprocess.run(
            [sys.executable, "-m", "mmtok", *map(str, words)], check=True, capture_output=True
        )
        run("train", TINY, *tiny_overrides(home), "--out", f"{folder}/run")
        sample = lambda: run(
            "sample",
            f"{folder}/run",
            "--prompt",
            "dark",
            "--to",
            "image",
            "-n",
            1,
            "-o",
            f"{folder}/out",
        )
        torch_alone = lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)
        ours, bare = turn_about([sample, torch_alone], 3)
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
        first_frame,
    )
}


def main() -> None:
    made = parser(__doc__.splitlines()[0], ROWS, threads=2)
    made.add_argument("--compiled", action="store_true", help="compiled decoding too")
    made.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="of both sides' products"
    )
    made.add_argument("--memory-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    words = parsed(made, ROWS)
    precision = resolve_precision(words.precision, torch.device("cpu"))
    setting = Setting(words.repeats, words.compiled, precision)
    if words.memory_of:
        return grow(words.memory_of, precision)
    rate = lambda work, amount: amount / turn_about([work], 7)[0] / 1e9
    limits = {
        "matrix_gflop_per_s": rate(*matrix_products(2048, SHAPES, setting.dtype)),
        "bandwidth_gb_per_s": rate(*reading(setting.dtype.itemsize * N_WEIGHTS)),
    }
    lines = (line for name in words.rows for line in ROWS[name](setting))
    report(
        lines,
        words.json,
        machine=machine(("torch", "transformers", "numpy")) | {"precision": precision},
        limits=limits,
    )


if __name__ == "__main__":
    main()
