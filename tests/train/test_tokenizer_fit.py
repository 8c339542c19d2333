"""One door for all tokenizers' learning; patches learn, repeat with the seed, and leave the global
generator alone.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.errors import UserError
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.image_latents import KLPatchesConfig
from mmtok.tokenizers.images import Pixels, PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.patches import NetworkConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.text import SentencePiece, SentencePieceConfig
from mmtok.train.tokenizer_fit import fit_tokenizer

QUICK = VQPatchesConfig(
    height=8, width=8, patch=2, quantizer=VQ(8), autoencoder=ConvPatches(16), steps=150
)
LATENTS = KLPatchesConfig(
    height=8, width=8, patch=4, latent_size=4, autoencoder=ConvPatches(16), steps=150
)


def blobs(n: int, *shape: int, seed: int = 0) -> list[np.ndarray]:
    """Images of one bright spot each, so that there is something to learn."""
    height, width = shape[:2]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    spots = [
        np.exp(-((y - rng.uniform(0, height)) ** 2 + (x - rng.uniform(0, width)) ** 2) / 4)
        for _ in range(n)
    ]
    images = [np.round(255 * spot).astype(np.uint8) for spot in spots]
    return images if len(shape) == 2 else [np.stack([image] * 3, axis=2) for image in images]


def test_configs_that_build_or_fit():
    assert isinstance(fit_tokenizer(PixelsConfig(8, 8), []), Pixels)
    assert isinstance(fit_tokenizer(SentencePieceConfig(300), ["seven", "eight"]), SentencePiece)
    with pytest.raises(TypeError, match="int is not a tokenizer's config"):
        fit_tokenizer(3, [])


@pytest.mark.parametrize("config", [QUICK, LATENTS], ids=["codes", "latents"])
def test_patches_learn_from_the_seed_alone(config):
    images = blobs(200, 8, 8)
    calls = []
    before = torch.get_rng_state()
    tokenizer = fit_tokenizer(
        config, images, seed=1, progress=lambda done, total, note: calls.append((done, total))
    )
    assert torch.equal(before, torch.get_rng_state())
    assert calls[0] == (1, 150) and calls[-1] == (150, 150)
    torch.rand(3)
    again, other = (fit_tokenizer(config, images, seed=seed) for seed in (1, 2))
    assert (
        again.signature.fingerprint
        == tokenizer.signature.fingerprint
        != other.signature.fingerprint
    )
    figures = tokenizer.fidelity(blobs(100, 8, 8, seed=1))
    constant = 20 * np.log10(255 / np.std(images))
    assert figures["psnr_db"] > constant + 3 and figures.get("codebook_use", 1) > 0.9


def test_latents_are_standardised_over_what_they_were_learned_from():
    images = blobs(600, 8, 8)  # more than are encoded at once
    tokenizer = fit_tokenizer(LATENTS, images)
    latents = np.concatenate(
        [segment.latents for segment in tokenizer.encode_batch(images)]
    ).astype(np.float64)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(latents.var(0), 1, atol=1e-5)


def test_the_kl_term_costs_error_and_latents_that_say_nothing_are_refused():
    images = blobs(200, 8, 8)

    def error(weight):
        return fit_tokenizer(replace(LATENTS, kl_weight=weight, steps=80), images).fidelity(images)[
            "rms_error_grey"
        ]

    assert error(0.0) < error(0.3)
    with pytest.raises(UserError, match="never vary: lower the weight of the KL term"):
        fit_tokenizer(
            replace(LATENTS, height=4, width=4, steps=2), [np.zeros((4, 4), np.uint8)] * 4
        )


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
@pytest.mark.parametrize(
    "kind, more", [(VQPatchesConfig, {"quantizer": VQ(8)}), (KLPatchesConfig, {"latent_size": 2})]
)
def test_any_size_and_colour(kind, more, shape):
    config = kind(
        *shape[:2],
        channels=3 if len(shape) == 3 else 1,
        patch=3,
        autoencoder=ConvPatches(8),
        steps=5,
        **more,
    )
    images = blobs(3, *shape)
    tokenizer = fit_tokenizer(config, images)
    assert tokenizer.decode(tokenizer.encode(images[0])).shape == shape


def test_images_without_content_do_not_break_training():
    tokenizer = fit_tokenizer(
        VQPatchesConfig(autoencoder=ConvPatches(8), steps=20), [np.zeros((8, 8), np.uint8)] * 4
    )
    assert np.isfinite(tokenizer.fidelity([np.zeros((8, 8), np.uint8)])["psnr_db"])


@pytest.mark.filterwarnings("ignore:this machine is slower in bf16")
@pytest.mark.parametrize("config", [QUICK, LATENTS], ids=["codes", "latents"])
def test_products_in_bf16_learn_nearly_the_same(config):
    images = blobs(200, 8, 8)
    exact, rounded = (
        fit_tokenizer(config, images, precision=p).fidelity(images)["rms_error_grey"]
        for p in ("float32", "bf16")
    )
    assert exact != rounded and rounded == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("config", [QUICK, LATENTS], ids=["codes", "latents"])
def test_wrong_images_are_refused(config):
    with pytest.raises(UserError, match="no images"):
        fit_tokenizer(config, [])
    with pytest.raises(UserError, match="takes 8 x 8"):
        fit_tokenizer(config, blobs(2, 8, 9))


@pytest.mark.slow
def test_scans_reach_the_stated_fidelity():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    scans = np.round(sklearn_datasets.load_digits().images * 255 / 16).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(scans))
    train = scans[order[:1438]]
    heldout = scans[order[1438:]]
    figures = fit_tokenizer(VQPatchesConfig(), list(train)).fidelity(list(heldout))
    assert figures["psnr_db"] > 24.5 and figures["codebook_use"] >= 0.9


class Unfinished(NetworkConfig):
    """A config of one's own that learns, and has neither a trainer here nor a `fit`."""

    def network(self):
        raise NotImplementedError

    def load(self, folder):
        raise NotImplementedError


def test_a_config_of_ones_own_that_learns_without_fit_is_named():
    with pytest.raises(TypeError, match="Unfinished learns, but has no fit"):
        fit_tokenizer(Unfinished(), [])
