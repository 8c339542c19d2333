"""Classifier-free guidance, and the noisy low-resolution condition of a cascade.

Formulas only. Ids and codes are guided through `mmtok.heads.sampling.mix_guidance`, latents in
`DiffusionHead.draw` (heads/diffusion.py); both read `Sampling.guidance`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.diffusion.predictions import Denoiser, append_dims
from mmtok.diffusion.random import normal_like


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """u + w (c - u): Ho and Salimans 2022 (arXiv 2207.12598), eq. 6, with their w = ours - 1.

    c and u may be denoised states or log-probabilities. Weight 1 is the conditional one, 0 the
    unconditional one.
    """
    return unconditional + weight * (conditional - unconditional)


def guided(conditional: Denoiser, unconditional: Denoiser, weight: float) -> Denoiser:
    """`guide` for denoisers. At weight 1 or 0 only the denoiser that counts is called."""
    if weight == 1:
        return conditional
    if weight == 0:
        return unconditional

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        without = unconditional(x, sigma)
        return guide(conditional(x, sigma), without, weight)

    return denoise


def guided_logits(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """`guide` for logits (..., K), by their log-probabilities.

    What the conditional logits rule out (-inf) stays ruled out.
    """
    c = conditional.log_softmax(-1)
    u = unconditional.log_softmax(-1)
    return torch.where(c == float("-inf"), c, guide(c, u, weight))


def noise_condition(
    low: Tensor, aug_noise: Tensor | float, generator: torch.Generator | None = None
) -> Tensor:
    """Noise-conditioning augmentation: sqrt(1 - a) c + sqrt(a) n, for a = aug_noise.

    Source: Ho et al. 2022 (arXiv 2106.15282), section 4. aug_noise is drawn at random in training
    and chosen in sampling; the super-resolution network needs it as an input.

    Args:
        low: The low-resolution picture c (B, ...), of variance near 1.
        aug_noise: The noise's share of the variance, (B,) or a number in [0, 1]. 0 leaves c as it
            is, 1 leaves nothing of it.
        generator: Of the noise n; None is torch's global one.

    Raises:
        ValueError: For a share outside [0, 1].
    """
    share = torch.as_tensor(aug_noise, dtype=torch.float64)
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"aug_noise is a variance between 0 and 1, got {share.tolist()}")
    noise = normal_like(low, generator)
    return append_dims((1 - share).sqrt(), low) * low + append_dims(share.sqrt(), low) * noise
