"""A queue gives each prompt what it gets alone, whatever joins, ends or is cancelled beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment, Signature
from mmtok.diffusion.random import RowGenerators, drawn, normal_like
from mmtok.diffusion.samplers import Churn, Heun
from mmtok.errors import UserError
from mmtok.heads.densities import Student
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.regression import Regression
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate
from mmtok.model.queue import DrawQueue
from mmtok.nn.denoisers import DiTConfig, TokenMLPConfig

WAYS = [
    Sampling(max_frames=9),
    Sampling(max_frames=9, guidance=2.0),
    Sampling(temperature=0, max_frames=5, guidance=3),
    Sampling(0.8, 3, 0.9, max_frames=14),
]
DIT = DiTConfig(1, 8, 2)
MADE = ["text", "speech", "image", "jets", "tiles"]


def made(segment, prompt, modality, n=14):
    """Prompts of different lengths, some with frames known."""
    return [prompt(segment("text", 3 * n % 7), to=segment(modality, n % 3)) for n in range(n)]


def alone(lm, prompts, way):
    """What each is given by itself; its seed is its number."""
    numbers = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return [generate(lm, [p], way, g)[0] for p, g in zip(prompts, numbers)]


def assert_same(found, expected):
    assert found.stop == expected.stop
    assert np.array_equal(found.segment.values, expected.segment.values)
    assert found.segment.truncated == expected.segment.truncated


@pytest.mark.parametrize("way", WAYS, ids=range(len(WAYS)))
@pytest.mark.parametrize("modality", MADE)
def test_each_is_drawn_as_if_alone(lm, segment, prompt, modality, way):
    """Four rows for 14 prompts, which come at any time."""
    prompts = made(segment, prompt, modality)
    expected = alone(lm, prompts, way)
    queue = DrawQueue(lm, modality, way, rows=4)
    rng = np.random.default_rng(0)
    frames = [list(p.target.values) for p in prompts]
    finished = {}
    n_put = 0
    while n_put < len(prompts) or len(queue):
        for _ in range(min(rng.integers(3), len(prompts) - n_put)):
            assert queue.put(prompts[n_put], seed=n_put) == n_put
            n_put += 1
        step = queue.step()
        assert queue.n_running <= 4 and len(step.tickets) == len(step.frames) <= 4
        for ticket, frame in zip(step.tickets, step.frames):
            frames[ticket].append(frame)
        assert not finished.keys() & step.finished.keys()
        finished |= step.finished
    assert len(finished) == len(prompts)
    for ticket, sample in finished.items():
        assert_same(sample, expected[ticket])
        values = sample.segment.values
        assert np.array_equal(np.array(frames[ticket]).reshape(values.shape), values)


def test_latents_too(toy_lm, prompt):
    """Of a head that draws them in steps, with fresh noise in each."""
    text = Signature("text", (5,))
    voice = Signature("voice", latent_size=3)
    head = FrameDiffusion(network=TokenMLPConfig(1, 8), steps=4, sampler=Heun(churn=Churn(10.0)))
    lm = toy_lm((text, voice), {"voice": head})
    given = [Segment("text", codes=np.full((n, 1), n)) for n in range(4)]
    nothing = Segment("voice", latents=np.zeros((0, 3), np.float32))
    prompts = [prompt(g, to=nothing) for g in given]
    queue = DrawQueue(lm, "voice", Sampling(max_frames=5), rows=2)
    for i, p in enumerate(prompts):
        queue.put(p, seed=i)
    finished = dict(queue.drain())
    for i, one in enumerate(alone(lm, prompts, Sampling(max_frames=5))):
        assert finished[i].stop == one.stop
        assert finished[i].segment.latents == pytest.approx(one.segment.latents, abs=1e-5)
    whole = toy_lm((text, Signature("image", (4,), frames=4)), {"image": MaskedDiffusion(DIT)})
    with pytest.raises(UserError, match="image is drawn as a whole"):
        DrawQueue(whole, "image", Sampling())


def test_who_is_cancelled_gets_nothing_and_the_others_all(lm, segment, prompt):
    way = Sampling(max_frames=9)
    prompts = made(segment, prompt, "speech")
    queue = DrawQueue(lm, "speech", way, rows=4)
    for i, p in enumerate(prompts):
        queue.put(p, seed=i)
    expected = alone(lm, prompts, way)
    drawn_on = next(i for i in range(4) if len(expected[i].segment) > len(prompts[i].target) + 1)
    finished = queue.step().finished
    for ticket in (drawn_on, 9):  # one that is drawn, one that waits
        queue.cancel(ticket)
    finished |= dict(queue.drain())
    assert sorted(finished) == [i for i in range(len(prompts)) if i not in (drawn_on, 9)]
    for ticket, sample in finished.items():
        assert_same(sample, expected[ticket])
    assert len(queue) == 0 and queue.step().finished == {}
    queue.cancel(0)  # has its sample: nothing is left to do
    again = queue.put(prompts[0], seed=0)
    assert_same(dict(queue.drain())[again], expected[0])


def test_who_is_cancelled_while_others_are_admitted_is_cancelled(lm, segment, prompt, monkeypatch):
    """By another thread, between the looks of one step."""
    queue = DrawQueue(lm, "text", Sampling(max_frames=30), rows=2)
    prompts = [prompt(to=segment("text", n)) for n in range(3)]
    for p in prompts:
        queue.put(p)
    admit = queue._admit
    monkeypatch.setattr(queue, "_admit", lambda: (queue.cancel(1), admit()))
    finished = queue.step().finished
    monkeypatch.undo()
    finished |= dict(queue.drain())
    assert sorted(finished) == [0, 2] and not queue._cancelled


def test_what_is_wrong_with_one_prompt_does_not_stop_the_others(lm, segment, prompt, monkeypatch):
    queue = DrawQueue(lm, "text", Sampling(max_frames=3), rows=4)
    queue.put(prompt(to=segment("text", 1)))
    whole = segment("image", 9)
    broken = Segment("image", codes=whole.codes[:2])  # a condition of too few frames
    with pytest.raises((UserError, ValueError)):
        queue.put(prompt(broken, to=segment("text", 0)))
    queue.put(prompt(whole, to=segment("text", 1)))
    with monkeypatch.context() as patched:
        patched.setattr(queue, "_read", lambda new: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            queue.step()
    assert len(queue) == 2 and sorted(dict(queue.drain())) == [0, 1]


def test_nothing_is_kept_of_what_has_ended(lm, segment, prompt):
    """The cache is as long as the longest row that goes on, however long the queue runs."""
    queue = DrawQueue(lm, "text", Sampling(max_frames=9), rows=3)
    longest = 0
    for i in range(60):
        queue.put(prompt(segment("text", 2), to=segment("text", 0)), seed=i)
        queue.step()
        longest = max(longest, queue._sampler.trunk.length)
        assert len(queue._drawing) <= 4 and len(queue._sampler.drawn) == 0
    assert longest <= 2 * (3 + 2 + 9)


def test_a_queue_refuses_what_it_cannot_draw(lm, toy_lm, segment, prompt):
    with pytest.raises(UserError, match="not in this model, which has text"):
        DrawQueue(lm, "smell", Sampling())
    with pytest.raises(UserError, match="fixed number of rows"):
        DrawQueue(lm, "text", Sampling(compiled=True))
    with pytest.raises(UserError, match="at least 1 row, got 0"):
        DrawQueue(lm, "text", Sampling(), rows=0)
    numbers = toy_lm(
        (Signature("text", (5,)), Signature("x", latent_size=2, frames=1)),
        {"x": Regression(Student())},
    )
    with pytest.raises(UserError, match="x: its head draws all rows from one source"):
        DrawQueue(numbers, "x", Sampling())
    queue = DrawQueue(lm, "text", Sampling())
    with pytest.raises(UserError, match="draws text, not speech"):
        queue.put(prompt(to=segment("speech", 0)))
    with pytest.raises(ValueError, match="open"):
        queue.put(replace(prompt(to=segment("text", 0)), open_end=False))


def test_a_row_has_the_numbers_of_its_own_generator():
    """Whatever is drawn beside it, and how many numbers a row takes."""

    def seeded(*seeds):
        return RowGenerators([torch.Generator().manual_seed(s) for s in seeds])

    like = torch.empty(3, 5, dtype=torch.float64)
    together = normal_like(like, seeded(1, 2, 3))
    for i, seed in enumerate((1, 2, 3)):
        one = normal_like(like[:1], torch.Generator().manual_seed(seed))
        assert torch.equal(together[i : i + 1], one)
    u = drawn(torch.rand, (6,), like, seeded(4, 5, 6).select([2, 0]), torch.float64)
    assert torch.equal(u[:3], drawn(torch.rand, (3,), like, seeded(6), torch.float64))
    with pytest.raises(ValueError, match="5 numbers cannot be shared out among 2 rows"):
        drawn(torch.rand, (5,), like, seeded(1, 2), torch.float64)
