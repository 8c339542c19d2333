"""Laws of degraded pictures: what each degradation keeps; draws are the same for a seed."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from mmtok.data.image_preparation import ImagePreparation
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.run.recipe import Recipe, override
from mmtok.sources.base import Altered, Example, Items, Listing, Picture, Source, Unusable
from mmtok.sources.degraded import (
    GREY,
    Blur,
    Degraded,
    Downsample,
    Hole,
    Noise,
    degrade,
    shown_of,
)
from mmtok.sources.images import ImageFolder, ScannedDigits, write_image
from mmtok.tokenizers.image_latents import PixelLatentsConfig

ALL = (Blur(1.2), Downsample(3), Hole(0.3), Noise(20.0))


def read_item(i):
    if i == 3:
        raise UserError("broken")
    rng = np.random.default_rng(i)
    return Example({"image": Picture(rng.integers(0, 256, (12, 9, 3), np.uint8), f"{i}")}, i)


class Passed:
    def __init__(self):
        self.n = 0

    def meet(self, unusable):
        self.n += 1

    def report(self):
        pass


@dataclass(frozen=True)
class Ten(Source):
    """Ten pictures in chunks of four, one of them broken."""

    fields = {"image": "image"}

    def examples(self, split, cache):
        return self.listing(split, cache).examples()

    def listing(self, split, cache=None):
        chunks = [Items(range(k, min(10, k + 4)), read_item) for k in (0, 4, 8)]
        return Listing(iter(chunks), Passed(), 10)


def pixels(examples, **size):
    with Tally("images") as tally:
        preparation = ImagePreparation()
        return [preparation.prepare(e["degraded"], "x", tally, **size) for e in examples]


# ---- degradations


@pytest.mark.parametrize("degradation", ALL, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("shape", [(12, 9), (12, 9, 3)])
def test_size_and_type_stay_and_draws_are_those_of_the_seed(degradation, shape, rng):
    picture = rng.integers(0, 256, shape, np.uint8)
    before = picture.copy()
    found = [degrade(picture, (degradation,), (seed,)) for seed in (1, 1, 2)]
    assert found[0].shape == shape and found[0].dtype == np.uint8
    assert np.array_equal(found[0], found[1]) and np.array_equal(picture, before)
    is_random = isinstance(degradation, (Hole, Noise))
    assert np.array_equal(found[0], found[2]) is not is_random


@pytest.mark.parametrize("degradation", [Blur(2.0), Downsample(4)])
def test_even_pictures_are_not_changed_by_what_mixes_pixels(degradation, rng):
    even = np.full((16, 12), 77, np.uint8)
    assert np.array_equal(degradation.apply(even, rng), even)


def test_a_blur_is_the_gaussian_of_its_width(rng):
    point = np.zeros((41, 41), np.uint8)
    point[20, 20] = 255
    spread = Blur(1.0).apply(point, rng).astype(float)
    assert spread[20, 20] == round(255 / (2 * np.pi))  # the density at its centre
    assert np.array_equal(spread, spread.T) and np.array_equal(spread, spread[::-1, ::-1])
    assert spread[20, 21] / spread[20, 20] == pytest.approx(np.exp(-0.5), abs=0.02)


def test_a_small_picture_scaled_up_is_what_downsampling_leaves(rng):
    """A prompt of the small size goes through the ordinary preparation, and is what was learned."""
    from PIL import Image

    picture = rng.integers(0, 256, (16, 24), np.uint8)
    small = np.array(Image.fromarray(picture).resize((6, 4), Image.Resampling.BICUBIC))
    with Tally("images") as tally:
        prompt = ImagePreparation().prepare(small, "small", tally, 16, 24, 1)
    assert np.array_equal(prompt, Downsample(4).apply(picture, rng))


def test_a_hole_has_its_share_and_is_found_again(rng):
    picture = rng.integers(0, 256, (20, 10, 3), np.uint8)
    covered = Hole(0.25).apply(picture, rng)
    mask = Hole(0.25).mask(covered)
    assert mask.sum() == 10 * 5 and (covered[mask] == GREY).all()
    assert np.array_equal(covered[~mask], picture[~mask])
    mean = np.full(picture.shape, 41.4)
    shown = shown_of(covered, (Noise(), Hole(0.25)), mean)
    assert (shown[mask] == 41).all() and np.array_equal(shown[~mask], picture[~mask])


def test_noise_has_its_deviation(rng):
    noise = Noise(9.0).apply(np.full((200, 200), 128, np.uint8), rng).astype(float) - 128
    assert abs(noise.mean()) < 0.2 and noise.std() == pytest.approx(9.0, rel=0.02)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Blur(0.0), "sigma is 0.0"),
        (lambda: Noise(float("nan")), "sigma is nan"),
        (lambda: Downsample(1), "factor is 1"),
        (lambda: Hole(1.0), "share is 1.0"),
        (lambda: Degraded(copies=0), "copies is 0"),
        (lambda: Degraded(degradations=()), "degradations are 0"),
        (lambda: Degraded(degradations=(Hole(), Noise())), "Hole must be the last"),
        (lambda: Degraded(field="caption"), "has the fields caption, image"),
        (lambda: Degraded(Degraded()), "none may be called degraded"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()


# ---- the source


def test_copies_are_other_draws_and_held_out_pictures_are_always_the_same(tmp_path):
    source = Degraded(Ten(), (Noise(30.0),), copies=3)
    train, again = (list(source.examples("train", tmp_path)) for _ in range(2))
    heldout = list(source.examples("heldout", tmp_path))
    assert len(train) == 3 * 9 and len(heldout) == 9  # one of ten is broken
    assert [e.name for e in heldout] == [str(i) for i in range(10) if i != 3]
    found = [p.tobytes() for p in pixels(train)]
    assert found == [p.tobytes() for p in pixels(again)]
    others = [p.tobytes() for p in pixels(Degraded(Ten(), (Noise(30.0),)).examples("train", "x"))]
    assert len(set(found)) == 27 and found[::3] == others
    assert found[0] != pixels(heldout)[0].tobytes()


def test_unusable_pictures_are_met_once_and_chunks_travel():
    listing = Degraded(Ten(), copies=2).listing("train")
    assert listing.n == 20
    chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in listing.chunks]
    read = [example for chunk in chunks for example in chunk.read()]
    assert sum(isinstance(example, Unusable) for example in read) == 1 and len(read) == 19


def test_pictures_are_degraded_in_the_size_that_the_tokenizer_takes():
    """So a sigma of one pixel is one of the model's, however large the file's picture is."""
    (example, *_) = Degraded(Ten(), (Blur(1.0),)).examples("heldout", "x")
    assert isinstance(example["degraded"], Altered)
    size = {"height": 6, "width": 6, "channels": 1}
    (found,) = pixels([example], **size)
    with Tally("images") as tally:
        small = ImagePreparation().prepare(example["image"], "x", tally, **size)
    assert np.array_equal(found, Blur(1.0).apply(small, np.random.default_rng(0)))


def test_a_clean_source_has_each_picture_once():
    pytest.importorskip("sklearn")
    source = Degraded(ScannedDigits(copies=2), copies=3)
    assert source.count("train", "x") == 6 * source.clean().count("train", "x")
    assert source.clean().source == ScannedDigits().clean()
    assert source.clean().clean() == source.clean()
    plain = Degraded(Ten())
    assert plain.clean() is plain


def test_it_survives_json_and_a_change_on_the_command_line(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"{i}.png", np.full((8, 8), 40 * i, np.uint8))
    source = Degraded(ImageFolder(str(tmp_path)), ALL[:2], copies=2)
    recipe = Recipe("x", {"image": PixelLatentsConfig()}, (source,), ())
    assert Recipe.from_json(recipe.to_json()) == recipe
    words = ["--degradations", '[{"kind": "Hole", "share": 0.5}]', "--path", "elsewhere"]
    changed = override(recipe, words).sources[0]
    assert changed.degradations == (Hole(0.5),) and changed.source.path == "elsewhere"
    source.check()
    assert source.found() == source.source.found()
    with pytest.raises(UserError, match="no split"):
        next(iter(source.examples("validation", tmp_path)))
