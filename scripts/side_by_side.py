"""What the benchmarks measure and print with: turns of ours and a peer's in one run, figures beside
a bar, the machine and its limits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from mmtok.io.files import write_text


@dataclass(frozen=True)
class Line:
    """One figure: ours and the peer's in the same unit (None where there is no peer), what is held
    against the bar, and the bar.

    least: the bar is the least value; else the most. wrong: what went wrong; the bar is then
    missed, however good the figure.
    """

    what: str
    unit: str
    ours: float
    peer: str
    theirs: float | None
    held: str
    value: float
    bar: float
    stretch: float | None = None
    least: bool = True
    wrong: str = ""

    @property
    def met(self) -> bool:
        """Whether the value keeps to the bar, and nothing went wrong."""
        return not self.wrong and (self.value >= self.bar if self.least else self.value <= self.bar)

    def __str__(self) -> str:
        theirs = f"{self.peer} {self.theirs:.4g}" if self.theirs is not None else self.peer or "-"
        sign, stretch = (
            ">=" if self.least else "<=",
            (f" (stretch {self.stretch:g})" if self.stretch else ""),
        )
        held = f"{self.held} {self.value:.3g}"
        return (
            f"{self.what:<44}{self.ours:>10.4g} {self.unit:<13}{theirs:<36}{held:<20}bar {sign}"
            f" {self.bar:g}{stretch}:"
            f" {'met' if self.met else 'MISSED'}{self.wrong and f' ({self.wrong})'}"
        )


# ---- time


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turn_about(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each side, which take turns, backwards in every other one, as who goes
    after whom counts too.

    The first turn only warms up.
    """
    took: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for i in range(len(sides))[:: 1 if turn % 2 else -1]:
            took[i].append(seconds(sides[i]))
    return [statistics.median(x[1:]) for x in took]


# ---- the machine

TELLING = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "amx_bf16")
LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
)  # make a machine behave like an older one


def machine(packages: Sequence[str]) -> dict:
    """What the figures were measured on, with the versions of `packages`."""
    model = next(
        (
            x.split(":")[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if x.startswith("model name")
        ),
        "",
    )
    return {"processor": model or platform.machine(), "flags": cpu_flags(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1), "python": platform.python_version(), **{name: version(name) for name in packages}}  # fmt: skip


def cpu_flags() -> str:
    """The instructions that decide how fast a CPU multiplies, as far as it and the environment let
    them be used.
    """
    text = Path("/proc/cpuinfo").read_text()
    flags = next(
        (line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), []
    )
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return " ".join([*(flag for flag in TELLING if flag in flags), *limits])


def matrix_products(
    n: int, shapes: list[tuple[int, int]], dtype: torch.dtype
) -> tuple[Callable[[], object], float]:
    """The products of one training step of `n` positions with weights of these shapes, forward and
    both backward; and their FLOP.
    """
    made = [
        [torch.randn(*shape).to(dtype) for shape in ((n, a), (a, b), (n, b))] for a, b in shapes
    ]
    return lambda: [(x @ w, y @ w.T, x.T @ y) for x, w, y in made], 6 * n * sum(
        a * b for a, b in shapes
    )


def reading(n_bytes: int) -> tuple[Callable[[], object], float]:
    """Reading so many bytes 10 times, by products of a float32 matrix with a vector; and the bytes
    read in all.
    """
    weights, x = torch.randn(n_bytes // 4 // 1024, 1024), torch.randn(1024)
    return lambda: [weights @ x for _ in range(10)], 10 * 4 * weights.numel()


# ---- the command line


def parser(about: str, rows: Iterable[str], threads: int) -> argparse.ArgumentParser:
    """The words that all benchmarks take: which rows, repeats, torch's threads (`threads` unless
    given), a file.
    """
    made = argparse.ArgumentParser(description=about)
    made.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(rows)} (default: all)")
    made.add_argument("--only", nargs="+", default=[], metavar="ROW", help="the same, as an option")
    made.add_argument("--json", type=Path, help="write the figures to this file too")
    made.add_argument(
        "--repeats",
        type=int,
        default=9,
        help="turns that the medians are over; long rows take fewer",
    )
    made.add_argument("--threads", type=int, default=threads, help="of torch, on both sides")
    return made


def parsed(parser: argparse.ArgumentParser, rows: Iterable[str]) -> argparse.Namespace:
    """The command line's words, with all `rows` where none is named; torch gets its threads.

    Exits with 2 for wrong words.
    """
    words, rows = parser.parse_args(), list(rows)
    words.rows += words.only
    if set(words.rows) - set(rows) or words.repeats < 1 or words.threads < 1:
        parser.error(f"rows are {', '.join(rows)}; repeats and threads at least 1")
    torch.set_num_threads(words.threads)
    words.rows = words.rows or rows
    return words


def report(lines: Iterable[Line], path: Path | None, **about: dict) -> None:
    """Print each table of `about`, then each line as it comes; to `path`, all of them as JSON."""
    for name, table in about.items():
        print(
            f"{name}: "
            + ", ".join(
                f"{k} {x:.4g}" if isinstance(x, float) else f"{k} {x}" for k, x in table.items()
            )
        )
    made = []
    for line in lines:
        print(line, flush=True)
        made.append(asdict(line) | {"met": line.met})
    if path:
        write_text(path, json.dumps({**about, "lines": made}, indent=1) + "\n")
