"""Customary units: what they are called, how nats become them, how many a segment has."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from mmtok.core.segment import Segment, Signature
from mmtok.core.units import customary, is_density, units_of
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig


@pytest.mark.parametrize(
    "modality, value, unit",
    [
        ("text", 2.0, "bits/byte"),
        ("image", 2.0, "bits/code"),
        ("speech", 2 * math.log(2), "nats/frame"),
        ("jets", 2 * math.log(2), "nats/particle"),
        ("protein", 2 * math.log(2), "nats/frame"),
    ],
)
def test_nats_in_the_customary_unit(modality, value, unit):
    assert customary(modality, 6 * math.log(2), 3) == (pytest.approx(value), unit)


def test_latents_have_units_of_their_own():
    """Cells of an axis are values with a probability; continuous latents have a density."""
    cells, floats = (
        Signature("image", latent_size=4, frames=2, cells=17),
        Signature("image", latent_size=4, frames=2),
    )
    assert customary(cells, 8 * math.log(2), 8) == (
        pytest.approx(1.0),
        "bits/value",
    ) and not is_density(cells)
    assert customary(floats, -6.0, 2) == (-3.0, "nats/frame") and is_density(floats)
    codes = Signature("image", (7,), frames=2)
    assert customary(codes, 1.0, 2) == customary("image", 1.0, 2) and not is_density(codes)
    segment = Segment("image", latents=np.zeros((2, 4), np.float32))
    assert [units_of(SimpleNamespace(signature=s), segment) for s in (cells, floats)] == [8, 2]


def test_units_are_bytes_particles_and_frames():
    text = "a café in the café in the café"
    for tokenizer in (BytesConfig().build(), SentencePieceConfig(n_pieces=300).fit([text] * 9)):
        assert units_of(tokenizer, tokenizer.encode(text)) == len(text.encode())
    jet = np.array([[50.0, 0.1, 0.2], [20.0, -0.1, 0.3]], np.float32)
    for totals in ((), ("pt_gev", "mass_gev")):  # frames of the jet itself are no particles
        tokenizer = JetGridConfig(totals=totals).build()
        assert (
            len(segment := tokenizer.encode(jet)) == 2 + len(totals)
            and units_of(tokenizer, segment) == 2
        )
    assert units_of(None, Segment("image", codes=np.zeros((16, 1), np.int64))) == 16
