"""What test_distributed_killed.py looks at: trainings by two processes of which one is killed.

python killed_together.py FOLDER EVERY   kills the first or the second process before each EVERY-th
                                         change of its folder; FOLDER/lives.json tells of the lives
"""

import json
import os
import shutil
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from forked import fork  # noqa: E402
from lives import CHANGES  # noqa: E402
from many import CONFIG, trainer, write_data  # noqa: E402

from mmtok.train.checkpoint import find_checkpoint, load_checkpoint  # noqa: E402
from mmtok.train.distributed import init_distributed  # noqa: E402

STEPS = 3
SHARDED = replace(CONFIG, steps=STEPS, checkpoint_every=1, fsdp=True)


def life(home, name, victim=None, last=None):
    """Train by two processes to the last step; process `victim` is killed before change `last`.

    Returns the exit codes, and how many changes each process made of the folder's files.
    """

    def one(rank):
        made = 0

        def count(event, args):
            nonlocal made
            if event not in CHANGES:
                return
            if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                return
            within = event in ("os.remove", "os.rmdir") and args[1] != -1
            if not (within or str(args[0]).startswith(f"{home / name}/")):
                return
            if rank == victim and made == last:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1

        sys.addaudithook(count)
        try:
            with init_distributed() as processes:
                it = trainer(home, name, processes, SHARDED)
                it.resume()
                it.run()
        except ConnectionError:
            return 2
        (home / f"{name}-changes-{rank}.txt").write_text(str(made))
        return 0

    return fork(2, one)


def changes(home, name, rank):
    return int((home / f"{name}-changes-{rank}.txt").read_text())


def newest(folder):
    """The step of the newest checkpoint, which is whole: a damaged one is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find_checkpoint(folder)
    return found.state["step"] if found else 0


def same_end(a, b):
    """The same tensors bit for bit, at the last step."""
    one = load_checkpoint(a)
    other = load_checkpoint(b)
    return one.state["step"] == other.state["step"] == STEPS and all(
        torch.equal(x, other.tensors[stem][k])
        for stem, tensors in one.tensors.items()
        for k, x in tensors.items()
    )


def main(home, every):
    torch.set_num_threads(1)
    write_data(home)
    told = {"whole": life(home, "whole"), "lives": []}
    for victim in (0, 1):
        n = changes(home, "whole", victim)
        told[f"changes {victim}"] = n
        for last in range(victim, n, every):
            killed = life(home, "cut", victim, last)
            step = newest(home / "cut")
            again = life(home, "cut")
            told["lives"].append(
                {
                    "victim": victim,
                    "last": last,
                    "killed": killed,
                    "step": step,
                    "again": again,
                    "same": same_end(home / "cut", home / "whole"),
                    "left": sorted(path.name for path in (home / "cut").iterdir()),
                }
            )
            shutil.rmtree(home / "cut")
    (home / "lives.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
