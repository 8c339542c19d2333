"""Shares outside a grid are of a feature: below and above its range count together."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.tokenizers.jets import JetGridConfig


def jets_of_which_some_are_off(share):
    """100 jets of 20 equal particles at 0.1; of this share of them, every second one lies 1.7 below
    or above in eta.
    """
    jets = [np.tile(np.float32([10, 0.1, 0.1]), (20, 1)) for _ in range(100)]
    for i in range(round(100 * share)):
        jets[i][:, 1] += (-1.7, 1.7)[i % 2]
    return jets


def test_both_sides_together_are_refused():
    both = (
        "^600 of 2,000 particles would be clipped in eta_rel, below -0.8, 15.0% of them, with 15.0%"
        " of the pt, and above 0.8, 15.0% of them"
    )
    with pytest.raises(UserError, match=both):
        JetGridConfig().build().encode_batch(jets_of_which_some_are_off(0.3))
    with pytest.warns(UserWarning, match="clipped in eta_rel"):
        assert (
            len(
                JetGridConfig(allow_clipping=True)
                .build()
                .encode_batch(jets_of_which_some_are_off(0.3))
            )
            == 100
        )


def test_both_sides_together_are_said():
    with pytest.warns(UserWarning) as told:
        JetGridConfig().build().encode_batch(jets_of_which_some_are_off(0.18))
    below, above = (str(w.message) for w in told)
    assert below.startswith(
        "180 of 2,000 particles were clipped in eta_rel, below -0.8, 9.0% of them"
    )
    assert above.startswith(
        "180 of 2,000 particles were clipped in eta_rel, above 0.8, 9.0% of them"
    )


def test_what_is_said_of_two_sides_that_are_little_alone():
    jet = np.tile(np.float32([1, 0.1, 0.1]), (250, 1))
    jet[:3, 2] = -1, 1, 1  # 0.4 % and 0.8 % of all
    with pytest.warns(
        UserWarning, match="^2 of 250 particles were clipped in phi_rel, above 0.8, 0.8%"
    ):
        segment = JetGridConfig(max_constituents=250).build().encode(jet)
    assert len(segment) == 250


def test_soft_particles_below_do_not_count_with_hard_ones_above():
    soft = np.tile(np.float32([0.01, 0.1, 0.1]), (60, 1))
    hard = np.tile(np.float32([200, 0.1, 0.1]), (40, 1))
    hard[0, 0] = 1_000.0
    with pytest.warns(UserWarning) as told:
        JetGridConfig(low=(-2.0, -1.0, -1.0), high=(6.9, 1.0, 1.0)).build().encode(
            np.concatenate([soft, hard])
        )
    assert any("softer than the grid's range" in str(w.message) for w in told)
