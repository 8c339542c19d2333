"""Run by test_streaming.py: python streamed_together.py HOME RECIPE --sources.0.gates GATES

HOME/two/           a run that two processes trained while its tokens were made
HOME/refused/       one whose second part was refused meanwhile
HOME/*.RANK.err     what each process said; HOME/codes.json: their exit codes
"""

import json
import os
import sys
from pathlib import Path

import torch
from forked import fork

from mmtok.cli import main
from mmtok.train.trainer import Trainer


def run(home, name, words, opened):
    """Train in two processes; opened: step -> the gate that the first one opens then."""
    update = Trainer.update

    def update_and_open(self):
        if self.processes.is_rank0 and self.step in opened:
            opened[self.step].touch()
        return update(self)

    def work(rank):
        os.dup2(os.open(home / f"{name}.{rank}.err", os.O_CREAT | os.O_WRONLY), 2)
        Trainer.update = update_and_open
        return main(["train", *words, "--out", str(home / name), "--stream"])

    return fork(2, work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    words = sys.argv[2:]
    gates = Path(words[-1])
    codes = {"refused": run(home, "refused", words, {20: gates / "1.wrong"})}
    (gates / "1.wrong").unlink()
    codes["two"] = run(home, "two", words, {20: gates / "1", 120: gates / "2"})
    (home / "codes.json").write_text(json.dumps(codes))
