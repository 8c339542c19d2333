"""The engine on one GPU, beside `transformers` and `diffusers` and what the GPU can do at most.

    .venv/bin/python scripts/bench_gpu.py [ROW ...] [--json FILE] [--profile] [--tests] [--small]

Every row takes less than two minutes. Both sides of a row are measured in one run, in bfloat16.
MFU is the model's FLOP (6 N + attention, Chowdhery et al. 2022, appendix B) over the measured rate
of matrix products. --profile also writes the ten dearest kernels of a training and of a decoding
step, and how often they made the host wait. --tests runs the test suite's share for GPUs. --small
tries the rows on the CPU, with small models; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from bench_diffusion import N_STEPS, pairs, with_noisy_weights
from gpu_sides import (
    SMALL,
    Constant,
    Drawn,
    Options,
    Shape,
    Work,
    four_modalities,
    our_training,
    ragged_lengths,
    text_alone,
    text_model,
    text_rows,
    their_training,
)
from rounded import manual
from side_by_side import Line, called, check_peers, machine, parsed, parser, report

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import Loader
from mmtok.data.tasks import Task
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.heads.categorical import Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate, stream
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.denoisers import DiTConfig, GridDenoiser
from mmtok.nn.device import resolve_device
from mmtok.nn.transformer import TransformerConfig
from mmtok.train.config import TrainConfig
from mmtok.train.trainer import Trainer

N_FRAMES = 512  # that are drawn


# ---- training


def seconds_per_step(sides: Sequence[Work], options: Options, n: int = 5) -> list[float]:
    """Medians of blocks of n steps, the sides in turn, after three steps to warm up."""
    for side in sides:
        side(3)
    took: list[list[float]] = [[] for _ in sides]
    for _ in range(options.repeats):
        for times, side in zip(took, sides, strict=True):
            start = time.perf_counter()
            side(n)
            times.append((time.perf_counter() - start) / n)
    return [median(times) for times in took]


def peak_gib(work: Work, options: Options) -> float:
    """Memory at its peak in two steps; 0 on a CPU."""
    if not options.on_gpu:
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    work(2)
    return torch.cuda.max_memory_allocated() / 2**30


def mfu_line(what: str, shape: Shape, s: float, options: Options, bar: float) -> Line:
    """The share of the matrix rate, of full rows."""
    rate = shape.n_rows * shape.length / s
    return Line(
        what,
        "positions/s",
        rate,
        "matrix products, TFLOP/s",
        options.flop_per_s / 1e12,
        "MFU",
        rate * shape.flop / options.flop_per_s,
        bar,
    )


def train(options: Options) -> Iterator[Line]:
    """124M, full rows of one document each, beside transformers compiled."""
    shape = options.shape("124M")
    with ExitStack() as stack:
        lm = text_model(shape, options.device)
        batch = text_rows(lm, [shape.length] * shape.n_rows, shape)
        theirs = their_training(lm, shape, options)
        their_s = seconds_per_step([theirs], options)[0]
        their_gib = peak_gib(theirs, options)
        del theirs
        ours = our_training(lm, Constant(lm.vocabulary, batch), shape, options, stack)
        our_s = seconds_per_step([ours], options)[0]
        our_gib = peak_gib(ours, options)
        if options.profile:
            write_profile("training", partial(ours, 2), options)
    n = shape.n_rows * shape.length
    yield mfu_line("training, 124M", shape, our_s, options, 0.48)
    yield Line.ratio(
        "  beside transformers, compiled",
        "positions/s",
        n / our_s,
        "transformers",
        n / their_s,
        1.1,
    )
    if our_gib:
        yield Line.ratio(
            "  memory at its peak", "GiB", our_gib, "transformers", their_gib, 0.5, least=False
        )


def train_large(options: Options) -> Iterator[Line]:
    """350M and 1B, full rows."""
    for name in ("350M", "1B"):
        shape = options.shape(name)
        with ExitStack() as stack:
            lm = text_model(shape, options.device)
            batch = text_rows(lm, [shape.length] * shape.n_rows, shape)
            ours = our_training(lm, Constant(lm.vocabulary, batch), shape, options, stack)
            s = seconds_per_step([ours], options, 3)[0]
        yield mfu_line(f"training, {name}", shape, s, options, 0.50)


def ragged(options: Options) -> Iterator[Line]:
    """Packed documents: real positions per second, over those of full rows."""
    for name in ("124M", "1B"):
        shape = options.shape(name)
        rates = []
        for lengths in ([shape.length] * shape.n_rows, ragged_lengths(shape)):
            with ExitStack() as stack:
                lm = text_model(shape, options.device)
                batch = text_rows(lm, lengths, shape)
                ours = our_training(lm, Constant(lm.vocabulary, batch), shape, options, stack)
                s = seconds_per_step([ours], options, 3)[0]
                rates.append(int((batch.document >= 0).sum()) / s)
        full, packed = rates
        yield Line.ratio(
            f"ragged documents, {name}", "positions/s", packed, "full rows", full, 0.95
        )


def mixed(options: Options) -> Iterator[Line]:
    """Text, speech, pictures and jets with their heads, over text alone, per position."""
    shape = options.shape("124M")
    rates = []
    for make in (text_alone, four_modalities):
        with ExitStack() as stack:
            lm, batch = make(shape, options.device)
            ours = our_training(lm, Constant(lm.vocabulary, batch), shape, options, stack)
            s = seconds_per_step([ours], options)[0]
            rates.append(int((batch.document >= 0).sum()) / s)
    alone, all_four = rates
    yield Line.ratio("four modalities, 124M", "positions/s", all_four, "text alone", alone, 0.85)


def end_to_end(options: Options) -> Iterator[Line]:
    """`Trainer.run` on a token file, its log and its checkpoints, over the bare loop."""
    shape = options.shape("124M")
    n_steps = 60 if options.on_gpu else 4
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lm = text_model(shape, options.device)
        rng = np.random.default_rng(0)
        n_codes = lm.vocabulary.signatures["text"].levels[0]
        examples = [
            {"text": Segment("text", codes=rng.integers(0, n_codes, (n - 3, 1)))}
            for _ in range(20)
            for n in ragged_lengths(shape)
        ]
        path = folder / "tokens.parquet"
        write_tokens(path, lm.vocabulary.signatures, examples)
        loader = Loader(
            [read_tokens(path)],
            [Task((), ("text",))],
            lm.vocabulary,
            {},
            shape.n_rows,
            shape.length,
            seed=0,
        )
        ours = our_training(lm, Constant(lm.vocabulary, loader.batch(0)), shape, options, stack)
        bare = seconds_per_step([ours], options)[0]
        bare_positions = int((loader.batch(0).document >= 0).sum())
        lines: list[dict] = []
        config = TrainConfig(
            steps=n_steps,
            batch_size=shape.n_rows,
            seq_len=shape.length,
            precision="bf16",
            ema_decay=0.0,
            compile=options.on_gpu,
            log_every=n_steps // 4,
            checkpoint_every=n_steps // 2,
        )
        trainer = Trainer(lm, loader, config, folder / "run", lines.append)
        start = time.perf_counter()
        trainer.run()
        trainer_s = time.perf_counter() - start
    # the first window warms up
    rate = median(line["positions_per_s"] for line in lines[1:])
    yield Line.ratio(
        f"training end to end, {n_steps} steps in {trainer_s:.0f} s",
        "positions/s",
        rate,
        "bare loop",
        bare_positions / bare,
        0.95,
    )


# ---- drawing


def open_prompts(modality: str, n_rows: int, n_channels: int = 1) -> list[Document]:
    """Documents whose one segment is still to be drawn."""
    segment = Segment(modality, codes=np.zeros((0, n_channels), np.int64))
    return [Document((segment,), (True,), open_end=True)] * n_rows


def frames_per_s(
    lm: LM, prompts: list[Document], n_frames: int, sampling: Sampling, options: Options
) -> float:
    """Frames of all rows per second: the median of calls that draw so many each."""
    took = []
    for _ in range(max(3, options.repeats // 2) + 1):
        start = time.perf_counter()
        generate(lm, prompts, sampling, torch.Generator(options.device).manual_seed(0))
        options.wait()
        took.append(time.perf_counter() - start)
    return len(prompts) * n_frames / median(took[1:])


def decode(options: Options) -> Iterator[Line]:
    """124M: batch 1 by default and compiled, and batch 64."""
    n_frames = N_FRAMES if options.on_gpu else 20
    shape = options.shape("124M")
    lm = text_model(shape, options.device, n_frames).eval()
    plain = Sampling(precision="bf16")
    one = frames_per_s(lm, open_prompts("text", 1), n_frames, plain, options)
    if options.profile:
        draw = partial(frames_per_s, lm, open_prompts("text", 1), n_frames, plain, options)
        write_profile("decoding", draw, options)
    limit = options.bytes_per_s / (2 * shape.n_weights)
    yield Line(
        "decoding, 124M, batch 1", "tokens/s", one, "by the bandwidth", limit, "tokens/s", one, 2500
    )
    compiled = frames_per_s(
        lm, open_prompts("text", 1), n_frames, replace(plain, compiled=True), options
    )
    yield Line.ratio("  over the compiled kernels", "tokens/s", one, "compiled", compiled, 0.8)
    many = frames_per_s(lm, open_prompts("text", 64), n_frames, plain, options)
    yield Line.ratio("decoding, 124M, batch 64", "tokens/s", many, "batch 1", one, 25)


def decode_1b(options: Options) -> Iterator[Line]:
    """1B at batch 1: the share of the bandwidth."""
    n_frames = 256 if options.on_gpu else 20
    shape = options.shape("1B")
    lm = text_model(shape, options.device, n_frames).eval()
    rate = frames_per_s(lm, open_prompts("text", 1), n_frames, Sampling(precision="bf16"), options)
    limit = options.bytes_per_s / (2 * shape.n_weights)
    yield Line(
        "decoding, 1B, batch 1", "tokens/s", rate, "limit", limit, "share", rate / limit, 0.55, 0.75
    )


def first_token(options: Options) -> Iterator[Line]:
    """From the prompt to the first token, in a warm process, and in the first call."""
    shape = options.shape("124M")
    lm = text_model(shape, options.device).eval()
    codes = np.random.default_rng(0).integers(0, shape.n_ids - 9, (shape.length // 8, 1))
    prompt = Document((Segment("text", codes=codes),), (True,), open_end=True)
    took = []
    for _ in range(6):
        start = time.perf_counter()
        generator = torch.Generator(options.device).manual_seed(0)
        next(stream(lm, [prompt], Sampling(max_frames=200, precision="bf16"), generator))
        took.append(time.perf_counter() - start)
    warm = median(took[2:])
    yield Line("time to the first token, warm", "s", warm, "", None, "s", warm, 0.05, least=False)
    yield Line("  in the first call", "s", took[0], "", None, "s", took[0], 3.0, least=False)


def speech(options: Options) -> Iterator[Line]:
    """Frames of 80 channels of 16 levels at 40 Hz, 124M, batch 1 and 32."""
    n_frames = N_FRAMES if options.on_gpu else 20
    shape = options.shape("124M")
    torch.manual_seed(0)
    signature = Signature("speech", (16,) * 80, frames=n_frames)
    config = DecoderConfig(shape.trunk, {"speech": Parallel()})
    lm = LM(config, Vocabulary([signature])).to(options.device).eval()
    for n_rows, bar, best in ((1, 60.0, 100.0), (32, 400.0, None)):
        prompts = open_prompts("speech", n_rows, 80)
        rate = frames_per_s(lm, prompts, n_frames, Sampling(precision="bf16"), options)
        yield Line(
            f"speech, 40 Hz x 80, batch {n_rows}",
            "frames/s",
            rate,
            "",
            None,
            "x real time",
            rate / 40,
            bar,
            best,
        )


# ---- diffusion


def dit(options: Options) -> Iterator[Line]:
    """A DiT sampler of 25 steps, 64 latents of 32 x 32 x 4, beside diffusers' on equal steps."""
    config = DiTConfig(12, 384, 6)
    n = 64
    size = 32
    if not options.on_gpu:
        config = DiTConfig(2, 32, 2)
        n = 4
        size = 8
    network = with_noisy_weights(GridDenoiser(config, (4, size, size), 2)).to(options.device)
    noise = torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(0))
    for name, ours, theirs in pairs(network, noise.to(options.device), N_STEPS):
        took: list[list[float]] = [[], []]
        for _ in range(options.repeats + 1):
            for times, side in zip(took, (ours, theirs), strict=True):
                start = time.perf_counter()
                side()
                options.wait()
                times.append(time.perf_counter() - start)
        our_s, their_s = [median(times[1:]) for times in took]
        yield Line.ratio(
            f"{name}, {N_STEPS} steps, {n} latents",
            "latents/s",
            n / our_s,
            "diffusers",
            n / their_s,
            1.0,
        )


# ---- optimisers


def optimizers(options: Options) -> Iterator[Line]:
    """Held-out nats of Python's manual after equal time, by Muon and by AdamW."""
    seconds = 25.0 if options.on_gpu else 3.0
    lm = text_model(SMALL, torch.device("cpu"))
    n_codes = lm.vocabulary.signatures["text"].levels[0]
    training, heldout = manual("text", n_codes)
    shape = replace(SMALL, n_rows=16, length=256)
    if options.on_gpu:
        shape = replace(shape, trunk=TransformerConfig.from_depth(8))
    ends = {}
    for name in ("adamw", "muon"):
        with ExitStack() as stack:
            lm = text_model(shape, options.device)
            loader = Drawn(lm.vocabulary, training, shape.n_rows)
            settings = {"optimizer": name, "learning_rate": 2e-3, "warmup": 20}
            step = our_training(lm, loader, shape, options, stack, **settings)
            n_steps = 0
            step(3)
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                step(5)
                n_steps += 5
            ends[name] = held_out_nats(lm, heldout, options)
        print(f"{name}: {n_steps} steps, {ends[name]:.4f} nats a piece on held-out text")
    yield Line.ratio(
        f"held-out nats after {seconds:.0f} s",
        "nats",
        ends["muon"],
        "AdamW",
        ends["adamw"],
        1.0,
        least=False,
    )


@torch.no_grad()
def held_out_nats(lm: LM, documents: list[Document], options: Options) -> float:
    """Nats per predicted position of these documents."""
    batch = pack(lm.vocabulary, [[to_stream(lm.vocabulary, d)] for d in documents])
    lm.eval()
    nats = lm(batch.to(options.device)).total.sum() / batch.predict.sum().to(options.device)
    lm.train()
    return float(nats)


# ---- profiles


def write_profile(name: str, work: Callable[[], object], options: Options) -> None:
    """Print the ten dearest kernels of some work, and how often the host waited."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if options.on_gpu:
        activities.append(ProfilerActivity.CUDA)
    work()
    with profile(activities=activities) as made:
        work()
        options.wait()
    key = "self_cuda_time_total" if options.on_gpu else "self_cpu_time_total"
    print(made.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=80))
    waits = {event.key: event.count for event in made.key_averages() if "Synchronize" in event.key}
    print(f"{name}: the host waited: {waits or 'never'}")


ROWS = {
    row.__name__: row
    for row in (
        train,
        ragged,
        decode,
        decode_1b,
        speech,
        first_token,
        end_to_end,
        mixed,
        train_large,
        dit,
        optimizers,
    )
}
PEERS = {"train": ("transformers", "hub"), "dit": ("diffusers", "bench")}


def options_of_the_line() -> argparse.Namespace:
    """What the command line says."""
    made = parser(__doc__, ROWS, torch.get_num_threads())
    made.add_argument("--profile", action="store_true", help="the dearest kernels, and host waits")
    made.add_argument("--tests", action="store_true", help="run the tests that need a GPU first")
    made.add_argument("--small", action="store_true", help="small models, on the CPU too")
    return parsed(made, ROWS)


def main() -> None:
    """Measure the rows that are named."""
    asked = options_of_the_line()
    device = resolve_device("cpu" if asked.small else None)
    if device.type == "cpu" and not asked.small:
        sys.exit("bench_gpu.py: torch finds no CUDA GPU here; --small tries the rows on the CPU")
    check_peers(asked.rows, PEERS)
    if asked.tests:
        root = Path(__file__).parent.parent
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", root / "tests"])
    options = Options(device, asked.repeats, asked.profile)
    lines = (line for row in asked.rows for line in ROWS[row](options))
    about = machine(["torch", "triton", "transformers"])
    if options.on_gpu:
        about["gpu"] = torch.cuda.get_device_name()
    about |= {
        "matrix_tflop_per_s": options.flop_per_s / 1e12,
        "copy_gb_per_s": options.bytes_per_s / 1e9,
    }
    report(lines, asked.json, machine=about)


if __name__ == "__main__":
    called(main)
