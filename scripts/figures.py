"""What `bench_engine.py` prints: figures beside a bar, medians of runs taken in turns, and what they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch


@dataclass(frozen=True)
class Line:
    """One figure: ours and the peer's in the same unit (None where there is no peer), what is held against the bar, and the bar."""

    what: str
    unit: str
    ours: float
    peer: str
    theirs: float | None
    held: str
    value: float
    bar: float
    stretch: float | None = None
    least: bool = True  # the bar is the least value; else the most

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.least else self.value <= self.bar

    def __str__(self) -> str:
        theirs = f"{self.peer} {self.theirs:.4g}" if self.theirs is not None else self.peer or "-"
        sign, stretch = ">=" if self.least else "<=", f" (stretch {self.stretch:g})" if self.stretch else ""
        return (f"{self.what:<44}{self.ours:>10.4g} {self.unit:<13}{theirs:<36}{self.held} {self.value:<8.3g}"
                f"bar {sign} {self.bar:g}{stretch}: {'met' if self.met else 'MISSED'}")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turn_about(sides: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each; the first turn only warms up."""
    turns = [[seconds(side) for side in sides] for _ in range(repeats + 1)][1:]
    return [statistics.median(x) for x in zip(*turns)]


def matrix_products(n: int, shapes: list[tuple[int, int]]) -> tuple[Callable[[], object], float]:
    """The bf16 products of one training step of `n` positions with weights of these shapes, forward and both backward; and their FLOP."""
    made = [[torch.randn(*shape).bfloat16() for shape in ((n, a), (a, b), (n, b))] for a, b in shapes]
    return lambda: [(x @ w, y @ w.T, x.T @ y) for x, w, y in made], 6 * n * sum(a * b for a, b in shapes)


def reading(n_bytes: int) -> tuple[Callable[[], object], float]:
    """Reading so many bytes 10 times, by products of a float32 matrix with a vector; and the bytes read in all."""
    weights, x = torch.randn(n_bytes // 4 // 1024, 1024), torch.randn(1024)
    return lambda: [weights @ x for _ in range(10)], 10 * 4 * weights.numel()


def machine(threads: int) -> dict:
    """What the figures were measured on."""
    model = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    return {"processor": model or platform.machine(), "cores": os.cpu_count(), "threads": threads, "load": round(os.getloadavg()[0], 1),
            "python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "numpy")}}  # fmt: skip
