"""Networks over sets know no order, no padding and no other set."""

import pytest
import torch

from mmtok.nn.set_autoencoder import ElementNetwork, SetNetwork, real_places


def networks():
    torch.manual_seed(0)
    made = {"element": ElementNetwork(3, 4, 16, 2), "set": SetNetwork(3, 4, 16, 2, 4)}
    for network in made.values():
        torch.nn.init.normal_(network.out.weight)  # which is 0 before training
        network.double()
    return made


@pytest.mark.parametrize("name", ["element", "set"])
def test_a_set_permutes_with_its_elements_whatever_is_beside_it(name):
    network = networks()[name]
    a, b, c = (torch.randn(n, 3, dtype=torch.float64) for n in (5, 1, 9))
    alone = [network(x, torch.tensor([len(x)])) for x in (a, b, c)]
    together = network(torch.cat([c, a, b]), torch.tensor([9, 5, 1]))
    torch.testing.assert_close(together, torch.cat([alone[2], alone[0], alone[1]]))
    order = torch.randperm(9)
    torch.testing.assert_close(network(c[order], torch.tensor([9])), alone[2][order])


def test_only_attention_sees_the_other_elements():
    x = torch.randn(6, 3, dtype=torch.float64)
    moved = x.clone()
    moved[0] += 1
    for name, network in networks().items():
        difference = network(moved, torch.tensor([6])) - network(x, torch.tensor([6]))
        assert bool(difference[1:].any()) == (name == "set")


def test_networks_begin_as_the_identity():
    for network in (ElementNetwork(3, 4, 16, 2), SetNetwork(3, 4, 16, 1, 2)):
        x = torch.randn(7, 3)
        y = network(x, torch.tensor([3, 4]))
        assert torch.equal(y[:, :3], x) and not y[:, 3].any()


def test_real_places():
    found = real_places(torch.tensor([2, 0, 3]))
    assert found.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert real_places(torch.zeros(0, dtype=torch.long)).shape == (0, 0)
