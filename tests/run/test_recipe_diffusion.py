"""The recipes that draw by diffusion: each takes a step on a handful of its own data, draws what
its docstring shows, and scores it.
"""

import ast
import shlex
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.run.recipe import load_recipe
from mmtok.sources.sound_files import write_sound
from mmtok.train.log import read_log

FOLDER = Path(__file__).parents[2] / "recipes"
TRUNK = (
    "--trunk.depth 1 --trunk.width 32 --trunk.n_heads 2 --n_kv_heads 2 --feed_forward 32"
    " --train.steps 2 --batch_size 2 --log_every 1 --copies 1"
)
DIT = "--network.depth 1 --network.width 16 --network.n_heads 2"
LEARNED = "--tokenizers.image.steps 2 --hidden 8"
QUICK = "--heads.image.steps 3 --ode_steps 2"
SPOKEN = (
    "--trunk.depth 1 --trunk.width 32 --trunk.n_heads 2 --n_kv_heads 2 --feed_forward 32"
    " --train.steps 2 --batch_size 2 --log_every 1 --n_utterances 30"
    " --network.depth 1 --network.width 16 --heads.speech.steps 3 --ode_steps 2"
    " --speech.max_frames 4"
)
SMALL = {
    "latent_images": f"{TRUNK} {LEARNED} {QUICK} --network.depth 1 --network.width 16",
    "latent_diffusion": f"{TRUNK} {LEARNED} {QUICK} {DIT}",
    "pixel_diffusion": f"{TRUNK} {QUICK} {DIT}",
    "any_order": f"{TRUNK} {LEARNED} {DIT}",
    "continuous_speech": SPOKEN,
}


@pytest.mark.parametrize("name", SMALL)
def test_it_takes_a_step_draws_and_scores(name, tmp_path, capsys):
    pytest.importorskip("espeakng_loader" if name == "continuous_speech" else "sklearn")
    run = tmp_path / "run"
    made = "speech" if name == "continuous_speech" else "image"
    assert main(["train", str(FOLDER / f"{name}.py"), "-o", str(run), *SMALL[name].split()]) == 0
    losses = [line["loss"] for line in read_log(run / "log.jsonl")]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert "sigma_data" not in capsys.readouterr().err  # what the recipe says of the data is so

    assert main(["sample", str(run), "--prompt", "seven", "--to", made, "-n", "2"]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == 2 and all(Path(path).stat().st_size for path in paths)
    if made == "speech":  # after two steps a clip may end before it begins
        write_sound(
            Path(paths[0]), np.random.default_rng(0).normal(0, 0.1, 3000).astype(np.float32)
        )
    assert main(["score", str(run), paths[0], "--condition", "seven"]) == 0
    kind = "bound" if name == "any_order" else "estimate"
    assert kind in capsys.readouterr().out
    if any(made in task.inputs for task in load_recipe(FOLDER / f"{name}.py").tasks):
        assert (
            main(
                [
                    "sample",
                    str(run),
                    "--prompt",
                    paths[0],
                    "--to",
                    "text",
                    "-n",
                    "1",
                    "--max-frames",
                    "3",
                ]
            )
            == 0
        )


def shown(name):
    """The commands that a recipe's docstring shows, each as words."""
    commands: list[str] = []
    continued = False
    for line in ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())).splitlines():
        if line.startswith("    mmtok "):
            commands.append(line.partition("  #")[0])
            continued = line.endswith("\\")
        elif continued:
            commands[-1] = commands[-1].removesuffix("\\") + line
            continued = line.endswith("\\") or commands[-1].count("'") % 2 == 1
    return [shlex.split(command) for command in commands]


@pytest.mark.parametrize("name", SMALL)
def test_the_variants_that_its_docstring_shows_are_recipes(name):
    """Other data and other tokenizers by a flag or two, which name fields that are there; sizes of
    source and tokenizer agree.
    """
    variants = [words[3:] for words in shown(name) if words[1] == "train" and len(words) > 3]
    assert variants or name == "latent_diffusion"
    for words in variants:
        recipe = load_recipe(FOLDER / f"{name}.py", words)
        tokenizer = recipe.tokenizers.get("image")
        source = recipe.sources[0]
        if hasattr(source, "height"):
            assert (source.height, source.width, source.channels) == (
                tokenizer.height,
                tokenizer.width,
                tokenizer.channels,
            )
