import pytest
import torch

from mmtok.nn.average import MovingAverage, exponential, power


def followed(decay, values):
    """The average of one number that takes these values, one per step."""
    module = torch.nn.Linear(1, 1, bias=False).double()
    average = MovingAverage(module, decay)
    for value in values:
        torch.nn.init.constant_(module.weight, value)
        average.update(module)
    return average.weights["weight"].item()


@pytest.mark.parametrize("decay", [exponential(0), exponential(0.9), exponential(0.999), power(0), power(6.94)])
def test_a_constant_is_its_own_average_whatever_it_started_from(decay):
    assert followed(decay, [3.0] * 7) == pytest.approx(3.0, abs=1e-14)


def test_no_decay_is_the_last_value():
    assert followed(exponential(0), [5.0, 1.0, 2.0]) == 2.0


def test_power_nought_is_the_mean():
    assert followed(power(0), [5.0, 1.0, 2.0, 8.0]) == pytest.approx(4.0, abs=1e-14)


@pytest.mark.parametrize("gamma", [1.0, 6.94])
def test_power_weights_step_t_by_its_power(gamma):
    """The profile of the paper's eq. 1: the share of steps up to t is (t / T)^(gamma + 1), exactly."""
    after = [0.0] * 30 + [1.0] * 70
    assert followed(power(gamma), after) == pytest.approx(1 - 0.3 ** (gamma + 1), abs=1e-12)


def test_exponential_forgets_by_its_decay_once_it_is_old_enough():
    values = [0.0] * 200 + [1.0] * 20
    assert followed(exponential(0.9), values) == pytest.approx(1 - 0.9**20, abs=1e-12)


def test_lending_and_giving():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = MovingAverage(module, exponential(0.5))
    for _ in range(3):
        for p in module.parameters():
            torch.nn.init.normal_(p)
        average.update(module)
    own = {name: p.detach().clone() for name, p in module.named_parameters()}
    same = lambda weights: all(torch.equal(p, weights[name]) for name, p in module.named_parameters())
    with pytest.raises(KeyError), average.within(module):
        assert same(average.weights) and not same(own)
        raise KeyError  # an error inside leaves the module as it was too
    assert same(own)
    average.copy_to(module)
    assert same(average.weights)
    torch.nn.init.zeros_(module[0].weight)
    assert average.weights["0.weight"].any()  # copies, not views


def test_impossible_decays_are_refused():
    with pytest.raises(ValueError, match="below 1"):
        exponential(1.0)
    with pytest.raises(ValueError, match="negative"):
        power(-1.0)
