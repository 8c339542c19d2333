"""Samplers and likelihoods by diffusion: .venv/bin/python scripts/bench_diffusion.py [--only ROW
...] [--json FILE]

What the samplers cost beside the network that they call, how batches scale, the same walks beside
`diffusers`, and what exact likelihoods of 1,000 digits take. Needs the extra `bench`. The network
is the one that digits are drawn by: 8 x 8 pixels in patches of 2 x 2, 6 layers of width 128, with
random weights. On a shared machine only ratios mean much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from side_by_side import Line, machine, parsed, parser, report, seconds, turn_about
from torch import Tensor, nn

from mmtok.core.segment import Signature
from mmtok.diffusion.predictions import preconditioned
from mmtok.diffusion.samplers import DPMSolver2M, Euler, Heun, Sampler
from mmtok.diffusion.schedules import VP
from mmtok.heads.diffusion import GridDiffusion, GridDiffusionHead
from mmtok.nn.denoisers import DiTConfig, GridDenoiser

WIDTH = 64  # of the decoder's hidden states, which the head is told
DIGITS = Signature("image", latent_size=4, frames=16, cells=17)
DIT = DiTConfig(6, 128, 4)
N_STEPS = 25


@dataclass(frozen=True)
class Setting:
    """What the words on the command line ask for."""

    repeats: int
    digits: int


# ---- the network


def shaken(network: nn.Module) -> nn.Module:
    """The network with noise on all its weights: what starts at 0 would hide what is behind it."""
    torch.manual_seed(0)
    for p in network.parameters():
        p.data.add_(torch.randn(p.shape) * 0.05)
    return network.eval().requires_grad_(False)


def digits_head(sampler: Sampler, dit: DiTConfig) -> GridDiffusionHead:
    return shaken(
        GridDiffusion(sampler=sampler, steps=N_STEPS, network=dit, patch=2).build(WIDTH, DIGITS)
    )


def draw(head: GridDiffusionHead, n: int) -> Tensor:
    """N pictures (n, 1, 8, 8)."""
    return head.draw(
        [torch.zeros(n, WIDTH)], (1, 8, 8), 0, 1.0, 1.0, torch.Generator().manual_seed(0)
    )


class Watched:
    """Sums up the seconds that calls of a network take while they are made."""

    def __init__(self, network: nn.Module):
        self.seconds, self._start = 0.0, 0.0
        network.register_forward_pre_hook(lambda *_: self._begin())
        network.register_forward_hook(lambda *_: self._end())

    def _begin(self) -> None:
        self._start = time.perf_counter()

    def _end(self) -> None:
        self.seconds += time.perf_counter() - self._start

    def apart(self, work: Callable[[], object]) -> tuple[float, float]:
        """The seconds of one call that are the network's, and those that are not."""
        self.seconds = 0.0
        total = seconds(work)
        return self.seconds, total - self.seconds


# ---- the samplers alone


@torch.no_grad()
def overhead(setting: Setting) -> Iterator[Line]:
    """What is not the network's in drawing 100 digits: its calls are timed where they are made, so
    that both saw the same machine.
    """
    for sampler in (Euler(), Heun(), DPMSolver2M()):
        head = digits_head(sampler, DIT)
        watched = Watched(head.network)
        work = lambda head=head: draw(head, 100)
        turns = [watched.apart(work) for _ in range(setting.repeats + 1)][1:]
        whole, share = (median(x) for x in zip(*((a + b, b / (a + b)) for a, b in turns)))
        yield Line(
            f"{type(sampler).__name__}, {N_STEPS} steps, 100 digits",
            "s",
            whole,
            "",
            None,
            "the rest",
            share,
            0.05,
            least=False,
        )


@torch.no_grad()
def batches(setting: Setting) -> Iterator[Line]:
    """Time for each sample at four sizes of a batch: even, as rows never meet.

    The bar is this script's own.
    """
    head, sizes = digits_head(DPMSolver2M(), DIT), (25, 50, 100, 200)
    times = turn_about([lambda n=n: draw(head, n) for n in sizes], setting.repeats)
    each = [s / n for s, n in zip(times, sizes)]
    said = ", ".join(f"{n}: {1000 * s:.3g}" for n, s in zip(sizes, each))
    yield Line("time per sample, largest over smallest", "ms/sample", 1000 * each[-1], f"batch {said} ms", None,
               "ratio", max(each) / min(each), 1.5, least=False)  # fmt: skip


# ---- beside diffusers


def euler_of_diffusers(sigmas: Tensor):
    """Euler in sigma on unscaled states x = y + sigma n: their `scale_model_input` is our c_in,
    their "epsilon" our F of VP's column.
    """
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        prediction_type="epsilon", timestep_spacing="linspace", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(sigmas=sigmas.tolist())  # their last one is the 0 that is in the list
    return scheduler


def dpm_of_diffusers(n_steps: int):
    """DPM-Solver++(2M) by midpoints: the first step is of order 1, and so is a last one to sigma 0.

    States are x / sqrt(1 + sigma^2).

    It takes no noise levels from outside, so ours are taken from it: rho = 7 between the ends of
    its own betas.
    """
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(prediction_type="epsilon", algorithm_type="dpmsolver++", solver_type="midpoint", solver_order=2,
                                            use_karras_sigmas=True, final_sigmas_type="zero")  # fmt: skip
    scheduler.set_timesteps(n_steps)
    return scheduler


def their_walk(
    make: Callable[[], object], network: nn.Module, noise: Tensor, unscaled: bool
) -> Callable[[], Tensor]:
    """A draw as their pipelines make it. unscaled: whether their state is y + sigma n, or that over
    sqrt(1 + sigma^2).

    The network is told what ours is told of the noise, VP's c_noise, made ready beforehand; their
    own would be their timesteps.
    """
    sigmas = make().sigmas.double()
    told = [torch.full((len(noise),), c) for c in VP().coefficients(sigmas[:-1]).c_noise.tolist()]
    start = float(sigmas[0] if unscaled else sigmas[0] / (1 + sigmas[0] ** 2).sqrt())

    @torch.no_grad()
    def walk() -> Tensor:
        scheduler = make()  # its steps count along
        scheduler.set_begin_index(0)  # rounded timesteps may be equal
        x = noise * start
        for t, c in zip(scheduler.timesteps, told):
            x = scheduler.step(
                network(scheduler.scale_model_input(x, t), c), t, x, return_dict=False
            )[0]
        return x

    return walk


def our_walk(
    sampler: Sampler, network: nn.Module, noise: Tensor, sigmas: Tensor
) -> Callable[[], Tensor]:
    """The same draw by ours, as heads make it: the state in float64 around a network in float32."""
    denoiser = preconditioned(network, VP(), torch.float32)

    @torch.no_grad()
    def walk() -> Tensor:
        return sampler(denoiser, noise.double() * float(sigmas[0]), sigmas)

    return walk


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, over the root mean square of b."""
    return float((a.double() - b.double()).abs().max() / b.double().square().mean().sqrt())


def pairs(
    network: nn.Module, noise: Tensor, n_steps: int
) -> Iterator[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    """Name, our walk and theirs, at the same noise levels from the same noise (B, C, Y, X) float32."""
    sigmas = dpm_of_diffusers(n_steps).sigmas
    yield (
        "Euler",
        our_walk(Euler(), network, noise, sigmas.double()),
        their_walk(lambda: euler_of_diffusers(sigmas), network, noise, True),
    )
    yield ("DPMSolver2M", our_walk(DPMSolver2M(), network, noise, sigmas.double()),
           their_walk(lambda: dpm_of_diffusers(n_steps), network, noise, False))  # fmt: skip


def append_dims(setting: Setting) -> Iterator[Line]:
    """The same network, noise and noise levels, 100 digits.

    No slower but for what medians on a shared machine differ by.

    Both walks are short and all but equal, so they take three times as many turns as other rows.
    """
    network = shaken(GridDenoiser(DIT, (1, 8, 8), 2))
    noise = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, ours, theirs in pairs(network, noise, N_STEPS):
        apart = difference(ours(), theirs())
        a, b = turn_about([ours, theirs], 3 * setting.repeats)
        yield Line(
            f"{name}, {N_STEPS} steps, 100 digits", "s", a, "diffusers", b, "ratio", b / a, 0.97
        )
        yield Line(
            "  largest difference over the result's scale",
            "",
            apart,
            "",
            None,
            "difference",
            apart,
            1e-4,
            least=False,
        )


# ---- likelihoods


def likelihood(setting: Setting) -> Iterator[Line]:
    """-log P of discrete digits by the probability-flow ODE: so many digits are timed as --digits
    says, and 1,000 reckoned from them.

    Rows go through in pieces of CHUNK_ROWS, one after the other, so that the time is
    proportional. By the exact trace at two sizes of the network, then by Hutchinson's probes.
    """
    for what, dit, exact in (
        ("exact, 6 layers", DIT, True),
        ("exact, 4 layers", DiTConfig(), True),
        ("Hutchinson, 6 layers", DIT, False),
    ):
        head = digits_head(Heun(), dit)
        head.config = replace(
            head.config, exact_dimensions=head.config.exact_dimensions if exact else 0
        )
        levels = torch.randint(
            0, DIGITS.cells, (setting.digits, 16, 4), generator=torch.Generator().manual_seed(0)
        )
        values = ((levels + 0.5) * 2 / DIGITS.cells - 1).float()
        work = lambda n, head=head, values=values: head.nats(
            torch.zeros(n, WIDTH), values[:n], torch.Generator().manual_seed(0)
        )
        work(1)
        cpu = time.process_time()
        s = seconds(partial(work, setting.digits))
        cpu = time.process_time() - cpu
        each, busy = s / setting.digits, cpu / setting.digits
        said = f"{1000 * busy:.4g} s of the processor, {setting.digits} timed"
        yield Line(
            f"1,000 digits, {what}",
            "s",
            1000 * each,
            said,
            None,
            "minutes",
            1000 * each / 60,
            5.0,
            least=False,
        )


ROWS = {row.__name__: row for row in (overhead, batches, append_dims, likelihood)}


def main() -> None:
    made = parser(__doc__.splitlines()[0], ROWS, threads=2)
    made.add_argument(
        "--digits", type=int, default=128, help="how many digits likelihoods are timed on"
    )
    words = parsed(made, ROWS)
    lines = (
        line
        for name in words.rows
        for line in ROWS[name](Setting(words.repeats, max(1, words.digits)))
    )
    report(lines, words.json, machine=machine(("torch", "diffusers", "numpy")))


if __name__ == "__main__":
    main()
