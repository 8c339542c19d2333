"""Weight decay: every matrix of a linear map or a convolution, once, and nothing else."""

from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtok.core.vocabulary import Vocabulary
from mmtok.metrics.speech import _Convnet
from mmtok.model.lm import LM
from mmtok.nn.conditioning import Labels, Vectors
from mmtok.nn.denoisers import DiTConfig, GridDenoiser, SetDenoiser
from mmtok.nn.unet import UNet, UNetConfig
from mmtok.nn.weight_decay import decay_groups, matrices
from mmtok.run.recipe import load_recipe
from mmtok.run.signatures import planned_signatures

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
# every parameter of the recipes' models that has two axes or more and is no matrix: tables, and
# where a patch stands
FLOWS = ()  # linear maps of an optional package
with suppress(ImportError):
    from zuko.nn import Linear

    FLOWS = (Linear,)
TABLES = (
    "model.embed_tokens.weight",
    "frame_in.*.table.weight",
    "frame_in.*.share.weight",
    "heads.*.conditioning.*.weight",
    "heads.image.network.enter.weight",
    "*position_embed",
)


def decaying(*modules):
    """What decays, after the law that every parameter is in one group, once."""
    chosen, others = decay_groups(0.1, *modules)
    assert (chosen["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    grouped = chosen["params"] + others["params"]
    every = {p for module in modules for p in module.parameters()}
    assert len(grouped) == len(every) and set(grouped) == every
    return set(chosen["params"])


def check(module):
    """By type: the weights of linear maps and convolutions, whatever the attributes are called."""
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, *FLOWS)
    matrices = {m.weight for m in module.modules() if isinstance(m, kinds)}
    assert matrices and decaying(module) == matrices


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_of_every_recipes_models_the_matrices_decay(path):
    recipe = load_recipe(path)
    with torch.device("meta"):
        lm = LM(recipe.model, Vocabulary(list(planned_signatures(recipe).values())))
    check(lm)
    many_axes = {name: p for name, p in lm.named_parameters() if p.ndim > 1}
    tables = {
        p for name, p in many_axes.items() if any(fnmatch(name, pattern) for pattern in TABLES)
    }
    if path.stem == "any_order":
        assert lm.heads["image"].network.enter.weight in tables
    else:
        tables -= {
            m.weight for m in lm.modules() if isinstance(m, nn.Linear)
        }  # a denoiser of latents enters by a map
    assert decaying(lm) == set(many_axes.values()) - tables
    for config in recipe.tokenizers.values():
        if hasattr(config, "network"):
            check(config.network())


def test_of_judges_and_other_denoisers_the_matrices_decay():
    check(_Convnet(3))
    check(UNet(UNetConfig((8, 16), blocks=1), 1, Labels(3)))
    check(SetDenoiser(DiTConfig(1, 16, 2), 3, Vectors(5)))
    network = GridDenoiser(DiTConfig(1, 16, 2), (1, 4, 4), 2, Labels(3))
    check(network)
    level = network.conditioning.timestep
    assert {level.enter.weight, level.out.weight} <= decaying(network) == set(matrices(network))
    assert not {
        network.conditioning.condition.null,
        network.conditioning.condition.read.weight,
        network.position_embed,
    } & decaying(network)


def test_a_tied_head_is_an_embedding_and_counts_once():
    table = nn.Embedding(5, 4)
    head = nn.Linear(4, 5)
    twin = nn.Linear(4, 5)
    head.weight = table.weight
    twin.bias = head.bias
    assert decaying(nn.ModuleList([table, head, twin])) == {twin.weight}
    assert decaying(nn.ModuleList([head, twin, table])) == {twin.weight}
    assert decaying(head, twin, table) == {twin.weight}


def test_a_module_may_say_what_of_its_own_decays():
    class Bilinear(nn.Module):
        decaying = ("mix",)

        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.zeros(3, 3))
            self.where = nn.Parameter(torch.zeros(3, 3))

    module = Bilinear()
    assert decaying(module) == {module.mix}


@pytest.mark.parametrize(
    "module, n",
    [
        (nn.MultiheadAttention(4, 2), 2),
        (nn.MultiheadAttention(4, 2, kdim=3, vdim=5), 4),
        (nn.LSTM(3, 4, num_layers=2), 4),
        (nn.GRUCell(3, 4), 2),
        (nn.TransformerEncoderLayer(4, 2, 8), 4),
    ],
)
def test_torchs_own_matrices_decay(module, n):
    matrices = {p for p in module.parameters() if p.ndim > 1}
    assert len(matrices) == n and decaying(module) == matrices
