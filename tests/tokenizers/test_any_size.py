"""Pictures of any size as patch codes in rows: sizes come back, batches are single calls."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.rows import of_rows
from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.tokenizers.any_size import AnySizePatches, AnySizePatchesConfig
from mmtok.tokenizers.autoencoders import ConvPatches, ViTPatches
from mmtok.tokenizers.images import VQPatches, VQPatchesConfig
from mmtok.tokenizers.quantizers import FSQ, VQ, ResidualVQ
from mmtok.train.tokenizer_fit import fit_tokenizer

SIZES = ((8, 8), (3, 11), (2, 2), (7, 4), (16, 5), (8, 8))
N_CODES = 12


def untrained(**settings) -> AnySizePatches:
    settings = {"quantizer": VQ(N_CODES), "autoencoder": ConvPatches(8)} | settings
    config = AnySizePatchesConfig(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = config.network()
        if isinstance(config.quantizer, VQ):
            network.codebook.vectors.normal_()
    return AnySizePatches(config, network)


@pytest.fixture
def pictures(rng):
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in SIZES]


@pytest.mark.parametrize(
    "tokenizer",
    [
        untrained(),
        untrained(patch=2, quantizer=FSQ((3, 4))),
        untrained(autoencoder=ViTPatches(16, 1)),
    ],
    ids=["VQ", "FSQ", "ViT"],
)
def test_every_size_comes_back(tokenizer, pictures):
    segments = tokenizer.encode_batch(pictures)
    for picture, segment in zip(pictures, segments, strict=True):
        height, width = picture.shape
        grid = of_rows(segment.codes[:, 0], tokenizer.signature.levels[0])
        assert grid.shape == (-(-height // 2), -(-width // 2))
        assert segment.info["height"] == height and segment.info["width"] == width
        assert tokenizer.decode(segment).shape == picture.shape
        assert np.array_equal(tokenizer.encode(picture).codes, segment.codes)
    for picture, again in zip(tokenizer.decode_batch(segments), segments, strict=True):
        assert np.array_equal(picture, tokenizer.decode(again))


def test_of_its_own_tiles_it_is_the_tokenizer_of_one_size(rng):
    colour = untrained(channels=3)
    config = VQPatchesConfig(
        **{f: getattr(colour.config, f) for f in VQPatchesConfig.__dataclass_fields__}
    )
    fixed = VQPatches(config, colour._network)
    pictures = list(rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    for a, b in zip(colour.encode_batch(pictures), fixed.encode_batch(pictures), strict=True):
        assert np.array_equal(of_rows(a.codes[:, 0], N_CODES).ravel(), b.codes[:, 0])
        assert np.array_equal(colour.decode(a), fixed.decode(b))


def test_what_is_drawn_has_whole_patches(rng):
    tokenizer = untrained()
    codes = np.array([0, 1, 2, N_CODES, 3, 4, 5, N_CODES])
    assert tokenizer.decode(Segment("image", codes=codes[:, None])).shape == (4, 6)
    # a row that a cap cut off is left out, and a size that does not fit is not used
    cut = Segment("image", codes=codes[:-2, None], info={"height": 99, "width": 6}, truncated=True)
    assert tokenizer.decode(cut).shape == (2, 6)
    assert tokenizer.decode(Segment("image", codes=codes[:2, None])).shape == (2, 4)
    assert tokenizer.decode(Segment("image", codes=codes[:0, None])).shape == (2, 2)


def test_saved_it_is_the_same(tmp_path, pictures):
    tokenizer = untrained()
    tokenizer.save(tmp_path / "image")
    again = AnySizePatches.load(tmp_path / "image")
    assert again.signature == tokenizer.signature and again.signature.rows
    assert np.array_equal(again.encode(pictures[1]).codes, tokenizer.encode(pictures[1]).codes)


def test_what_it_refuses():
    tokenizer = untrained(height=8, width=8, patch=4)
    with pytest.raises(UserError, match=r"3 x 9 \(height x width\) is less than a patch of 4 x 4"):
        tokenizer.encode(np.zeros((3, 9), np.uint8))
    with pytest.raises(UserError, match="RGB, this tokenizer takes grey"):
        tokenizer.encode(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="rows of one length"):
        tokenizer.decode(Segment("image", codes=np.array([0, N_CODES, 1, 1, N_CODES])[:, None]))
    with pytest.raises(UserError, match="codes run from 0 to 13"):
        tokenizer.decode(Segment("image", codes=np.array([0, N_CODES + 1])[:, None]))
    with pytest.raises(UserError, match="take one of a single code"):
        AnySizePatchesConfig(quantizer=ResidualVQ(2, 8))


def test_it_learns_from_pictures_of_any_size(rng):
    """Pictures of two grey values, each in its own half, come back after a short training."""
    pictures = []
    for _ in range(40):
        height, width = rng.integers(4, 13, 2)
        picture = np.zeros((height, width), np.uint8)
        picture[:, width // 2 :] = 200
        pictures.append(picture)
    config = AnySizePatchesConfig(
        height=8, width=8, patch=2, quantizer=VQ(8), autoencoder=ConvPatches(16), steps=150
    )
    tokenizer = fit_tokenizer(config, pictures, heldout=pictures[:8])
    assert isinstance(tokenizer, AnySizePatches)
    figures = tokenizer.fidelity(pictures)
    assert figures["psnr_db"] > 18 and 0 < figures["codebook_use"] <= 1
    untouched = fit_tokenizer(replace(config, steps=1), pictures)
    assert untouched.fidelity(pictures)["psnr_db"] < figures["psnr_db"] - 3
