"""Vectors of quantities: standardised and back, counts exact, bad ones refused."""

import numpy as np
import pytest

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers import load
from mmtok.tokenizers.vectors import MOST_COUNT, VectorConfig, read_vectors, write_vectors


def rows(n=200):
    rng = np.random.default_rng(0)
    return rng.normal((1e4, -3.0), (20.0, 1e-4), (n, 2))


def test_the_round_trip_is_exact_to_float32_of_the_deviation():
    tokenizer = VectorConfig(2).named("theta").fit(rows())
    segments = tokenizer.encode_batch(rows())
    latents = np.stack([s.latents[0] for s in segments])
    assert np.allclose(latents.mean(0), 0, atol=1e-5) and np.allclose(latents.std(0), 1, atol=1e-5)
    back = np.stack(tokenizer.decode_batch(segments))
    assert (np.abs(back - rows()) / rows().std(0)).max() < 5e-7
    assert tokenizer.signature.scales == tuple(rows().std(0))
    assert tokenizer.fidelity(rows())["max_error"] < 5e-7


def test_in_one_unit_nothing_is_subtracted_and_sums_are_kept(tmp_path):
    momenta = np.random.default_rng(0).normal((30.0, 0, -2), (5.0, 40, 90), (50, 3))
    tokenizer = VectorConfig(3, one_unit=True).named("momentum").fit(momenta)
    (unit,) = set(tokenizer.signature.scales)
    latents = np.stack([s.latents[0] for s in tokenizer.encode_batch(momenta)])
    assert np.square(latents).mean() == pytest.approx(1)
    assert latents.sum(1) * unit == pytest.approx(momenta.sum(1), abs=1e-3)
    tokenizer.save(tmp_path)
    assert load(tmp_path).signature == tokenizer.signature
    with pytest.raises(UserError, match="counts have no unit"):
        VectorConfig(counts=True, one_unit=True)


def test_a_unit_that_is_not_asked_for_leaves_no_trace():
    assert "one_unit" not in VectorConfig(2).settings
    assert VectorConfig(2, one_unit=True).settings["one_unit"] is True


def test_counts_are_exact_up_to_the_largest():
    tokenizer = VectorConfig(1, counts=True).fit([3])
    counts = [0, 1, 2, 77, 12_345, MOST_COUNT - 1, MOST_COUNT]
    back = tokenizer.decode_batch(tokenizer.encode_batch(counts))
    assert [float(x[0]) for x in back] == counts
    assert tokenizer.signature.counts and tokenizer.signature.scales == ()


def test_saved_and_opened_it_is_the_same(tmp_path):
    tokenizer = VectorConfig(2, unit="GeV").named("theta").fit(rows())
    tokenizer.save(tmp_path)
    opened = load(tmp_path)
    assert opened.signature == tokenizer.signature
    assert np.array_equal(opened.encode(rows()[0]).latents, tokenizer.encode(rows()[0]).latents)
    (tmp_path / "standard.safetensors").unlink()
    with pytest.raises(UserError, match="standard.safetensors"):
        load(tmp_path)


def test_texts_lists_and_files_are_vectors(tmp_path):
    tokenizer = VectorConfig(2).fit(rows())
    wanted = tokenizer.encode([1.5, -2.0]).latents
    for text in ("1.5,-2", "1.5; -2", " 1.5 -2e0 "):
        assert np.array_equal(tokenizer.encode(text).latents, wanted)
    path = tmp_path / "a.vector.csv"
    write_vectors(path, list(rows(3)), {})
    back = [np.array(line.split(","), float) for line in read_vectors(path, {})]
    assert np.array_equal(back, rows(3))


@pytest.mark.parametrize(
    "signal, message",
    [
        ("1", "is 1 number, but a vector of theta has 2"),
        ([1, 2, 3], "is 3 numbers"),
        ("1,GeV", "no number"),
        ([1.0, np.nan], "must be finite"),
        ("", "is 1 number"),
    ],
)
def test_what_is_no_vector_is_refused(signal, message):
    tokenizer = VectorConfig(2).named("theta").fit(rows())
    with pytest.raises(UserError, match=message):
        tokenizer.encode(signal)


def test_other_mistakes_are_refused_or_said():
    counts = VectorConfig(1, counts=True).fit([1])
    for wrong in (-1, 0.5, MOST_COUNT + 1):
        with pytest.raises(UserError, match="is no count"):
            counts.encode(wrong)
    with pytest.raises(UserError, match="size is 0"):
        VectorConfig(0)
    with pytest.raises(UserError, match="no vectors to learn from"):
        VectorConfig(1).fit([])
    with pytest.raises(UserError, match="image is no vector"):
        VectorConfig(1).named("image")
    with pytest.warns(UserWarning, match="1 of its 2 numbers never change"):
        VectorConfig(2).fit([[1.0, 5.0], [2.0, 5.0]])
    with pytest.raises(UserError, match="expected latents"):
        VectorConfig(2).fit(rows()).decode(Segment("vector", latents=np.zeros((1, 3), np.float32)))
