"""The denoising loss, for any denoiser and, without cancellation, for a network.

Source: Karras et al. 2022, eq. 8. With CondOT it is flow matching's loss.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from mmtok.diffusion.predictions import Denoiser, Network, append_dims, as_sigmas
from mmtok.diffusion.schedules import NoiseSchedule


def denoising_loss(
    denoiser: Denoiser, schedule: NoiseSchedule, y: Tensor, noise: Tensor, sigma: Tensor
) -> Tensor:
    """lambda(sigma) |D(y + sigma n; sigma) - y|^2, a mean over dimensions.

    y, n (B, ...), sigma (B,) -> (B,).
    """
    sigma = as_sigmas(sigma, y)
    error = denoiser(y + append_dims(sigma, y) * noise, sigma.to(y.dtype)) - y
    return schedule.weight(sigma).to(y.dtype) * error.square().flatten(1).mean(1)


def network_target(schedule: NoiseSchedule, y: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What F is trained to predict, (B, ...); for CondOT this is n - y.

    (y - c_skip x) / c_out = ((1 - c_skip) y - c_skip sigma n) / c_out.
    """
    sigma = as_sigmas(sigma, y)
    c = schedule.coefficients(sigma)
    return (
        append_dims((1 - c.c_skip) / c.c_out, y) * y
        - append_dims(c.c_skip * sigma / c.c_out, y) * noise
    )


def network_loss(
    network: Network, schedule: NoiseSchedule, y: Tensor, noise: Tensor, sigma: Tensor
) -> Tensor:
    """`denoising_loss` of a preconditioned network, in the network's own units: (B,).

    As lambda c_out^2 = 1 in every schedule it is |F - target|^2, which float32 holds at any sigma,
    while D - y loses its digits at small ones.
    """
    sigma = as_sigmas(sigma, y)
    c = schedule.coefficients(sigma)
    f = network(append_dims(c.c_in, y) * (y + append_dims(sigma, y) * noise), c.c_noise.to(y.dtype))
    error = (f - network_target(schedule, y, noise, sigma)).square().flatten(1).mean(1)
    return (schedule.weight(sigma) * c.c_out**2).to(y.dtype) * error


def zero_network_loss(schedule: NoiseSchedule, mean_square: float, sigma: Tensor) -> Tensor:
    """The expected loss of a network that returns 0, for data of this mean square per dimension.

    Shaped as sigma. 1 at every sigma for EDM where sigma_data^2 is the mean square (appendix B.6).
    """
    c_skip = schedule.coefficients(sigma).c_skip
    return schedule.weight(sigma) * (c_skip**2 * sigma**2 + (1 - c_skip) ** 2 * mean_square)


def check_sigma_data(
    schedule: NoiseSchedule, y: Tensor, tolerance: float = 0.05, groups: Tensor | None = None
) -> float:
    """The zero network's loss at large noise, for data y (N, ...).

    Warns where it is not 1 within the tolerance.

    From small noise to large that loss goes monotonically from 1 to (rms / sigma_data)^2, so at
    large noise it is furthest from 1. As the data are a sample, it must also be further off than
    their mean square would be by chance (four standard errors, more for few data). EDM assumes data
    around 0, so a mean counts as spread: centre the data, or give their root mean square.

    groups (N,) long: the signal that each row is a part of, as rows of one signal are not
    independent. One group alone says nothing about chance, and is not warned of. None: all rows are
    independent; of a single row, its entries.
    """
    squares = y.double().square()
    if groups is None and len(y) == 1:
        squares = squares.flatten()
    else:
        squares = squares.reshape(len(y), -1).mean(1)
    mean_square = squares.mean().item()
    loss = mean_square / schedule.sigma_data**2
    if groups is None:
        groups = torch.arange(len(squares))
    if abs(loss - 1) > tolerance and (not loss or abs(math.log(loss)) > _chance(squares, groups)):
        warnings.warn(
            f"sigma_data is {schedule.sigma_data:.4g} but the data's root mean square is"
            f" {mean_square**0.5:.4g}: at large noise a network that returns 0 has loss"
            f" {loss:.3g} and not 1; standardise the data or set sigma_data",
            stacklevel=2,
        )
    return loss


def _chance(x: Tensor, groups: Tensor) -> float:
    """How far off the logarithm of the mean of x (N,), above 0, may be by chance.

    Student's quantile times its standard error over groups.
    """
    from scipy.special import stdtrit

    n = len(groups.unique())
    if n < 2:
        return math.inf
    off = torch.zeros(int(groups.max()) + 1, dtype=x.dtype).index_add(0, groups, x - x.mean())
    error = (off.square().sum() * n / (n - 1)).sqrt() / x.sum()
    return stdtrit(n - 1, 1 - 3e-5) * error.item()
