"""`python -m mmtok` is the command `mmtok`."""

import signal
import sys


def let_interrupts_end() -> None:
    """Let Ctrl-C end the process without a traceback, before `main` is imported and after it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run() -> int:
    """Run the command line of this process and return its exit code."""
    let_interrupts_end()
    from mmtok.cli import main

    code = main()
    let_interrupts_end()
    return code


if __name__ == "__main__":
    sys.exit(run())
