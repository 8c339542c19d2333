"""Laws that every denoiser obeys: silent at the start, reached by every gradient, blind to its
neighbours in the batch, able to learn.
"""

from functools import partial

import pytest
import torch

from mmtok.diffusion.likelihood import exact_trace
from mmtok.diffusion.losses import network_loss
from mmtok.diffusion.predictions import preconditioned
from mmtok.diffusion.schedules import EDM, VP, CondOT
from mmtok.nn.attention import rotate
from mmtok.nn.conditioning import Labels, Vectors, fourier_features
from mmtok.nn.denoisers import (
    GELU,
    DiTConfig,
    GridDenoiser,
    SetDenoiser,
    TokenDenoiser,
    TokenMLPConfig,
    grid_rope,
    grid_waves,
    in_chunks,
)
from mmtok.nn.unet import UNet, UNetConfig

SMALL = DiTConfig(depth=2, width=32, n_heads=4)
SMALL_UNET = UNetConfig(widths=(16, 16), blocks=1, n_heads=2)
B = 4


def conditioning(condition):
    """What is told in these tests: two rows keep their condition, two are denied it."""
    return {"condition": condition, "dropped": torch.tensor([False, True, False, True])}


# name -> (network, shape of a row, everything else that it is told). Without random numbers of
# their own: each caller seeds.
KINDS = {
    "grid": lambda: (GridDenoiser(SMALL, (2, 4, 6), 2), (2, 4, 6), {}),
    "grid of a class": lambda: (
        GridDenoiser(SMALL, (1, 4, 4), 1, Labels(3)),
        (1, 4, 4),
        conditioning(torch.tensor([0, 1, 2, 0])),
    ),
    "set": lambda: (
        SetDenoiser(SMALL, 3),
        (5, 3),
        {"mask": torch.arange(5) < torch.tensor([[5], [3], [1], [4]])},
    ),
    "set of a vector": lambda: (
        SetDenoiser(SMALL, 3, Vectors(6)),
        (5, 3),
        {"mask": torch.ones(B, 5).bool(), **conditioning(torch.randn(B, 6))},
    ),
    "set of another set": lambda: (
        SetDenoiser(SMALL, 3, context_size=7),
        (5, 3),
        {
            "mask": torch.arange(5) < torch.tensor([[5], [3], [1], [4]]),
            "context": torch.randn(B, 6, 7),
            "context_mask": torch.arange(6) < torch.tensor([[6], [1], [3], [5]]),
        },
    ),
    "u-net": lambda: (UNet(SMALL_UNET, 2), (2, 6, 4), {}),
    "u-net of a class": lambda: (
        UNet(SMALL_UNET, 1, Labels(3)),
        (1, 5, 3),
        conditioning(torch.tensor([0, 1, 2, 0])),
    ),
    "u-net, super-resolution": lambda: (
        UNet(SMALL_UNET, 1, None, 1),
        (1, 6, 6),
        {"low": torch.randn(B, 1, 3, 3), "aug_noise": torch.rand(B)},
    ),
    "token": lambda: (TokenDenoiser(TokenMLPConfig(2, 32), 5, 7), (5,), {"h": torch.randn(B, 7)}),
}


def made(kind, dtype=torch.float64, perturbed=False):
    """Network, states x (B, ...), c_noise (B,), keywords.

    perturbed: no parameter is at its start.
    """
    torch.manual_seed(0)
    network, shape, extra = KINDS[kind]()
    if perturbed:
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.2)

    def cast(v):
        return v.to(dtype) if v.is_floating_point() else v

    x = torch.randn(B, *shape, dtype=dtype)
    c_noise = torch.linspace(-1, 1, B, dtype=dtype)
    return network.to(dtype), x, c_noise, {name: cast(value) for name, value in extra.items()}


def rows(extra, pick):
    return {name: value[pick] for name, value in extra.items()}


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_says_nothing_before_training(kind, dtype):
    network, x, c_noise, extra = made(kind, dtype)
    y = network(x, c_noise, **extra)
    assert y.dtype == dtype and y.shape == x.shape and not y.any()


@every_kind
@pytest.mark.parametrize("schedule", [EDM(), VP(), CondOT()], ids=lambda c: type(c).__name__)
def test_so_an_untrained_denoiser_only_shrinks(kind, schedule):
    network, x, _, extra = made(kind)
    sigma = torch.tensor([0.01, 0.5, 2.0, 60.0], dtype=torch.float64)
    shrink = schedule.coefficients(sigma).c_skip.view(-1, *[1] * (x.dim() - 1))
    assert torch.equal(preconditioned(partial(network, **extra), schedule)(x, sigma), shrink * x)


@every_kind
def test_gradient_reaches_every_parameter(kind):
    network, x, c_noise, extra = made(kind, perturbed=True)
    network(x, c_noise, **extra).square().sum().backward()
    assert not [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 1e-9
    ]


@every_kind
def test_from_its_start_every_parameter_moves_within_a_few_steps(kind):
    """Zeroed gates hold back what is behind them, one layer of gates per step."""
    network, x, c_noise, extra = made(kind)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(5):
        optimiser.zero_grad()
        (network(x, c_noise, **extra) - x).square().mean().backward()
        optimiser.step()
    assert not [name for name, p in network.named_parameters() if torch.equal(p, before[name])]


@every_kind
def test_rows_do_not_meet(kind):
    network, x, c_noise, extra = made(kind, perturbed=True)
    whole = network(x, c_noise, **extra)
    for i in range(B):
        alone = network(x[i : i + 1], c_noise[i : i + 1], **rows(extra, slice(i, i + 1)))
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-11)


@every_kind
def test_what_it_is_told_matters(kind):
    network, x, c_noise, extra = made(kind, perturbed=True)
    before = network(x, c_noise, **extra)

    def changed(y):
        return (y - before).flatten(1).abs().amax(1) > 1e-6

    assert changed(network(x, c_noise + 0.3, **extra)).all()
    for name in set(extra) - {"mask", "context_mask", "dropped", "condition"}:
        assert changed(network(x, c_noise, **{**extra, name: extra[name] + 0.3})).all(), name
    if "condition" in extra:
        other = (
            extra["condition"].flip(0)
            if extra["condition"].is_floating_point()
            else (extra["condition"] + 1) % 3
        )
        assert changed(network(x, c_noise, **{**extra, "condition": other})).tolist() == [
            True,
            False,
            True,
            False,
        ]  # else it was dropped
        torch.testing.assert_close(
            network(x, c_noise, **{**extra, "condition": None, "dropped": None})[1::2], before[1::2]
        )


@every_kind
def test_the_likelihoods_trace_can_be_taken(kind):
    network, x, c_noise, extra = made(kind, perturbed=True)
    _, trace = exact_trace(lambda z: network(z, c_noise, **extra), x)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: network(z, c_noise, **extra), x
    ).reshape(B, x[0].numel(), B, -1)
    torch.testing.assert_close(
        trace, torch.einsum("biBi->bB", jacobian).diagonal(), rtol=1e-9, atol=1e-9
    )
    assert jacobian[0, :, 1:].abs().max() == 0  # rows apart, to every order that an ODE asks for


@every_kind
def test_learns_two_points(kind):
    """Two data points, the same for any noise: a network that says 0 has loss 1."""
    network, x, _, extra = made(kind, torch.float32)
    points = (
        torch.where(torch.arange(B).view(B, *[1] * (x.dim() - 1)) % 2 == 0, 1.0, -1.0)
        * x[:1].sign()
    )
    real = extra["mask"][..., None] if "mask" in extra else torch.ones_like(x, dtype=torch.bool)
    schedule = EDM(sigma_data=1.0)
    generator = torch.Generator().manual_seed(1)
    repeat = 8
    many = {name: value.repeat(repeat, *[1] * (value.dim() - 1)) for name, value in extra.items()}
    y = (points * real).repeat(repeat, *[1] * (x.dim() - 1))
    kept = real.expand_as(x).flatten(1).float().mean(1).repeat(repeat)

    def loss():
        sigma = schedule.training_sigma(
            torch.rand(len(y), generator=generator, dtype=torch.float64).clamp(1e-3, 1 - 1e-3)
        )
        noise = torch.randn(y.shape, generator=generator) * real.repeat(
            repeat, *[1] * (x.dim() - 1)
        )
        return (network_loss(partial(network, **many), schedule, y, noise, sigma) / kept).mean()

    with torch.no_grad():
        assert sum(loss() for _ in range(20)) / 20 == pytest.approx(1, abs=0.1)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(80 if isinstance(network, (UNet, TokenDenoiser)) else 160):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    with torch.no_grad():
        assert sum(loss() for _ in range(20)) / 20 < 0.5


@pytest.mark.parametrize("kind", ["set", "set of a vector"])
def test_reordered_particles_give_reordered_answers(kind):
    network, x, c_noise, extra = made(kind, perturbed=True)
    order = torch.tensor([3, 0, 4, 2, 1])
    y = network(x, c_noise, **extra)
    moved = network(x[:, order], c_noise, **{**extra, "mask": extra["mask"][:, order]})
    torch.testing.assert_close(moved, y[:, order], rtol=0, atol=1e-11)
    assert (y[:, 0] - y[:, 1]).abs().max() > 1e-3  # and not all the same


def test_padding_is_not_seen_and_says_nothing():
    network, x, c_noise, extra = made("set", perturbed=True)
    mask = extra["mask"]
    before = network(x, c_noise, mask)
    assert torch.equal(
        network(x.masked_fill(~mask[..., None], float("nan")), c_noise, mask), before
    )
    assert not before[~mask].any()
    longer = network(
        torch.cat([x, torch.randn(B, 7, 3)], 1).double(),
        c_noise,
        torch.cat([mask, torch.zeros(B, 7).bool()], 1),
    )
    torch.testing.assert_close(longer[:, :5], before, rtol=0, atol=1e-11)


def test_a_set_knows_how_many_it_is():
    """Doubling every particle leaves all of attention's averages as they were."""
    network, x, c_noise, _ = made("set", perturbed=True)
    once = network(x, c_noise, torch.ones(B, 5).bool())
    twice = network(torch.cat([x, x], 1), c_noise, torch.ones(B, 10).bool())[:, :5]
    assert (once - twice).abs().max() > 1e-3


def test_an_empty_set_is_no_accident():
    network, x, c_noise, _ = made("set", perturbed=True)
    y = network(x, c_noise, torch.zeros(B, 5).bool())
    y.sum().backward()
    assert not y.any() and all(
        p.grad.isfinite().all() for p in network.parameters() if p.grad is not None
    )


def test_a_grids_positions_are_told_apart():
    network, x, c_noise, _ = made("grid", perturbed=True)
    assert network(torch.ones_like(x), c_noise).std((2, 3)).min() > 1e-3
    waves = grid_waves(3, 5, 16)
    assert waves.shape == (15, 16) and torch.cdist(waves, waves).fill_diagonal_(1).min() > 0.1


def test_patches_return_to_their_places():
    """With blocks shut and identity maps, what goes in comes out normed patch by patch."""
    network = GridDenoiser(DiTConfig(1, 8, 1), (2, 4, 6), 2).double()
    network.position_embed.data.zero_()
    torch.nn.init.eye_(network.enter.weight)
    torch.nn.init.eye_(network.final.out.weight)
    x = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    blocks = x.unflatten(2, (2, 2)).unflatten(4, (3, 2))  # (B, C, Y/p, p, X/p, p)
    inside = {"dim": (1, 3, 5), "keepdim": True}
    expected = (blocks - blocks.mean(**inside)) / (blocks.var(**inside, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(
        network(x, torch.zeros(3, dtype=torch.float64)), expected.flatten(4).flatten(2, 3)
    )


@pytest.mark.parametrize("side", [1, 2, 3, 7, 28])
def test_a_u_net_takes_any_size(side):
    network = UNet(UNetConfig(widths=(8, 8, 8), blocks=1, n_heads=2), 1)
    assert network(torch.randn(2, 1, side, side + 1), torch.zeros(2)).shape == (
        2,
        1,
        side,
        side + 1,
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="patches of 3 do not tile a grid of 8 x 8"):
        GridDenoiser(SMALL, (1, 8, 8), 3)
    with pytest.raises(ValueError, match="multiple of 4"):
        DiTConfig(2, 30, 4)
    with pytest.raises(ValueError, match="built for grids of"):
        GridDenoiser(SMALL, (1, 8, 8))(torch.zeros(1, 1, 4, 4), torch.zeros(1))
    with pytest.raises(ValueError, match="without a condition"):
        GridDenoiser(SMALL, (1, 4, 4))(
            torch.zeros(1, 1, 4, 4), torch.zeros(1), torch.zeros(1).long()
        )
    with pytest.raises(ValueError, match="low-resolution picture"):
        UNet(SMALL_UNET, 1)(
            torch.zeros(1, 1, 4, 4),
            torch.zeros(1),
            low=torch.zeros(1, 1, 2, 2),
            aug_noise=torch.zeros(1),
        )
    with pytest.raises(ValueError, match="low-resolution picture"):
        UNet(SMALL_UNET, 1, None, 1)(
            torch.zeros(1, 1, 4, 4), torch.zeros(1), low=torch.zeros(1, 1, 2, 2)
        )


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_noise_levels_are_told_apart_at_any_scale(scale):
    """Columns differ in c_noise: about one unit wide, or a thousand steps."""
    features = fourier_features(torch.linspace(0, scale, 200), 64)
    assert (
        features.shape == (200, 64)
        and torch.cdist(features, features).fill_diagonal_(9).min() > 0.05
    )


def test_a_gelu_with_its_slope_kept_is_pytorchs_own():
    x = (
        torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        .mul(3)
        .requires_grad_()
    )
    weights = torch.arange(50.0)
    ours = GELU()(x)
    theirs = torch.nn.GELU(approximate="tanh")(x)
    assert torch.equal(ours, theirs)
    for _ in range(2):  # as a trace goes backward again and again
        (mine,), (reference,) = (
            torch.autograd.grad(y, x, weights.double(), retain_graph=True) for y in (ours, theirs)
        )
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)
    assert torch.equal(GELU()(x.detach()), theirs)


def test_a_gelu_with_its_slope_kept_refuses_second_derivatives():
    x = torch.ones(3, requires_grad=True)
    (slope,) = torch.autograd.grad(GELU()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


@pytest.mark.parametrize("grid, head_size", [((3, 5), 8), ((8, 8), 24)])
def test_turns_of_a_grid_say_how_far_apart_two_places_are(grid, head_size):
    """A product of a turned query and key hangs on the rows and columns between them alone (Su et
    al. 2021, eq. 16, on two axes).
    """
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, head_size, generator=g)

    def turned(x):
        return rotate(x.expand(*grid, -1).flatten(0, 1), *grid_rope(*grid, head_size)).unflatten(
            0, grid
        )

    products = torch.einsum("yxd,vud->yxvu", turned(q), turned(k))
    torch.testing.assert_close(
        products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(products[0, 0, 0, 0], q @ k)
    assert not torch.allclose(
        products[0, 0, 0, 1], products[0, 0, 1, 0]
    )  # rows and columns are told apart


def test_turns_by_row_and_column_need_heads_that_hold_a_pair_for_each():
    with pytest.raises(ValueError, match="multiple of 4 numbers, got 6"):
        grid_rope(2, 2, 6)


# ---- rows in chunks


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_rows_in_chunks_are_rows_together(monkeypatch, n):
    monkeypatch.setattr("mmtok.nn.denoisers.CHUNK_ROWS", 4)
    torch.manual_seed(0)
    network = GridDenoiser(DiTConfig(1, 8, 2), (1, 4, 4), 2)
    sizes = []
    for p in network.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))
    network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    x = torch.randn(n, 1, 4, 4)
    c_noise = torch.randn(n)
    together = in_chunks(network, x, c_noise)
    assert sizes == [n], "what is learned goes through at once"
    with torch.no_grad():
        torch.testing.assert_close(in_chunks(network, x, c_noise), together)
    assert max(sizes[1:]) <= 4 and sum(sizes[1:]) == n
