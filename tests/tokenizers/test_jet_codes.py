"""Laws of codes of constituents by k-means, and of constituents as latents."""

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers.jet_codes import JetCodesConfig, k_means
from mmtok.tokenizers.jet_latents import JetLatentsConfig
from mmtok.tokenizers.jet_particles import stretched, unstretched


def make_jets(n=150, seed=0, most=100):
    rng = np.random.default_rng(seed)
    jets = []
    for _ in range(n):
        pt = np.exp(rng.normal(1.0, 1.2, rng.integers(3, most)))
        jets.append(np.stack((pt, *rng.normal(0, 0.2, (2, len(pt)))), 1).astype(np.float32))
    return jets


def error(tokenizer, jets):
    """The mean square of what the round trip changes, of the numbers that it is fitted to."""
    back = tokenizer.decode_batch(tokenizer.encode_batch(jets))
    near = [
        np.square(stretched(a)[:, None] - stretched(b)[None]).sum(2).min(1)
        for a, b in zip(jets, back, strict=True)
    ]
    return np.concatenate(near).mean()


def test_stretched_numbers_come_back():
    jet = make_jets(1)[0]
    np.testing.assert_allclose(unstretched(stretched(jet)), jet, rtol=1e-5, atol=1e-7)
    wild = unstretched(np.array([[1e6, -1e6, 1e6]]))
    assert np.isfinite(wild).all()


def test_k_means_finds_the_means_of_groups_by_rising_first_number():
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[-5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    points = (middles[:, None] + 0.1 * torch.randn(3, 50, 2, generator=generator)).flatten(0, 1)
    found = k_means(points, torch.ones(150), 3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, points.view(3, 50, 2).mean(1))


def test_more_codes_and_more_books_keep_more():
    jets = make_jets()
    errors = [
        error(JetCodesConfig(n_codes=n, n_books=books, weight=0.0).fit(jets), jets)
        for n, books in ((16, 1), (128, 1), (16, 2), (16, 3))
    ]
    assert errors[1] < errors[0] / 2  # Zador's law of three dimensions: 8 times the codes, 1 / 4
    assert errors[3] < errors[2] < errors[0] / 2


@pytest.mark.parametrize("n_books", [1, 2])
def test_codes_are_a_set_and_its_frames_fall(n_books):
    jets = make_jets()
    tokenizer = JetCodesConfig(n_codes=64, n_books=n_books, max_constituents=50).fit(jets)
    assert tokenizer.signature.levels == (64,) * n_books and tokenizer.signature.descending
    rng = np.random.default_rng(0)
    for jet, segment in zip(jets, tokenizer.encode_batch(jets), strict=True):
        rows = segment.codes.tolist()
        assert rows == sorted(rows, reverse=True) and segment.truncated == (len(jet) > 50)
        assert len(rows) == min(len(jet), 50)
        again = tokenizer.encode(jet[rng.permutation(len(jet))])
        np.testing.assert_array_equal(again.codes, segment.codes)
    pt = tokenizer.decode(Segment("jets", codes=np.arange(64)[:, None].repeat(n_books, 1)))[:, 0]
    assert n_books > 1 or (np.diff(pt) >= 0).all()


def test_centres_decode_to_themselves():
    tokenizer = JetCodesConfig(n_codes=64).fit(make_jets())
    codes = np.arange(63, -1, -1)[:, None]
    again = tokenizer.encode(tokenizer.decode(Segment("jets", codes=codes)))
    np.testing.assert_array_equal(again.codes, codes)


def test_a_code_of_hard_constituents_is_finer_than_that_of_soft_ones():
    jets = make_jets()
    even = JetCodesConfig(n_codes=64, weight=0.0).fit(jets)
    hard = JetCodesConfig(n_codes=64, weight=1.0).fit(jets)
    best = [jet[np.argsort(-jet[:, 0])[:5]] for jet in jets]
    assert error(hard, best) < error(even, best)


def test_latents_are_standardised_and_come_back_by_falling_pt():
    jets = make_jets()
    tokenizer = JetLatentsConfig(max_constituents=300).fit(jets)
    segments = tokenizer.encode_batch(jets)
    latents = np.concatenate([segment.latents for segment in segments])
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(latents.std(0), 1, atol=1e-5)
    for jet, back in zip(jets, tokenizer.decode_batch(segments), strict=True):
        np.testing.assert_allclose(back, jet[np.argsort(-jet[:, 0])], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_is_refused_in_one_line():
    for fields in ({"n_codes": 1}, {"n_books": 0}, {"weight": -1.0}, {"max_constituents": 0}):
        with pytest.raises(UserError, match=f"JetCodesConfig: {next(iter(fields))} is"):
            JetCodesConfig(**fields)
    with pytest.raises(UserError, match="constituents are too few for 8,192 codes"):
        JetCodesConfig().fit(make_jets(3))
    with pytest.raises(UserError, match="JetLatentsConfig: max_constituents is 0"):
        JetLatentsConfig(max_constituents=0)
    with pytest.raises(UserError, match="no constituents"):
        JetLatentsConfig().fit([np.zeros((0, 3))])
