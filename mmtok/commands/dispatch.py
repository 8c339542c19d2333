"""Runs a command line: finds the verb, turns errors into one line and an exit code.

The verbs themselves are in `mmtok.cli`. Nothing here imports torch.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from mmtok import __version__
from mmtok.commands.arguments import nearest, parse
from mmtok.errors import UserError
from mmtok.io import terminal
from mmtok.io.interrupt import raise_after_imports
from mmtok.io.terminal import drop, print_answer, print_answer_lines, print_status

Verbs = Mapping[str, Callable[..., None]]

FIRST_SPEAKS = 60.0  # seconds that a machine's first process has to report an error
INTERRUPTED = 130  # exit codes, as shells have them
BROKEN_PIPE = 141
WRONG_INPUT = 2


def run_command_line(verbs: Verbs, words: list[str] | None = None) -> int:
    """Run a command line and return its exit code.

    The code is 0, 2 for wrong input (one line on stderr), or 130 for Ctrl-C.

    Args:
        verbs: name -> function.
        words: None takes those that the process was started with. The process then also gets the
            standard streams that it lacks.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _note_printer()
            if words is None:
                terminal.open_streams()
                raise_after_imports()
                words = sys.argv[1:]
            code = dispatch(verbs, words)
            sys.stdout.flush()
            if "stdout" in terminal.closed and not code:
                _say("note: standard output is closed, so the answer was not printed")
        return code
    except KeyboardInterrupt as stop:
        _say(str(stop) or "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe (mmtok show x | head)
        drop(sys.stdout)
        drop(sys.stderr)
        return BROKEN_PIPE
    except UserError as error:
        message = str(error)
    except OSError as error:
        known = [str(part) for part in (error.filename, error.strerror) if part]
        message = ": ".join(known) or str(error)
    _wait_for_first_process()
    with suppress(BrokenPipeError):
        _say(message)
    return WRONG_INPUT


def dispatch(verbs: Verbs, words: list[str]) -> int:
    """Find the verb and run it; return its exit code.

    Raises UserError for an unknown verb.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print_answer_lines(overview(verbs))
        return 0
    name, *rest = words
    if name == "--version":
        print_answer(f"mmtok {__version__}")
        return 0
    if name not in verbs:
        raise UserError(f"unknown verb {name!r}{nearest(name, verbs)}")
    verb = verbs[name]
    try:
        verb(**parse(verb, rest))
    except SystemExit as stop:  # argparse after --help, or another process of torchrun
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def overview(verbs: Verbs) -> str:
    """What `mmtok --help` prints: every verb with the first line of its docstring."""
    lines = ["usage: mmtok VERB ...", ""]
    for name, verb in verbs.items():
        lines.append(f"  {name:<12}{(verb.__doc__ or '').splitlines()[0]}")
    lines += ["", "mmtok VERB --help says more; mmtok --version prints the version."]
    return "\n".join(lines)


def _note_printer() -> Callable[..., None]:
    """A `warnings.showwarning` that prints every text once as a note.

    Python's own filters forget what was shown whenever one of them changes.
    """
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any) -> None:
        text = f"note: {message}"
        if text not in shown:
            shown.add(text)
            _say(text)

    return show


def _wait_for_first_process() -> None:
    """Under torchrun, before the processes have met, let a machine's first one report the error.

    torchrun ends all processes as soon as one has ended. So the others wait here until they are
    ended; who is still there after FIRST_SPEAKS seconds reports the error too.
    """
    processes = sys.modules.get("mmtok.train.distributed")
    if os.environ.get("LOCAL_RANK", "0") != "0" and not (processes and processes.initialized):
        with suppress(KeyboardInterrupt):
            time.sleep(FIRST_SPEAKS)


def _say(text: str) -> None:
    """Print one line on stderr; under torchrun it names the rank of the process."""
    rank = os.environ.get("RANK", "0")
    name = "mmtok"
    if rank != "0":
        name += f" (process {rank})"
    print_status(f"{name}: {' '.join(text.split())}")
