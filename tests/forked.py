"""Several processes as torchrun would start them, forked here so that torch is imported once."""

import os
import socket
import sys


def fork(n, work):
    """Run work(rank), which returns an exit code, in n processes; returns their exit codes.

    What one raises goes to its stderr, as code 1.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(n):
        child = os.fork()
        if not child:
            ranks = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": n,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            os.environ |= {name: str(value) for name, value in ranks.items()}
            code = 1
            try:
                code = work(rank)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
