"""Networks of images: shapes for any patch, gradients everywhere, and weights of no one size."""

import pytest
import torch

from mmtok.errors import UserError
from mmtok.nn.image_autoencoders import GridAttention, prime_factors
from mmtok.tokenizers.autoencoders import ConvPatches, StagedConv, ViTPatches

CONFIGS = [
    ConvPatches(8),
    StagedConv(32, 1, 3, True),
    StagedConv(12, 1),
    ViTPatches(16, 1),
]


def test_prime_factors():
    assert [prime_factors(n) for n in (1, 2, 4, 6, 7, 12)] == [
        [],
        [2],
        [2, 2],
        [2, 3],
        [7],
        [2, 2, 3],
    ]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("channels", "patch"), [(3, 4), (1, 3), (1, 1)])
def test_shapes_gradients_and_other_sizes(config, channels, patch):
    torch.manual_seed(0)
    encoder = config.encoder(channels, patch, 5)
    decoder = config.decoder(channels, patch, 5)
    for rows, columns in ((2, 3), (4, 1)):  # the same weights
        images = torch.randn(2, channels, rows * patch, columns * patch)
        vectors = encoder(images)
        assert vectors.shape == (2, rows, columns, 5)
        assert decoder(vectors).shape == images.shape
    images = torch.randn(2, channels, 3 * patch, 3 * patch)
    decoder(encoder(images)).square().sum().backward()
    for network in (encoder, decoder):
        idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        # what begins as the identity lets gradients through to its last layer only
        assert all("attention.qkv" in n or ".norm." in n for n in idle), idle


def test_attention_begins_as_the_identity_and_reads_the_whole_grid():
    torch.manual_seed(0)
    layer = GridAttention(32)
    x = torch.randn(1, 32, 3, 4)
    assert torch.equal(layer(x), x)
    torch.nn.init.normal_(layer.attention.out.weight)
    changed = x.clone()
    changed[:, 0, 2, 3] += 1
    difference = (layer(changed) - layer(x)).abs().sum(1)[0]
    assert (difference > 1e-6).all()


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        (ConvPatches, {"hidden": 0}, "at least 1"),
        (StagedConv, {"attention": True, "width": 20}, "multiple of 16"),
        (StagedConv, {"blocks": 999}, "at most 256"),
        (ViTPatches, {"width": 24}, "multiple of 16"),
        (ViTPatches, {"depth": 0}, "at least 1"),
    ],
)
def test_wrong_sizes_are_refused(config, settings, says):
    with pytest.raises(UserError, match=f"{config.__name__}.*{says}"):
        config(**settings)
