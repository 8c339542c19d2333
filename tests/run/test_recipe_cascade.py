"""The recipe that draws pictures coarse to fine takes a step on a folder of pictures by class,
draws what its docstring shows, and scores it.
"""

from pathlib import Path

import numpy as np

from mmtok.cli import main
from mmtok.data.image_preparation import read_image
from mmtok.sources.images import write_image
from mmtok.train.log import read_log

RECIPE = Path(__file__).parents[2] / "recipes" / "cascade.py"
SMALL = (
    "--trunk.depth 1 --trunk.width 32 --trunk.n_heads 2 --n_kv_heads 2 --feed_forward 32"
    " --train.steps 2 --batch_size 1 --seq_len 64 --log_every 1"
)
STAGES = [
    f"--stages.{i}.{field}"
    for i in range(3)
    for field in ("steps=2", "ode_steps=1", "network.widths=[8]", "network.n_heads=2")
]


def test_it_takes_a_step_draws_and_scores(tmp_path, capsys):
    dice = np.random.default_rng(0)
    for name in ("ankle boot", "coat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            write_image(
                tmp_path / "data" / name / f"{i}.png", dice.integers(0, 256, (28, 28), np.uint8)
            )
    run = tmp_path / "run"
    assert (
        main(
            [
                "train",
                str(RECIPE),
                "--path",
                str(tmp_path / "data"),
                "-o",
                str(run),
                *SMALL.split(),
                *STAGES,
            ]
        )
        == 0
    )
    losses = [line["loss"] for line in read_log(run / "log.jsonl")]
    assert len(losses) == 2 and np.isfinite(losses).all()
    capsys.readouterr()
    assert (
        main(
            [
                "sample",
                str(run),
                "--prompt",
                "ankle boot",
                "--to",
                "image",
                "-n",
                "2",
                "--guidance",
                "2",
            ]
        )
        == 0
    )
    paths = capsys.readouterr().out.split("\n")[:2]
    assert all(read_image(Path(path)).shape == (28, 28) for path in paths)
    assert main(["score", str(run), paths[0], "--condition", "ankle boot"]) == 0
    assert "(estimate)" in capsys.readouterr().out
