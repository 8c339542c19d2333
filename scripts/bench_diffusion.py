"""Samplers and likelihoods by diffusion.

    .venv/bin/python scripts/bench_diffusion.py [--only ROW ...] [--json FILE]

What the samplers cost beside the network that they call, how batches scale, the same trajectories
beside `diffusers` (needs the extra `bench`), and what exact likelihoods of 1,000 digits take. The
network is the one of the digits: 8 x 8 pixels in patches of 2 x 2, 6 layers of width 128, with
random weights. On a shared machine only ratios mean much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from side_by_side import (
    Line,
    called,
    check_peers,
    machine,
    median_seconds,
    parsed,
    parser,
    report,
    seconds,
)
from torch import Tensor, nn

from mmtok.core.segment import Signature
from mmtok.diffusion.predictions import preconditioned
from mmtok.diffusion.samplers import DPMSolver2M, Euler, Heun, Sampler
from mmtok.diffusion.schedules import VP
from mmtok.heads.diffusion import GridDiffusion, GridDiffusionHead
from mmtok.heads.sampling import Sampling
from mmtok.nn.denoisers import DiTConfig, GridDenoiser

WIDTH = 64  # of the decoder's hidden states, which condition the head
DIGITS = Signature("image", latent_size=4, frames=16, cells=17)
DIT = DiTConfig(6, 128, 4)
N_STEPS = 25


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    repeats: int
    digits: int


# ---- the network


def with_noisy_weights(network: nn.Module) -> nn.Module:
    """The network with noise on all its weights, so that no layer is left at its initial zeros."""
    torch.manual_seed(0)
    for p in network.parameters():
        p.data.add_(torch.randn(p.shape) * 0.05)
    return network.eval().requires_grad_(False)


def digits_head(sampler: Sampler, dit: DiTConfig) -> GridDiffusionHead:
    """The head of the digits with this sampler and network."""
    config = GridDiffusion(sampler=sampler, steps=N_STEPS, network=dit, patch=2)
    return with_noisy_weights(config.build(WIDTH, DIGITS))


def draw(head: GridDiffusionHead, n: int) -> Tensor:
    """N pictures (n, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    return head.draw([torch.zeros(n, WIDTH)], (1, 8, 8), Sampling(), generator)


class NetworkTimer:
    """Sums up the seconds that a network's forward passes take, by hooks."""

    def __init__(self, network: nn.Module):
        self.seconds = 0.0
        self._start = 0.0
        network.register_forward_pre_hook(lambda *_: self._begin())
        network.register_forward_hook(lambda *_: self._end())

    def _begin(self) -> None:
        self._start = time.perf_counter()

    def _end(self) -> None:
        self.seconds += time.perf_counter() - self._start

    def split(self, work: Callable[[], object]) -> tuple[float, float]:
        """Seconds of one call inside the network, and outside of it."""
        self.seconds = 0.0
        total = seconds(work)
        return self.seconds, total - self.seconds


# ---- the samplers alone


@torch.no_grad()
def overhead(options: Options) -> Iterator[Line]:
    """The share of time outside the network in sampling 100 digits.

    The network's calls are timed within the same run, so that both see the same machine.
    """
    for sampler in (Euler(), Heun(), DPMSolver2M()):
        head = digits_head(sampler, DIT)
        timer = NetworkTimer(head.network)
        timer.split(partial(draw, head, 100))  # warms up
        times = [timer.split(partial(draw, head, 100)) for _ in range(options.repeats)]
        total = median(inside + outside for inside, outside in times)
        share = median(outside / (inside + outside) for inside, outside in times)
        name = f"{type(sampler).__name__}, {N_STEPS} steps, 100 digits"
        yield Line(name, "s", total, "", None, "the rest", share, 0.05, least=False)


@torch.no_grad()
def batches(options: Options) -> Iterator[Line]:
    """Time per sample at four batch sizes, which should be equal: rows are independent.

    The bar is this script's own.
    """
    head = digits_head(DPMSolver2M(), DIT)
    sizes = (25, 50, 100, 200)
    times = median_seconds([partial(draw, head, n) for n in sizes], options.repeats)
    ms = {n: 1000 * s / n for n, s in zip(sizes, times, strict=True)}
    by_size = ", ".join(f"{n}: {each:.3g}" for n, each in ms.items())
    yield Line(
        "time per sample, largest over smallest",
        "ms/sample",
        ms[sizes[-1]],
        f"batch {by_size} ms",
        None,
        "ratio",
        max(ms.values()) / min(ms.values()),
        1.5,
        least=False,
    )


# ---- beside diffusers


def euler_of_diffusers(sigmas: Tensor) -> Any:
    """Their Euler steps in sigma, on unscaled states x = y + sigma n.

    Their `scale_model_input` is our c_in, their "epsilon" our F under the VP noise schedule.
    """
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        prediction_type="epsilon", timestep_spacing="linspace", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(sigmas=sigmas.tolist())  # their last one is the 0 that is in the list
    return scheduler


def dpm_of_diffusers(n_steps: int) -> Any:
    """Their DPM-Solver++(2M) by midpoints, on states x / sqrt(1 + sigma^2).

    The first step is of order 1, and so is a last one to sigma 0. It takes no sigmas from outside,
    so ours are taken from it: rho = 7 between the ends of its own betas.
    """
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=2,
        use_karras_sigmas=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(n_steps)
    return scheduler


def their_draw(
    make: Callable[[], Any], network: nn.Module, noise: Tensor, unscaled: bool
) -> Callable[[], Tensor]:
    """A function that samples as their pipelines do.

    The network gets the timesteps that ours gets, VP's c_noise, computed beforehand; their own
    would be other numbers.

    Args:
        make: Makes their scheduler, which counts its steps.
        network: Called with states and timesteps.
        noise: The start, (N, C, H, W) of unit variance.
        unscaled: Whether their state is y + sigma n, or that over sqrt(1 + sigma^2).
    """
    sigmas = make().sigmas.double()
    c_noise = VP().coefficients(sigmas[:-1]).c_noise.tolist()
    timesteps = [noise.new_full((len(noise),), c) for c in c_noise]
    start = float(sigmas[0])
    if not unscaled:
        start = float(sigmas[0] / (1 + sigmas[0] ** 2).sqrt())

    @torch.no_grad()
    def sample() -> Tensor:
        scheduler = make()
        scheduler.set_begin_index(0)  # rounded timesteps may be equal
        x = noise * start
        for t, timestep in zip(scheduler.timesteps, timesteps, strict=True):
            output = network(scheduler.scale_model_input(x, t), timestep)
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return x

    return sample


def our_draw(
    sampler: Sampler, network: nn.Module, noise: Tensor, sigmas: Tensor
) -> Callable[[], Tensor]:
    """A function that samples as our heads do: float64 states around a float32 network."""
    denoiser = preconditioned(network, VP(), torch.float32)

    @torch.no_grad()
    def sample() -> Tensor:
        return sampler(denoiser, noise.double() * float(sigmas[0]), sigmas)

    return sample


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, over the root mean square of b."""
    return float((a.double() - b.double()).abs().max() / b.double().square().mean().sqrt())


def pairs(
    network: nn.Module, noise: Tensor, n_steps: int
) -> Iterator[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    """Name, our draw and theirs, at equal sigmas from equal noise (N, C, H, W) float32."""
    sigmas = dpm_of_diffusers(n_steps).sigmas
    yield (
        "Euler",
        our_draw(Euler(), network, noise, sigmas.double()),
        their_draw(partial(euler_of_diffusers, sigmas), network, noise, unscaled=True),
    )
    yield (
        "DPMSolver2M",
        our_draw(DPMSolver2M(), network, noise, sigmas.double()),
        their_draw(partial(dpm_of_diffusers, n_steps), network, noise, unscaled=False),
    )


def diffusers(options: Options) -> Iterator[Line]:
    """100 digits with equal networks, noise and sigmas: as fast as `diffusers`, but for noise.

    Both sides are short and nearly equal, so they take three times as many repeats as other rows.
    """
    network = with_noisy_weights(GridDenoiser(DIT, (1, 8, 8), 2))
    noise = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, ours, theirs in pairs(network, noise, N_STEPS):
        error = difference(ours(), theirs())
        our_s, their_s = median_seconds([ours, theirs], 3 * options.repeats)
        yield Line(
            f"{name}, {N_STEPS} steps, 100 digits",
            "s",
            our_s,
            "diffusers",
            their_s,
            "ratio",
            their_s / our_s,
            0.97,
        )
        yield Line(
            "  largest difference over the result's scale",
            "",
            error,
            "",
            None,
            "difference",
            error,
            1e-4,
            least=False,
        )


# ---- likelihoods


def likelihood(options: Options) -> Iterator[Line]:
    """Exact -log P of discrete digits by the probability-flow ODE, scaled to 1,000 digits.

    As many digits are timed as --digits says. Rows go through in chunks of CHUNK_ROWS, one after
    the other, so the time is proportional. By the exact trace at two sizes of the network, then by
    Hutchinson's probes.
    """
    for what, dit, exact in (
        ("exact, 6 layers", DIT, True),
        ("exact, 4 layers", DiTConfig(), True),
        ("Hutchinson, 6 layers", DIT, False),
    ):
        head = digits_head(Heun(), dit)
        if not exact:
            head.config = replace(head.config, exact_dimensions=0)
        cells = torch.randint(
            0, DIGITS.cells, (options.digits, 16, 4), generator=torch.Generator().manual_seed(0)
        )
        values = ((cells + 0.5) * 2 / DIGITS.cells - 1).float()
        score = partial(_score, head, values)
        score(1)  # warms up
        cpu = time.process_time()
        wall_s = seconds(partial(score, options.digits)) / options.digits
        cpu_s = (time.process_time() - cpu) / options.digits
        yield Line(
            f"1,000 digits, {what}",
            "s",
            1000 * wall_s,
            f"{1000 * cpu_s:.4g} s of the processor, {options.digits} timed",
            None,
            "minutes",
            1000 * wall_s / 60,
            5.0,
            least=False,
        )


def _score(head: GridDiffusionHead, values: Tensor, n: int) -> Tensor:
    """The head's figures for the first n digits."""
    return head.log_prob(torch.zeros(n, WIDTH), values[:n], torch.Generator().manual_seed(0))


ROWS = {row.__name__: row for row in (overhead, batches, diffusers, likelihood)}
PEERS = {"diffusers": ("diffusers", "bench")}  # row -> package, extra


def main() -> None:
    """Runs the rows that the command line names."""
    made = parser(__doc__.splitlines()[0], ROWS, threads=2)
    made.add_argument("--digits", type=int, default=128, help="digits whose likelihood is timed")
    words = parsed(made, ROWS)
    check_peers(words.rows, PEERS)
    options = Options(words.repeats, max(1, words.digits))
    lines = (line for name in words.rows for line in ROWS[name](options))
    report(lines, words.json, machine=machine(("torch", "diffusers", "numpy")))


if __name__ == "__main__":
    called(main)
