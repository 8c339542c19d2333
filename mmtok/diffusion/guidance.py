"""What a denoiser is told beside the noise: guidance by a condition, and the noisy low-resolution
picture of a cascade.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.diffusion.predictions import Denoiser, append_dims
from mmtok.diffusion.random import normal_like


def guided(conditional: Denoiser, unconditional: Denoiser, weight: float) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6, on denoised states):
    D_u + w (D_c - D_u).

    w = 1 is the conditional denoiser and w = 0 the unconditional one, each then called alone.
    Papers that write (1 + w) D_c - w D_u mean our w less 1.
    """
    if weight == 1:
        return conditional
    if weight == 0:
        return unconditional

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        without = unconditional(x, sigma)
        return without + weight * (conditional(x, sigma) - without)

    return denoise


def noise_condition(
    low: Tensor, level: Tensor | float, generator: torch.Generator | None = None
) -> Tensor:
    """Noise-conditioning augmentation of a cascade (Ho et al. 2022, arXiv 2106.15282, section 4):
    sqrt(1 - level) c + sqrt(level) n.

    low (B, ...): the low-resolution picture c, of variance near 1. level: (B,) or a number in [0,
    1], 0 leaves c as it is and 1 leaves nothing of it; the super-resolution network must be told
    it. Drawn at random in training, chosen in sampling.
    """
    level = torch.as_tensor(level, dtype=torch.float64)
    if not bool(((level >= 0) & (level <= 1)).all()):
        raise ValueError(
            f"a noise-conditioning level is a variance between 0 and 1, got {level.tolist()}"
        )
    return append_dims((1 - level).sqrt(), low) * low + append_dims(
        level.sqrt(), low
    ) * normal_like(low, generator)
