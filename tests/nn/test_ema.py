import pytest
import torch

from mmtok.nn.ema import ema_update, exponential, power


def followed(decay, values, start=0.0):
    """The average of one number that takes these values, one per step."""
    average = {"a": torch.full((2,), start, dtype=torch.float64), "b": torch.ones(1)}
    for t, value in enumerate(values, 1):
        ema_update(
            average,
            {
                "b": torch.ones(1),
                "a": torch.full((2,), value, dtype=torch.float64, requires_grad=True),
            },
            decay(t),
        )
    assert (
        average["b"].item() == 1 and average["a"][0] == average["a"][1]
    )  # each follows its own name
    return average["a"][0].item()


@pytest.mark.parametrize("decay", [exponential(0), power(0), power(6.94)])
def test_a_constant_is_its_own_average_whatever_it_started_from(decay):
    assert followed(decay, [3.0] * 7, start=-50.0) == pytest.approx(3.0, abs=1e-14)


def test_no_decay_is_the_last_value():
    assert followed(exponential(0), [5.0, 1.0, 2.0]) == 2.0


def test_power_nought_is_the_mean():
    assert followed(power(0), [5.0, 1.0, 2.0, 8.0]) == pytest.approx(4.0, abs=1e-14)


@pytest.mark.parametrize("gamma", [1.0, 6.94])
def test_power_weights_step_t_by_its_power(gamma):
    """The profile of the paper's eq.

    1: the share of steps up to t is (t / T)^(gamma + 1), exactly.
    """
    after = [0.0] * 30 + [1.0] * 70
    assert followed(power(gamma), after) == pytest.approx(1 - 0.3 ** (gamma + 1), abs=1e-12)


def test_exponential_forgets_by_its_decay_once_it_is_old_enough():
    values = [0.0] * 200 + [1.0] * 20
    assert followed(exponential(0.9), values) == pytest.approx(1 - 0.9**20, abs=1e-12)


def test_exponential_forgets_its_start_however_slow_it_is():
    """After t steps a share of t! 10! / (t + 10)! is left of it; a bare decay of 0.9999 would leave
    0.99.
    """
    assert followed(exponential(0.9999), [0.0] * 90, start=1.0) == pytest.approx(
        1 / 17_310_309_456_440, rel=1e-9
    )  # 1 / (100 choose 10)


def test_impossible_decays_are_refused():
    with pytest.raises(ValueError, match="below 1"):
        exponential(1.0)
    with pytest.raises(ValueError, match="negative"):
        power(-1.0)
