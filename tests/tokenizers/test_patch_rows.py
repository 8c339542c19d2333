"""Pictures as rows of patch codes: the codes are those of single patches, seven to a frame."""

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.core.units import customary
from mmtok.errors import UserError
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.images import VQPatches, VQPatchesConfig
from mmtok.tokenizers.patch_rows import PatchRows, PatchRowsConfig
from mmtok.tokenizers.quantizers import FSQ, VQ, ResidualVQ
from mmtok.train.tokenizer_fit import fit_tokenizer

SIZES = {"height": 4, "width": 10, "patch": 2}
QUANTIZERS = [VQ(12), FSQ((3, 4)), ResidualVQ(2, 8)]


def pair(quantizer) -> tuple[PatchRows, VQPatches]:
    """Two tokenizers of the same untrained network: by rows, and by patches."""
    settings = {**SIZES, "quantizer": quantizer, "autoencoder": ConvPatches(8)}
    config = PatchRowsConfig(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = config.network()
        if not isinstance(quantizer, FSQ):
            network.codebook.vectors.normal_()
    return config.trained(network), VQPatchesConfig(**settings).trained(network)


@pytest.fixture
def pictures(rng):
    return list(rng.integers(0, 256, (3, 4, 10), dtype=np.uint8))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: type(q).__name__)
def test_a_frame_is_a_row_of_the_codes_of_single_patches(quantizer, pictures):
    rows, patches = pair(quantizer)
    n_books = len(quantizer.levels)
    assert rows.signature.frames == 2 and rows.signature.levels == quantizer.levels * 5
    for picture in pictures:
        ours = rows.encode(picture)
        theirs = patches.encode(picture)
        assert ours.codes.shape == (2, 5 * n_books)
        assert np.array_equal(ours.codes.reshape(10, n_books), theirs.codes)
        assert np.array_equal(rows.decode(ours), patches.decode(theirs))
    assert rows.fidelity(pictures) == patches.fidelity(pictures)


def test_scores_are_of_codes_not_of_rows(pictures):
    rows, patches = pair(VQ(12))
    ours = rows.encode(pictures[0])
    theirs = patches.encode(pictures[0])
    assert rows.n_units(ours) == patches.n_units(theirs) == 10
    assert customary(rows.signature, 1.0, 10) == customary(patches.signature, 1.0, 10)


def test_its_rate_is_that_of_single_patches():
    rows, patches = pair(VQ(16))
    texts = rows.config.rate_texts(rows.signature, {})
    assert texts[0] == "2 rows of patches an image"
    assert texts[1:] == patches.config.rate_texts(patches.signature, {})[1:]


def test_saved_it_is_the_same(tmp_path, pictures):
    rows, patches = pair(VQ(12))
    rows.save(tmp_path / "image")
    again = PatchRows.load(tmp_path / "image")
    assert again.signature == rows.signature != patches.signature
    assert np.array_equal(again.encode(pictures[0]).codes, rows.encode(pictures[0]).codes)


def test_what_it_refuses(pictures):
    rows, patches = pair(VQ(12))
    codes = rows.encode(pictures[0]).codes
    with pytest.raises(UserError, match="image: 1 frames of codes, this tokenizer needs 2"):
        rows.decode(Segment("image", codes=codes[:1]))
    with pytest.raises(UserError, match=r"image: expected codes of shape"):
        rows.decode(patches.encode(pictures[0]))
    with pytest.raises(UserError, match="a patch of 3 does not divide"):
        PatchRowsConfig(height=4, width=9, patch=3)


def test_it_is_learned_as_patches_are(pictures):
    """The same seed gives the same codes, whichever way they are laid out."""
    settings = {**SIZES, "quantizer": VQ(4), "autoencoder": ConvPatches(8), "steps": 3}
    rows = fit_tokenizer(PatchRowsConfig(**settings), pictures)
    patches = fit_tokenizer(VQPatchesConfig(**settings), pictures)
    assert isinstance(rows, PatchRows)
    for ours, theirs in zip(
        rows.encode_batch(pictures), patches.encode_batch(pictures), strict=True
    ):
        assert np.array_equal(ours.codes.ravel(), theirs.codes.ravel())
