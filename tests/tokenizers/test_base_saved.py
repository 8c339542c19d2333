"""What a tokenizer's folder holds and what its fingerprint is must not change by itself: runs and
token files name it.
"""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtok.tokenizers import load
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.base import with_weights
from mmtok.tokenizers.griffin_lim import GriffinLimConfig
from mmtok.tokenizers.image_latents import (
    KLPatches,
    KLPatchesConfig,
    PixelLatentsConfig,
)
from mmtok.tokenizers.images import PixelsConfig, VQPatches, VQPatchesConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import Bands, LogMel, LogMelConfig


def filled(network):
    """Weights that are exact numbers: the same on every machine."""
    with torch.no_grad():
        for i, (_, value) in enumerate(sorted(network.state_dict().items())):
            if value.is_floating_point():
                value.copy_(
                    (((torch.arange(value.numel()) * 7 + i) % 17 - 8) / 64).view(value.shape)
                )
    return network


def digest(content):
    return hashlib.sha256(content).hexdigest()[:12]


def learned(config, kind):
    return kind(config, filled(config.network()))


OLD = GriffinLimConfig()
# name -> what makes it, its fingerprint, the SHA-256 of its tokenizer.json and of its weights'
# names (the fingerprint is of their values)
KEPT = {
    "Pixels": (lambda: PixelsConfig(4, 4).build(), "e5dfc6d57c9b", "3d97ed0f3fa2", None),
    "VQPatches": (
        lambda: learned(
            VQPatchesConfig(4, 4, quantizer=VQ(4, 2), autoencoder=ConvPatches(4)), VQPatches
        ),
        "ba6a6c82c074",
        "33f6c10341bb",
        "db1b2b2a9315",
    ),
    "PixelLatents": (
        lambda: PixelLatentsConfig(4, 4).build(),
        "58dba9ebdbe9",
        "c935059142c5",
        None,
    ),
    "KLPatches": (
        lambda: learned(
            KLPatchesConfig(4, 4, autoencoder=ConvPatches(4), latent_size=2), KLPatches
        ),
        "f23d3b09efd7",
        "d5ca3fa1f314",
        "18fd5b9cba57",
    ),
    "DMel": (lambda: DMelConfig(vocoder=OLD).build(), "95bd4d1bac4d", "cc3c82733db1", None),
    "DMel, causal": (
        lambda: replace(DMelConfig.inkling_20hz(), vocoder=OLD).build(),
        "c7ed5f12fd67",
        "00272d27229d",
        None,
    ),
    "LogMel": (
        lambda: LogMel(LogMelConfig(vocoder=OLD), filled(Bands(80))),
        "0d8be23bcad4",
        "bdf4ec9ec341",
        "1db797955efe",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_fingerprint_and_folder_are_as_they_were(tmp_path, name):
    make, fingerprint, settings, weights = KEPT[name]
    tokenizer = make()
    tokenizer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json"} | (
        {"weights.safetensors"} if weights else set()
    )
    assert digest((tmp_path / "tokenizer.json").read_bytes()) == settings
    if weights:
        assert (
            digest(json.dumps(sorted(load_file(tmp_path / "weights.safetensors"))).encode())
            == weights
        )
    assert (
        tokenizer.signature.fingerprint == fingerprint
        and load(tmp_path).signature == tokenizer.signature
    )


# the same for exact arithmetic on pixels: the frames themselves
@pytest.mark.parametrize(
    "name, frames", [("Pixels", "03aa9940ef49"), ("PixelLatents", "ce20530d66d8")]
)
def test_frames_are_as_they_were(name, frames):
    images = [((np.arange(16).reshape(4, 4) * 37 + i) % 256).astype(np.uint8) for i in range(3)]
    tokenizer = KEPT[name][0]()
    segments = tokenizer.encode_batch(images)
    told = [
        (segment.values.tolist(), str(segment.values.dtype), dict(segment.info))
        for segment in segments
    ]
    assert digest(json.dumps(told).encode()) == frames
    assert all(
        np.array_equal(tokenizer.decode(s), image)
        for s, image in zip(segments, tokenizer.decode_batch(segments), strict=True)
    )


def test_reading_weights_draws_nothing_from_the_global_generator(tmp_path):
    """Tokenizers are opened in the middle of trainings, whose noise must not depend on it."""
    network = torch.nn.Linear(3, 2)
    save_file(dict(network.state_dict()), tmp_path / "weights.safetensors")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    read = with_weights(tmp_path, lambda: torch.nn.Linear(3, 2))
    assert torch.equal(torch.rand(3), expected) and torch.equal(read.weight, network.weight)
