"""What a score is, one word in `mmtok score` and in evaluation.json: the least certain part's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mmtok.commands.score import kind_of, score
from mmtok.evaluation.likelihood import held_out_scores
from mmtok.run.build import train
from mmtok.tokenizers.text import SentencePieceConfig


@pytest.mark.parametrize(
    "head, is_ambiguous, expected",
    [
        ("exact", False, "exact"),
        ("exact", True, "bound"),
        ("bound", False, "bound"),
        ("bound", True, "bound"),
        ("estimate", False, "estimate"),
        ("estimate", True, "estimate"),
    ],
)
def test_the_less_certain_of_head_and_tokenizer_counts(head, is_ambiguous, expected):
    run = SimpleNamespace(
        lm=SimpleNamespace(kind=lambda modality: head),
        tokenizers={"text": SimpleNamespace(is_ambiguous=is_ambiguous)},
    )
    assert kind_of(run, "text") == expected


def test_a_text_in_pieces_is_a_bound_in_score_and_in_evaluation(tiny_recipe, tiny_data, tmp_path):
    tokenizers = dict(tiny_recipe.tokenizers) | {"text": SentencePieceConfig(300)}
    short = replace(tiny_recipe.train, steps=2, warmup=1)
    run = train(replace(tiny_recipe, tokenizers=tokenizers, train=short), tmp_path / "run")
    figures = held_out_scores(run)
    picture = next((tiny_data / "images").rglob("*.png"))
    (scored,) = score(run, ["dark"], [str(picture)])
    assert scored.kind == figures["text"]["kind"] == "bound"
    assert figures["image"]["kind"] == "exact"
