"""Heads that draw latents by denoising, and codes in any order: exact answers of untrained
networks, and what training makes of them.
"""

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.diffusion.samplers import DDIM, DPMSolver2M, Euler, Heun
from mmtok.diffusion.schedules import EDM, IDDPM, VE, VP, CondOT
from mmtok.errors import UserError
from mmtok.heads.cascade import Cascade, Stage
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate, stream
from mmtok.model.likelihood import score
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.denoisers import DiTConfig, TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.unet import UNetConfig

MLP = TokenMLPConfig(2, 16)
DIT = DiTConfig(1, 16, 2)
UNET = UNetConfig((8, 8), 1, 2)
TEXT = Signature("text", (4,))
SOUND = Signature("sound", latent_size=3)  # runs until its end mark
PICTURE = Signature("picture", latent_size=4, frames=4)
PIXELS = Signature("picture", latent_size=4, frames=4, cells=5)
CODES = Signature("picture", (5,), frames=4)
HEADS = {
    "frames": (SOUND, FrameDiffusion(network=MLP, steps=6, ode_steps=8)),
    "grid": (PICTURE, GridDiffusion(network=DIT, steps=6, ode_steps=8)),
    "unet": (PICTURE, GridDiffusion(network=UNET, patch=2, steps=6, ode_steps=8)),
    "pixels": (
        PIXELS,
        GridDiffusion(
            network=DIT, patch=2, schedule=CondOT(), sampler=Euler(), steps=6, ode_steps=8
        ),
    ),
    "cascade": (
        PIXELS,
        Cascade(
            (Stage(network=UNET, steps=6, ode_steps=8), Stage(network=UNET, steps=4, ode_steps=8)),
            patch=2,
        ),
    ),
    "codes": (CODES, MaskedDiffusion(DIT)),
}
GIVEN = Segment("text", codes=np.array([[1], [2]]))


def lm_of(name, shake=True):
    signature, head = HEADS[name]
    torch.manual_seed(0)
    lm = LM(
        DecoderConfig(TransformerConfig(1, 16, 2, 2, 24), {signature.modality: head}),
        Vocabulary([TEXT, signature]),
    ).eval()
    if shake:  # what starts at 0 hides what is behind it
        for p in lm.parameters():
            p.data.add_(torch.randn(p.shape) * 0.1)
    return lm, signature


def real(signature, seed=0, n=5):
    rng = np.random.default_rng(seed)
    n = signature.frames or n
    if signature.levels:
        return Segment(signature.modality, codes=rng.integers(0, signature.levels[0], (n, 1)))
    x = rng.normal(size=(n, signature.latent_size))
    if signature.cells:
        x = (np.floor((np.tanh(x) + 1) / 2 * signature.cells) + 0.5) * 2 / signature.cells - 1
    return Segment(signature.modality, latents=x.astype(np.float32))


def asked(signature):
    kind = (
        {"codes": np.zeros((0, 1), int)}
        if signature.levels
        else {"latents": np.zeros((0, signature.latent_size), np.float32)}
    )
    return Document((GIVEN, Segment(signature.modality, **kind)), (False, True), open_end=True)


# ---- exact answers


@pytest.mark.parametrize(
    "schedule", [EDM(sigma_data=1.0), EDM(sigma_data=0.5), CondOT(), VP(), VE()]
)
def test_before_training_the_density_is_the_one_that_preconditioning_implies(schedule):
    """F = 0: D = c_skip x.

    With EDM that is data N(0, sigma_data^2), whose density at sigma_min is known.
    """
    head = FrameDiffusion(schedule=schedule, network=MLP, ode_steps=200).build(8, SOUND)
    y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * getattr(
        schedule, "sigma_data", 1.0
    )
    nats = -head.log_prob(torch.zeros(4, 8), y, torch.Generator().manual_seed(0))
    if isinstance(schedule, EDM):
        variance = schedule.sigma_data**2 + schedule.sigma_min**2
        exact = (y.double().square() / variance / 2 + math.log(2 * math.pi * variance) / 2).sum(1)
        torch.testing.assert_close(nats, exact, atol=1e-4, rtol=0)
    assert torch.isfinite(nats).all() and nats.dtype == torch.float64


@pytest.mark.parametrize("m, j_0", [(100, 8), (300, 0), (1000, 8), (2000, 8)])
def test_likelihoods_walk_through_all_levels_that_iddpm_has(m, j_0):
    schedule = IDDPM(m=m, j_0=j_0)
    head = FrameDiffusion(schedule=schedule, network=MLP, ode_steps=8).build(8, SOUND)
    assert schedule.sigma_range == (
        float(schedule.noise_levels[-1]),
        float(schedule.noise_levels[j_0]),
    )
    assert torch.isfinite(
        head.log_prob(torch.zeros(2, 8), torch.randn(2, 3), torch.Generator().manual_seed(0))
    ).all()


def test_before_training_the_loss_is_one():
    """The expected loss of a network that says 0 is 1 for data of root mean square sigma_data
    (appendix B.6).
    """
    head = FrameDiffusion(schedule=EDM(sigma_data=0.5), network=MLP, draws=4).build(8, SOUND)
    torch.manual_seed(0)
    loss = head.loss(torch.zeros(4000, 8), torch.randn(4000, 3) * 0.5).detach()
    assert loss.shape == (4000,) and abs(float(loss.mean()) - 1) < 0.02


@pytest.mark.parametrize("sampler", [Heun(), DPMSolver2M(), DDIM(eta=1.0)])
def test_before_training_draws_are_as_wide_as_the_data(sampler):
    head = FrameDiffusion(
        schedule=EDM(sigma_data=0.5), sampler=sampler, network=MLP, steps=200
    ).build(8, SOUND)
    with torch.no_grad():
        y = head.sample([torch.zeros(4000, 8)], Sampling(), torch.Generator().manual_seed(0))
        still = head.sample(
            [torch.zeros(4, 8)], Sampling(temperature=0), torch.Generator().manual_seed(0)
        )
    assert abs(float(y.std()) / 0.5 - 1) < 0.03 and not still.any()


def test_before_training_codes_cost_the_logarithm_of_their_levels():
    lm, signature = lm_of("codes", shake=False)
    (found,) = score(lm, [Document((GIVEN, real(signature)), (False, True))])
    assert found.nats[1] == pytest.approx(4 * math.log(5), rel=1e-5) and found.kind == "bound"


@pytest.mark.parametrize("likelihood", ["dequantised", "decoder"])
def test_the_cells_of_discrete_data_share_no_more_than_one(likelihood):
    """exp of a bound is at most the probability, so all cells together hold at most 1; and nearly
    all where the model fits.
    """
    signature = Signature("x", latent_size=1, frames=1, cells=4)
    schedule = EDM(sigma_data=0.6, sigma_min=0.02)
    head = GridDiffusion(
        schedule=schedule, network=DIT, likelihood=likelihood, ode_steps=24, decoder=(0.5, 0.3)
    ).build(8, signature)
    centres = torch.tensor([-0.75, -0.25, 0.25, 0.75]).repeat_interleave(200).view(-1, 1, 1)
    log_prob = (
        head.log_prob(torch.zeros(len(centres), 8), centres, torch.Generator().manual_seed(0))
        .detach()
        .view(4, 200)
        .mean(1)
    )
    total = float(log_prob.exp().sum())
    assert 0.5 < total < 1.005


# ---- the joints


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_gets_a_gradient_and_batches_without_the_modality_pass(name):
    lm, signature = lm_of(name)
    stream = to_stream(lm.vocabulary, Document((GIVEN, real(signature)), (False, True)))
    nats = lm.train()(pack(lm.vocabulary, [[stream, stream]]))
    assert nats.frames.shape == (1, 2 * len(stream)) and torch.isfinite(nats.total).all()
    nats.total.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lm.heads.parameters())
    lm.zero_grad()
    text = to_stream(lm.vocabulary, Document((GIVEN,), (True,)))
    nats = lm(pack(lm.vocabulary, [[text]])).total.sum()
    nats.backward()
    assert all(p.grad is None or not p.grad.any() for p in lm.heads.parameters()) and nats > 0


@pytest.mark.parametrize("name", HEADS)
def test_scores_are_numbers_and_say_what_they_are(name):
    lm, signature = lm_of(name)
    document = Document((GIVEN, real(signature)), (False, True))
    first = score(lm, [document])
    again = score(lm, [document])
    assert (
        first[0].nats == again[0].nats
        and np.isfinite(first[0].nats[1])
        and first[0].nats[0] is None
    )
    assert first[0].kind == ("bound" if name == "codes" else "estimate")
    assert score(lm, [Document((GIVEN,), (True,))])[0].kind == "exact"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_draws_are_segments_of_the_signature_and_follow_the_seed(name, guidance):
    lm, signature = lm_of(name)
    sampling = Sampling(max_frames=5, guidance=guidance)

    def draw(seed):
        return generate(lm, [asked(signature)] * 3, sampling, torch.Generator().manual_seed(seed))

    a = draw(0)
    b = draw(0)
    other = draw(1)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x.segment.values, y.segment.values)
        to_stream(lm.vocabulary, Document((GIVEN, x.segment), (False, True)))  # fits the grammar
        assert len(x.segment) == (signature.frames or len(x.segment)) <= 5
    assert any(
        len(x.segment) != len(y.segment) or not np.array_equal(x.segment.values, y.segment.values)
        for x, y in zip(a, other)
    )


def test_frames_begun_are_kept():
    lm, signature = lm_of("frames")
    begun = real(signature, n=2)
    prompt = Document((GIVEN, begun), (False, True), open_end=True)
    (drawn,) = generate(lm, [prompt], Sampling(max_frames=3), torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(drawn.segment.latents[:2], begun.latents)


@pytest.mark.parametrize("steps", [0, 2])
def test_codes_around_infilled_spans_are_kept_and_any_subset_can_be_free(steps):
    lm, signature = lm_of("codes")
    codes = np.array([[4], [3], [2], [1]])
    spans = Segment("picture", codes=codes, infill_spans=((0, 1), (2, 3)))
    empty = Segment("picture", codes=codes[[0, 3]], infill_spans=((1, 1),))
    begun = Segment("picture", codes=codes[:2])
    seen = set()
    for seed in range(20):
        draws = [
            generate(
                lm,
                [Document((GIVEN, s), (False, True), open_end=True)],
                Sampling(steps=steps),
                torch.Generator().manual_seed(seed),
            )[0]
            for s in (spans, empty, begun)
        ]
        a, b, c = (d.segment.codes[:, 0] for d in draws)
        assert (
            (a[[1, 3]] == [3, 1]).all() and (b[[0, 3]] == [4, 1]).all() and (c[:2] == [4, 3]).all()
        )
        seen.add(tuple(a))
    assert len(seen) > 10


def test_a_head_learns_what_its_condition_means():
    """Two captions, two means: after some hundred steps samples and scores tell them apart."""
    lm, signature = lm_of("frames", shake=False)
    captions = [Segment("text", codes=np.array([[k]])) for k in (0, 1)]
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(lm.parameters(), 1e-2)

    def document(k):
        return Document(
            (
                captions[k],
                Segment(
                    "sound",
                    latents=(np.array([[1 - 2 * k] * 3]) + 0.1 * rng.normal(size=(1, 3))).astype(
                        "f"
                    ),
                ),
            ),
            (False, True),
        )

    torch.manual_seed(0)
    for _ in range(300):
        batch = pack(
            lm.vocabulary,
            [[to_stream(lm.vocabulary, document(k)) for k in (0, 1)] for _ in range(8)],
        )
        optimizer.zero_grad()
        lm(batch).total.mean().backward()
        optimizer.step()
    empty = Segment("sound", latents=np.zeros((0, 3), "f"))
    for k in (0, 1):
        drawn = generate(
            lm,
            [Document((captions[k], empty), (False, True), open_end=True)] * 20,
            Sampling(max_frames=1),
            torch.Generator().manual_seed(0),
        )
        frames = np.concatenate([d.segment.latents for d in drawn])
        assert len(frames) and abs(np.median(frames) - (1 - 2 * k)) < 0.3
        right = document(k)
        wrong = document(1 - k)
        swapped = Document((captions[1 - k], right.segments[1]), (False, True))
        assert score(lm, [right])[0].total + 1 < score(lm, [swapped])[0].total and wrong


# ---- what is refused


def test_too_few_steps_and_dials_without_a_meaning_are_refused():
    lm, signature = lm_of("grid")

    def draw(lm, signature, **dials):
        return generate(lm, [asked(signature)], Sampling(max_frames=3, **dials), torch.Generator())

    for dials, message in (
        ({"steps": 1}, "at least 2 steps"),
        ({"precision": "int8"}, "cannot be compiled"),
        ({"top_k": 3}, "no top_k"),
    ):
        with pytest.raises(UserError, match=message):
            draw(lm, signature, **dials)
        with pytest.raises(UserError, match=message):
            next(stream(lm, [asked(signature)], Sampling(**dials), torch.Generator()))
    lm, signature = lm_of("frames")
    for dials, message in (
        ({"top_k": 3}, "no top_k"),
        ({"steps": 1}, "at least 2 step"),
        ({"compiled": True}, "cannot be compiled"),
    ):
        with pytest.raises(UserError, match=message):
            draw(lm, signature, **dials)
    lm, signature = lm_of("codes")
    with pytest.raises(UserError, match="no top_k"):
        draw(lm, signature, top_p=0.5)
    with pytest.raises(UserError, match="drawn code by code"):
        generate(
            lm,
            [Document((Segment("text", codes=np.zeros((0, 1), int)),), (True,), open_end=True)],
            Sampling(steps=3),
            torch.Generator(),
        )


def test_a_likelihood_with_one_noise_level_only_is_refused():
    head = FrameDiffusion(schedule=IDDPM(m=9, j_0=8), network=MLP).build(8, SOUND)
    with pytest.raises(UserError, match="sigma_min"):
        head.log_prob(torch.zeros(2, 8), torch.zeros(2, 3), torch.Generator())


def test_a_network_without_numbers_is_refused_with_the_step():
    lm, signature = lm_of("grid")
    with torch.no_grad():
        lm.heads["picture"].network.final.out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="after step 1 of 6"):
        generate(lm, [asked(signature)], Sampling(), torch.Generator())
    lm, signature = lm_of("codes")
    for bad in (float("nan"), float("inf")):
        lm.heads["picture"].network.final.out.bias.data[1] = bad
        for sampling, message in (
            (Sampling(), "NaN or infinity at step 1 of 4"),
            (Sampling(steps=2), "NaN or infinity at step . of 2"),
        ):
            with pytest.raises(UserError, match=message):
                generate(lm, [asked(signature)], sampling, torch.Generator())


@pytest.mark.parametrize("name, n_steps", [("grid", 6), ("cascade", 10)])
def test_every_step_can_be_watched_and_the_last_state_is_the_sample(name, n_steps):
    lm, signature = lm_of(name)
    seen = []
    drawn = generate(
        lm,
        [asked(signature)] * 2,
        Sampling(),
        torch.Generator().manual_seed(0),
        callback=lambda step, x: seen.append((step, x)),
    )
    assert [step for step, _ in seen] == list(range(n_steps))
    np.testing.assert_array_equal(
        seen[-1][1].float().numpy(), np.stack([d.segment.latents for d in drawn])
    )


def test_heads_that_do_not_fit_their_frames_are_refused():
    for head, signature, message in (
        (FrameDiffusion(), CODES, "has single codes"),
        (GridDiffusion(), SOUND, "until an end mark"),
        (MaskedDiffusion(), PICTURE, "has latents"),
        (MaskedDiffusion(grid=(3, 2)), CODES, "no grid of 3 x 2"),
        (GridDiffusion(patch=3), PICTURE, "no patches"),
    ):
        with pytest.raises(UserError, match=message):
            head.build(8, signature)
    for wrong in (
        lambda: FrameDiffusion(steps=1),
        lambda: GridDiffusion(draws=0),
        lambda: MaskedDiffusion(steps=-1),
        lambda: MaskedDiffusion(network=DiTConfig(1, 20, 2)),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_paired_noise_is_the_same_noise_given_out_at_the_least_cost():
    """Of all permutations of six draws, the one of the smallest sum of squared distances; the loss
    sees nothing else.
    """
    pytest.importorskip("ot")
    plain, paired = (
        GridDiffusion(network=DIT, pairing=p).build(16, PICTURE) for p in (False, True)
    )
    paired.load_state_dict(plain.state_dict())
    y = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    noise = plain._noise(y)
    torch.manual_seed(0)
    given = paired._noise(y)

    def cost(order):
        return (y - noise[list(order)]).square().sum().item()

    best = min(permutations(range(6)), key=cost)
    assert torch.equal(given, noise[list(best)]) and cost(best) < cost(range(6))
    values = plain.patchify.frames(y)
    h = torch.zeros(6, 16)
    losses = []
    for head in (plain, paired):
        torch.manual_seed(0)
        losses.append(head.loss(h, values))
    assert not torch.equal(*losses)
