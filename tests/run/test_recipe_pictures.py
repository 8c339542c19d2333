"""The recipe of natural pictures on a handful of small ones: as latents, and as codes."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.run.recipe import load_recipe
from mmtok.sources.image_files import open_image, write_image
from mmtok.train.log import read_log

RECIPE = Path(__file__).parents[2] / "recipes" / "pictures.py"
SMALL = (
    "--trunk.depth 1 --trunk.width 32 --trunk.n_heads 2 --n_kv_heads 2 --feed_forward 32"
    " --train.steps 2 --batch_size 2 --log_every 1"
)
LATENTS = (
    "--heads.image.steps 3 --ode_steps 2 --tokenizers.image.steps 2 --autoencoder.width 16"
    " --network.depth 1 --network.width 16 --network.n_heads 2"
)
CODES = [
    "--tokenizers.image",
    json.dumps(
        {
            "kind": "VQPatchesConfig",
            "height": 64,
            "width": 64,
            "channels": 3,
            "patch": 8,
            "quantizer": {"kind": "VQ", "n_codes": 16},
            "autoencoder": {"kind": "StagedConv", "width": 16},
            "steps": 2,
        }
    ),
    "--heads.image",
    json.dumps(
        {
            "kind": "MaskedDiffusion",
            "network": {"depth": 1, "width": 16, "n_heads": 2},
            "steps": 4,
            "bound_draws": 2,
        }
    ),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of captions beside pictures of several sizes."""
    folder = tmp_path_factory.mktemp("captioned")
    rng = np.random.default_rng(0)
    rows = ["file_name,caption"]
    for i in range(12):
        size = ((36, 40, 3), (48, 30, 3), (32, 32))[i % 3]
        write_image(folder / f"{i}.png", rng.integers(0, 256, size, np.uint8))
        rows.append(f"{i}.png,a {('red', 'grey')[i % 2]} fox in the snow")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize(
    "words, side, kind",
    [(LATENTS.split(), 32, "estimate"), (CODES, 64, "bound")],
    ids=["latents", "codes"],
)
def test_it_learns_draws_and_scores(words, side, kind, table, tmp_path, capsys):
    pytest.importorskip("vector_quantize_pytorch")
    run = tmp_path / "run"
    train = ["train", str(RECIPE), "-o", str(run), "--path", str(table), *words, *SMALL.split()]
    assert main(train) == 0
    losses = [line["loss"] for line in read_log(run / "log.jsonl")]
    assert len(losses) == 2 and np.isfinite(losses).all()
    capsys.readouterr()
    assert main(["sample", str(run), "--prompt", "a red fox", "--to", "image", "-n", "2"]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert [open_image(Path(path)).pixels.shape for path in paths] == [(side, side, 3)] * 2
    assert main(["score", str(run), paths[0], "--condition", "a red fox"]) == 0
    assert kind in capsys.readouterr().out


def test_larger_pictures_have_as_many_latents():
    sizes = ("height", "64", "width", "64", "patch", "8")
    words = []
    for name, value in zip(sizes[::2], sizes[1::2], strict=True):
        words += [f"--tokenizers.image.{name}", value]
    small, large = (load_recipe(RECIPE, w).tokenizers["image"].n_patches for w in ([], words))
    assert small == large == 64
