"""Run by test_build_together.py: python tokenised_together.py HOME RECIPE [--FIELD VALUE ...]

HOME/one/, two/     runs whose tokens one and two processes made
HOME/refused/       one where the second process refuses a signal
HOME/*.RANK.err     what each process said; HOME/codes.json: their exit codes
"""

import json
import os
import sys
from pathlib import Path

import torch
from forked import fork

from mmtok.cli import main
from mmtok.data import parts, tokenise
from mmtok.data.encoder import Encoder
from mmtok.errors import UserError
from mmtok.sources import pictures, screen


def run(n, home, name, words, before=None, again=""):
    def work(rank):
        os.dup2(os.open(home / f"{name}{again}.{rank}.err", os.O_CREAT | os.O_WRONLY), 2)
        if before:
            before(rank)
        return main(["train", *words, "--out", str(home / name)])

    return fork(n, work)


def refuse(rank):
    """The second process refuses all that it is to encode."""
    if rank == 1:

        def call(*_):
            raise UserError("a signal: refused")

        Encoder.__call__ = call


if __name__ == "__main__":
    torch.set_num_threads(1)
    pictures.CHUNK = screen.CHUNK = tokenise.CHUNK = 2
    parts.CHUNKS = 1
    home = Path(sys.argv[1])
    words = [*sys.argv[2:], "--train.steps", "2"]
    codes = {
        "one": run(1, home, "one", words),
        "two": run(2, home, "two", words),
        "refused": run(2, home, "refused", words, refuse),
        "resumed": run(2, home, "refused", words, again="-again"),
    }
    (home / "codes.json").write_text(json.dumps(codes))
