"""What a part of the data is used for sees all of its kinds, though folders are sorted."""

import contextlib
from collections import Counter
from dataclasses import replace

from mmtok.evaluation import likelihood as likelihoods
from mmtok.run import build as room
from mmtok.run.build import fit
from mmtok.run.run import open_run
from mmtok.tokenizers.text import SentencePieceConfig


def test_a_tokenizer_learns_from_all_of_a_sorted_source(tiny_recipe, tmp_path, monkeypatch):
    seen = {}

    def spy(config, signals, *others, **named):
        seen[type(config).__name__] = (
            Counter(signals) if config.__class__ is SentencePieceConfig else len(signals)
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "fit_tokenizer", spy)
    monkeypatch.setattr(room, "N_FIT", 20)
    monkeypatch.setattr(room, "_signals", lambda run, split, names: iter(["a"] * 100 + ["b"] * 100))
    recipe = replace(
        tiny_recipe,
        tokenizers={
            "text": SentencePieceConfig(),
            **{m: c for m, c in tiny_recipe.tokenizers.items() if m != "text"},
        },
    )
    with contextlib.suppress(KeyboardInterrupt):
        fit(recipe, tmp_path / "run")
    counts = seen["SentencePieceConfig"]
    assert sum(counts.values()) == 20 and min(counts["a"], counts["b"]) >= 4


def test_held_out_scores_are_of_all_of_a_sorted_source(tiny_copy, monkeypatch):
    run = open_run(tiny_copy)
    read = []
    monkeypatch.setattr(likelihoods, "N_SCORED", 2)
    images = [e["image"] for e in run.examples("heldout", "image")]
    tokenizer = run.tokenizers["image"]
    encode_batch = tokenizer.encode_batch
    monkeypatch.setattr(
        tokenizer,
        "encode_batch",
        lambda signals: [read.append(x.tobytes()) for x in signals] and encode_batch(signals),
    )
    monkeypatch.setattr(
        run,
        "examples",
        lambda split, *names, all=run.examples: (e for _ in range(40) for e in all(split, *names)),
    )
    likelihoods.held_out_scores(run)
    assert len(read) and len(images) > 2 and set(read) - {x.tobytes() for x in images[:2]}
