"""Losses weighed by a learned variance: the sum that is meant, and what is left out of it."""

from dataclasses import replace

import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.densities import Gaussian
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.quantiles import SquaredError
from mmtok.heads.regression import Regression
from mmtok.model.lm import LM, DecoderConfig
from mmtok.model.position_nll import loss_sums
from mmtok.nn.denoisers import TokenMLPConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.nn.uncertainty import GAIN

VECTORS = [Signature(m, latent_size=2, frames=1, scales=(1.0, 1.0)) for m in ("a", "b", "c")]
HEADS = {
    "a": Regression(SquaredError()),
    "b": Regression(Gaussian()),
    "c": FrameDiffusion(network=TokenMLPConfig(1, 8)),
}
CONFIG = DecoderConfig(trunk=TransformerConfig(1, 16, 2, 2, 24), heads=HEADS)


def model(**settings):
    torch.manual_seed(0)
    return LM(replace(CONFIG, **settings), Vocabulary(VECTORS))


def a_batch(vocabulary):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(3):
        latents = torch.randn(3, 1, 2, generator=generator).numpy()
        segments = [Segment(m, latents=y) for m, y in zip("abc", latents)]
        rows.append([to_stream(vocabulary, Document(tuple(segments), (True,) * 3))])
    return pack(vocabulary, rows)


def test_the_loss_of_each_modality_is_that_over_its_variance_and_the_logarithm():
    lm = model(learned_sigma=True)
    without = model()
    with torch.no_grad():
        lm.variances.parameters_of["a"].fill_(0.07)
    batch = a_batch(lm.vocabulary)
    torch.manual_seed(3)
    total, parts = loss_sums(lm(batch), batch, lm.vocabulary, {"a": 2.0})
    torch.manual_seed(3)
    plain, same = loss_sums(without(batch), batch, lm.vocabulary, {"a": 2.0})
    assert parts == same and parts["a"][1] == 3
    loss = parts["a"][0]
    u = GAIN * torch.tensor(0.07)
    # c's is 1 at first, and b's may be negative, so that it has none
    assert set(lm.variances()) == {"a", "c"}
    assert torch.allclose(total - plain, 2 * (loss * torch.exp(-u) + 3 * u - loss))
    total.backward()
    assert all(p.grad is not None for p in lm.parameters())


def test_scores_know_nothing_of_it_and_it_is_off_by_default():
    batch = a_batch(Vocabulary(VECTORS))
    off = model()
    assert off.variances is None and not [n for n, _ in off.named_parameters() if "varia" in n]
    config = replace(CONFIG, heads={**HEADS, "a": Regression(Gaussian())})
    torch.manual_seed(0)
    on = LM(replace(config, learned_sigma=True), Vocabulary(VECTORS))
    with torch.no_grad():
        assert on(batch, seed=0).log_variances == {}


def test_noise_levels_are_weighed_by_a_variance_of_their_own():
    signature = VECTORS[2]
    torch.manual_seed(0)
    config = FrameDiffusion(network=TokenMLPConfig(1, 8), learned_sigma=True)
    head = config.build(16, signature)
    h = torch.randn(6, 16)
    y = torch.randn(6, 2)

    def losses():
        torch.manual_seed(5)
        return head.loss(h, y).detach()

    at_first = losses()
    with torch.no_grad():
        head.variance.out.bias.fill_(0.4)
    factor = torch.exp(torch.tensor(-0.4))
    assert torch.allclose(losses(), at_first * factor + 0.4)
    assert not head.loss_is_positive
    head.zero_grad()
    head.loss(h, y).sum().backward()
    assert head.variance.out.weight.grad.any()


def test_the_norm_of_each_modality_is_led_to_that_of_its_gradient(monkeypatch):
    lm = model(balanced_gradients=True)
    without = model()
    batch = a_batch(lm.vocabulary)
    with torch.no_grad():
        lm.gradient_norms.parameters_of["b"].fill_(0.1)
    torch.manual_seed(3)
    total, parts = loss_sums(lm(batch), batch, lm.vocabulary, {})
    torch.manual_seed(3)
    plain, same = loss_sums(without(batch), batch, lm.vocabulary, {})
    assert parts == same
    loss, n = parts["b"]
    u = GAIN * torch.tensor(0.1)
    # a's and c's are 1 at first, and b's may be negative and is weighed all the same
    assert torch.allclose(total - plain, loss * torch.exp(-u) + n * u - loss)
    (total / 7).backward()
    assert all(p.grad is not None for p in lm.parameters())

    states = without.hidden(batch).detach().requires_grad_()
    monkeypatch.setattr(without, "hidden", lambda _: states)
    torch.manual_seed(3)
    nll = without(batch)
    for i, m in enumerate("abc"):
        here = batch.modality == i
        (g,) = torch.autograd.grad((nll.total * here).sum(), states, retain_graph=True)
        norm = g.norm() * n**0.5
        factor = torch.exp(-u) if m == "b" else 1.0
        expected = GAIN * (n - factor * norm) / 7
        torch.testing.assert_close(lm.gradient_norms.parameters_of[m].grad[0], expected)


def test_two_ways_of_weighing_at_once_are_refused_and_scores_know_neither():
    with pytest.raises(UserError, match="choose one"):
        replace(CONFIG, learned_sigma=True, balanced_gradients=True)
    config = replace(CONFIG, heads={**HEADS, "a": Regression(Gaussian())})
    lm = LM(replace(config, balanced_gradients=True), Vocabulary(VECTORS))
    with torch.no_grad():
        assert lm(a_batch(lm.vocabulary), seed=0).log_norms == {}
