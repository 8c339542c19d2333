"""A run on interleaved documents: trained, scored, sampled, infilled, evaluated and shown."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mmtok.commands.sample import prompt_document, sample
from mmtok.commands.score import score
from mmtok.commands.show import describe, describe_tokens
from mmtok.core.interleaved import INTERLEAVED
from mmtok.core.segment import Document
from mmtok.data.tasks import Task, order_fits
from mmtok.errors import UserError
from mmtok.evaluation.evaluate import evaluate
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.sources.image_files import write_image
from mmtok.sources.interleaved import InterleavedFile
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.numbers import NumberConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig
from mmtok.train.config import TrainConfig

NAMES = ("black", "white")


def text(words, **more):
    return {"type": "text", "text": words, **more}


def picture(k, **more):
    return {"type": "image", "path": f"{NAMES[k]}.png", **more}


def document(k):
    """Text, picture and text, or with a number and the picture first."""
    if k % 3:
        return [text("a ", predict=False), picture(k % 2), text(NAMES[k % 2])]
    number = {"type": "number", "name": "shade", "value": k % 2}
    return [number | {"predict": False}, picture(k % 2), text("is "), text(NAMES[k % 2])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interleaved")
    for k, name in enumerate(NAMES):
        write_image(folder / f"{name}.png", np.full((2, 2), 255 * k, np.uint8))
    lines = [json.dumps({"content": document(k)}) for k in range(60)]
    (folder / "docs.jsonl").write_text("\n".join(lines))
    recipe = Recipe(
        name="docs",
        sources=(InterleavedFile(str(folder / "docs.jsonl"), max_leak_share=1.0),),
        tokenizers={
            "text": BytesConfig(),
            "image": PixelsConfig(2, 2, 1, n_levels=2),
            "shade": NumberConfig(n_classes=2),
        },
        tasks=(Task((), ("document",), infill=0.2),),
        model=DecoderConfig(
            TransformerConfig(depth=2, width=32, n_heads=2, n_kv_heads=2, feed_forward=48)
        ),
        train=TrainConfig(
            steps=60,
            batch_size=4,
            seq_len=64,
            learning_rate=1e-2,
            warmup=5,
            ema_decay=0.0,
            precision="float32",
        ),
        sampling={m: Sampling(temperature=0.0, max_frames=8) for m in ("text", "image")},
    )
    train(recipe, folder / "run")
    return folder


@pytest.fixture
def run(trained):
    return open_run(trained / "run")


def write(folder, name, *documents):
    path = folder / name
    path.write_text("".join(json.dumps({"content": d}) + "\n" for d in documents))
    return str(path)


def test_a_document_is_scored_part_by_part(run, trained):
    rows = score(run, [write(trained, "d.json", document(1))])
    assert [(row.name.rsplit("[")[-1], row.modality) for row in rows] == [
        ("1]", "image"),
        ("2]", "text"),
    ]
    wrong = [text("a ", predict=False), picture(1), text("black")]
    other = score(run, [write(trained, "e.jsonl", wrong, document(1))])
    assert other[1].nats > rows[1].nats + 2  # the text is read off the picture
    assert [r.nats for r in other[2:]] == pytest.approx([r.nats for r in rows], rel=1e-5)
    with pytest.raises(UserError, match="leave --condition out"):
        score(run, [str(trained / "d.json")], ["a "])


def test_scores_are_those_of_the_documents_segments(run, trained):
    [segment] = run.encode("text", ["a "])
    [image] = run.encode("image", [np.full((2, 2, 1), 255, np.uint8)])
    scored = run.score_documents([Document((segment, image), (False, True))])[0]
    rows = score(run, [write(trained, "d.json", document(1))])
    assert rows[0].nats == pytest.approx(scored.nats[1], rel=1e-5)


def test_prompts_of_any_order_are_continued(run, trained):
    black = str(trained / "black.png")
    white = write(trained, "white.json", [text("a "), picture(1)])
    for prompt in (["a ", black], [white], ["shade=0", black, "is "]):
        to_continue = prompt_document(run, prompt, "text")
        # one text goes on, the other is begun anew behind a picture or a text
        [drawn] = run.draw([to_continue], run.sampling("text"), 0)
        words = run.tokenizers["text"].decode(drawn.segment)
        assert ("white" if prompt == [white] else "black") in words or len(prompt) == 3
    [path] = sample(run, ["shade=1"], "image", 1, trained / "out")
    assert path.suffix == ".png"
    infilled = sample(run, ["a "], "image", 1, trained / "out2", infill=f"{black}:1:3")
    assert infilled[0].exists()
    with pytest.raises(UserError, match="knows no speech"):
        (trained / "a.wav").write_bytes(b"RIFF")
        sample(run, [str(trained / "a.wav")], "text", 1, trained / "out")


def test_it_is_evaluated_and_shown(run):
    figures = evaluate(run)["score"]
    assert set(figures) == {"text", "image"}
    assert figures["text"]["bits_per_byte"] < figures["text"]["bits_per_byte_unigram"]
    assert "document (interleaved)" in describe(run.recipe)
    assert "document/image: image" in describe_tokens(run.token_path(0))


def test_what_the_tokenizers_learn_comes_from_the_parts(run, trained):
    tokenizers = {**run.recipe.tokenizers, "text": SentencePieceConfig(n_pieces=300)}
    settings = replace(run.recipe.train, steps=2)
    recipe = replace(run.recipe, tokenizers=tokenizers, train=settings)
    again = train(recipe, trained / "pieces")
    assert again.tokenizers["text"].encode("black").codes.size < 5


def test_a_modality_without_a_tokenizer_is_said(run, trained):
    tokenizers = {"text": BytesConfig(), "shade": NumberConfig(n_classes=2)}
    recipe = replace(run.recipe, tokenizers=tokenizers, sampling={})
    with pytest.raises(UserError, match="part 1 is image, for which the recipe has no tokenizer"):
        train(recipe, trained / "without")


def test_a_cap_on_frames_is_refused_before_anything_is_made(run):
    with pytest.raises(UserError, match="'document' cannot have, as it is interleaved"):
        replace(run.recipe, tasks=(Task((), ("document",), max_target_frames=4),))


def test_json_keeps_it(run):
    assert Recipe.from_json(run.recipe.to_json()) == run.recipe


def test_orders_that_tasks_allow_around_documents(run):
    """Fields before a document stand first; a field behind one may follow any parts."""
    behind = order_fits(("image", "text", "shade"), "text", (INTERLEAVED, "shade"), "text")
    assert behind and not order_fits(("image", "text"), "text", (INTERLEAVED, "shade"), "text")
    assert not order_fits(("image", "shade"), "image", (INTERLEAVED, "shade"), "text")
    assert order_fits(("shade", "image"), "text", ("shade",), INTERLEAVED)
    assert not order_fits(("image", "shade"), "text", ("shade",), INTERLEAVED)
    assert not order_fits(("image",), "text", ("image", "shade"), "text")
    assert run.task_for(["image", "text"], "image") is run.recipe.tasks[0]
    with pytest.raises(UserError, match="it was on: nothing -> interleaved"):
        run.task_for(["image"], "speech")
