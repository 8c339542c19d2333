"""Muon: steps of matrices are orthogonal, of one size whatever their gradient's, and all else steps
as under AdamW.
"""

import copy

import pytest
import torch
from torch import nn

from mmtok.nn.weight_decay import decay_groups
from mmtok.train.muon import BETAS, RMS, Muon, orthogonal


@pytest.fixture
def model():
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Linear(12, 20), nn.SiLU(), nn.Linear(20, 12, bias=False), nn.LayerNorm(12)
    )
    return nn.ModuleDict({"embed": nn.Embedding(30, 12), "block": block, "out": nn.Linear(12, 30)})


def descend(model, optimizer, steps=1):
    ids = torch.arange(30)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(
            model["out"](model["block"](model["embed"](ids))), ids.roll(1)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss)


@pytest.mark.parametrize("shape", [(48, 48), (32, 80), (80, 32), (3, 16, 40)])
def test_orthogonal_is_nearly_the_polar_factor(shape):
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    made = orthogonal(x)
    values = torch.linalg.svdvals(made)[s > 0.01 * s.max()]
    assert values.min() > 0.85 and values.max() < 1.15
    cosine = (made * (u @ vt)).sum() / made.norm() / (u @ vt).norm()
    assert cosine > 0.98


def test_orthogonal_turns_with_its_matrix_and_knows_no_scale():
    torch.manual_seed(2)
    x = torch.randn(16, 24, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))
    torch.testing.assert_close(orthogonal(q @ x), q @ orthogonal(x))
    torch.testing.assert_close(orthogonal(x.T), orthogonal(x).T)
    torch.testing.assert_close(orthogonal(1000 * x), orthogonal(x), rtol=1e-5, atol=1e-6)


def test_a_matrix_steps_by_the_learning_rate_whatever_its_gradient(model):
    optimizer = Muon(model, [model["block"]], lr=0.01, weight_decay=0.0)
    before = model["block"][0].weight.detach().clone()
    descend(model, optimizer)
    step = model["block"][0].weight.detach() - before
    # eq. 4 of Liu et al.: the root-mean-square entry of an orthogonal (n, m) is 1 / sqrt(max(n, m))
    assert step.square().mean().sqrt() == pytest.approx(0.01 * RMS, rel=0.2)


def test_all_else_steps_as_under_adamw(model):
    other = copy.deepcopy(model)
    descend(model, Muon(model, [model["block"]], lr=0.01, weight_decay=0.1))
    descend(other, torch.optim.AdamW(decay_groups(0.1, other), lr=0.01, betas=BETAS))
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        same = torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)
        assert same == (name not in ("block.0.weight", "block.2.weight")), name


def test_every_parameter_is_stepped_once_and_learns(model):
    optimizer = Muon(model, [model["block"]], lr=0.02, weight_decay=0.01)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(model.parameters())
    first = descend(model, optimizer)
    assert descend(model, optimizer, 60) < 0.1 * first
