"""The codebook look-up against all distances, its measures on hand examples, and the patch
networks' shapes and gradients.
"""

import math

import pytest
import torch

from mmtok.nn.autoencoder import PatchAutoencoder, PatchDecoder, PatchEncoder
from mmtok.nn.quantize import Codebook, book_use, code_counts, nearest_code, perplexity


def test_nearest_code_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(
        40_000, 3, generator=generator, dtype=torch.float64
    )  # more rows than one distance table
    book = torch.randn(17, 3, generator=generator, dtype=torch.float64)
    assert torch.equal(nearest_code(vectors, book), torch.cdist(vectors, book).argmin(1))
    assert torch.equal(
        nearest_code(vectors.view(100, 400, 3), book).flatten(), nearest_code(vectors, book)
    )
    assert nearest_code(vectors[:0], book).shape == (0,)


def test_codes_come_back_from_their_vectors():
    codebook = Codebook(32, 4)
    codebook.vectors.copy_(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)))
    codes = torch.arange(32)[:, None]
    assert torch.equal(codebook.codes(codebook(codes)), codes)


def test_use_and_perplexity():
    even = code_counts(torch.tensor([[0, 1], [2, 3]]), 8)
    assert even.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert book_use(even) == 0.5 and perplexity(even) == pytest.approx(4.0)
    assert perplexity(code_counts(torch.tensor([3, 3, 3]), 8)) == pytest.approx(1.0)
    assert perplexity(torch.tensor([3, 1])) == pytest.approx(
        math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    )
    assert perplexity(torch.zeros(4, dtype=torch.long)) == 0.0


@pytest.mark.parametrize(
    ("channels", "patch", "height", "width"), [(1, 2, 8, 8), (3, 3, 6, 9), (1, 1, 2, 3)]
)
def test_patch_networks(channels, patch, height, width):
    encoder = PatchEncoder(channels, patch, 6, 2, 5)
    decoder = PatchDecoder(channels, patch, 6, 2, 5)
    network = PatchAutoencoder(encoder, Codebook(7, 5), decoder)
    network.codebook.vectors.normal_(generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))
    codes = network.codes(images)
    assert (
        codes.shape == (2, height // patch, width // patch, 1)
        and network.images(codes).shape == images.shape
    )
    network.decoder(network.encoder(images)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
