"""`python -m mmtok` is the command `mmtok`."""

import signal
import sys


def quiet() -> None:
    """Let Ctrl-C end the process without a word: while `main` is not there yet, and when it is
    done.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run() -> int:
    """Run the command line of this process; its exit code."""
    quiet()
    from mmtok.cli import main

    code = main()
    quiet()
    return code


if __name__ == "__main__":
    sys.exit(run())
