"""Precision: what "auto" stands for is measured, once, and said where it would be a mistake."""

import time
import warnings

import pytest
import torch

from mmtok.nn import precision
from mmtok.nn.precision import MatmulRates, matmul_rates, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """machine(float32, bf16): a machine of these rates."""

    def make(float32, bf16):
        monkeypatch.setattr(precision, "matmul_rates", lambda device: MatmulRates(float32, bf16))

    return make


@pytest.mark.parametrize("float32, bf16, best", [
    (62e9, 1.8e9, "float32"),  # AVX2 alone: bfloat16 is emulated
    (162e9, 83e9, "float32"),  # AVX-512 with bfloat16 products, which are slower
    (160e9, 610e9, "bf16"),  # AMX
    (50e12, 760e12, "bf16"),  # an H100
    (100e9, 104e9, "float32"),  # a gain that casting would eat up
])  # fmt: skip
def test_auto_is_what_the_machine_multiplies_faster(machine, float32, bf16, best):
    machine(float32, bf16)
    assert resolve_precision("auto", CPU) == best


def test_bf16_on_a_machine_that_is_slow_at_it_is_done_and_said_with_both_rates(machine):
    machine(62e9, 1.8e9)
    with pytest.warns(UserWarning, match="62 GFLOP/s in float32, 1.8 in bf16"):
        assert resolve_precision("bf16", CPU) == "bf16"
    machine(160e9, 610e9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("bf16", CPU) == "bf16"


def test_float32_asks_no_machine(monkeypatch):
    monkeypatch.setattr(precision, "matmul_rates", None)
    assert resolve_precision("float32", CPU) == "float32"


def test_the_probe_is_quick_made_once_and_leaves_no_trace():
    matmul_rates.cache_clear()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    n_threads = torch.get_num_threads()
    start = time.process_time()
    rates = matmul_rates(CPU)
    assert time.process_time() - start < 0.6  # 0.14 s on a quiet machine
    assert matmul_rates(CPU) is rates
    assert min(rates.float32, rates.bf16) > 1e7
    assert (
        torch.equal(before, torch.random.get_rng_state()) and torch.get_num_threads() == n_threads
    )
