"""Laws of sets that are drawn by diffusion: no order, no neighbours, exact answers where they are
known.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.diffusion.schedules import EDM, VP, CondOT
from mmtok.errors import UserError
from mmtok.heads.base import Context, Known, Sizes
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.heads.set_diffusion import SetDiffusion, rotations
from mmtok.model.generate import generate, infill, stream
from mmtok.model.likelihood import score
from mmtok.model.lm import LM, DecoderConfig, fitting_heads
from mmtok.model.trajectory import trajectory_recorder
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig

DIT = DiTConfig(1, 16, 2)
TEXT = Signature("text", (4,))
CLOUD = Signature("cloud", latent_size=2, unordered=True)
LINE = Signature("cloud", latent_size=1, unordered=True)
GIVEN = Segment("text", codes=np.array([[1], [2]]))
MOST = 7
EXACT = EDM(sigma_data=1.0)


def head_of(signature=CLOUD, schedule=EXACT, shake=True, **more):
    torch.manual_seed(0)
    more = {"max_frames": MOST, "steps": 6, "ode_steps": 8, **more}
    head = SetDiffusion(schedule=schedule, network=DIT, **more).build(16, signature).eval()
    if shake:  # what starts at 0 hides what is behind it
        for p in head.parameters():
            p.data.add_(torch.randn(p.shape) * 0.1)
    return head


def sizes_of(*n_frames, truncated=()):
    n = torch.tensor(n_frames)
    cut = torch.zeros(len(n), dtype=torch.bool)
    cut[list(truncated)] = True
    return Sizes(n, cut)


def states(n, size=2, longest=MOST, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 16, generator=generator),
        torch.randn(n, longest, size, generator=generator),
    )


def generator():
    return torch.Generator().manual_seed(0)


# ---- no order, no neighbours


@pytest.mark.parametrize("schedule", [EXACT, CondOT(), VP()], ids=lambda s: type(s).__name__)
def test_permuting_the_noise_permutes_the_sample(schedule):
    head = head_of(schedule=schedule)
    h, noise = states(3)
    mask = sizes_of(7, 4, 1).mask(MOST)
    order = torch.tensor([2, 0, 3, 1, 6, 5, 4])
    with torch.no_grad():
        plain = head.from_noise([h], noise.double(), mask, Sampling(), generator())
        moved = head.from_noise(
            [h], noise.double()[:, order], mask[:, order], Sampling(), generator()
        )
    there = mask[:, order]
    torch.testing.assert_close(moved[there], plain[:, order][there], rtol=0, atol=1e-4)


def test_all_orders_of_a_set_have_one_likelihood():
    head = head_of(exact_dimensions=64)
    h, y = states(1)
    sizes = sizes_of(5)
    plain = head.log_prob(h, y, generator(), sizes=sizes)
    y[:, :5] = y[:, torch.tensor([3, 1, 4, 0, 2])]
    moved = head.log_prob(h, y, generator(), sizes=sizes)
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("exact", [64, 0])
def test_neither_padding_nor_neighbours_change_a_set(exact):
    head = head_of(exact_dimensions=exact)
    h, y = states(40)
    n = torch.arange(40) % (MOST + 1)
    sizes = Sizes(n, torch.zeros(40, dtype=torch.bool))
    nats = head.log_prob(h, y, generator(), sizes=sizes)
    padded = y.masked_fill(~sizes.mask(MOST)[..., None], math.nan)
    torch.testing.assert_close(head.log_prob(h, padded, generator(), sizes=sizes), nats)
    for i in (0, 3, 39):
        # the probe is drawn for all sets: here its signs for the first ones
        alone = Sizes(n[i : i + 1], sizes.truncated[:1])
        if exact:
            found = head.log_prob(h[i : i + 1], y[i : i + 1, : n[i]], generator(), sizes=alone)
            torch.testing.assert_close(found, nats[i : i + 1], rtol=0, atol=1e-3)
    noise = torch.randn(40, MOST, 2, dtype=torch.float64, generator=generator())
    mask = sizes.mask(MOST)
    with torch.no_grad():
        drawn = head.from_noise([h], noise, mask, Sampling(), generator())
        for i in (3, 38):
            alone = head.from_noise(
                [h[i : i + 1]], noise[i : i + 1, : n[i]], mask[i : i + 1, : n[i]], Sampling(), None
            )
            torch.testing.assert_close(alone[0], drawn[i, : n[i]], rtol=0, atol=1e-4)


def test_the_training_loss_reads_no_padding():
    head = head_of(schedule=CondOT(), draws=2)
    h, y = states(20)
    sizes = Sizes(torch.arange(20) % (MOST + 1), torch.zeros(20, dtype=torch.bool))
    losses = []
    for filled in (y, y.masked_fill(~sizes.mask(MOST)[..., None], math.nan)):
        torch.manual_seed(3)
        losses.append(head.loss(h, filled, sizes=sizes))
    assert torch.equal(*losses) and losses[0].shape == (20,)
    # of an empty set there is only its size to learn
    nats = -head.sizes.log_prob(h, sizes)
    torch.testing.assert_close(losses[0][::8], nats[::8])


def test_before_training_the_loss_of_an_element_is_one():
    """For data of root mean square sigma_data (Karras et al. 2022, appendix B.6)."""
    head = head_of(shake=False, draws=2)
    h, y = states(1200)
    torch.manual_seed(0)
    with torch.no_grad():
        for n in (2, 5):
            sizes = Sizes(*_all_of(len(y), n))
            loss = head.loss(h, y, sizes=sizes) + head.sizes.log_prob(h, sizes)
            assert float(loss.mean()) == pytest.approx(n, rel=0.04)


@pytest.mark.parametrize("learned_sigma", [False, True])
def test_every_parameter_gets_a_gradient_also_from_empty_sets(learned_sigma):
    head = head_of(learned_sigma=learned_sigma)
    h, y = states(3)
    head.loss(h, y, sizes=sizes_of(5, 2, 0)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())
    head.zero_grad()
    head.loss(h, y[:, :1], sizes=sizes_of(0, 0, 0)).sum().backward()
    grads = [p.grad for p in head.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)


# ---- exact answers


@pytest.mark.parametrize("exact", [64, 0])
def test_before_training_a_set_is_of_independent_normal_elements(exact):
    """F = 0: D = c_skip x, data N(0, 1); every count is as likely as the other MOST + 1."""
    head = head_of(shake=False, ode_steps=60, exact_dimensions=exact)
    h, y = states(4)
    with torch.no_grad():
        nats = -head.log_prob(h, y, generator(), sizes=sizes_of(0, 1, 4, 7))
    for i, n in enumerate((0, 1, 4, 7)):
        x = y[i, :n].double().numpy()
        normal = (x**2).sum() / 2 + x.size * math.log(2 * math.pi) / 2
        exact_nats = math.log(MOST + 2) - math.lgamma(n + 1) + normal
        assert abs(float(nats[i]) - exact_nats) < 2e-3


def test_the_density_of_sets_sums_to_the_probability_of_their_size():
    """Over x_1 > x_2 alone, as the other order is the same set."""
    head = head_of(LINE, ode_steps=24)
    # a norm makes a step of single numbers, unless they are small beside a bias
    head.network.enter.weight.data.mul_(0.2)
    head.network.enter.bias.data.normal_()
    grid = torch.arange(-5, 5.1, 0.5)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    pairs = torch.stack([first, second], -1).flatten(0, 1)
    pairs = pairs[pairs[:, 0] >= pairs[:, 1]]
    h = states(1)[0].expand(len(pairs), -1)
    two = Sizes(*_all_of(len(pairs), 2))
    with torch.no_grad():
        p = head.log_prob(h, pairs[..., None], generator(), sizes=two).exp()
    weight = torch.where(pairs[:, 0] == pairs[:, 1], 0.5, 1.0)  # the diagonal is cut in halves
    total = float((p * weight).sum() * 0.5**2)
    size = float(head.sizes.log_prob(h[:1], sizes_of(2)).detach().exp())
    assert total == pytest.approx(size, rel=0.01)


class OfOneMean(nn.Module):
    """The right network for elements N(m, 1) about a common mean m ~ N(0, 3), under EXACT.

    Of N elements the covariance is I + 3 J, with J all ones: its eigenvalues are 1 + 3 N and 1.
    """

    def __init__(self):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x, c_noise, mask, condition=None):
        sigma = (4 * c_noise).exp()[:, None, None].double()
        c = EXACT.coefficients(sigma)
        x = x.double() / c.c_in
        n = mask.sum(1)[:, None, None]
        there = mask[..., None]
        mean = (x * there).sum(1, keepdim=True) / n.clamp(min=1)
        top = 1 + 3 * n
        denoised = top / (top + sigma**2) * mean + (x - mean) / (1 + sigma**2)
        f = (denoised - c.c_skip * x) / c.c_out * there
        return f.to(c_noise.dtype)


def of_one_mean(**more):
    head = head_of(LINE, shake=False, **more)
    head.network = OfOneMean()
    return head


def test_the_likelihood_of_elements_that_depend_on_each_other_is_right():
    head = of_one_mean(ode_steps=60)
    h, y = states(3, 1)
    with torch.no_grad():
        nats = -head.log_prob(h, 2 * y, generator(), sizes=sizes_of(1, 3, 7))
    for i, n in enumerate((1, 3, 7)):
        x = 2 * y[i, :n, 0].double()
        normal = torch.distributions.MultivariateNormal(
            torch.zeros(n).double(), torch.eye(n).double() + 3
        )
        right = -normal.log_prob(x) - math.lgamma(n + 1) + math.log(MOST + 2)
        assert abs(float(nats[i] - right)) < 5e-3


def test_the_samples_of_elements_that_depend_on_each_other_are_right():
    head = of_one_mean(steps=18)
    n = 1500
    with torch.no_grad():
        x = head.sample([torch.zeros(n, 16)], Sampling(), generator(), sizes=Sizes(*_all_of(n, 4)))[
            ..., 0
        ]
    covariance = torch.cov(x.T)
    right = torch.eye(4) + 3
    # the error of a variance of 4 from 1,500 draws is 0.15
    assert (covariance - right).abs().max() < 0.6
    assert x.mean().abs() < 0.2


def _all_of(n, size):
    return torch.full((n,), size), torch.zeros(n, dtype=torch.bool)


# ---- as part of a model


def lm_of(signature=CLOUD, **more):
    torch.manual_seed(0)
    head = SetDiffusion(schedule=EXACT, network=DIT, max_frames=MOST, steps=5, ode_steps=6, **more)
    config = DecoderConfig(TransformerConfig(1, 16, 2, 2, 24), {"cloud": head})
    lm = LM(config, Vocabulary([TEXT, signature])).eval()
    for p in lm.parameters():
        p.data.add_(torch.randn(p.shape) * 0.1)
    return lm


def cloud(n, seed=0, **more):
    x = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    return Segment("cloud", latents=x, **more)


def given(segment):
    return Document((GIVEN, segment), (False, True))


def asked():
    return Document((GIVEN, cloud(0)), (False, True), open_end=True)


def test_a_model_scores_what_its_head_says():
    lm = lm_of()
    documents = [given(cloud(3)), given(cloud(0)), given(cloud(MOST, truncated=True))]
    documents.append(Document((None, cloud(5, seed=4)), (False, True)))
    found = score(lm, documents)
    assert [s.kind for s in found] == ["estimate"] * 4
    for document, scored in zip(documents, found):
        segment = document.target
        begun = Document((document.segments[0], cloud(0)), (False, True), open_end=True)
        batch = pack(lm.vocabulary, [[to_stream(lm.vocabulary, begun)]])
        n = len(segment)
        with torch.no_grad():
            h = lm.hidden(batch)[:, -1]
            sizes = sizes_of(n, truncated=[0] * segment.truncated)
            y = torch.from_numpy(segment.latents)[None]
            right = -float(lm.head("cloud").log_prob(h, y, generator(), sizes=sizes))
        assert scored.total == pytest.approx(right, abs=2e-3)
        assert scored.frames[-1] == n


def test_several_sets_of_one_document_are_scored_each():
    lm = lm_of()
    both = Document((cloud(2), GIVEN, cloud(4, 1)), (True, False, True))
    (scored,) = score(lm, [both])
    assert scored.nats[1] is None and all(np.isfinite([scored.nats[0], scored.nats[2]]))
    (first,) = score(lm, [Document((cloud(2),), (True,))])
    assert scored.nats[0] == pytest.approx(first.nats[0], abs=1e-3)


def test_training_and_empty_batches_keep_every_parameter_in_the_graph():
    lm = lm_of().train()
    streams = [to_stream(lm.vocabulary, given(cloud(n, n))) for n in (3, 0, 5)]
    nll = lm(pack(lm.vocabulary, [streams[:2], streams[2:]]))
    assert not bool(nll.ids.any()) and bool(torch.isfinite(nll.frames).all())
    nll.total.sum().backward()
    used = [name for name, p in lm.named_parameters() if p.grad is not None]
    lm.zero_grad()
    only_text = Document((GIVEN,), (True,))
    lm(pack(lm.vocabulary, [[to_stream(lm.vocabulary, only_text)]])).total.sum().backward()
    assert [name for name, p in lm.named_parameters() if p.grad is not None] == used


def test_draws_are_sets_of_all_sizes_by_seed():
    lm = lm_of()

    def drawn(seed, **more):
        sampling = Sampling(**more)
        return generate(lm, [asked()] * 60, sampling, torch.Generator().manual_seed(seed))

    first = drawn(0)
    assert {len(s.segment) for s in first} == set(range(MOST + 1))
    for s, t in zip(first, drawn(0)):
        assert np.array_equal(s.segment.latents, t.segment.latents) and s.stop == t.stop
        assert np.isfinite(s.segment.latents).all()
        assert s.segment.truncated == (s.stop == "cap")
    # "more than it counts" is a class of its own, and comes out as a set that was cut
    assert {len(s.segment) for s in first if s.stop == "cap"} == {MOST}
    short = drawn(0, max_frames=3)
    for s, t in zip(first, short):
        assert np.array_equal(t.segment.latents, s.segment.latents[:3])
        assert (t.stop == "cap") == (len(s.segment) > 3 or s.stop == "cap")


def test_the_callback_shows_sets_on_their_way_and_streams_end_apart():
    lm = lm_of()
    prompts = [asked()] * 6
    recorder = trajectory_recorder(lm, prompts, Sampling())
    drawn = generate(lm, prompts, Sampling(), generator(), callback=recorder.callback)
    for s in recorder.attach(drawn):
        if len(s.segment):
            last, masked = s.trajectory[-1]
            assert np.array_equal(last.latents, s.segment.latents) and not masked.any()
    frames = [[] for _ in prompts]
    for rows, values in stream(lm, prompts, Sampling(), generator()):
        for row, value in zip(rows, values):
            frames[row].append(value)
    for found, s in zip(frames, drawn):
        assert np.array_equal(np.reshape(found, (-1, 2)), s.segment.latents)


def test_guidance_of_one_is_none_and_of_two_differs():
    lm = lm_of()
    plain = generate(lm, [asked()] * 4, Sampling(), generator())
    guided = generate(lm, [asked()] * 4, Sampling(guidance=2.0), generator())
    assert any(
        len(a.segment) != len(b.segment) or not np.array_equal(a.segment.values, b.segment.values)
        for a, b in zip(plain, guided)
    )


# ---- a condition of many parts


def of_set(n, seed, given=3):
    """A set given another one of `given` elements."""
    return Document((cloud(given, seed), cloud(n, seed + 100)), (False, True))


def test_with_a_context_every_part_of_the_condition_matters():
    """The state at the begin mark is kept, so that what is read of the others can be seen."""
    head = head_of(context=True, exact_dimensions=64)
    h, y = states(1)
    before = torch.randn(1, 4, 16)
    mask = torch.tensor([[True, True, True, False]])

    def nats(context):
        with torch.no_grad():
            return -head.log_prob(h, y, generator(), sizes=sizes_of(3), context=context)

    plain = nats(Context(before, mask))
    for place, matters in ((0, True), (2, True), (3, False)):
        other = before.clone()
        other[:, place] += 1.0
        assert (float((nats(Context(other, mask)) - plain).abs()) > 1e-4) == matters


def test_with_a_context_documents_do_not_meet_in_rows_or_batches():
    lm = lm_of(context=True)
    documents = [of_set(3, 1), of_set(0, 2, given=1), of_set(5, 3, given=6), given(cloud(2))]
    together = [scored.total for scored in score(lm, documents)]
    alone = [score(lm, [document])[0].total for document in documents]
    # a set of at most 32 elements has its exact trace, which takes no random numbers
    np.testing.assert_allclose(together, alone, atol=2e-3)
    lm.train()
    streams = [to_stream(lm.vocabulary, document) for document in documents]
    lm(pack(lm.vocabulary, [streams[:2], streams[2:]])).total.sum().backward()
    assert all(p.grad is not None for p in lm.heads.parameters())


def test_with_a_context_samples_by_seed_and_under_guidance():
    lm = lm_of(context=True)
    prompts = [
        Document((cloud(n, n), cloud(0)), (False, True), open_end=True) for n in (1, 4, 6) * 8
    ]
    for sampling in (Sampling(), Sampling(guidance=1.5)):
        first, second = (generate(lm, prompts, sampling, generator()) for _ in range(2))
        for a, b in zip(first, second):
            assert np.array_equal(a.segment.latents, b.segment.latents)
            assert np.isfinite(a.segment.latents).all()


# ---- what is refused


def test_parts_of_sets_are_refused():
    lm = lm_of()
    part = given(cloud(4, predict=np.array([True, True, False, False])))
    hole = given(cloud(4, infill_spans=((1, 2),)))
    for document in (part, hole):
        with pytest.raises(UserError, match="whole sets"):
            score(lm, [document])
    begun = Document((GIVEN, cloud(2)), (False, True), open_end=True)
    for draw in (generate, infill):
        with pytest.raises(UserError, match="whole sets"):
            draw(lm, [begun], Sampling(), generator())


def test_a_set_that_is_too_large_is_refused_with_the_field_to_change():
    with pytest.raises(UserError, match=r"8 frames.*counts to 7.*heads\.cloud\.max_frames to 8"):
        score(lm_of(), [given(cloud(MOST + 1))])


def test_heads_of_sets_are_for_sets():
    ordered = Signature("cloud", latent_size=2)
    with pytest.raises(UserError, match="latents that are a set"):
        SetDiffusion().build(16, ordered)
    assert "SetDiffusion()" not in fitting_heads(ordered)
    assert "SetDiffusion()" in fitting_heads(CLOUD)
    FrameDiffusion().build(16, CLOUD)
    with pytest.raises(UserError):
        GridDiffusion().build(16, CLOUD)
    with pytest.raises(ValueError, match="max_frames"):
        SetDiffusion(max_frames=0)
    with pytest.raises(UserError, match="unordered"):
        Signature("cloud", latent_size=2, frames=3, unordered=True)
    assert "unordered" not in ordered.as_dict() and CLOUD.as_dict()["unordered"]


# ---- numbers that are given

GIVEN_CLOUD = Signature("cloud", latent_size=2 + 3 + 6, unordered=True, given=9, graph=6)


def path_graph(n):
    """Rows of U (n, 6) of a path of n elements, as the last of the given numbers."""
    laplacian = np.diag([1.0, *[2.0] * (n - 2), 1.0]) - np.eye(n, k=1) - np.eye(n, k=-1)
    eigenvalues, vectors = np.linalg.eigh(laplacian)
    u = np.zeros((n, 6))
    u[:, : n - 1] = vectors[:, 1:] * np.sqrt(eigenvalues[1:])
    return torch.from_numpy(u)


def given_numbers(n, seed=5):
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return torch.cat([features, path_graph(n).float()], 1)


def known_of(*numbers):
    longest = max(map(len, numbers))
    values = torch.zeros(len(numbers), longest, 11)
    for row, one in enumerate(numbers):
        values[row, : len(one), 2:] = one
    return Known(values, torch.ones(values.shape[:2], dtype=torch.bool))


def test_given_numbers_come_back_and_say_how_many_elements_there_are():
    head = head_of(GIVEN_CLOUD)
    numbers = [given_numbers(5), given_numbers(3, seed=6)]
    with torch.no_grad():
        drawn = head.sample(
            [states(2)[0]], Sampling(), generator(), known_of(*numbers), sizes=sizes_of(5, 3)
        )
    assert torch.equal(drawn[0, :, 2:], numbers[0]) and torch.equal(drawn[1, :3, 2:], numbers[1])
    assert drawn[1, 3:].isnan().all() and drawn[0].isfinite().all()


def test_permuting_given_elements_permutes_what_is_drawn_for_them():
    head = head_of(GIVEN_CLOUD)
    h = states(1)[0]
    noise = torch.randn(1, 5, 2, dtype=torch.float64, generator=generator())
    order = torch.tensor([3, 1, 4, 0, 2])
    numbers = given_numbers(5)[None]
    mask = torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        plain = head.from_noise([h], noise, mask, Sampling(), None, numbers=numbers)
        moved = head.from_noise(
            [h], noise[:, order], mask, Sampling(), None, numbers=numbers[:, order]
        )
        other = head.from_noise([h], noise, mask, Sampling(), None, numbers=numbers[:, order])
    torch.testing.assert_close(moved, plain[:, order], rtol=0, atol=1e-4)
    assert (other - plain).abs().max() > 1e-2


def test_signs_of_the_graphs_eigenvectors_change_no_draw():
    head = head_of(GIVEN_CLOUD)
    h = states(1)[0]
    noise = torch.randn(1, 5, 2, dtype=torch.float64, generator=generator())
    numbers = given_numbers(5)[None]
    flipped = numbers.clone()
    flipped[..., 3:] *= torch.tensor([1, -1, -1, 1, -1, 1])
    mask = torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        plain = head.from_noise([h], noise, mask, Sampling(), None, numbers=numbers)
        again = head.from_noise([h], noise, mask, Sampling(), None, numbers=flipped)
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("exact", [64, 0])
def test_a_gaussian_of_given_elements_has_its_density(exact):
    """Before training D(x) = c_skip x: each number is of N(0, 1), and there are no orders."""
    head = head_of(GIVEN_CLOUD, shake=False, exact_dimensions=exact, ode_steps=64)
    y = torch.cat([states(2, longest=5)[1], torch.stack([given_numbers(5)] * 2)], 2)
    sizes = sizes_of(5, 3)
    found = head.log_prob(states(2)[0], y, generator(), sizes=sizes)
    for row, n in enumerate((5, 3)):
        expected = torch.distributions.Normal(0, 1).log_prob(y[row, :n, :2].double()).sum()
        assert found[row].item() == pytest.approx(expected.item(), abs=0.05)
    bare = head.loss(states(2)[0], y, sizes=sizes)
    assert bare.shape == (2,) and bare.isfinite().all()


def test_rotations_are_uniform_and_keep_distances():
    torch.manual_seed(0)
    turns = rotations(4000, 3, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).double().expand(4000, 3, 3))
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(4000).double())
    # entries of a uniform rotation have mean 0 and variance 1/3; 5 standard deviations of the mean
    assert turns.mean(0).abs().max() < 5 * (1 / 3 / 4000) ** 0.5
    assert (turns.square().mean(0) - 1 / 3).abs().max() < 5 * (4 / 45 / 4000) ** 0.5
    # the trace is 1 + 2 cos(angle), whose mean is 0
    assert turns.diagonal(dim1=1, dim2=2).sum(1).mean().abs() < 5 * (1 / 4000) ** 0.5


def test_training_with_rotations_sees_a_set_in_all_directions():
    """With the set turned, the loss's mean is the same for a set and for that set turned before."""
    signature = Signature("cloud", latent_size=3, unordered=True)
    head = head_of(signature, rotations=True, draws=4000)
    h, y = states(1, 3, 3)
    turned = y @ rotations(1, 3, y)
    torch.manual_seed(1)
    with torch.no_grad():
        plain = head.loss(h, y, sizes=sizes_of(3))
        moved = head.loss(h, turned, sizes=sizes_of(3))
    assert moved.item() == pytest.approx(plain.item(), rel=0.05)


def test_given_elements_are_the_frames_before_the_set():
    vocabulary = Vocabulary([TEXT, Signature("atoms", latent_size=9, unordered=True), GIVEN_CLOUD])
    config = DecoderConfig(
        trunk=TransformerConfig(1, 16, 2, 2, 32),
        heads={"cloud": SetDiffusion(schedule=EXACT, network=DIT, steps=4)},
    )
    torch.manual_seed(0)
    lm = LM(config, vocabulary)
    atoms = Segment("atoms", latents=given_numbers(4).numpy())
    empty = Segment("cloud", latents=np.zeros((0, 11), np.float32))
    prompt = Document((atoms, empty), (False, True), open_end=True)
    (sampled,) = generate(lm, [prompt], Sampling(), generator())
    np.testing.assert_array_equal(sampled.segment.latents[:, 2:], atoms.latents)
    assert sampled.stop == "end"
    wrong = Document((GIVEN, empty), (False, True), open_end=True)
    with pytest.raises(UserError, match="drawn for elements that are given"):
        generate(lm, [wrong], Sampling(), generator())


def test_given_numbers_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="given are some"):
        Signature("cloud", latent_size=2, unordered=True, given=2)
    with pytest.raises(UserError, match="given are some"):
        Signature("cloud", latent_size=2, given=1)
    with pytest.raises(UserError, match="graph is a part"):
        Signature("cloud", latent_size=3, unordered=True, given=1, graph=2)
