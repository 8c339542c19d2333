"""A training of image networks goes on bit by bit, says how its codebook does, and refuses what
cannot be learned from.
"""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.tokenizers.autoencoders import ConvPatches, StagedConv, ViTPatches
from mmtok.tokenizers.image_latents import KLPatchesConfig
from mmtok.tokenizers.image_losses import ImageLosses
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.quantizers import FSQ, LFQ, VQ, ResidualVQ
from mmtok.train.tokenizer_fit import fit_tokenizer
from mmtok.train.trainer import Interrupted

SMALL = ConvPatches(8)
ALL = ImageLosses("l1", adversarial=0.1, adversarial_from=0.3)
CODES = VQPatchesConfig(quantizer=VQ(8), autoencoder=SMALL, losses=ALL, steps=30)
LATENTS = KLPatchesConfig(autoencoder=SMALL, latent_size=2, losses=ALL, steps=30)


def pictures(n: int = 60, side: int = 8, seed: int = 0) -> list[np.ndarray]:
    """Ramps of random directions."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    a, b = rng.normal(size=(2, n, 1, 1))
    return list((127 + 120 * np.sin(a * x / 3 + b * y / 3)).astype(np.uint8))


@pytest.mark.parametrize("config", [CODES, LATENTS], ids=["codes", "latents"])
def test_an_interrupted_training_ends_as_one_that_was_not(config, tmp_path):
    whole = fit_tokenizer(config, pictures(), folder=tmp_path / "whole")

    def interrupt(done, total, note):
        if done == 17:  # the discriminator counts
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="step 17"):
        fit_tokenizer(config, pictures(), progress=interrupt, folder=tmp_path / "cut")
    other = replace(config, losses=replace(ALL, adversarial=0.2))
    with pytest.raises(UserError, match="losses.adversarial 0.1, not 0.2"):
        fit_tokenizer(other, pictures(), folder=tmp_path / "cut")
    again = fit_tokenizer(config, pictures(), folder=tmp_path / "cut")
    assert again.signature.fingerprint == whole.signature.fingerprint
    logs = [(tmp_path / name / "patches" / "log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_the_log_tells_of_held_out_codes(tmp_path, capsys):
    heldout = pictures(40, seed=1)
    tokenizer = fit_tokenizer(CODES, pictures(), folder=tmp_path, heldout=heldout)
    lines = (tmp_path / "patches" / "log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 30 and {"pixels", "quantizer", "adversarial", "codes_revived"} < {*last}
    found = tokenizer.fidelity(heldout)
    for name in ("codebook_use", "codebook_perplexity", "psnr_db"):
        assert last[name] == pytest.approx(found[name], abs=0.05)
    assert "image tokenizer 30/30: pixels" in capsys.readouterr().err


def test_a_collapse_is_said_once_with_its_remedy():
    same = [np.full((8, 8), 7, np.uint8)] * 20
    with pytest.warns(UserWarning, match=r"only .*% of the 64 codes are used.* FSQ") as said:
        fit_tokenizer(VQPatchesConfig(autoencoder=SMALL, steps=20), same)
    assert len([w for w in said if "codes are used" in str(w.message)]) == 1


@pytest.mark.parametrize("quantizer", [ResidualVQ(2, 8, 4), FSQ((4, 3)), LFQ(4)], ids=str)
@pytest.mark.parametrize("autoencoder", [StagedConv(16, 1, 2, True), ViTPatches(16, 1)], ids=str)
def test_every_quantizer_and_network_learns(quantizer, autoencoder, tmp_path):
    config = VQPatchesConfig(quantizer=quantizer, autoencoder=autoencoder, steps=40)
    tokenizer = fit_tokenizer(config, pictures())
    constant = 20 * np.log10(255 / np.std(pictures()))
    segment = tokenizer.encode(pictures()[0])
    assert segment.codes.shape == (16, len(quantizer.levels))
    assert tokenizer.fidelity(pictures(seed=1))["psnr_db"] > constant + 1
    tokenizer.save(tmp_path)
    again = config.load(tmp_path)
    assert again.config == config and again.signature == tokenizer.signature
    assert np.array_equal(again.decode(segment), tokenizer.decode(segment))


def test_fewer_patches_than_codes_are_refused_with_numbers():
    config = VQPatchesConfig(patch=4, quantizer=VQ(100), autoencoder=SMALL)
    says = "24 images of 4 patches each are 96 patches, fewer than the 100 codes"
    with pytest.raises(UserError, match=says):
        fit_tokenizer(config, pictures(24))


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (VQ, {"n_codes": 1}, "n_codes is 1; it must be from 2"),
        (ResidualVQ, {"n_books": 1}, "n_books"),
        (FSQ, {"n_levels": (8, 2)}, "at least 3"),
        (FSQ, {"n_levels": ()}, "n_levels"),
        (FSQ, {"n_levels": (1024, 2048)}, "2,097,152 codes"),
        (LFQ, {"n_bits": 40}, "from 1 to 18"),
        (LFQ, {"entropy_weight": float("nan")}, "finite"),
        (ImageLosses, {"perceptual": -1.0}, "perceptual"),
        (ImageLosses, {"adversarial": float("inf")}, "adversarial"),
        (ImageLosses, {"adversarial_from": 1.0}, "below 1"),
    ],
)
def test_wrong_settings_are_refused(kind, settings, says):
    with pytest.raises(UserError, match=f"{kind.__name__}.*{says}"):
        kind(**settings)
