"""Ctrl-C on the command line: at once, but during an import only after it.

Python's own handler raises KeyboardInterrupt anywhere. During an import that leaves half a module:
numpy then reports a broken installation, and torch aborts the process.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

AGAIN_S = 0.1  # how long to wait for the end of an import


def raise_after_imports() -> None:
    """Let Ctrl-C raise KeyboardInterrupt outside of imports only.

    A process that ignores it (under nohup) keeps ignoring it.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not is_importing(frame):
        raise KeyboardInterrupt
    again = threading.Timer(AGAIN_S, signal.raise_signal, (number,))
    again.daemon = True
    again.start()


def is_importing(frame: FrameType | None) -> bool:
    """Whether a frame, or one that called it, is Python's machinery of imports."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
