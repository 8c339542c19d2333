import itertools
import math
from typing import get_args

import pytest
import torch

from mmtok.core.segment import Signature
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.sampling import Sampling, mix_guidance
from mmtok.model.lm import PackageHeads, build_head, fitting_heads

WIDTH = 8
KINDS = [Parallel(), Chained(6)]
FREE = Signature("x", (4, 3, 2))
SET = Signature("x", (2, 4, 3), descending=True)


def head_of(config, signature=FREE):
    torch.manual_seed(0)
    head = config.build(WIDTH, signature).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def hidden(n):
    torch.manual_seed(3)
    return torch.randn(n, WIDTH, dtype=torch.float64)


def every_frame(signature):
    return torch.tensor(list(itertools.product(*map(range, signature.levels))))


def test_an_untrained_head_is_uniform_over_its_levels():
    for config in KINDS:
        torch.manual_seed(0)
        head = config.build(WIDTH, FREE)
        nats = head.loss(torch.randn(24, WIDTH), every_frame(FREE))
        assert torch.allclose(nats, torch.full((24,), math.log(4 * 3 * 2)), atol=1e-6)


@pytest.mark.parametrize("config", KINDS)
def test_an_untrained_head_is_uniform_over_all_frames_up_to_the_ceiling(config):
    torch.manual_seed(0)
    # in lexicographic order
    head = config.build(WIDTH, SET).double()
    frames = every_frame(SET)
    for n, ceiling in enumerate(frames):
        nats = head.loss(hidden(n + 1), frames[: n + 1], ceiling.expand(n + 1, -1))
        assert torch.allclose(nats, torch.full_like(nats, math.log(n + 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", KINDS)
def test_the_probabilities_of_all_frames_sum_to_one_under_any_ceiling(config):
    for signature in (FREE, SET):
        head = head_of(config, signature)
        frames = every_frame(signature)
        h = hidden(1).expand(len(frames), -1)
        for n, ceiling in enumerate(frames if signature.descending else [None]):
            bound = None if ceiling is None else ceiling.expand_as(frames)
            p = head.log_prob(h, frames, ceiling=bound).exp()
            assert abs(p.sum() - 1) < 1e-12
            assert n == 0 or p.std() > 1e-4
            if ceiling is not None:
                assert torch.equal(p > 0, torch.arange(len(frames)) <= n)


def link_logits(head, h, values):
    walk = head.channel_logits(h)
    found = []
    start = 0
    logits = next(walk)
    while True:
        found.append(logits)
        start += logits.shape[1]
        if start == values.shape[1]:
            return found
        logits = walk.send(values[:, start - logits.shape[1] : start])


def test_chained_links_hear_of_every_earlier_value_and_of_no_later_one():
    head = head_of(Chained(6))
    h = hidden(1)
    values = torch.tensor([[2, 1, 0]])
    before = link_logits(head, h, values)
    for c in range(3):
        other = values.clone()
        other[:, c] = (other[:, c] + 1) % FREE.levels[c]
        for link, (a, b) in enumerate(zip(before, link_logits(head, h, other))):
            assert torch.equal(a, b) == (link <= c), (c, link)


@pytest.mark.parametrize("config", KINDS)
def test_samples_come_as_often_as_their_nats_say(config, generator):
    head = head_of(config, SET)
    n = 40_000
    frames = every_frame(SET)
    for ceiling in ((1, 3, 2), (1, 1, 1)):
        top = torch.tensor(ceiling).expand(n, -1)
        drawn = head.sample([hidden(1).expand(n, -1)], Sampling(), generator, ceiling=top)
        assert drawn.shape == (n, 3)
        h = hidden(1).expand(len(frames), -1)
        p = head.log_prob(h, frames, ceiling=top[: len(frames)]).exp()
        share = (drawn[:, None] == frames).all(-1).double().mean(0)
        assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-12).all()


@pytest.mark.parametrize("config", KINDS)
def test_guidance_of_one_ignores_the_null_stream_and_stays_legal_beyond(config):
    head = head_of(config, SET)
    h = hidden(600)
    top = every_frame(SET)[torch.arange(600) % 24]

    def draw(hs, g):
        generator = torch.Generator().manual_seed(5)
        return head.sample(hs, Sampling(guidance=g), generator, ceiling=top)

    alone = draw([h], 1.0)
    assert torch.equal(alone, draw([h, hidden(600).flip(0)], 1.0))
    guided = draw([h, hidden(600).flip(0)], 4.0)
    assert not torch.equal(alone, guided)

    def place(frames):
        return (frames * torch.tensor([12, 3, 1])).sum(1)

    assert (place(guided) <= place(top)).all() and (guided < torch.tensor(SET.levels)).all()


def test_guidance_moves_along_the_difference_of_log_probabilities():
    given = torch.tensor([[1.0, 2.0, -float("inf")]])
    null = torch.tensor([[0.0, 0.0, -float("inf")]])
    mixed = mix_guidance([given, null], 3.0)
    assert torch.allclose(mixed[0, 1] - mixed[0, 0], torch.tensor(3.0)) and mixed[0, 2] == -float(
        "inf"
    )


@pytest.mark.parametrize("config", KINDS)
def test_no_frames_at_all_still_touch_every_weight(config):
    head = head_of(config)
    head.loss(hidden(0), torch.zeros(0, 3, dtype=torch.long)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("config", KINDS)
def test_every_weight_gets_a_gradient(config):
    head = head_of(config)
    head.loss(hidden(24), every_frame(FREE)).sum().backward()
    assert all(p.grad.any() for p in head.parameters())


def test_half_precision_does_not_reach_the_nats():
    head = Chained(6).build(WIDTH, FREE).bfloat16()
    assert (
        head.loss(torch.randn(2, WIDTH).bfloat16(), torch.zeros(2, 3, dtype=torch.long)).dtype
        == torch.float32
    )


@pytest.mark.parametrize(
    "signature, names",
    [
        (Signature("speech", (5,) * 6), "Parallel() or Chained()"),
        (Signature("voice", latent_size=4), "FrameDiffusion(), Regression() or NormalisingFlow()"),
        (
            Signature("image", latent_size=4, frames=4),
            "FrameDiffusion(), GridDiffusion(), Cascade(), Regression() or NormalisingFlow()",
        ),
        (Signature("image", (5,), frames=4), "MaskedDiffusion()"),
        (Signature("text", (5,)), ""),
    ],
)
def test_the_heads_that_fit_are_named_all_and_can_be_built(signature, names):
    assert fitting_heads(signature) == names
    kinds = {f"{kind.__name__}()": kind for kind in get_args(PackageHeads)}
    for name, kind in kinds.items():
        if name in names:
            assert build_head(kind(), 8, signature)
        else:
            with pytest.raises(UserError) as error:
                build_head(kind(), 8, signature)
            assert names in str(error.value) and "\n" not in str(error.value)
