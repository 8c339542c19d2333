"""Main memory of every process of a sharded training, at several sizes of the decoder.

    python scripts/scale_memory.py [--depths 4 8 16] [--processes 4] [--replicas 1]

Each size is a `mmtok train` of two steps on the CPU, from the untrained decoder to the finished
model, with a checkpoint at each step: so what is measured includes building, saving and exporting.
The blocks' width is the same at all sizes. Prints the peak of each process and how much it grows
per parameter.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import machine

RECIPE = """
from mmtok.data.tasks import Task
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.text import TextFile
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="memory",
    sources=(TextFile("text.txt", chunk_chars=24),),
    tokenizers={"text": BytesConfig()},
    tasks=(Task((), ("text",)),),
    model=DecoderConfig(TransformerConfig(DEPTH, 1024, 8, 8, 2752)),
    train=TrainConfig(
        steps=2, batch_size=4, seq_len=32, checkpoint_every=1, precision="float32", fsdp=True
    ),
)
"""


def main() -> None:
    """Measure, and print."""
    if sys.argv[1:2] == ["--process"]:
        process(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=1)
    asked = parser.parse_args()
    facts = machine(["torch"])
    print(
        f"{facts['processor']}, torch {facts['torch']}: {asked.processes} processes in groups of"
        f" {asked.processes // asked.replicas}"
    )
    sizes = []
    peaks = []
    for depth in asked.depths:
        n, by_rank = measured(depth, asked.processes, asked.replicas)
        sizes.append(n)
        peaks.append(by_rank)
        shown = ", ".join(f"{x / 1e6:,.0f}" for x in by_rank)
        print(f"{n / 1e6:.1f} M parameters: peak of each process in MB: {shown}", flush=True)
    if len(sizes) > 1:
        slopes = np.polyfit(sizes, peaks, 1)[0]
        print(f"bytes per parameter: {', '.join(f'{x:.1f}' for x in slopes)}")


def measured(depth: int, n_processes: int, replicas: int) -> tuple[int, list[int]]:
    """How many parameters a decoder has, and the peak of each process that trains it, in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text("What is measured is the memory of a process. " * 60)
        (folder / "recipe.py").write_text(RECIPE.replace("DEPTH", str(depth)))
        words = ["train", "recipe.py", "--out", "run"]
        if replicas > 1:
            words += ["--train.replicas", str(replicas)]
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        subprocess.run(
            [
                *torchrun,
                "--nproc-per-node",
                str(n_processes),
                str(Path(__file__).resolve()),
                "--process",
                *words,
            ],
            check=True,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        n_bytes = (folder / "run" / "model.safetensors").stat().st_size
        peaks = [int((folder / f"peak-{rank}").read_text()) for rank in range(n_processes)]
    return n_bytes // 4, peaks


def process(*words: str) -> None:
    """One process of the training; writes its peak when it is done."""
    from mmtok.cli import main as mmtok

    code = mmtok(list(words))
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    Path(f"peak-{os.environ['RANK']}").write_text(str(int(peak) * 1024))
    sys.exit(code)


if __name__ == "__main__":
    main()
