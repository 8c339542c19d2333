"""Pixel levels come back to within half a level; patch codes have one size, survive their folder,
and decode whatever is drawn.
"""

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.images import Pixels, PixelsConfig, VQPatches, VQPatchesConfig
from mmtok.tokenizers.quantizers import VQ


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def patches(**settings) -> VQPatches:
    """An untrained tokenizer: the laws of its format do not need training."""
    config = VQPatchesConfig(autoencoder=ConvPatches(8), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = config.network()
        network.codebook.vectors.normal_()
    return VQPatches(config, network)


# ---- pixel levels


@pytest.mark.parametrize("n_levels", [2, 3, 16, 17, 100, 255, 256])
def test_pixels_error_is_at_most_half_a_level(n_levels):
    every_value = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tokenizer = PixelsConfig(16, 16, n_levels=n_levels).build()
    segment = tokenizer.encode(every_value)
    assert segment.codes.min() == 0 and segment.codes.max() == n_levels - 1
    error = np.abs(tokenizer.decode(segment).astype(int) - every_value).max()
    assert (
        error <= 255 / (n_levels - 1) / 2 + 0.5
    )  # + 0.5: the decoded value is rounded to a whole grey value


@pytest.mark.parametrize("n_levels", [2, 17, 256])
def test_pixel_codes_come_back_from_their_image(n_levels):
    tokenizer = PixelsConfig(16, 16, n_levels=n_levels).build()
    codes = (np.arange(256) % n_levels)[:, None]
    assert np.array_equal(
        tokenizer.encode(tokenizer.decode(Segment("image", codes=codes))).codes, codes
    )


def test_seventeen_levels_hold_the_scans_exactly():
    scans = np.arange(17).repeat(2)[:32].reshape(4, 8)
    stored = np.round(scans * 255 / 16).astype(np.uint8)
    tokenizer = PixelsConfig(4, 8, n_levels=17).build()
    segment = tokenizer.encode(stored)
    assert np.array_equal(segment.codes.reshape(4, 8), scans)
    assert np.array_equal(tokenizer.decode(segment), stored)


def test_pixels_of_fixed_size():
    grey = PixelsConfig(4, 6).build()
    colour = PixelsConfig(4, 6, channels=3, n_levels=256).build()
    assert (grey.signature.levels, grey.signature.frames) == ((17,), 24)
    assert (colour.signature.levels, colour.signature.frames) == ((256,), 72)
    image = random_images(4, 6, 3)
    assert colour.encode(image).codes[:6, 0].tolist() == [
        *image[0, 0],
        *image[0, 1],
    ]  # red, green, blue of one pixel, then the next
    assert np.array_equal(colour.decode(colour.encode(image)), image)
    assert colour.decode(Segment("image", codes=np.zeros((72, 1), int))).shape == (4, 6, 3)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 6, 3)])
def test_pixels_of_free_size(shape):
    tokenizer = PixelsConfig(n_levels=256).build()
    assert tokenizer.signature.frames is None
    image = random_images(*shape)
    assert np.array_equal(tokenizer.decode(tokenizer.encode(image)), image)


@pytest.mark.parametrize("n", range(0, 40))
def test_sampled_pixels_make_the_nearest_square(n):
    codes = np.ones((n, 1), int)
    image = PixelsConfig(n_levels=2).build().decode(Segment("image", codes=codes))
    side = max(1, round(n**0.5))
    assert image.shape == (side, side) and (image == 255).sum() == min(n, side * side)
    colour = PixelsConfig(channels=3).build().decode(Segment("image", codes=codes))
    assert colour.ndim == 3 and colour.shape[2] == 3


# ---- patch codes


def test_patches_have_one_frame_per_patch():
    tokenizer = patches()
    assert (tokenizer.signature.levels, tokenizer.signature.frames) == ((64,), 16)
    assert tokenizer.encode(random_images(8, 8)).codes.shape == (16, 1)
    colour = patches(height=6, width=9, channels=3, patch=3, quantizer=VQ(5))
    segment = colour.encode(random_images(6, 9, 3))
    assert segment.codes.shape == (6, 1) and colour.decode(segment).shape == (6, 9, 3)


def test_grey_axis_may_be_given():
    tokenizer = patches()
    image = random_images(8, 8)
    assert np.array_equal(tokenizer.encode(image[:, :, None]).codes, tokenizer.encode(image).codes)


@pytest.mark.parametrize(
    "tokenizer", [patches(), PixelsConfig(8, 8).build()], ids=["patches", "pixels"]
)
def test_batch_equals_single(tokenizer):
    images = list(random_images(300, 8, 8))
    batch = tokenizer.encode_batch(images)
    assert all(
        np.array_equal(segment.codes, tokenizer.encode(image).codes)
        for segment, image in zip(batch, images, strict=True)
    )
    assert all(
        np.array_equal(a, tokenizer.decode(segment))
        for a, segment in zip(tokenizer.decode_batch(batch), batch, strict=True)
    )
    assert tokenizer.encode_batch([]) == [] and tokenizer.decode_batch([]) == []


@pytest.mark.parametrize(
    "tokenizer", [patches(), PixelsConfig(8, 8).build()], ids=["patches", "pixels"]
)
def test_any_codes_decode_to_an_image(tokenizer):
    (codebook_size,) = tokenizer.signature.levels
    for codes in np.random.default_rng(0).integers(
        0, codebook_size, (50, tokenizer.signature.frames, 1)
    ):
        image = tokenizer.decode(Segment("image", codes=codes))
        assert image.dtype == np.uint8 and image.shape == (8, 8)


@pytest.mark.parametrize(
    "tokenizer",
    [patches(), patches(channels=3), PixelsConfig(8, 8).build(), PixelsConfig().build()],
)
def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    again = type(tokenizer).load(tmp_path / "t")
    assert again.signature == tokenizer.signature
    image = random_images(8, 8, 3) if tokenizer.config.channels == 3 else random_images(8, 8)
    assert np.array_equal(again.encode(image).codes, tokenizer.encode(image).codes)


def test_fingerprint_follows_weights_and_settings():
    a = patches()
    b = patches()
    assert a.signature.fingerprint == b.signature.fingerprint
    network = VQPatchesConfig(autoencoder=ConvPatches(8)).network()
    assert (
        VQPatches(VQPatchesConfig(autoencoder=ConvPatches(8)), network).signature.fingerprint
        != a.signature.fingerprint
    )
    assert (
        PixelsConfig(8, 8).build().signature.fingerprint
        != PixelsConfig(8, 8, n_levels=16).build().signature.fingerprint
    )


def test_fidelity():
    images = list(random_images(20, 8, 8))
    exact = PixelsConfig(8, 8, n_levels=256).build().fidelity(images)
    assert exact == {"psnr_db": 100.0, "rms_error_grey": 0.0}
    coarse = PixelsConfig(8, 8, n_levels=2).build().fidelity(images)
    assert coarse["psnr_db"] == pytest.approx(20 * np.log10(255 / coarse["rms_error_grey"]))
    figures = patches().fidelity(images)
    assert 0 < figures["codebook_use"] <= 1 and 1 <= figures["codebook_perplexity"] <= 64


# ---- bad input


@pytest.mark.parametrize(
    "tokenizer", [patches(), PixelsConfig(8, 8).build()], ids=["patches", "pixels"]
)
@pytest.mark.parametrize(
    ("image", "says"),
    [
        (random_images(8, 9), "takes 8 x 8"),
        (random_images(8, 8, 3), "convert\\('L'\\)"),
        (random_images(8, 8, 4), "uint8 values"),
        (random_images(8, 8).astype(np.float32), "float32"),
        (random_images(64), "uint8 values"),
        (np.zeros((0, 8), np.uint8), "no pixels"),
    ],
)
def test_wrong_images_are_refused(tokenizer, image, says):
    with pytest.raises(UserError, match=says):
        tokenizer.encode(image)


@pytest.mark.parametrize(
    "codes",
    [np.full((16, 1), 64), np.full((16, 1), -1), np.zeros((15, 1), int), np.zeros((16, 2), int)],
)
def test_wrong_codes_are_refused(codes):
    with pytest.raises(UserError):
        patches().decode(Segment("image", codes=codes))


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (PixelsConfig, {"height": 8}),
        (PixelsConfig, {"n_levels": 1}),
        (PixelsConfig, {"channels": 2}),
        (PixelsConfig, {"height": 0, "width": 8}),
        (VQPatchesConfig, {"patch": 3}),
        (VQPatchesConfig, {"channels": 4}),
        (VQPatchesConfig, {"height": None}),
    ],
)
def test_wrong_settings_are_refused(config, settings):
    with pytest.raises(UserError, match=config.__name__):
        config(**settings)


def test_broken_folders_are_refused(tmp_path):
    patches().save(tmp_path)
    with pytest.raises(UserError, match="expected 'Pixels'"):
        Pixels.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="weights"):
        VQPatches.load(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="weights"):
        VQPatches.load(tmp_path)
