"""Training killed with SIGKILL, at random moments and between any two changes of its folder: the
same call goes on, and nothing shows.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtok.commands.show import describe_run
from mmtok.data.tokens import read_tokens
from mmtok.run.run import open_run
from mmtok.train.checkpoint import load_checkpoint
from mmtok.train.log import MEASURED, read_log

LIVES = Path(__file__).parent.parent / "lives.py"
RECIPE = """
from mmtok.sources.images import ImageFolder
from mmtok.data.tasks import InputMasking, Task
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.text import SentencePieceConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="killed",
    sources=(ImageFolder({folder!r}, heldout_share=0.3),),
    tokenizers={{
        "text": SentencePieceConfig(n_pieces=270),
        "image": PixelsConfig(4, 4, 1, n_levels=5),
    }},
    tasks=(Task(("caption",), ("image",), cond_dropout=0.1), Task(("image",), ("caption",))),
    input_masking={{"image": InputMasking(drop_prob=0.2)}},
    model=DecoderConfig(
        TransformerConfig(
            depth=1, width=32, n_heads=2, n_kv_heads=2, feed_forward=64, dropout=0.1
        )
    ),
    train=TrainConfig(
        steps=260, batch_size=4, seq_len=96, warmup=5, checkpoint_every=2, log_every=3
    ),
)
"""


@pytest.fixture
def words(tmp_path):
    """words(out, *overrides) -> what follows `mmtok` in a training of seconds into the folder
    `out`.
    """
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "images" / f"name {i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4)).astype(np.uint8)).save(path)
    (tmp_path / "recipe.py").write_text(RECIPE.format(folder=str(tmp_path / "images")))
    return lambda out, *overrides: [
        "train",
        str(tmp_path / "recipe.py"),
        "--out",
        str(out),
        *overrides,
    ]


def assert_sound(out):
    """Whatever stands in the folder is whole, and no later call refuses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that a checkpoint is damaged is a warning
        load_checkpoint(out / "checkpoints")
    for path in out.glob("tokens/*"):
        if not path.name.startswith("."):
            read_tokens(path)
    if (out / "recipe.json").exists():
        run = open_run(out)
        assert describe_run(run)
        if (out / "model.safetensors").exists():
            assert run.lm


def assert_same(contents, cut, whole):
    """The same files with the same bytes, but for the seconds that steps took."""

    def timed(name):
        return name == "log.jsonl" or name.endswith("/state.json")

    a = contents(cut)
    b = contents(whole)
    assert (
        a.keys() == b.keys()
        and [name for name in a if a[name] != b[name] and not timed(name)] == []
    )
    logs = [
        [
            {k: v for k, v in line.items() if k not in MEASURED}
            for line in read_log(out / "log.jsonl")
        ]
        for out in (cut, whole)
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_killed_at_random_moments_the_run_is_the_one_that_was_not(words, contents, tmp_path):
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"
    dice = random.Random(0)

    def start(out):
        """The process, once it has taken the folder."""
        command = [sys.executable, "-m", "mmtok", *words(out)]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=one_thread
        )
        while process.poll() is None and f"process {process.pid} on" not in lock(out):
            time.sleep(0.002)
        return process

    def wait(process, out, step, seconds=math.inf):
        """Until a checkpoint of that step stands, but so many seconds at most."""
        until = time.monotonic() + seconds
        while (
            process.poll() is None
            and newest(out / "checkpoints") < step
            and time.monotonic() < until
        ):
            time.sleep(0.002)

    process = start(whole)
    taken = time.monotonic()
    wait(process, whole, 1)
    opening = time.monotonic() - taken
    assert process.wait() == 0, process.stderr.read()
    steps = [0]
    for i in range(20):
        process = start(cut)
        if i % 2:  # while it trains
            wait(process, cut, steps[-1] + dice.randrange(2, 30))
            time.sleep(dice.uniform(0, 0.05))
        else:  # while it makes or opens what comes before
            wait(process, cut, steps[-1] + 4, dice.uniform(0, opening))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
        assert_sound(cut)
        steps.append(newest(cut / "checkpoints"))
    assert sorted(steps) == steps and steps[-1] > 0
    print("checkpoints that stood after each kill:", steps)
    process = start(cut)
    assert process.wait() == 0, process.stderr.read()
    assert_sound(cut)
    assert_same(contents, cut, whole)


def lock(out):
    try:
        return (out / ".lock").read_text()
    except FileNotFoundError:
        return ""


def newest(folder):
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


@pytest.fixture
def life():
    """(words, folder, last) -> exit status and number of changes, as in lives.py."""
    with subprocess.Popen(
        [sys.executable, LIVES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def one(words, out, last=None):
            print(
                json.dumps([[str(word) for word in words], str(out), last]),
                file=process.stdin,
                flush=True,
            )
            return json.loads(process.stdout.readline())

        yield one
        process.stdin.close()


@pytest.mark.slow
def test_killed_before_any_change_of_its_folder_the_run_is_the_one_that_was_not(
    words, contents, life, tmp_path
):
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"

    def few(out):
        return words(
            out, "--train.steps", "3", "--train.checkpoint_every", "1", "--train.log_every", "2"
        )

    code, n_changes = life(few(whole), whole)
    assert code == 0 and n_changes > 40
    for last in range(n_changes):
        out = cut / str(last)
        assert life(few(out), out, last)[0] == -signal.SIGKILL
        assert_sound(out)
        assert life(few(out), out)[0] == 0, last
        assert_sound(out)
        assert_same(contents, out, whole)
