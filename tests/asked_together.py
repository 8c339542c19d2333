"""What test_together.py looks at: commands by one, two and three processes, forked so that torch is
imported once.

python asked_together.py HOME RUN IMAGES    writes per command HOME/NAME/: what each process printed
                                            (RANK.out, RANK.err), its files; HOME/codes.json: the
                                            exit codes
"""

import functools
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from forked import fork

from mmtok.cli import main
from mmtok.errors import UserError
from mmtok.evaluation import speech as speech_figures
from mmtok.model import likelihood as score
from mmtok.run.run import Run


def ask_by(n, folder, words, before=None):
    """Run the words of a command line in n processes, what each prints in files of its own; returns
    their exit codes.
    """
    folder.mkdir()

    def work(rank):
        for number, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{kind}", os.O_CREAT | os.O_WRONLY), number)
        if before:
            before(rank)
        return main([str(word) for word in words(folder)])

    return fork(n, work)


def fails(error):
    """In process 1, drawing fails so."""

    def before(rank):
        if rank == 1:

            def draw(*_):
                raise error

            Run.draw = draw

    return before


def dies(rank):
    if rank == 1:

        def draw(*_):
            os._exit(9)

        Run.draw = draw


def by_all(home, run, images):
    torch.set_num_threads(1)
    for function in (score.score, score.score_part):  # positions per batch: many batches to share
        function.__defaults__ = (64, *function.__defaults__[1:])
    speech_figures.train_speech_judge = functools.partial(
        speech_figures.train_speech_judge, n_steps=2
    )
    codes = {}

    def copy(to):
        return shutil.copytree(run, to)

    def ask(n, name, words, before=None):
        codes[name] = ask_by(n, home / name, words, before)

    def sample(folder):
        return [
            "sample",
            run,
            "--prompt",
            "dark",
            "--to",
            "image",
            "-n",
            300,
            "--seed",
            3,
            "--out",
            folder / "files",
        ]

    for n in (1, 2, 3):
        ask(n, f"sample-{n}", sample)
    for n in (1, 2):
        ask(
            n,
            f"score-{n}",
            lambda folder: ["score", run, *sorted(images.glob("*/*.png")), "--condition", "dark"],
        )
        ask(
            n,
            f"evaluate-{n}",
            lambda folder: ["evaluate", folder / "run"],
            lambda rank, n=n: rank or copy(home / f"evaluate-{n}" / "run"),
        )
    ask(
        2,
        "refused",
        lambda folder: [
            "sample",
            run,
            "--prompt",
            "dark",
            "--to",
            "video",
            "--out",
            folder / "files",
        ],
    )
    ask(2, "nowhere", lambda folder: ["score", run / "nowhere", "dark"])
    ask(2, "wrong-there", sample, fails(UserError("what cannot be drawn")))
    ask(2, "broken-there", sample, fails(ZeroDivisionError("by nothing")))
    ask(2, "dies-there", sample, dies)
    (home / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    by_all(*map(Path, sys.argv[1:]))
