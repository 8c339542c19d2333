"""Laws of jets as codes of a network: sets, batches, padding, what is left out, what is refused."""

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.io.serialize import from_plain
from mmtok.tokenizers.jet_codes import JetCodesConfig
from mmtok.tokenizers.jet_networks import PerParticle, WholeJet
from mmtok.tokenizers.jet_vq import JetVQ, JetVQConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.quantizers import FSQ, VQ, ResidualVQ

NETWORKS = {"per particle": PerParticle(16, 2), "whole jet": WholeJet(16, 2, 4)}


def make_jets(n=20, seed=0, most=60):
    rng = np.random.default_rng(seed)
    jets = []
    for _ in range(n):
        pt = np.exp(rng.normal(1.0, 1.2, rng.integers(1, most)))
        jets.append(np.stack((pt, *rng.normal(0, 0.2, (2, len(pt)))), 1).astype(np.float32))
    return jets


def random_tokenizer(network, quantizer=None, **fields):
    """Networks with random weights everywhere, and a random codebook."""
    config = JetVQConfig(quantizer=quantizer or VQ(32, 4), network=network, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = config.autoencoder()
        for part in (made.encoder, made.decoder):
            torch.nn.init.normal_(part.out.weight, std=0.1)
        if hasattr(made.codebook, "vectors"):
            made.codebook.vectors.normal_()
    return JetVQ(config, made)


@pytest.fixture(params=NETWORKS)
def tokenizer(request):
    return random_tokenizer(NETWORKS[request.param])


def test_codes_depend_on_no_order_no_padding_and_no_other_jet(tokenizer):
    jets = make_jets()
    rng = np.random.default_rng(1)
    segments = tokenizer.encode_batch(jets)
    for jet, segment in zip(jets, segments, strict=True):
        rows = segment.codes.tolist()
        assert rows == sorted(rows, reverse=True) and len(rows) == len(jet)
        shuffled = jet[rng.permutation(len(jet))]
        padded = np.concatenate([shuffled, np.zeros((7, 3), np.float32)])
        for other in (shuffled, padded, jet.astype(np.float64)):
            np.testing.assert_array_equal(tokenizer.encode(other).codes, segment.codes)


def test_what_a_jet_decodes_to_depends_on_no_other_jet(tokenizer):
    segments = tokenizer.encode_batch(make_jets())
    segments.insert(3, Segment("jets", codes=np.zeros((0, 1), np.int32)))
    together = tokenizer.decode_batch(segments)
    backwards = tokenizer.decode_batch(segments[::-1])[::-1]
    for segment, a, b in zip(segments, together, backwards, strict=True):
        alone = tokenizer.decode(segment)
        assert np.array_equal(alone, a) and np.array_equal(alone, b)
        assert len(alone) == len(segment) and alone.dtype == np.float32


def test_a_list_in_another_order_decodes_to_the_same_jet_in_that_order(tokenizer):
    codes = tokenizer.encode(make_jets(1, seed=3, most=40)[0]).codes
    order = np.random.default_rng(0).permutation(len(codes))
    jet = tokenizer.decode(Segment("jets", codes=codes))
    np.testing.assert_allclose(
        tokenizer.decode(Segment("jets", codes=codes[order])), jet[order], rtol=1e-6
    )


def test_equal_codes_mean_the_same_in_every_jet_only_per_particle():
    codes = np.array([[9], [4], [4]])
    for name, network in NETWORKS.items():
        tokenizer = random_tokenizer(network)
        jet = tokenizer.decode(Segment("jets", codes=codes))
        alone = tokenizer.decode(Segment("jets", codes=codes[:1]))
        assert np.array_equal(jet[1], jet[2])
        assert np.allclose(jet[0], alone[0], rtol=1e-5) == (name == "per particle")


@pytest.mark.parametrize("measure", ["asinh", "omnijet"])
def test_numbers_come_back(measure):
    config = JetVQConfig(measure=measure)
    jet = make_jets(1)[0]
    np.testing.assert_allclose(config.values(config.numbers(jet)), jet, rtol=1e-5, atol=1e-7)
    assert np.isfinite(config.values(np.array([[1e6, -1e6, 1e6]]))).all()
    # what OmniJet-alpha has
    if measure == "omnijet":
        expected = [[np.log(20.0) - 1.8, 0.3, -0.6]]
        np.testing.assert_allclose(config.numbers([[20.0, 0.1, -0.2]]), expected)


def test_far_constituents_are_left_out_and_jets_are_cut_and_both_are_counted():
    tokenizer = random_tokenizer(PerParticle(16, 2), max_angle=0.8, max_constituents=5)
    jet = np.array([[10.0, 0, 0.1], [5, 0.9, 0], [2, 0, -0.81], [0, 5, 5]], np.float32)
    many = np.array([[float(i), 0, 0] for i in range(1, 9)], np.float32)
    with pytest.warns(UserWarning) as warned:
        segments = tokenizer.encode_batch([jet[:1], jet, many])
    assert [len(segment) for segment in segments] == [1, 1, 5]
    assert [segment.truncated for segment in segments] == [False, False, True]
    said = [str(w.message) for w in warned]
    assert any("cut to the 5 hardest particles" in text and "jet 2" in text for text in said)
    (far,) = [text for text in said if "left out, more than 0.8 from the axis" in text]
    assert far.startswith("2 of 12 particles") and "jet 1" in far
    with tokenizer.counting(quiet=True) as first:
        tokenizer.encode(jet)
    with tokenizer.counting(quiet=True) as second:
        tokenizer.encode(jet)
        second.merge_plain(first.as_plain())
    assert (second.far.n, second.far.first, second.n_jets) == (4, 0, 2)


def test_saved_and_opened_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = tokenizer.config.load(tmp_path)
    assert again.signature == tokenizer.signature
    for a, b in zip(again.encode_batch(make_jets()), tokenizer.encode_batch(make_jets())):
        assert np.array_equal(a.codes, b.codes)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        JetVQ.load(tmp_path)


@pytest.mark.parametrize("quantizer", [ResidualVQ(2, 8, 4), FSQ((8, 5, 5))])
def test_other_quantizers_have_falling_frames_too(quantizer):
    tokenizer = random_tokenizer(WholeJet(16, 1, 2), quantizer)
    assert tokenizer.signature.levels == quantizer.levels and tokenizer.signature.descending
    for segment in tokenizer.encode_batch(make_jets()):
        rows = segment.codes.tolist()
        assert rows == sorted(rows, reverse=True)


def test_the_presets_have_the_sizes_of_omnijet():
    config = from_plain("omnijet", JetVQConfig | JetGridConfig, "")
    assert config.quantizer == VQ(8192, 4) and config.network == WholeJet(128, 4, 8)
    assert (config.measure, config.max_angle, config.weight) == ("omnijet", 0.8, 0.0)
    alone = from_plain("omnijet_per_particle", JetVQConfig | JetGridConfig, "")
    assert alone.network == PerParticle(128, 3)


def test_a_preset_of_a_recipes_class_is_none_of_another_field():
    with pytest.raises(UserError) as error:
        from_plain({"network": "jetclass"}, JetVQConfig, "jets", (JetGridConfig,))
    assert str(error.value).endswith("one of WholeJet, PerParticle, got 'jetclass'")
    assert from_plain("jetclass", JetVQConfig | JetCodesConfig, "", (JetGridConfig,)) == (
        JetGridConfig.jetclass()
    )


def test_what_cannot_be_is_refused_in_one_line():
    for fields in ({"weight": -1.0}, {"max_constituents": 0}, {"steps": 0}, {"batch_size": 0}):
        with pytest.raises(UserError, match=f"JetVQConfig: {next(iter(fields))} is"):
            JetVQConfig(**fields)
    with pytest.raises(UserError, match="multiple of n_heads"):
        WholeJet(width=10, n_heads=4)
    with pytest.raises(UserError, match="PerParticle: layers is 0"):
        PerParticle(layers=0)
    with pytest.raises(UserError, match="at least one constituent"):
        random_tokenizer(PerParticle(8, 1)).fidelity([np.zeros((0, 3))])
