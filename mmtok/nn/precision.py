"""The type of matrix products: bfloat16 where this machine multiplies it faster than float32.

Many CPUs, laptops among them, have no bfloat16 products: there torch emulates them, 35 to 65 times
slower than float32. Others have them, but slower than float32. So "auto" measures.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

MatmulPrecision = Literal["float32", "bf16"]
Precision = Literal["auto", "float32", "bf16"]
PRECISIONS = ("auto", "float32", "bf16")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PROBE_SECONDS = 0.04  # per type; the whole probe takes under 0.2 s, also where bf16 is emulated
# sizes of the square matrices; an emulated product of size 256 takes 20 ms
PROBE_SIZES = {"cpu": 256, "cuda": 2048, "mps": 1024}
GAIN = 1.15  # bfloat16 must be faster by this factor, as casts cost time too


@dataclass(frozen=True)
class MatmulRates:
    """FLOP per second of products of square matrices, by the type of their entries."""

    float32: float
    bf16: float

    @property
    def best(self) -> MatmulPrecision:
        """The precision that "auto" stands for."""
        if self.bf16 > GAIN * self.float32:
            return "bf16"
        return "float32"

    def __str__(self) -> str:
        return f"{self.float32 / 1e9:.3g} GFLOP/s in float32, {self.bf16 / 1e9:.3g} in bf16"


@lru_cache
def matmul_rates(device: torch.device) -> MatmulRates:
    """Measure a device, once per process.

    On a CPU one thread is measured: both types gain alike from more, and there is less noise.
    """
    with _one_thread(device):
        rates = {
            name: matmul_rate(device, dtype, PROBE_SIZES.get(device.type, 256), PROBE_SECONDS)
            for name, dtype in DTYPES.items()
        }
    return MatmulRates(**rates)


def resolve_precision(asked: Precision, device: torch.device) -> MatmulPrecision:
    """Replace "auto" by "bf16" or "float32", whichever this device multiplies faster.

    Warns, with both rates, where bf16 is asked for and the device is slower at it.
    """
    if asked == "float32":
        return asked
    rates = matmul_rates(device)
    if asked == "auto":
        return rates.best
    if rates.best != "bf16":
        warnings.warn(
            f"this machine is slower in bf16: {rates}; precision auto would take float32",
            stacklevel=2,
        )
    return asked


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int, seconds: float) -> float:
    """FLOP per second of products of (n, n) matrices: the fastest of those within `seconds`.

    At least two are made, one of them to warm up.
    """
    generator = torch.Generator(device).manual_seed(0)  # leaves torch's own generator alone
    a = torch.randn(n, n, generator=generator, device=device).to(dtype)
    b = torch.randn(n, n, generator=generator, device=device).to(dtype)
    _timed_product(a, b)  # warm-up
    best = _timed_product(a, b)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, _timed_product(a, b))
    return 2 * n**3 / best


def _timed_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds until one product is finished."""
    start = time.perf_counter()
    torch.mm(a, b)
    if a.device.type != "cpu":
        getattr(torch, a.device.type).synchronize()
    return time.perf_counter() - start


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    n_threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
