"""A small convolutional network that names pictures: the judge of pictures larger than scans.

It reads raw pixels of real training pictures only, so it shares nothing with any tokenizer.
Letters: N pictures, C colours, Y, X pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.weight_decay import decay_groups

SIDE = 32  # larger pictures are averaged to at most so many pixels a side
BATCH = 64
AT_ONCE = 256  # pictures that are named at once
EPOCHS = 20
LEAST_STEPS = 150
MOST_STEPS = 1500
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.02
# Training pictures are turned, scaled and moved at random, as hands and cameras do.
TURN = 0.2  # radians, at most
SCALE = 0.12
MOVE = 0.14  # of half the side


class _Convnet(nn.Sequential):
    """Pictures (N, C, Y, X) of any size -> logits (N, classes)."""

    def __init__(self, channels: int, n_classes: int):
        def stage(n_in: int, n_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False)
            return [conv, nn.BatchNorm2d(n_out), nn.ReLU()]

        super().__init__(
            *stage(channels, 24, 5, 2),
            *stage(24, 48, 3),
            nn.MaxPool2d(2),
            *stage(48, 96, 3),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(96 * 9, n_classes),
        )


class ImageNetwork:
    """A trained network with scikit-learn's `predict` and `decision_function`.

    Made by `train_image_network`.
    """

    def __init__(self, net: nn.Module, classes: np.ndarray):
        self.classes_ = classes
        self._net = net

    def decision_function(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Logits (N, classes) in float32 of pictures (Y, X) or (Y, X, 3), uint8."""
        if not len(images):
            return np.zeros((0, len(self.classes_)), np.float32)
        with torch.no_grad():
            parts = [self._net(part) for part in _prepared(images).split(AT_ONCE)]
        return torch.cat(parts).numpy()

    def predict(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The likeliest label of each picture (N,)."""
        return self.classes_[self.decision_function(images).argmax(1)]


def train_image_network(
    images: Sequence[np.ndarray], labels: Sequence, seed: int = 0
) -> ImageNetwork:
    """Train a network on real pictures of one size, (Y, X) or (Y, X, 3) uint8, and their labels.

    Half a minute on one core for 5,000 of 28 x 28. Deterministic by the seed, on one machine with
    as many threads; the global random state is left as it was.
    """
    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    x = _prepared(images)
    y = torch.from_numpy(numbers)
    n_steps = min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * len(x) // BATCH))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = _Convnet(x.shape[1], len(classes)).train()
        optimiser = torch.optim.AdamW(decay_groups(WEIGHT_DECAY, net), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, n_steps)
        order = _orders(len(x), n_steps)
        for rows in order:
            logits = net(_deformed(x[rows]))
            loss = F.cross_entropy(logits, y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return ImageNetwork(net.eval(), classes)


def _orders(n: int, n_steps: int) -> Tensor:
    """(n_steps, BATCH) rows: one permutation after another."""
    n_rounds = -(-n_steps * BATCH // n)
    rows = torch.cat([torch.randperm(n) for _ in range(n_rounds)])
    return rows[: n_steps * BATCH].view(n_steps, BATCH)


def _prepared(images: Sequence[np.ndarray]) -> Tensor:
    """Pictures as (N, C, Y, X) float32 in -1..1, large ones averaged."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    if stacked.ndim == 3:
        stacked = stacked[..., None]
    x = stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
    if max(x.shape[2:]) > SIDE:
        x = F.adaptive_avg_pool2d(x, (min(SIDE, x.shape[2]), min(SIDE, x.shape[3])))
    return x.contiguous()


def _deformed(x: Tensor) -> Tensor:
    """Pictures (N, C, Y, X), each turned, scaled and moved by chance; edges go on as they end."""

    def between(limit: float) -> Tensor:
        return (2 * torch.rand(len(x)) - 1) * limit

    angle = between(TURN)
    scale = 1 + between(SCALE)
    cos = angle.cos() * scale
    sin = angle.sin() * scale
    rows = [torch.stack([cos, -sin, between(MOVE)], 1), torch.stack([sin, cos, between(MOVE)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
