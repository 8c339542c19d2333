"""What vector-quantize-pytorch learns is what our look-ups read; its parts against their formulas.

The tolerances are those of float32, which is what it computes in.
"""

import itertools

import pytest
import torch

from mmtok.nn.quantize import FiniteScalars, Signs
from mmtok.tokenizers.quantizers import FSQ, LFQ, VQ, ResidualVQ
from mmtok.train.quantizers import learner

CONFIGS = {
    "VQ": VQ(16, 4),
    "VQ, normalised": VQ(16, 4, normalised=True),
    "VQ, rotated": VQ(16, 4, rotation=True),
    "ResidualVQ": ResidualVQ(3, 8, 4),
    "FSQ": FSQ((8, 5, 5)),
    "LFQ": LFQ(6, spherical=False),
    "BSQ": LFQ(6),
}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_look_up_gives_what_training_gave(config):
    trained = learner(config, 256)
    vectors = torch.randn(4, 8, 8, config.size)
    for _ in range(3):
        trained(vectors)
    trained.eval()
    found, _ = trained(vectors)
    look_up = config.look_up()
    with torch.no_grad():
        trained.write_to(look_up)
    codes = look_up.codes(vectors)
    assert codes.shape == (4, 8, 8, len(config.levels)) and look_up.levels == config.levels
    torch.testing.assert_close(look_up(codes), found, rtol=0, atol=2e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradients_reach_the_encoder_and_revived_codes_are_counted(config):
    trained = learner(config, 256)
    vectors = torch.randn(256, config.size, requires_grad=True)
    found, loss = trained(vectors)
    (found.square().sum() + loss).backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all() and vectors.grad.any()
    assert trained.n_revived == 0 or isinstance(config, (VQ, ResidualVQ))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_codebooks_learn_from_drawn_vectors_and_all_are_quantized(config):
    trained = learner(config, 256)
    vectors = torch.randn(4, 64, config.size, requires_grad=True)
    drawn = torch.arange(128).repeat(2)
    found, loss = trained(vectors, drawn)
    look_up = config.look_up()
    with torch.no_grad():
        trained.write_to(look_up)
    codes = look_up.codes(vectors)
    torch.testing.assert_close(look_up(codes), found, rtol=0, atol=2e-6)
    (found[2:].sum() + 0 * loss).backward()
    assert vectors.grad[2:].any()


def test_codes_that_nothing_is_near_to_are_revived():
    trained = learner(VQ(16, 2), 256)
    trained(torch.randn(256, 2))  # k-means
    for _ in range(300):
        trained(torch.randn(256, 2) * 0.01 + 5)  # all far from where the codes are
    assert trained.n_revived > 0
    book = VQ(16, 2).look_up()
    with torch.no_grad():
        trained.write_to(book)
    codes = book.codes(torch.randn(2000, 2) * 0.01 + 5)
    assert len(codes.unique()) == 16


@pytest.mark.parametrize("config", [FSQ((8, 5, 3)), LFQ(7), LFQ(7, spherical=False)], ids=str)
def test_every_code_comes_back_from_its_vector_under_autocast_too(config):
    look_up = config.look_up()
    (n_codes,) = config.levels
    codes = torch.arange(n_codes)[:, None]
    for dtype in (torch.float32, torch.float64):
        vectors = look_up.to(dtype)(codes)
        assert vectors.dtype == dtype
        inverse = vectors
        if isinstance(look_up, FiniteScalars):
            # the look-up bounds what it reads, so that it is asked for what is bounded to a level
            inverse = unbounded(look_up, vectors)
        assert torch.equal(look_up.codes(inverse), codes)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(look_up.codes(inverse), codes)
            assert torch.equal(look_up(codes), vectors)


def unbounded(look_up: FiniteScalars, vectors: torch.Tensor) -> torch.Tensor:
    levels = look_up.n_levels.to(vectors)
    half = (levels - 1) * 1.001 / 2
    offset = (levels % 2 == 0).to(vectors) / 2
    ratio = (vectors * (look_up.n_levels // 2) + offset) / half
    return torch.atanh(ratio) - torch.atanh(offset / half)


def test_fsq_reaches_every_level_and_zero_stays_zero():
    look_up = FiniteScalars((8, 5, 3))
    line = torch.linspace(-9, 9, 4001)
    for d, n in enumerate((8, 5, 3)):
        z = torch.zeros(len(line), 3)
        z[:, d] = line
        assert len(look_up(look_up.codes(z))[:, d].unique()) == n
    assert torch.equal(look_up(look_up.codes(torch.zeros(1, 3))), torch.zeros(1, 3))
    assert torch.allclose(look_up.bounded(torch.zeros(3)), torch.zeros(3), atol=1e-6)


def test_our_fsq_and_lfq_number_their_codes_as_the_library_does():
    from vector_quantize_pytorch import FSQ as LibraryFSQ
    from vector_quantize_pytorch import LFQ as LibraryLFQ

    z = torch.randn(1, 500, 3)
    assert torch.equal(FiniteScalars((8, 5, 3)).codes(z)[..., 0].int(), LibraryFSQ([8, 5, 3])(z)[1])
    assert torch.equal(
        Signs(3, False).codes(z)[..., 0].int(), LibraryLFQ(dim=3, codebook_size=8)(z)[1]
    )


def test_the_entropy_of_lfq_is_that_of_its_bits():
    """sum_k h(sigmoid(4 tau z_k)) = H(softmax(2 tau z.c) over all 2^K codes)."""
    tau = 0.3
    z = torch.randn(20, 6, dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    p = (2 * tau * z @ signs.T).softmax(-1)
    whole = -torch.special.xlogy(p, p).sum(-1)
    q = torch.sigmoid(4 * tau * z)
    bits = -(torch.special.xlogy(q, q) + torch.special.xlogy(1 - q, 1 - q)).sum(-1)
    torch.testing.assert_close(bits, whole, rtol=1e-10, atol=1e-10)
    from vector_quantize_pytorch import LFQ as LibraryLFQ

    library = LibraryLFQ(dim=6, codebook_size=64)
    said = library(z.float()[None], inv_temperature=tau, return_loss_breakdown=True)[1]
    assert float(said.per_sample_entropy) == pytest.approx(float(whole.mean()), abs=2e-3)


def test_the_rotation_trick_keeps_angles():
    """Forward is the code; the gradient turns with it, and grows by the ratio of lengths."""
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    z = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    e = torch.randn(9, 5, dtype=torch.float64)
    made = rotate_to(z, e)
    torch.testing.assert_close(made, e)
    wanted = torch.randn(9, 5, dtype=torch.float64)
    (grad,) = torch.autograd.grad((made * wanted).sum(), z)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(grad, z), cosine(wanted, e))
    ratio = grad.norm(dim=1) / wanted.norm(dim=1)
    torch.testing.assert_close(ratio, e.norm(dim=1) / z.norm(dim=1).detach())


def test_a_moving_average_without_memory_is_a_step_of_k_means():
    from vector_quantize_pytorch import VectorQuantize

    library = VectorQuantize(3, 4, decay=0.0, kmeans_init=False, eps=1e-9)
    z = torch.randn(1, 200, 3)
    book = library.codebook.clone()
    nearest = torch.cdist(z[0], book).argmin(1)
    library(z)
    for k in nearest.unique():
        mean = z[0][nearest == k].mean(0)
        torch.testing.assert_close(library.codebook[k], mean, atol=1e-5, rtol=0)
