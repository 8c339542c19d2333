"""A run that starts from a run: equal to the last bit before it learns, with more parameters."""

from dataclasses import replace

import pytest
import torch

from mmtok.core.segment import Document
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.model.likelihood import score
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run import build
from mmtok.run.grown import load_run
from mmtok.run.pretrained import resolve_start
from mmtok.run.recipe import Recipe
from mmtok.sources.text import TextFile
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
