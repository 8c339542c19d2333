"""A module that is built without memory gets the very values that its constructor gives it."""

import gc

import pytest
import torch
from torch import nn

from mmtok.core.vocabulary import Vocabulary
from mmtok.model.lm import LM
from mmtok.nn.deferred import record
from mmtok.run.recipe import load_recipe
from mmtok.run.signatures import planned_signatures

RECIPES = ["digits", "cascade", "any_order", "pixel_diffusion", "continuous_speech"]


def filled(build, seed=3):
    """What `record` and `fill` make, from memory full of nonsense."""
    module, made = record(build)
    assert all(x.is_meta for x in [*module.parameters(), *module.buffers()])
    module.to_empty(device="cpu")
    for x in [*module.parameters(), *module.buffers()]:
        x.data.fill_(77)
    torch.manual_seed(seed)
    made.fill(module)
    return module, made


@pytest.mark.parametrize("name", RECIPES)
def test_a_decoder_s_weights_are_those_of_its_constructor_bit_for_bit(name):
    recipe = load_recipe(f"recipes/{name}.py")
    signatures = planned_signatures(recipe)
    vocabulary = Vocabulary([signatures[m] for m in recipe.tokenizers])
    torch.manual_seed(3)
    whole = LM(recipe.model, vocabulary)
    after = torch.rand(3)
    lm, _ = filled(lambda: LM(recipe.model, vocabulary))
    assert torch.equal(torch.rand(3), after), "as many random numbers were drawn"
    for (name, x), (other, y) in zip(
        [*whole.named_parameters(), *whole.named_buffers()],
        [*lm.named_parameters(), *lm.named_buffers()],
        strict=True,
    ):
        assert name == other and torch.equal(x, y), name


class Deep(nn.Module):
    """Layers that are drawn twice, in part set by hand, with computed buffers."""

    def __init__(self, n):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(50, 50) for _ in range(n)])
        for layer in self.layers:
            nn.init.trunc_normal_(layer.weight, std=0.1)
            layer.weight.data[3:5].mul_(2)
        self.register_buffer("noise", torch.randn(6) + 1, persistent=False)
        self.register_buffer("table", torch.arange(4))


def test_views_and_computed_buffers_come_back_too():
    torch.manual_seed(3)
    whole = Deep(3)
    deep, _ = filled(lambda: Deep(3))
    for x, y in zip([*whole.parameters()], [*deep.parameters()], strict=True):
        assert torch.equal(x, y)
    assert torch.equal(deep.noise, whole.noise) and torch.equal(deep.table, torch.arange(4))


def test_few_tensors_are_in_memory_at_once_however_deep_the_module():
    most = {}
    for n in (2, 20):
        _, made = record(lambda: nn.Sequential(*[nn.Linear(50, 50) for _ in range(n)]))
        most[n] = max(n_in_memory() for _ in made.values())
    assert most[2] == most[20] <= 4  # of two matrices, seen from two sides each


def n_in_memory():
    found = (x for x in gc.get_objects() if type(x) is torch.Tensor and x.numel() == 2500)
    return sum(not x.is_meta for x in found)


def test_a_constructor_that_needs_its_values_or_ties_some_is_refused():
    class Peeks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.big = bool(self.layer.weight.max() > 0)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.again = self.layer.weight

    with pytest.raises((NotImplementedError, RuntimeError)):
        record(Peeks)
    with pytest.raises(NotImplementedError, match="a parameter with two names"):
        record(Tied)
