"""What the benchmarks share: alternating timings, figures with bars, facts about the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from mmtok.errors import UserError, missing_extra
from mmtok.io.files import write_text


@dataclass(frozen=True)
class Line:
    """One figure of a benchmark.

    Attributes:
        what: What was measured.
        unit: Of `ours` and `theirs`.
        ours: This package's figure.
        peer: The name of what it is compared with.
        theirs: The peer's figure; None where there is none.
        held: The name of `value`.
        value: What is compared with the bar.
        bar: The least value that is good enough, or the greatest where `least` is False.
        stretch: A bar that would be nice to meet.
        least: Whether more is better.
        wrong: What went wrong. The bar is then missed, however good the figure.
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

    @classmethod
    def ratio(
        cls,
        what: str,
        unit: str,
        ours: float,
        peer: str,
        theirs: float,
        bar: float,
        stretch: float | None = None,
        least: bool = True,
        wrong: str = "",
    ) -> Line:
        """A figure whose ratio to the peer's is compared with the bar."""
        return cls(
            what, unit, ours, peer, theirs, "ratio", ours / theirs, bar, stretch, least, wrong
        )

    @property
    def met(self) -> bool:
        """Whether the value meets the bar and nothing went wrong."""
        if self.wrong:
            return False
        if self.least:
            return self.value >= self.bar
        return self.value <= self.bar

    def __str__(self) -> str:
        peer = self.peer or "-"
        if self.theirs is not None:
            peer = f"{self.peer} {self.theirs:.4g}"
        bar = f"bar {'>=' if self.least else '<='} {self.bar:g}"
        if self.stretch:
            bar += f" (stretch {self.stretch:g})"
        verdict = "met" if self.met else "MISSED"
        if self.wrong:
            verdict += f" ({self.wrong})"
        ours = f"{self.what:<44} {self.ours:>10.4g} {self.unit:<13}"
        value = f"{self.held} {self.value:.3g}"
        return f"{ours} {peer:<36} {value:<22} {bar}: {verdict}"


# ---- time


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each side.

    The sides alternate, in reverse order every other time, so that they see the same machine. The
    first round only warms up.
    """
    took: list[list[float]] = [[] for _ in sides]
    order = list(range(len(sides)))
    for _ in range(repeats + 1):
        order.reverse()
        for i in order:
            took[i].append(seconds(sides[i]))
    return [statistics.median(times[1:]) for times in took]


# ---- the machine

SIMD_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "amx_bf16")
# These make a machine behave like an older one.
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")


def machine(packages: Sequence[str]) -> dict:
    """The machine that figures are measured on, with the versions of those `packages` it has."""
    facts = {
        "processor": _cpu_info("model name") or platform.machine(),
        "flags": cpu_flags(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    return facts | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cpu_flags() -> str:
    """The SIMD instructions that matter here, and the environment's limits on them."""
    have = _cpu_info("flags").split()
    flags = [flag for flag in SIMD_FLAGS if flag in have]
    limits = [f"{name}={os.environ[name]}" for name in ISA_LIMITS if name in os.environ]
    return " ".join([*flags, *limits])


def _cpu_info(key: str) -> str:
    """The first value of a key in Linux's /proc/cpuinfo; "" where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        if line.startswith(key):
            return line.split(":")[1].strip()
    return ""


def matrix_products(
    n: int, shapes: list[tuple[int, int]], dtype: torch.dtype
) -> tuple[Callable[[], object], float]:
    """The matrix products of one training step of `n` positions, forward and backward.

    Args:
        n: Positions of the step.
        shapes: Shapes of the weights.
        dtype: Of all factors.

    Returns:
        A function that computes them all, and their FLOP.
    """
    factors = [
        [torch.randn(*shape).to(dtype) for shape in ((n, a), (a, b), (n, b))] for a, b in shapes
    ]
    n_flop = 6 * n * sum(a * b for a, b in shapes)
    return lambda: [(x @ w, y @ w.T, x.T @ y) for x, w, y in factors], n_flop


def reading(n_bytes: int) -> tuple[Callable[[], object], float]:
    """Reads `n_bytes` of memory 10 times, by products of a float32 matrix with a vector.

    Returns:
        A function that does it, and the bytes read in all.
    """
    weights = torch.randn(n_bytes // 4 // 1024, 1024)
    x = torch.randn(1024)
    return lambda: [weights @ x for _ in range(10)], 10 * 4 * weights.numel()


# ---- the command line


def parser(about: str, rows: Iterable[str], threads: int) -> argparse.ArgumentParser:
    """The options of all benchmarks; `threads` is torch's number by default."""
    made = argparse.ArgumentParser(description=about)
    add = made.add_argument
    add("rows", nargs="*", metavar="ROW", help=f"{', '.join(rows)} (default: all)")
    add("--only", nargs="+", default=[], metavar="ROW", help="the same, as an option")
    add("--json", type=Path, help="write the figures to this file too")
    add("--repeats", type=int, default=9, help="timings per median; long rows take fewer")
    add("--threads", type=int, default=threads, help="of torch, on both sides")
    return made


def parsed(parser: argparse.ArgumentParser, rows: Iterable[str]) -> argparse.Namespace:
    """Parses the command line and sets torch's threads; all `rows` where none is named.

    Exits with status 2 for unknown rows.
    """
    options = parser.parse_args()
    known = list(rows)
    options.rows += options.only
    if set(options.rows) - set(known) or options.repeats < 1 or options.threads < 1:
        parser.error(f"rows are {', '.join(known)}; repeats and threads at least 1")
    if options.json and options.json.is_dir():
        parser.error(f"--json {options.json} is a folder; name a file")
    torch.set_num_threads(options.threads)
    options.rows = options.rows or known
    return options


def check_peers(rows: Iterable[str], peers: Mapping[str, tuple[str, str]]) -> None:
    """Refuses rows whose peer is not installed, before anything is measured.

    Args:
        rows: Those that will run.
        peers: Row -> the package that it measures beside, and the extra that brings it.

    Raises UserError that names the row and the extra.
    """
    for row in rows:
        package, extra = peers.get(row, ("", ""))
        if package and find_spec(package) is None:
            raise missing_extra(f"row {row}", extra)


def called(main: Callable[[], None]) -> None:
    """Calls a script's main; wrong input is answered in one line, with exit status 2."""
    try:
        main()
    except (UserError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def report(
    lines: Iterable[Line],
    path: Path | None,
    more: Mapping[str, object] | None = None,
    **about: dict,
) -> None:
    """Prints the tables `about`, then each line as it comes; writes all as JSON to `path`.

    `more` is written too, as it is once all lines are made.
    """
    for name, table in about.items():
        print(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in table.items()))
    made = []
    for line in lines:
        print(line, flush=True)
        made.append(asdict(line) | {"met": line.met})
    if path:
        write_text(path, json.dumps({**about, "lines": made, **(more or {})}, indent=1) + "\n")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
