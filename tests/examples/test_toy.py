"""The toy learns both of its modalities: what the words mean, and how melodies go."""

import random
import runpy
from pathlib import Path

import pytest
import torch

TOY = Path(__file__).parents[2] / "examples" / "toy.py"


@pytest.fixture(scope="module")
def toy():
    return runpy.run_path(str(TOY))


def test_it_is_one_short_file():
    assert len(TOY.read_text().splitlines()) <= 150


def test_its_tokenizer_inverts(toy):
    rng = random.Random(1)
    for _ in range(20):
        _, notes = toy["make_example"](rng)
        assert toy["melody"].decode(toy["melody"].encode(notes)) == notes


def test_it_learns_what_the_words_mean(toy):
    torch.manual_seed(0)
    lm = toy["make_model"]()
    losses = toy["train"](lm)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    for word in ("rise", "fall"):
        drawn = toy["sample"](lm, word, 100, seed=1)
        assert sum(toy["follows"](word, notes) for notes in drawn) > 80
    rng = random.Random(2)
    for word, notes in (toy["make_example"](rng) for _ in range(20)):
        other = {"rise": "fall", "fall": "rise"}[word]
        if len(notes) > 2:
            assert toy["nats"](lm, word, notes) < toy["nats"](lm, other, notes)
