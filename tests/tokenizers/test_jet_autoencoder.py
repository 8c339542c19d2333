"""Laws of jets as a fixed number of latents: no order, no padding, as many constituents as before,
what is cut, what is refused.
"""

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers import load
from mmtok.tokenizers.jet_autoencoder import JetAutoencoder, JetAutoencoderConfig

CONFIG = JetAutoencoderConfig(3, 4, 16, 2, 4, max_constituents=40)


def make_jets(n=20, seed=0, most=40):
    rng = np.random.default_rng(seed)
    jets = []
    for _ in range(n):
        pt = np.exp(rng.normal(1.0, 1.2, rng.integers(1, most)))
        jets.append(np.stack((pt, *rng.normal(0, 0.2, (2, len(pt)))), 1).astype(np.float32))
    return jets


@pytest.fixture(scope="module")
def tokenizer():
    """Networks with random weights, and latents that are no standard ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CONFIG.network()
        network.shift.normal_()
        network.scale.uniform_(0.5, 2)
    return JetAutoencoder(CONFIG, network)


def test_latents_depend_on_no_order_no_padding_and_no_other_jet(tokenizer):
    jets = make_jets()
    rng = np.random.default_rng(1)
    segments = tokenizer.encode_batch(jets)
    for jet, segment in zip(jets, segments, strict=True):
        assert segment.latents.shape == (3, 4) and segment.latents.dtype == np.float32
        assert tokenizer.n_units(segment) == len(jet)
        shuffled = jet[rng.permutation(len(jet))]
        padded = np.concatenate([shuffled, np.zeros((7, 3), np.float32)])
        for other in (shuffled, padded):
            np.testing.assert_array_equal(tokenizer.encode(other).latents, segment.latents)
    # and they do depend on the jet
    moved = jets[0] + np.float32(0.01)
    assert not np.allclose(tokenizer.encode(moved).latents, segments[0].latents, atol=1e-4)


def test_the_network_itself_knows_no_order_and_no_padding(tokenizer):
    network = tokenizer._network
    x = torch.randn(1, 9, 3, dtype=torch.float64)
    told = torch.randn(1, 3, dtype=torch.float64)
    mask = torch.ones(1, 9, dtype=torch.bool)
    found = network.latents(x, told, mask)
    torch.testing.assert_close(network.latents(x.flip(1), told, mask), found, rtol=0, atol=1e-12)
    more = torch.cat([x, torch.full((1, 4, 3), 1e3, dtype=torch.float64)], 1)
    is_real = torch.arange(13)[None] < 9
    torch.testing.assert_close(network.latents(more, told, is_real), found, rtol=0, atol=1e-12)
    sets = network.sets(found, is_real)[:, :9]
    torch.testing.assert_close(sets, network.sets(found, mask), rtol=0, atol=1e-12)


def test_decoded_jets_have_as_many_constituents_by_falling_pt(tokenizer):
    jets = [*make_jets(), np.zeros((0, 3), np.float32)]
    segments = tokenizer.encode_batch(jets)
    together = tokenizer.decode_batch(segments)
    backwards = tokenizer.decode_batch(segments[::-1])[::-1]
    for jet, a, b in zip(jets, together, backwards, strict=True):
        assert np.array_equal(a, b) and a.dtype == np.float32
        assert a.shape == (len(jet), 3) and (np.diff(a[:, 0]) <= 0).all()


def test_every_latent_decodes_to_a_jet_of_at_most_so_many_constituents(tokenizer):
    for value in (-1e6, 1e6):
        jet = tokenizer.decode(Segment("jets", latents=np.full((3, 4), value, np.float32)))
        assert len(jet) == (0 if value < 0 else 40) and np.isfinite(jet).all()


def test_every_parameter_gets_a_gradient():
    network = CONFIG.network()
    x = torch.randn(2, 6, 3)
    mask = torch.arange(6) < torch.tensor([6, 2])[:, None]
    posterior = network.posterior(x, torch.randn(2, 3), mask)
    z = network.with_count(posterior.sample(), mask)
    (network.elements(z, mask)[mask].square().sum() + posterior.kl().sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_jets_are_cut_and_it_is_said(tokenizer):
    jet = make_jets(1, most=2)[0]
    many = np.tile(jet[:1], (45, 1))
    with pytest.warns(UserWarning, match="cut to the 40 hardest particles"):
        segment = JetAutoencoder(CONFIG, CONFIG.network()).encode(many)
    assert not segment.truncated  # all latents are there
    assert tokenizer.fidelity([jet, many])["truncated_share"] == 0.5


def test_what_was_saved_is_what_is_loaded_and_damage_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert again.signature == tokenizer.signature
    jet = make_jets(1)[0]
    assert np.array_equal(again.encode(jet).latents, tokenizer.encode(jet).latents)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load(tmp_path)


def test_what_is_no_jet_and_no_latents_is_refused(tokenizer):
    with pytest.raises(UserError, match="jet 0: expected numbers"):
        tokenizer.encode(np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"expected latents of shape \(3, 4\)"):
        tokenizer.decode(Segment("jets", latents=np.zeros((2, 4), np.float32)))
    with pytest.raises(UserError, match="at least one constituent"):
        tokenizer.fidelity([np.zeros((0, 3), np.float32)])
    with pytest.raises(UserError, match="frames"):
        JetAutoencoderConfig(frames=0)
