"""What a network makes of a picture depends on no other picture, and is right to the last code."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from mmtok.tokenizers.autoencoders import ConvPatches, StagedConv, ViTPatches
from mmtok.tokenizers.images import VQPatches, VQPatchesConfig
from mmtok.tokenizers.patches import from_tensor, in_batches, to_tensor
from mmtok.tokenizers.quantizers import FSQ, VQ

KINDS = [
    (VQ(32), StagedConv(16)),
    (FSQ(), StagedConv(32, stages=2, attention=True)),
    (VQ(32), ConvPatches(16)),
    (VQ(32), ViTPatches(32, depth=1)),
]


def untrained(quantizer, autoencoder) -> VQPatches:
    """Pictures of 12 x 20 pixels in colours, 4 x 4 patches."""
    config = VQPatchesConfig(12, 20, 3, 4, quantizer=quantizer, autoencoder=autoencoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = config.network()
        for value in network.codebook.buffers():
            if value.is_floating_point() and value.ndim:
                value.normal_()
    return VQPatches(config, network)


def pictures(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 12, 20, 3), dtype=np.uint8))


@pytest.mark.parametrize(("quantizer", "autoencoder"), KINDS)
def test_neighbours_in_a_batch_change_no_bit(quantizer, autoencoder):
    tokenizer = untrained(quantizer, autoencoder)
    images = pictures(37)
    order = np.random.default_rng(1).permutation(len(images))
    segments = tokenizer.encode_batch(images)
    vectors = tokenizer._run(
        tokenizer._network.encoder, to_tensor(images, tokenizer.config, torch.float32), 240
    )
    for n in (1, 5, 37):
        chosen = order[:n]
        some = [images[i] for i in chosen]
        again = to_tensor(some, tokenizer.config, torch.float32)
        assert torch.equal(tokenizer._run(tokenizer._network.encoder, again, 240), vectors[chosen])
        for i, segment in zip(chosen, tokenizer.encode_batch(some), strict=True):
            assert np.array_equal(segment.codes, segments[i].codes)
        decoded = tokenizer.decode_batch([segments[i] for i in chosen])
        for i, picture in zip(chosen, decoded, strict=True):
            assert np.array_equal(picture, tokenizer.decode(segments[i]))


@pytest.mark.parametrize(("quantizer", "autoencoder"), KINDS)
def test_float64_says_the_same(quantizer, autoencoder):
    """Its codes, and its pixels but for values halfway between two."""
    tokenizer = untrained(quantizer, autoencoder)
    network = deepcopy(tokenizer._network).double()
    images = pictures(20)
    segments = tokenizer.encode_batch(images)
    codes = network.codes(to_tensor(images, tokenizer.config, torch.float64))
    assert np.array_equal(np.stack([s.codes for s in segments]), codes.flatten(1, 2).numpy())
    exact = from_tensor(network.images(codes))
    apart = np.abs(np.subtract(tokenizer.decode_batch(segments), exact, dtype=int))
    assert apart.max() <= 1 and apart.mean() < 0.001


@pytest.mark.parametrize("n", [0, 1, 4, 9])
def test_batches_are_of_one_size(n):
    seen = []

    def negated(x):
        seen.append(len(x))
        return -x

    x = torch.arange(3 * n).reshape(n, 3)
    assert torch.equal(in_batches(negated, x, 4), -x)
    assert set(seen) == {4} and len(seen) == max(1, -(-n // 4))
