"""Damaged files of every kind, fed to whatever opens them: python scripts/fuzz.py KIND N [--seed S]
[--keep DIR]

KIND is one of those that `--list` names, or `all`, among which N inputs are shared out. Each input
is a sound file, made here, that was damaged in one way; it must be read, or be refused in one line
that names it. Anything else is a fault: a traceback, a process that dies, 20 seconds without an
answer, more memory than the budget, a line that names nothing. A worker process of limited memory
takes one input after another. The table counts them; of each fault the first input is kept in DIR,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

BUDGET = 256 * 10**6  # bytes that reading one file may take
SLACK = 64 * 10**6  # that it may take beyond: libraries' caches, the allocator
SPACE = 4 * 10**9  # of addresses beyond what the imports took
HANGS = 20.0  # seconds
FAULTS = ("traceback", "died", "hang", "memory", "unnamed")


def outcome_of(kind: str, seed: int, i: int, home: Path, folder: Path) -> tuple[str, str]:
    """What becomes of input i of a kind: ("read" | "refused" | a fault, what was said).

    The input lies in `folder` afterwards.
    """
    from fuzz_kinds import KINDS, damage

    from mmtok.errors import UserError

    try:
        path = damage(kind, [seed, i], home, folder)
    except Exception:  # a mistake of the fuzzer's own
        return "died", f"the input cannot be made: {traceback.format_exc()}"
    before = _memory("VmRSS")
    _reset_peak()
    try:
        KINDS[kind].load(path)
        said, what = "", "read"
    except UserError as error:
        said, what = str(error), "refused"
    except OSError as error:
        said, what = f"{error.filename}: {error.strerror}", "refused"
        if error.filename is None:
            said, what = traceback.format_exc(), "traceback"
    except BaseException:
        said, what = traceback.format_exc(), "traceback"
    if _memory("VmHWM") - before > BUDGET + SLACK or "more memory than there is" in said:
        return "memory", f"{(_memory('VmHWM') - before) / 1e6:.0f} MB; {said}"
    said = said.encode("utf-8", "backslashreplace").decode()
    if what == "refused" and not (
        folder.name in said and len(said.splitlines()) == 1 and len(said) < 1000
    ):
        return "unnamed", said
    return what, said


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


# ---- the worker


def work(pipe, home: str) -> None:
    """Answer (kind, seed, i, folder) with what became of it, until the pipe closes."""
    from fuzz_kinds import warm_up

    from mmtok.io import memory_budget

    warnings.simplefilter("ignore")
    memory_budget.set_limit(str(BUDGET))
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            warm_up(Path(home))
        except BaseException:
            sys.__stderr__.write(told.getvalue())
            raise
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    limit = _memory("VmSize") + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        try:
            kind, seed, i, folder = pipe.recv()
        except EOFError:
            return
        what, said = outcome_of(kind, seed, i, Path(home), Path(folder))
        pipe.send((what, said.encode("utf-8", "backslashreplace").decode()))


class Worker:
    """A process that is started again when it died or hung."""

    def __init__(self, home: Path):
        self.home, self._process = home, None

    def ask(self, kind: str, seed: int, i: int, folder: Path) -> tuple[str, str]:
        """What became of an input, death and hanging included."""
        if self._process is None:
            self._start()
        self._pipe.send((kind, seed, i, str(folder)))
        try:
            if self._pipe.poll(HANGS):
                return self._pipe.recv()
            found = ("hang", f"no answer in {HANGS:.0f} s")
        except (EOFError, OSError):
            self._process.join()
            found = ("died", f"exit code {self._process.exitcode}")
        self.stop()
        return found

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, str(self.home)), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def stop(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


# ---- the table


def shares(kinds: list[str], n: int) -> Iterator[tuple[str, int]]:
    """(kind, number of the input) of n inputs, shared out evenly."""
    for i in range(n):
        yield kinds[i % len(kinds)], i // len(kinds)


def run(kinds: list[str], n: int, seed: int, keep: Path) -> dict[str, Counter]:
    """Kind -> how often which outcome.

    The first input of each fault is kept, with what was said.
    """
    from fuzz_kinds import make_sound

    counts: dict[str, Counter] = {kind: Counter() for kind in kinds}
    seen: set[tuple[str, str, str]] = set()
    with tempfile.TemporaryDirectory(prefix="mmtok-fuzz-") as home:
        make_sound(Path(home))
        worker = Worker(Path(home))
        try:
            for kind, i in shares(kinds, n):
                folder = Path(home) / "damaged" / f"{kind}-{seed}-{i}"
                start = time.perf_counter()
                what, said = worker.ask(kind, seed, i, folder)
                counts[kind][what] += 1
                counts[kind]["slowest"] = max(counts[kind]["slowest"], time.perf_counter() - start)
                cause = (kind, what, said.strip().splitlines()[-1][:60] if said else "")
                if what in FAULTS and cause not in seen:
                    seen.add(cause)
                    print(
                        f"{what}: {folder.name}:"
                        f" {said.strip().splitlines()[-1][:300] if said else ''}",
                        flush=True,
                    )
                    shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
                    (keep / f"{folder.name}.txt").write_text(f"{what}\n{said}\n")
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            worker.stop()
    return counts


def table(counts: dict[str, Counter]) -> str:
    """The counts as a table, a row per kind."""
    columns = ("inputs", "read", "refused", *FAULTS, "slowest")
    rows = [("kind", *columns)]
    for kind, counted in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        n = sum(counted[what] for what in ("read", "refused", *FAULTS))
        slowest = (
            max((c["slowest"] for c in counts.values()), default=0)
            if kind == "all"
            else counted["slowest"]
        )
        rows.append(
            (kind, str(n), *(str(counted[what]) for what in columns[1:-1]), f"{slowest:.1f} s")
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def main() -> int:
    from fuzz_kinds import KINDS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kind",
        nargs="?",
        default="all",
        help="what is damaged, several joined by commas (default: all)",
    )
    parser.add_argument(
        "n", nargs="?", type=int, default=1000, help="how many inputs (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("fuzz"),
        help="where the first input of each fault goes (default: fuzz/)",
    )
    parser.add_argument("--list", action="store_true", help="name the kinds")
    asked = parser.parse_args()
    kinds = list(KINDS) if asked.kind == "all" else asked.kind.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if asked.list or unknown:
        print(
            *([f"unknown: {', '.join(unknown)}; known are:"] if unknown else []), *KINDS, sep="\n"
        )
        return 2 if unknown else 0
    counts = run(kinds, asked.n, asked.seed, asked.keep)
    print(table(counts))
    return int(any(counted[what] for counted in counts.values() for what in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
