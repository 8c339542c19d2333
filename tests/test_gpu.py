"""What only a GPU can show: `scripts/bench_gpu.py --tests`, or pytest -m gpu."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmtok.core.batch import pack, with_index
from mmtok.core.grammar import to_stream
from mmtok.heads.sampling import Sampling
from mmtok.model.captured import CapturedSampler
from mmtok.model.lm import LM, DecoderConfig, evaluating
from mmtok.model.position_nll import loss_sums
from mmtok.nn import attention, fused_nll, fused_step
from mmtok.nn.attention import attend, document_mask
from mmtok.nn.cross_entropy import class_nll
from mmtok.train.config import TrainConfig
from mmtok.train.trainer import Trainer
from tests.conftest import HEADS, TRUNK
from tests.model import test_captured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
CUDA = torch.device("cuda")


def relative(a, b):
    """The largest difference over the largest number."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.mark.parametrize("n_rows", [1, 3, 16, 64, 100])
@pytest.mark.parametrize("sizes", [(768, 2304), (2048, 768), (768, 31_993)])
def test_products_of_few_rows(n_rows, sizes):
    torch.manual_seed(0)
    n_in, n_out = sizes
    x = torch.randn(n_rows, n_in, device=CUDA)
    weight = torch.randn(n_out, n_in, device=CUDA).bfloat16()
    other = torch.randn(n_out, n_in, device=CUDA).bfloat16()
    added = torch.randn(n_rows, n_out, device=CUDA)
    normed = x / (x.square().sum(1, keepdim=True) + 0.1).sqrt()
    plain = normed @ weight.float().T
    gated = F.silu(plain) * (normed @ other.float().T)
    assert relative(fused_step.linear(x, weight, eps=0.1), plain) < 1e-2
    assert relative(fused_step.linear(x, weight, times=other, eps=0.1), gated) < 2e-2
    summed = fused_step.linear(x.bfloat16(), weight, added=added)
    assert relative(summed, x.bfloat16().float() @ weight.float().T + added) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cross_entropy_and_its_gradients(dtype):
    torch.manual_seed(0)
    h = torch.randn(300, 64, device=CUDA, dtype=dtype, requires_grad=True)
    weight = torch.randn(5003, 64, device=CUDA, dtype=dtype, requires_grad=True)
    target = torch.randint(5, 5003, (300,), device=CUDA)
    last_legal = (torch.rand(300, device=CUDA) < 0.5) | (target == 5002)
    x = h.double() @ weight.double().T
    x[:, 3] = -torch.inf
    x[:, -1] = x[:, -1].masked_fill(~last_legal, -torch.inf)
    expected = F.cross_entropy(x, target, reduction="none")
    grads = torch.autograd.grad(expected.sum(), (h, weight))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for chunk in (None, 20 * 5003):
        found = class_nll(h, weight, target, last_legal, (3,), chunk)
        assert fused_nll.is_fused(x.to(dtype))
        assert relative(found, expected) < tolerance
        for a, b in zip(torch.autograd.grad(found.sum(), (h, weight)), grads, strict=True):
            assert relative(a, b) < tolerance


@pytest.mark.parametrize("way", ["lengths", "flex"])
@pytest.mark.parametrize("n_kv", [4, 2])
def test_packed_attention_is_that_of_the_dense_mask(monkeypatch, way, n_kv):
    torch.manual_seed(0)
    lengths = [[100, 56, 100], [200, 40], [256]]
    document = torch.full((3, 256), -1, device=CUDA)
    for row, parts in enumerate(lengths):
        start = 0
        for number, n in enumerate(parts):
            document[row, start : start + n] = number
            start += n
    q = torch.randn(3, 4, 256, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    k, v = (
        torch.randn(3, n_kv, 256, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2)
    )
    same = (document[:, :, None] == document[:, None]).tril()[:, None]
    expected = attend(q, k, v, same)
    real = (document >= 0)[:, None, :, None]
    weight = torch.randn_like(expected) * real
    grads = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    ends = torch.tensor([0, 100, 156, 256, 456, 496, 512, 768, 768], device=CUDA).int()
    if way == "flex":
        monkeypatch.setattr(attention, "USE_LENGTHS", False)
    with torch.autocast("cuda", torch.bfloat16):
        mask = document_mask(document, 64, ends, False)
    assert isinstance(mask, attention.DocumentEnds) == (way == "lengths")
    found = attend(q, k, v, mask)
    assert relative(found * real, expected * real) < 2e-2
    for a, b in zip(torch.autograd.grad((found * weight).sum(), (q, k, v)), grads, strict=True):
        assert relative(a, b) < 3e-2


@pytest.mark.parametrize("modality", ["text", "image", "speech", "jets"])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_captured_steps_draw_what_plain_ones_draw(modality, guidance):
    """The generator is left where plain steps leave it, and a kept graph draws the same again."""
    lm = test_captured.make_lm().to(CUDA)
    sampling = Sampling(max_frames=40, guidance=guidance, precision="float32")
    given = test_captured.prompts(modality, [0, 2, 3, 1])
    results = []
    for kind in (test_captured.Staying, CapturedSampler, CapturedSampler):
        generator = torch.Generator(CUDA).manual_seed(3)
        with evaluating(lm), torch.inference_mode():
            sampler = kind(lm, given, sampling, generator)
            while len(sampler.rows):
                sampler.step()
        codes = [x.segment.codes.tolist() for x in sampler.results()]
        results.append((codes, generator.get_state().tolist()))
    assert results[1] == results[0] and results[2] == results[0]


def test_a_training_step_makes_the_host_wait_for_nothing(vocabulary, corpus):
    torch.manual_seed(0)
    lm = LM(DecoderConfig(TRUNK, HEADS, totals={"jets": 2}), vocabulary).to(CUDA)
    streams = [to_stream(vocabulary, d) for d in corpus]
    batch = pack(vocabulary, [streams[:3], streams[3:]])
    batch = with_index(batch, vocabulary).pin_memory().to(CUDA)

    def step():
        total, _ = loss_sums(lm(batch), batch, vocabulary, {})
        (total / 10).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)

    step()  # constants are copied, kernels compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_scores_are_those_of_the_cpu(vocabulary, corpus):
    torch.manual_seed(0)
    lm = LM(DecoderConfig(TRUNK, HEADS), vocabulary)
    streams = [to_stream(vocabulary, d) for d in corpus]
    batch = pack(vocabulary, [[s] for s in streams])
    with evaluating(lm):
        there = lm(batch, seed=0).total
        here = lm.to(CUDA)(batch.to(CUDA), seed=0).total.cpu()
    assert torch.allclose(here, there, atol=1e-4)


class Batches:
    """A batch that depends on the step."""

    is_pure = True

    def __init__(self, vocabulary, corpus):
        self.vocabulary = vocabulary
        self.streams = [to_stream(vocabulary, d) for d in corpus]

    def batch(self, step, rank=0, world=1):
        rng = np.random.default_rng(step)
        order = rng.permutation(len(self.streams))
        return pack(self.vocabulary, [[self.streams[i]] for i in order[:3]], 200)


def test_a_resumed_training_equals_an_uninterrupted_one(vocabulary, corpus):
    config = TrainConfig(steps=8, batch_size=3, seq_len=200, log_every=2, checkpoint_every=4)

    def trainer(folder, steps):
        torch.manual_seed(0)
        lm = LM(DecoderConfig(TRUNK, HEADS), vocabulary).to(CUDA)
        made = Trainer(lm, Batches(vocabulary, corpus), config, folder, lines.append)
        made.resume()
        while made.step < steps:
            made.update()
        made.save()
        return made

    lines: list = []
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer(Path(folder) / "a", 8).weights()
        trainer(Path(folder) / "b", 4)
        again = trainer(Path(folder) / "b", 8).weights()
    for name, x in whole.items():
        torch.testing.assert_close(again[name], x, rtol=1e-4, atol=1e-6)
