"""Damaged files of every kind, given to whatever opens them.

    python scripts/fuzz.py KIND N [--seed S] [--keep DIR]

KIND is one that `--list` names, or `all`, which get N inputs in turn. Each input is a sound file,
made here, that was damaged in one way. It must be read, or be refused in one line that names it.
Anything else is a fault: a traceback, a process that dies, 20 seconds without an answer, more
memory than the budget, a line that names nothing. A worker process of limited memory takes one
input after another. The table counts the outcomes. The first input of each fault is kept in DIR,
and the exit status is then 1.
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
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

BUDGET = 256 * 10**6  # bytes that reading one file may take
SLACK = 64 * 10**6  # bytes beyond the budget: libraries' caches, the allocator
ADDRESS_SPACE = 4 * 10**9  # bytes beyond what the imports took
TIMEOUT_S = 20.0
FAULTS = ("traceback", "died", "hang", "memory", "unnamed")


def outcome_of(kind: str, seed: int, i: int, home: Path, folder: Path) -> tuple[str, str]:
    """Makes input i of a kind in `folder`, and opens it.

    Returns:
        "read", "refused" or a fault; and the message.
    """
    from fuzz_kinds import KINDS, damage

    try:
        path = damage(kind, [seed, i], home, folder)
    except Exception:  # a mistake of the fuzzer's own
        return "died", f"the input cannot be made: {traceback.format_exc()}"
    before = _memory("VmRSS")
    _reset_peak()
    outcome, message = _load(KINDS[kind].load, path)
    grown = _memory("VmHWM") - before
    if grown > BUDGET + SLACK or "more memory than there is" in message:
        return "memory", f"{grown / 1e6:.0f} MB; {message}"
    message = _escaped(message)
    if outcome == "refused" and not _is_one_line_about(folder.name, message):
        return "unnamed", message
    return outcome, message


def _load(load: Callable[[Path], object], path: Path) -> tuple[str, str]:
    """Opens an input. Returns "read", "refused" or "traceback", and the message."""
    from mmtok.errors import UserError

    try:
        load(path)
    except UserError as error:
        return "refused", str(error)
    except OSError as error:
        if error.filename is None:
            return "traceback", traceback.format_exc()
        return "refused", f"{error.filename}: {error.strerror}"
    except BaseException:
        return "traceback", traceback.format_exc()
    return "read", ""


def _escaped(message: str) -> str:
    """The message without lone surrogates, which no pipe takes."""
    return message.encode("utf-8", "backslashreplace").decode()


def _is_one_line_about(name: str, message: str) -> bool:
    return name in message and len(message.splitlines()) == 1 and len(message) < 1000


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


# ---- the worker


def work(pipe: Connection, home: str) -> None:
    """Answers (kind, seed, i, folder) with `outcome_of` it, until the pipe closes."""
    from fuzz_kinds import warm_up

    from mmtok.io import memory_budget

    warnings.simplefilter("ignore")
    memory_budget.set_limit(str(BUDGET))
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            warm_up(Path(home))
        except BaseException:
            sys.__stderr__.write(errors.getvalue())
            raise
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    limit = _memory("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        try:
            kind, seed, i, folder = pipe.recv()
        except EOFError:
            return
        outcome, message = outcome_of(kind, seed, i, Path(home), Path(folder))
        pipe.send((outcome, _escaped(message)))


class Worker:
    """A process that is started again when it died or hung."""

    def __init__(self, home: Path):
        self.home = home
        self._process: multiprocessing.process.BaseProcess | None = None

    def ask(self, kind: str, seed: int, i: int, folder: Path) -> tuple[str, str]:
        """The outcome of an input, death and hanging included."""
        if self._process is None:
            self._start()
        self._pipe.send((kind, seed, i, str(folder)))
        try:
            if self._pipe.poll(TIMEOUT_S):
                return self._pipe.recv()
            found = ("hang", f"no answer in {TIMEOUT_S:.0f} s")
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
        """Ends the process; the next input starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


# ---- the table


def shares(kinds: list[str], n: int) -> Iterator[tuple[str, int]]:
    """Yields n times (kind, number of the input); kinds take turns."""
    for i in range(n):
        yield kinds[i % len(kinds)], i // len(kinds)


def run(kinds: list[str], n: int, seed: int, keep: Path) -> dict[str, Counter]:
    """Tries n inputs, and counts the outcomes by kind.

    The first input of each fault is kept in `keep`, with its message.
    """
    from fuzz_kinds import make_sound

    counts: dict[str, Counter] = {kind: Counter() for kind in kinds}
    known: set[tuple[str, str, str]] = set()
    with tempfile.TemporaryDirectory(prefix="mmtok-fuzz-") as home:
        make_sound(Path(home))
        worker = Worker(Path(home))
        try:
            for kind, i in shares(kinds, n):
                folder = Path(home) / "damaged" / f"{kind}-{seed}-{i}"
                start = time.perf_counter()
                outcome, message = worker.ask(kind, seed, i, folder)
                took = time.perf_counter() - start
                counts[kind][outcome] += 1
                counts[kind]["slowest"] = max(counts[kind]["slowest"], took)
                last_line = message.strip().splitlines()[-1] if message else ""
                fault = (kind, outcome, last_line[:60])
                if outcome in FAULTS and fault not in known:
                    known.add(fault)
                    print(f"{outcome}: {folder.name}: {last_line[:300]}", flush=True)
                    shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
                    (keep / f"{folder.name}.txt").write_text(f"{outcome}\n{message}\n")
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            worker.stop()
    return counts


def table(counts: dict[str, Counter]) -> str:
    """The counts as a table, a row per kind and one for all."""
    outcomes = ("read", "refused", *FAULTS)
    total = sum(counts.values(), Counter())
    total["slowest"] = max((counted["slowest"] for counted in counts.values()), default=0)
    rows = [("kind", "inputs", *outcomes, "slowest")]
    for kind, counted in [*counts.items(), ("all", total)]:
        numbers = [counted[outcome] for outcome in outcomes]
        cells = [str(number) for number in (sum(numbers), *numbers)]
        rows.append((kind, *cells, f"{counted['slowest']:.1f} s"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        shown = [cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *shown]))
    return "\n".join(lines)


def main() -> int:
    """Tries the kinds that the command line names. Returns the exit status."""
    from fuzz_kinds import KINDS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kind", nargs="?", default="all", help="kinds to damage, joined by commas (default: all)")
    add("n", nargs="?", type=int, default=1000, help="how many inputs (default: 1000)")
    add("--seed", type=int, default=0)
    add(
        "--keep",
        type=Path,
        default=Path("fuzz"),
        help="where the first input of each fault goes (default: fuzz/)",
    )
    add("--list", action="store_true", help="name the kinds")
    options = parser.parse_args()
    kinds = list(KINDS) if options.kind == "all" else options.kind.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known are:")
    if unknown or options.list:
        print(*KINDS, sep="\n")
        return 2 if unknown else 0
    counts = run(kinds, options.n, options.seed, options.keep)
    print(table(counts))
    return int(any(counted[fault] for counted in counts.values() for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
