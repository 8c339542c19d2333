"""Images as latents: pixels come back exactly, level by level, in the order in which a diffusion
head lays out its picture; an autoencoder's latents are standardised, survive their folder, and
decode whatever is drawn."""

from itertools import product

import numpy as np
import pytest
import torch

from mmtok.cli import main
from mmtok.core.segment import Segment
from mmtok.data.image_preparation import read_image
from mmtok.diffusion.likelihood import Bins
from mmtok.errors import UserError
from mmtok.heads.diffusion import GridDiffusion
from mmtok.nn.denoisers import DiTConfig
from mmtok.sources.images import write_image
from mmtok.tokenizers import load
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.image_latents import (
    KLPatches,
    KLPatchesConfig,
    PixelLatentsConfig,
)
from mmtok.tokenizers.images import PixelsConfig

SIZES = [
    (8, 8, 1, 2),
    (4, 6, 3, 2),
    (6, 9, 3, 3),
    (5, 3, 1, 1),
    (4, 4, 3, 4),
]  # height, width, channels, patch


def images(n, height=8, width=8, channels=1, seed=0):
    shape = (n, height, width) if channels == 1 else (n, height, width, channels)
    return list(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pixels(height=8, width=8, channels=1, patch=2, n_levels=17):
    return PixelLatentsConfig(height, width, channels, n_levels, patch).build()


def patches(height=8, width=8, channels=1, patch=2, latent_size=3, blocks=1):
    """An untrained autoencoder, standardised over random images: the laws of its format do not need
    training.
    """
    config = KLPatchesConfig(
        height, width, channels, patch, latent_size, autoencoder=ConvPatches(8, blocks)
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = config.network()
        network.standardise_over(
            network.posterior(torch.rand(200, channels, height, width) * 2 - 1).mean
        )
    return KLPatches(config, network)


BOTH = pytest.mark.parametrize("tokenizer", [pixels(), patches()], ids=["pixels", "patches"])


# ---- pixels


@pytest.mark.parametrize("size", SIZES)
def test_any_bytes_come_back_from_256_levels(size):
    height, width, channels, patch = size
    tokenizer = pixels(*size, n_levels=256)
    signature = tokenizer.signature
    assert (signature.latent_size, signature.frames, signature.cells) == (
        channels * patch**2,
        height * width // patch**2,
        256,
    )
    for image in images(5, height, width, channels):
        segment = tokenizer.encode(image)
        assert segment.latents.dtype == np.float32 and segment.latents.shape == (
            signature.frames,
            signature.latent_size,
        )
        assert np.array_equal(tokenizer.decode(segment), image)


@pytest.mark.parametrize("n_levels", [2, 3, 16, 17, 100, 255, 256])
def test_the_levels_are_those_of_pixel_codes(n_levels):
    """Same grey values as `Pixels`, so what is drawn by either compares; images of so many levels
    come back exactly.
    """
    every_value = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tokenizer = pixels(16, 16, n_levels=n_levels)
    codes = PixelsConfig(16, 16, n_levels=n_levels).build()
    decoded = tokenizer.decode(tokenizer.encode(every_value))
    assert np.array_equal(decoded, codes.decode(codes.encode(every_value)))
    assert np.array_equal(tokenizer.decode(tokenizer.encode(decoded)), decoded)
    assert len(np.unique(decoded)) == n_levels


@pytest.mark.parametrize("n_levels", [2, 17, 256])
def test_latents_are_the_centres_of_the_cells_that_a_likelihood_counts(n_levels):
    tokenizer = pixels(16, 16, patch=1, n_levels=n_levels)
    cells = Bins(n_levels)
    latents = torch.from_numpy(
        tokenizer.encode(np.arange(256, dtype=np.uint8).reshape(16, 16)).latents
    )
    codes = torch.from_numpy(
        PixelsConfig(16, 16, n_levels=n_levels)
        .build()
        .encode(np.arange(256, dtype=np.uint8).reshape(16, 16))
        .codes
    )
    torch.testing.assert_close(latents.double(), cells.centres(codes), atol=1e-7, rtol=0)
    assert torch.equal(cells.codes(latents), codes.long())


def test_what_is_drawn_goes_to_the_nearest_level():
    tokenizer = pixels(2, 2, patch=1, n_levels=4)  # cells of 0.5: centres -0.75, -0.25, 0.25, 0.75
    for drawn, level in (
        (-7.0, 0),
        (-0.51, 0),
        (-0.49, 1),
        (0.01, 2),
        (0.26, 2),
        (0.99, 3),
        (1.0, 3),
        (1e9, 3),
    ):
        assert (
            tokenizer.decode(Segment("image", latents=np.full((4, 1), drawn, np.float32)))
            == level * 85
        ).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_head_lays_its_picture_out_as_the_image(size):
    height, width, channels, patch = size
    tokenizer = pixels(*size, n_levels=256)
    head = GridDiffusion(
        network=DiTConfig(1, 16, 2), grid=tokenizer.config.grid, patch=patch
    ).build(8, tokenizer.signature)
    image = images(1, height, width, channels)[0]
    picture = head.patchify.picture(torch.from_numpy(tokenizer.encode(image).latents)[None])[0]
    levels = ((picture + 1) * 128 - 0.5).permute(1, 2, 0).numpy()
    assert np.array_equal(levels.reshape(image.shape), image)


# ---- an autoencoder's


@pytest.mark.parametrize("size", SIZES)
def test_patches_have_one_frame_per_patch(size):
    height, width, channels, patch = size
    tokenizer = patches(*size, latent_size=5)
    signature = tokenizer.signature
    assert (signature.latent_size, signature.frames, signature.cells) == (
        5,
        height * width // patch**2,
        0,
    )
    image = images(1, height, width, channels)[0]
    assert tokenizer.encode(image).latents.shape == (signature.frames, 5)
    assert tokenizer.decode(tokenizer.encode(image)).shape == image.shape


def test_frames_are_the_patches_in_raster_order():
    """Without residual blocks a frame sees a pixel beyond its patch and no more, so a pixel inside
    one changes that frame alone.
    """
    tokenizer = patches(height=16, width=24, patch=4, blocks=0)
    dark = np.zeros((16, 24), np.uint8)
    before = tokenizer.encode(dark).latents
    for row, column in ((0, 0), (0, 5), (3, 0), (2, 3)):
        light = dark.copy()
        light[4 * row + 1, 4 * column + 2] = 255
        assert np.flatnonzero((tokenizer.encode(light).latents != before).any(1)).tolist() == [
            6 * row + column
        ]


def test_figures_of_an_autoencoder():
    figures = patches().fidelity(images(100))
    assert figures["psnr_db"] == pytest.approx(20 * np.log10(255 / figures["rms_error_grey"]))
    assert 0.8 < figures["spread_least"] <= figures["spread_most"] < 1.2


# ---- common to all


@BOTH
def test_batch_equals_single(tokenizer):
    some = images(300)
    batch = tokenizer.encode_batch(some)
    assert all(
        np.array_equal(segment.latents, tokenizer.encode(image).latents)
        for segment, image in zip(batch, some, strict=True)
    )
    assert all(
        np.array_equal(a, tokenizer.decode(segment))
        for a, segment in zip(tokenizer.decode_batch(batch), batch, strict=True)
    )
    assert (
        tokenizer.encode_batch([]) == []
        and tokenizer.decode_batch([]) == []
        and tokenizer.fidelity([]) == {}
    )


@BOTH
def test_any_latents_decode_to_an_image(tokenizer, rng):
    shape = tokenizer.signature.frames, tokenizer.signature.latent_size
    for scale in (0, 1, 100, 1e30):
        image = tokenizer.decode(
            Segment("image", latents=(scale * rng.normal(size=shape)).astype(np.float32))
        )
        assert image.dtype == np.uint8 and image.shape == (8, 8)


@pytest.mark.parametrize(
    "tokenizer", [pixels(), pixels(channels=3), patches(), patches(channels=3)]
)
def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    again = load(tmp_path / "t")
    assert type(again) is type(tokenizer) and again.signature == tokenizer.signature
    image = images(1, channels=tokenizer.config.channels)[0]
    assert np.array_equal(again.encode(image).latents, tokenizer.encode(image).latents)


@BOTH
def test_token_files_hold_latents(tokenizer, tmp_path, capsys):
    """The verbs with --tokenizer FOLDER: what comes out of the files is what the tokenizer makes of
    its own round trip.
    """
    tokenizer.save(tmp_path / "t")
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    tokens = str(tmp_path / "t.parquet")
    for path, image in zip(paths, images(2), strict=True):
        write_image(path, image)
    assert (
        main(
            [
                "tokenize",
                "image",
                *paths,
                "-o",
                tokens,
                "--tokenizer",
                str(tmp_path / "t"),
                "--check",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "detokenize",
                tokens,
                "-o",
                str(tmp_path / "again"),
                "--tokenizer",
                str(tmp_path / "t"),
            ]
        )
        == 0
    )
    found = [read_image(path) for path in sorted((tmp_path / "again").glob("*.png"))]
    assert np.array_equal(found, tokenizer.decode_batch(tokenizer.encode_batch(images(2))))
    capsys.readouterr()
    assert main(["show", tokens]) == 0 == main(["show", str(tmp_path / "t")])
    assert capsys.readouterr().out.count(f"{tokenizer.signature.latent_size} floats a frame") == 2
    assert (
        main(["detokenize", tokens, "-o", str(tmp_path / "wrong")]) == 2
    )  # by the default tokenizer, whose codes these are not


def test_fingerprint_follows_weights_and_settings():
    assert (
        len({pixels(patch=p, n_levels=k).signature.fingerprint for p in (1, 2) for k in (17, 256)})
        == 4
    )
    a = patches()
    b = patches()
    other = KLPatches(patches().config, patches().config.network())
    assert a.signature == b.signature and a.signature.fingerprint != other.signature.fingerprint
    assert (
        pixels().fidelity(images(3))["psnr_db"]
        < pixels(n_levels=256).fidelity(images(3))["psnr_db"]
        == 100.0
    )


# ---- bad input


@BOTH
@pytest.mark.parametrize(
    ("image", "says"),
    [
        (images(1, 8, 9)[0], "takes 8 x 8"),
        (images(1, channels=3)[0], "convert\\('L'\\)"),
        (images(1)[0].astype(np.float32), "float32"),
        (np.zeros(64, np.uint8), "uint8 values"),
        (np.zeros((0, 8), np.uint8), "no pixels"),
    ],
)
def test_wrong_images_are_refused(tokenizer, image, says):
    with pytest.raises(UserError, match=says):
        tokenizer.encode(image)


@BOTH
def test_wrong_latents_are_refused(tokenizer):
    n = tokenizer.signature.frames
    size = tokenizer.signature.latent_size
    broken = np.zeros((n, size), np.float32)
    broken[3, 1] = np.nan
    for wrong, says in (
        (
            {"latents": np.zeros((n - 1, size), np.float32)},
            f"expected latents of shape \\({n}, {size}\\), got latents of shape",
        ),
        ({"latents": np.zeros((n, size + 1), np.float32)}, "expected latents"),
        ({"codes": np.zeros((n, size), int)}, "got codes"),
        ({"latents": broken}, "frame 3 has latents that are NaN or infinite"),
    ):
        with pytest.raises(UserError, match=says):
            tokenizer.decode(Segment("image", **wrong))


WRONG_PATCHES = ({"patch": 3}, {"patch": 0}, {"channels": 2}, {"height": 0}, {"width": None})


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        *product((PixelLatentsConfig, KLPatchesConfig), WRONG_PATCHES),
        (PixelLatentsConfig, {"n_levels": 1}),
        (PixelLatentsConfig, {"n_levels": 257}),
        (KLPatchesConfig, {"latent_size": 0}),
        (KLPatchesConfig, {"kl_weight": -1.0}),
        (KLPatchesConfig, {"kl_weight": float("nan")}),
    ],
)
def test_wrong_settings_are_refused(config, settings):
    with pytest.raises(UserError, match=config.__name__):
        config(**settings)


def test_broken_folders_are_refused(tmp_path):
    patches().save(tmp_path)
    with pytest.raises(UserError, match="expected 'PixelLatents'"):
        type(pixels()).load(tmp_path)
    for broken in (b"broken", None):
        (tmp_path / "weights.safetensors").unlink()
        if broken:
            (tmp_path / "weights.safetensors").write_bytes(broken)
        with pytest.raises(UserError, match="weights"):
            load(tmp_path)
