"""Options that people type out of habit are answered in one line that names ours."""

import re
from pathlib import Path

import pytest

from mmtok.cli import VERBS
from mmtok.commands.arguments import parse, parser_of
from mmtok.io.option_hints import FIELDS, OPTIONS
from mmtok.io.overrides import _path
from mmtok.io.serialize import to_plain
from mmtok.run.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "text.py"


@pytest.mark.parametrize(
    "words, ours",
    [
        ("--lr 1e-3", "--train.learning_rate"),
        ("--epochs 3", "--train.steps"),
        ("--bs 8", "--train.batch_size"),
        ("--block_size 128", "--train.seq_len"),
        ("--fp16", "--train.precision"),
        ("--bf16", "--train.precision"),
        ("--bf16 true", "--train.precision"),
        ("--gpu", "--device cuda"),
        ("--gpu 0", "--device cuda"),
        ("--resume", "the same command goes on"),
        ("--resume --lr 3", "the same command goes on"),
        ("--output x", "--out"),
        ("--output_dir=x", "--out"),
        ("--max_steps 3", "--train.steps"),
        ("--wandb", "--tensorboard"),
        ("--LR 3", "--train.learning_rate"),
    ],
)
def test_training(said, tmp_path, monkeypatch, words, ours):
    monkeypatch.chdir(tmp_path)
    line = said(["train", RECIPE, *words.split()])
    assert (
        ours in line and words.split()[0].split("=")[0] in line and list(tmp_path.iterdir()) == []
    )


@pytest.mark.parametrize(
    "verb, words, ours",
    [
        ("sample run --to image", "--num_samples 3", "-n"),
        ("sample run --to image", "--max_new_tokens 3", "--max-frames"),
        ("sample run", "--output x", "--out"),
        ("sample run --to image", "--fp16", "--precision"),
        ("sample run --to image", "--gpu 1", "--device cuda"),
        ("sample run --to image", "--batch_size 3", "-n for how many"),
        ("sample run --to image", "--temp 1", "--temperature"),
        ("score run x", "--ckpt 3", "--checkpoint"),
        ("tokenize text x", "--output=y", "--out"),
        ("evaluate run", "--overwrite", "--force"),
        ("export run", "--output_dir x", "--out"),
        ("fit r.py", "--output x", "--out"),
    ],
)
def test_other_verbs(said, verb, words, ours):
    assert f"it is {ours}" in said([*verb.split(), *words.split()])


def test_a_recipes_own_field_of_such_a_name_is_set():
    plain = {"kind": "Recipe", "mine": {"kind": "Mine", "batch_size": 3}}
    assert _path("batch_size", plain) == ("mine", "batch_size")


def test_what_follows_two_dashes_is_no_option():
    assert parse(VERBS["score"], ["run", "--", "--gpu", "--ckpt"])["files"] == ["--gpu", "--ckpt"]


def test_every_answer_names_what_there_is():
    plain = to_plain(load_recipe(RECIPE))
    for habit, answer in FIELDS.items():
        for name in re.findall(r"--([a-z_.]+)", answer):
            assert _path(name, plain), habit
    options = {
        option
        for name, verb in VERBS.items()
        for action in parser_of(verb, name)._actions
        for option in action.option_strings
    }
    for habit, answer in OPTIONS.items():
        assert answer.split()[0].rstrip(",") in options, habit
        assert f"--{habit}" not in options and f"--{habit.replace('_', '-')}" not in options, habit
