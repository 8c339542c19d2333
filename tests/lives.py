"""Runs of `mmtok` for test_trainer_killed.py, forked from one process that has imported torch.

Nothing was trained in it before, which autograd would refuse. Reads lines of JSON, [words, folder,
last], and answers each with [exit status, number of changes or null].
"""

import json
import os
import signal
import sys

from mmtok.cli import main
from mmtok.train import trainer as fit_lm  # noqa: F401  before the forks: seconds each

# audit events, raised before the change
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def life(words, out, last):
    """Run `mmtok` as a process that is killed before change number `last` of `out`, from 0.

    Returns its exit status, and how many changes it made.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        n = 0

        def count(event, args):
            nonlocal n
            if event not in CHANGES:
                return
            if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            # of a folder that is open, which is being removed
            within = event in ("os.remove", "os.rmdir") and args[1] != -1
            if not (within or str(args[0]).startswith(f"{out}/")):
                return
            if n == last:
                os.kill(os.getpid(), signal.SIGKILL)
            n += 1

        os.dup2(2, 1)  # stdout is for answers
        sys.addaudithook(count)
        code = 99
        try:
            code = main(words)
            os.write(writer, json.dumps(n).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(said) if said else None


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(life(*json.loads(line))), flush=True)
