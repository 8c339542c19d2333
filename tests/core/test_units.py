"""Customary units: what they are called, and how nats become them."""

import math

import pytest

from mmtok.core.segment import Signature
from mmtok.core.units import customary, is_density


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
    cells = Signature("image", latent_size=4, frames=2, cells=17)
    floats = Signature("image", latent_size=4, frames=2)
    assert customary(cells, 8 * math.log(2), 8) == (
        pytest.approx(1.0),
        "bits/value",
    ) and not is_density(cells)
    assert customary(floats, -6.0, 2) == (-3.0, "nats/frame") and is_density(floats)
    codes = Signature("image", (7,), frames=2)
    assert customary(codes, 1.0, 2) == customary("image", 1.0, 2) and not is_density(codes)
