"""A run of seconds that speaks and reads sentences, with a voice as a condition."""

from dataclasses import replace

import pytest

from mmtok.run import build
from mmtok.run.recipe import load_recipe
from mmtok.run.run import open_run
from mmtok.sources.sentences import SpokenSentences


@pytest.fixture(scope="session")
def speaking_run(tmp_path_factory):
    """recipes/sentences.py with espeak's voices, smaller, and trained for a few steps only."""
    source = SpokenSentences(
        n_utterances=60, voices_heard=("en-us", "en-us+f2"), voices_unseen=("en+m4",)
    )
    recipe = load_recipe(
        "recipes/sentences.py",
        [
            *("--model.trunk.depth", "1", "--model.trunk.width", "32"),
            *("--model.trunk.n_heads", "2", "--model.trunk.n_kv_heads", "2"),
            *("--model.trunk.feed_forward", "48", "--train.steps", "3", "--train.warmup", "2"),
            *("--sampling.speech.max_frames", "30", "--sampling.text.max_frames", "20"),
        ],
    )
    folder = tmp_path_factory.mktemp("speaking")
    build.train(replace(recipe, sources=(source,)), folder)
    return open_run(folder)


@pytest.fixture(scope="session")
def reference_clip(speaking_run, tmp_path_factory):
    """The file of a clip of one of the voices."""
    from mmtok.sources.sound_files import write_sound

    example = next(speaking_run.examples("heldout", "speech"))
    path = tmp_path_factory.mktemp("clips") / "clip.wav"
    write_sound(path, example["speech"])
    return path
