"""The denoising loss (Karras et al.

2022, eq. 8), for any denoiser and, without cancellation, for a network. CondOT: flow matching's.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from mmtok.diffusion.predictions import Denoiser, Network, append_dims, levels
from mmtok.diffusion.schedules import EDM, NoiseSchedule


def denoising_loss(
    denoiser: Denoiser, schedule: NoiseSchedule, y: Tensor, noise: Tensor, sigma: Tensor
) -> Tensor:
    """lambda(sigma) |D(y + sigma n; sigma) - y|^2, mean over dimensions: y, n (B, ...), sigma (B,)
    -> (B,).
    """
    sigma = levels(sigma, y)
    error = denoiser(y + append_dims(sigma, y) * noise, sigma.to(y.dtype)) - y
    return schedule.weight(sigma).to(y.dtype) * error.square().flatten(1).mean(1)


def network_target(schedule: NoiseSchedule, y: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What F should say: (y - c_skip x) / c_out = ((1 - c_skip) y - c_skip sigma n) / c_out (B,
    ...). For CondOT this is n - y.
    """
    sigma = levels(sigma, y)
    c = schedule.coefficients(sigma)
    return (
        append_dims((1 - c.c_skip) / c.c_out, y) * y
        - append_dims(c.c_skip * sigma / c.c_out, y) * noise
    )


def network_loss(
    network: Network, schedule: NoiseSchedule, y: Tensor, noise: Tensor, sigma: Tensor
) -> Tensor:
    """`denoising_loss` of a preconditioned network, in the network's own units: (B,).

    As lambda c_out^2 = 1 in every column it is |F - target|^2, which float32 holds at any sigma,
    while D - y loses its digits at small ones.
    """
    sigma = levels(sigma, y)
    c = schedule.coefficients(sigma)
    f = network(append_dims(c.c_in, y) * (y + append_dims(sigma, y) * noise), c.c_noise.to(y.dtype))
    error = (f - network_target(schedule, y, noise, sigma)).square().flatten(1).mean(1)
    return (schedule.weight(sigma) * c.c_out**2).to(y.dtype) * error


def zero_network_loss(schedule: NoiseSchedule, mean_square: float, sigma: Tensor) -> Tensor:
    """The expected loss of a network that says 0, for data of this mean square per dimension;
    shaped as sigma.

    1 at every sigma for EDM where sigma_data^2 is the mean square (appendix B.6).
    """
    c_skip = schedule.coefficients(sigma).c_skip
    return schedule.weight(sigma) * (c_skip**2 * sigma**2 + (1 - c_skip) ** 2 * mean_square)


def check_sigma_data(
    schedule: EDM, y: Tensor, tolerance: float = 0.05, groups: Tensor | None = None
) -> float:
    """The zero network's loss at large noise, for data y (N, ...).

    Warns where it is not 1 within the tolerance.

    From small noise to large that loss goes from 1 to (rms / sigma_data)^2 without turning, so the
    latter is the furthest from 1 of all levels. As the data are a sample, it must also be further
    off than their mean square would be by chance (four standard errors, more for few data). groups
    (N,): long numbers of what each row is a part of, as rows of one signal are not independent; one
    group alone tells nothing of chance, and is not warned of. None: all rows are independent, and
    the entries of a single one. The mean counts as spread, as EDM assumes data around 0: centre the
    data, or give their root mean square.
    """
    squares = y.double().square()
    squares = (
        squares.flatten() if groups is None and len(y) == 1 else squares.reshape(len(y), -1).mean(1)
    )
    mean_square = squares.mean().item()
    loss = mean_square / schedule.sigma_data**2
    groups = torch.arange(len(squares)) if groups is None else groups
    if abs(loss - 1) > tolerance and (not loss or abs(math.log(loss)) > _chance(squares, groups)):
        warnings.warn(
            f"sigma_data is {schedule.sigma_data:.4g} but the data's root mean square is"
            f" {mean_square**0.5:.4g}: at large noise a network that says 0 has loss {loss:.3g} and"
            " not 1; standardise the data or set sigma_data",
            stacklevel=2,
        )
    return loss


def _chance(x: Tensor, groups: Tensor) -> float:
    """How far off the logarithm of the mean of x (N,) above 0 may be by chance: Student's quantile
    times its standard error over groups.
    """
    from scipy.special import stdtrit

    n = len(groups.unique())
    if n < 2:
        return math.inf
    off = torch.zeros(int(groups.max()) + 1, dtype=x.dtype).index_add(0, groups, x - x.mean())
    error = (off.square().sum() * n / (n - 1)).sqrt() / x.sum()
    return stdtrit(n - 1, 1 - 3e-5) * error.item()
