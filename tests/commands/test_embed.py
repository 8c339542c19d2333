"""`mmtok embed` on a run of seconds: files of vectors, retrieval, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands.embed import embedded, read_vectors
from mmtok.data.tasks import Contrast
from mmtok.errors import UserError
from mmtok.evaluation.evaluate import evaluate
from mmtok.run import build
from mmtok.run.recipe import load_recipe
from mmtok.run.run import open_run
from mmtok.sources.images import ScannedDigits
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import SpokenDigits
from mmtok.tokenizers.images import PixelsConfig


def small_recipe():
    recipe = load_recipe(
        "recipes/embed.py",
        [
            *("--model.trunk.depth", "1", "--model.trunk.width", "32", "--batch_size", "4"),
            *("--model.trunk.feed_forward", "48", "--train.steps", "3", "--train.warmup", "1"),
            *("--model.trunk.n_heads", "2", "--model.trunk.n_kv_heads", "2", "--log_every", "1"),
        ],
    )
    tokenizers = {m: t for m, t in recipe.tokenizers.items() if m in ("text", "speech")}
    return replace(
        recipe,
        sources=(ScannedDigits(copies=1), SpokenDigits(n_utterances=30)),
        tokenizers=tokenizers | {"image": PixelsConfig(n_levels=4, height=8, width=8)},
        contrasts=(Contrast(("caption", "view")), Contrast(("caption", "speech"))),
        model=replace(recipe.model, totals={}),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    build.train(small_recipe(), folder)
    return open_run(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0).normal(size=20 * 16_000).astype(np.float32) * 0.1
    for seconds in (1, 20):
        write_sound(folder / f"{seconds}s.wav", noise[: seconds * 16_000])
    return folder


def test_vectors_are_of_one_size_whatever_the_length(run, clips, tmp_path):
    words = ["seven", str(clips / "1s.wav"), str(clips / "20s.wav")]
    for suffix in (".parquet", ".npz"):
        out = tmp_path / f"vectors{suffix}"
        assert main(["embed", str(run.folder), *words, "-o", str(out)]) == 0
        found = read_vectors(out)
        assert found.names == words and found.modalities == ["text", "speech", "speech"]
        assert found.vectors.shape == (3, 128) and found.vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
        assert np.array_equal(found.vectors, embedded(run, words).vectors)


def test_the_nearest_of_a_vector_is_itself(run, clips, tmp_path, capsys):
    out = tmp_path / "vectors.parquet"
    assert main(["embed", str(run.folder), "seven", "eight", str(clips) + "/", "-o", str(out)]) == 0
    capsys.readouterr()
    words = ["embed", str(run.folder), "eight", "--nearest", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out == "eight -> eight: cosine 1.0000\n"
    assert main([*words, "--to", "speech", "-n", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(".wav: cosine" in line for line in lines)


def test_evaluate_has_retrieval_both_ways_and_a_probe(run):
    figures = evaluate(run)["embedding"]
    for pair in ("view_to_speech", "speech_to_view", "caption_to_view", "view_to_caption"):
        assert 0 <= figures[pair]["top1"] <= 1 and figures[pair]["n"] > 0
    assert figures["probe_view"]["n"] > 100


def test_show_says_what_is_contrasted(run, capsys):
    assert main(["show", str(run.folder)]) == 0
    out = capsys.readouterr().out
    assert "contrast caption ~ speech, weight 1" in out
    assert "vectors of 128 numbers by clip, both ways" in out


def test_what_cannot_be_is_one_line(run, clips, tmp_path, capsys):
    vectors = tmp_path / "v.parquet"
    other = tmp_path / "other.npz"
    np.savez(other, a=1)
    garbage = tmp_path / "garbage.parquet"
    garbage.write_bytes(b"none")
    assert main(["embed", str(run.folder), "seven", "-o", str(vectors)]) == 0
    capsys.readouterr()
    cases = {
        (): "say where the vectors go",
        ("-o", "v.csv"): ".parquet or .npz",
        ("-o", str(vectors), "--to", "speech"): "--to speech is of --nearest",
        ("--nearest", str(vectors), "-o", "x.npz"): "leave -o out",
        ("--nearest", str(vectors), "-n", "0"): "-n is 0",
        ("--nearest", str(vectors), "--to", "jets"): "no vector of jets, only of text",
        ("--nearest", "gone.parquet"): "no file of vectors",
        ("--nearest", str(other)): "is no file of vectors",
        ("--nearest", str(garbage)): "is no file of vectors",
    }
    for options, said in cases.items():
        assert main(["embed", str(run.folder), "seven", *options]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1, error


def test_vectors_of_other_weights_are_refused(run, tmp_path, capsys):
    out = tmp_path / "v.npz"
    assert main(["embed", str(run.folder), "seven", "-o", str(out)]) == 0
    with np.load(out) as file:
        arrays = dict(file) | {"weights": "others"}
    np.savez(out, **arrays)
    assert main(["embed", str(run.folder), "seven", "--nearest", str(out)]) == 2
    assert "other weights" in capsys.readouterr().err


def test_contrasts_and_an_embedding_need_each_other():
    recipe = small_recipe()
    with pytest.raises(UserError, match="set model.embedding"):
        replace(recipe, model=replace(recipe.model, embedding=None))
    with pytest.raises(UserError, match="learns from contrasts, and there are none"):
        replace(recipe, contrasts=())
    with pytest.raises(UserError, match="contrast caption ~ jets names the field 'jets'"):
        replace(recipe, contrasts=(Contrast(("caption", "jets")),))
