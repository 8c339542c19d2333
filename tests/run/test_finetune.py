"""A run that starts from a run: equal to it before it learns, with more parameters or more ids."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmtok.commands.show import describe_run
from mmtok.core.segment import Document
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.model.likelihood import score
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run import build
from mmtok.run.finetune import load_run
from mmtok.run.pretrained import resolve_start
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.sources.jets import JetFile
from mmtok.sources.text import TextFile
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.numbers import NumberConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown")
    (folder / "text.txt").write_text("to be or not to be, that is the question\n" * 40)
    recipe = Recipe(
        name="small",
        tokenizers={"text": BytesConfig()},
        sources=(TextFile(str(folder / "text.txt"), chunk_chars=64),),
        tasks=(Task((), ("text",)),),
        model=DecoderConfig(
            TransformerConfig(2, 32, 4, 4, 48, attn_tokens=(16,), ffn_tokens=(72,))
        ),
        train=TrainConfig(steps=4, batch_size=2, seq_len=80, warmup=1, log_every=2),
    )
    return build.train(recipe, folder / "run", device="cpu")


def grown(run, **fields):
    trunk = replace(
        run.recipe.model.trunk,
        **({"attn_tokens": (16, 16), "ffn_tokens": (72, 72)} | fields),
    )
    model = replace(run.recipe.model, trunk=trunk)
    return replace(run.recipe, start=str(run.folder), model=model)


def test_a_grown_run_gives_the_same_bits_until_it_learns(first, tmp_path):
    recipe = grown(first)
    out = tmp_path / "large"
    build.fit(recipe, out)
    large = build.Run(out, recipe, torch.device("cpu")).untrained()
    load_run(large, recipe)
    document = Document(tuple(first.encode("text", ["to be or not"])), (True,))
    assert score(large, [document]) == score(first.lm, [document])
    n_before = sum(p.numel() for p in first.lm.parameters())
    assert sum(p.numel() for p in large.parameters()) > 1.5 * n_before
    run = build.train(recipe, out, device="cpu")
    assert score(run.lm, [document]) != score(first.lm, [document])
    key = run.lm.model.layers[0].mlp.tokens.key_1
    assert key.abs().sum() > 0  # it has learned
    build.train(recipe, out, device="cpu")  # a finished run stands


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"attn_tokens": (8, 16)},
            "attn_tokens are \\[16\\], the recipe's \\[8, 16\\]",
        ),
        ({"width": 64}, "other sizes or switches"),
        ({"attn_tokens": ()}, "growth adds numbers behind"),
    ],
)
def test_what_is_not_growth_is_one_line(first, tmp_path, fields, said):
    with pytest.raises(UserError, match=said):
        resolve_start(grown(first, **fields), tmp_path / "other")


def test_a_checkpoint_cannot_have_odd_blocks(first, tmp_path):
    recipe = replace(grown(first), start=str(tmp_path))
    with pytest.raises(UserError, match="the recipe's trunk has parameter tokens"):
        resolve_start(recipe, tmp_path / "other")


# ---- more ids, other tasks


@pytest.fixture(scope="module")
def tagging(first, tmp_path_factory):
    """A recipe that adds numbers, and reads them after a text; and its run."""
    folder = tmp_path_factory.mktemp("more")
    jets = [np.array([[p, 0.1, 0.0], [p, -0.1, 0.0]], np.float32) for p in range(1, 41)]
    np.savez(folder / "jets.npz", jets=np.stack(jets))
    (folder / "names.txt").write_text("soft\n" * 20 + "hard\n" * 20)
    source = JetFile(str(folder / "jets.npz"), str(folder / "names.txt"), numbers=("pt_gev",))
    recipe = replace(
        first.recipe,
        name="more",
        start=str(first.folder),
        sources=(source,),
        tokenizers={
            "pt_gev": NumberConfig(unit="GeV", low=1.0, high=100.0, scale="log", n_bins=5),
            **first.recipe.tokenizers,
            "jets": JetGridConfig(bins=(10, 4, 4), totals=()),
        },
        tasks=(Task(("pt_gev",), ("caption",)),),
        train=replace(first.recipe.train, steps=4, checkpoint_every=2),
    )
    return recipe, folder / "run", build.train(recipe, folder / "run", device="cpu")


def test_new_ids_leave_scores_of_old_ones(first, tagging):
    recipe, out, _ = tagging
    before = build.Run(out, recipe, torch.device("cpu")).untrained()
    load_run(before, recipe)
    document = Document(tuple(first.encode("text", ["to be or not"])), (True,))
    [old] = score(first.lm, [document])
    [new] = score(before, [document])
    assert new.total == pytest.approx(old.total, rel=1e-6)


def test_the_start_is_in_the_log_in_checkpoints_and_shown(first, tagging):
    _, out, run = tagging
    header = json.loads((out / "log.jsonl").read_text().splitlines()[0])
    weights = json.loads((first.folder / "config.json").read_text())["sha256"]
    assert header["start"]["run"] == str(first.folder) and header["start"]["sha256"] == weights
    assert header["start"]["n_copied"] > header["start"]["n_new"] > 0
    state = json.loads((out / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state["start"] == header["start"]
    assert f"began with weights of {first.folder}: " in describe_run(
        open_run(out, device=run.device)
    )


def test_resumed_equals_uninterrupted_without_the_first_run(tagging, tmp_path):
    recipe, out, _ = tagging
    again = tmp_path / "run"
    shutil.copytree(out, again)
    for name in ("model.safetensors", "config.json"):
        (again / name).unlink()
    shutil.rmtree(again / "checkpoints" / "step-000004")
    build.train(recipe, again, device="cpu")
    mine, theirs = (load_file(f / "model.safetensors") for f in (again, out))
    assert all(torch.equal(mine[name], x) for name, x in theirs.items())
    header = json.loads((again / "log.jsonl").read_text().splitlines()[0])
    assert header["start"]["n_copied"] > 0


def test_the_same_recipe_from_a_run_is_that_run(first, tmp_path):
    recipe = replace(first.recipe, start=str(first.folder))
    build.fit(recipe, tmp_path / "run")
    lm = build.Run(tmp_path / "run", recipe, torch.device("cpu")).untrained()
    load_run(lm, recipe)
    for name, x in first.lm.state_dict().items():
        assert torch.equal(lm.state_dict()[name], x)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tokenizers": {"jets": JetGridConfig()}, "tasks": (Task((), ("jets",)),)}, "add tokeni"),
        ({"model": DecoderConfig()}, "its trunk"),
        ({"model": "channel_size"}, "model.channel_size is 16, the recipe's 8"),
    ],
)
def test_what_does_not_fit_is_one_line(tagging, tmp_path, fields, said):
    recipe, *_ = tagging
    if fields.get("model") == "channel_size":
        fields = {"model": replace(recipe.model, channel_size=8)}
    with pytest.raises(UserError, match=said):
        resolve_start(replace(recipe, **fields), tmp_path / "other")
