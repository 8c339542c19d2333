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
        ("--hsdp 2", "--train.replicas"),
        ("--row_length 128", "--train.seq_len"),
        ("--accumulate 2", "--train.grad_accum_steps"),
        ("--clip 1", "--train.grad_clip"),
        ("--recompute 4", "--train.activation_checkpointing"),
        ("--shard", "--train.fsdp"),
        ("--num-workers 4", "tokens are made once"),
        ("--eval_every 100", "mmtok evaluate RUN"),
        ("--config x", "the recipe's file itself"),
        ("--data x", "--path"),
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
        ("sample run --to image", "--given seven", "--prompt"),
        ("sample run --to image", "--condition seven", "--prompt"),
        ("sample run --to image", "--cond=seven", "--prompt"),
        ("sample run --to image", "--n 3", "-n"),
        ("sample run --to image", "--hole a:0:3", "--infill FILE:START:STOP"),
        ("sample run --to image", "--inpaint a:0:3", "--infill FILE:START:STOP"),
        ("sample run --to image", "--level 0.1", "--aug-noise"),
        ("sample run --to image", "--greedy", "--temperature 0"),
        ("score run x", "--given seven", "--condition"),
        ("score run x", "--prompt seven", "--condition"),
        ("tokenize text x -o y", "--model z", "--tokenizer"),
        ("tokenize text x -o y", "--num_shards 3", "--shard I/N"),
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
    for habit, answers in FIELDS.items():
        assert len(answers) == 1, habit
        for name in re.findall(r"--([a-z_.]+)", answers[0]):
            assert _path(name, plain), habit
    verbs = [set(parser_of(verb, name).option_names) for name, verb in VERBS.items()]
    for habit, answers in OPTIONS.items():
        for answer in answers:
            ours = answer.split()[0].rstrip(",")
            having = [options for options in verbs if ours in options]
            assert having, habit
            # one that every such verb has itself would never be read
            assert not all(f"--{habit.replace('_', '-')}" in options for options in having), habit
