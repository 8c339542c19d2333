"""The losses of image tokenizers: pixels, features of a classifier, a discriminator of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.image_features import ImageFeatures, feature_distance
from mmtok.tokenizers.image_losses import ImageLosses
from mmtok.train.checkpoint import optimizer_tensors, restore_optimizer
from mmtok.train.discriminators import hinge_loss

HEAD_START = 0.1  # the share of the steps that the discriminator learns before it counts
RATE = 2e-4  # of the discriminator
BETAS = (0.5, 0.9)
MOST_ADAPTIVE = 1e4
SLOPE = 0.2
WIDTH = 32


class PatchDiscriminator(nn.Module):
    """Scores of patches (Isola et al. 2017, arXiv 1611.07004, section 3.2.2), with group norms.

    Images (B, C, Y, X) -> (B, 1, Y', X'). There are up to three halvings, as the size allows.
    """

    def __init__(self, channels: int, side: int, width: int = WIDTH):
        """side: the shorter one of the images."""
        super().__init__()
        n_halvings = max(1, min(3, side.bit_length() - 3))
        layers: list[nn.Module] = []
        n_in = channels
        for i in range(n_halvings):
            n_out = width * 2**i
            layers.append(nn.Conv2d(n_in, n_out, 4, stride=2, padding=1))
            if i:
                layers.append(nn.GroupNorm(8, n_out))
            layers.append(nn.LeakyReLU(SLOPE))
            n_in = n_out
        layers.append(nn.Conv2d(n_in, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, 1, Y', X')."""
        return self.layers(images)


class Losses:
    """The terms of a training's loss, and the discriminator's own training."""

    def __init__(self, config: Any, steps: int):
        """config: a NetworkConfig. Raises UserError where a term needs what is not installed."""
        self.weights: ImageLosses = config.losses
        self.features: ImageFeatures | None = None
        if self.weights.perceptual:
            self.features = ImageFeatures()
        self.counts_from = round(self.weights.adversarial_from * steps)
        self.learns_from = max(0, self.counts_from - round(HEAD_START * steps))
        self.discriminator: PatchDiscriminator | None = None
        if self.weights.adversarial:
            side = min(config.height, config.width)
            network = PatchDiscriminator(config.channels, side)
            self.discriminator = network
            self.names: dict[Tensor, str] = {p: name for name, p in network.named_parameters()}
            self.optimizer = torch.optim.AdamW(
                network.parameters(), RATE, betas=BETAS, weight_decay=0.0
            )

    def parts(
        self, made: Tensor, wanted: Tensor, decoder: nn.Module, step: int
    ) -> dict[str, Tensor]:
        """Each term with its weight, by name: images (B, C, Y, X) -> losses ()."""
        parts = {"pixels": self._pixels(made, wanted)}
        if self.features is not None:
            with torch.no_grad():
                features = self.features(wanted)
            distance = feature_distance(self.features(made), features)
            parts["perceptual"] = self.weights.perceptual * distance
        if self.discriminator is not None and step >= self.counts_from:
            self.discriminator.requires_grad_(False)
            verdict = -self.discriminator(made).mean()
            self.discriminator.requires_grad_(True)
            so_far = torch.stack(list(parts.values())).sum()
            adaptive = adaptive_weight(so_far, verdict, last_layer(decoder))
            parts["adversarial"] = self.weights.adversarial * adaptive * verdict
        return parts

    def _pixels(self, made: Tensor, wanted: Tensor) -> Tensor:
        if self.weights.pixels == "l1":
            return F.l1_loss(made, wanted)
        return F.mse_loss(made, wanted)

    def update(self, made: Tensor, wanted: Tensor, step: int) -> None:
        """One step of the discriminator, once it learns."""
        if self.discriminator is None or step < self.learns_from:
            return
        loss = hinge_loss(self.discriminator(wanted), self.discriminator(made))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps of the discriminator."""
        if self.discriminator is None:
            return {}
        return {
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimizer": optimizer_tensors(self.optimizer, self.names),
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of `state`."""
        if self.discriminator is None:
            return
        self.discriminator.load_state_dict(tensors["discriminator"])
        kept = tensors.get("discriminator_optimizer", {})
        restore_optimizer(self.optimizer, self.names, kept)


def last_layer(decoder: nn.Module) -> Tensor:
    """The weight of a decoder's last layer, which each has as `out`."""
    out = decoder.out
    assert isinstance(out, (nn.Conv2d, nn.Linear))
    return out.weight


def adaptive_weight(error: Tensor, verdict: Tensor, weight: Tensor) -> Tensor:
    """|d error| / |d verdict| at a layer's weight, at most 10^4 (VQGAN, eq. 7): ()."""
    of_error = torch.autograd.grad(error, weight, retain_graph=True)[0]
    of_verdict = torch.autograd.grad(verdict, weight, retain_graph=True)[0]
    ratio = of_error.norm() / (of_verdict.norm() + 1e-4)
    return ratio.clamp(0, MOST_ADAPTIVE).detach()
