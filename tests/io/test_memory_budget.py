"""Sizes that files declare are held against a budget before there is memory for them."""

import psutil
import pytest

from mmtok.errors import UserError
from mmtok.io import memory_budget


@pytest.fixture(autouse=True)
def unset():
    yield
    memory_budget.set_limit(None)


@pytest.mark.parametrize(
    "size, n_bytes",
    [("8GB", 8e9), ("500 MiB", 500 * 2**20), ("1.5g", 1.5e9), ("4096", 4096), ("2 kb", 2000)],
)
def test_sizes_as_people_write_them(size, n_bytes):
    assert memory_budget.parse_size(size) == n_bytes


@pytest.mark.parametrize("size", ["", "-1GB", "0", "many", "1e9", "nan", "9" * 5000, "8 GBit"])
def test_what_is_no_size(size):
    with pytest.raises(UserError, match="--max-memory is"):
        memory_budget.set_limit(size)


def test_the_line_says_what_it_would_take_what_is_allowed_and_what_to_do():
    memory_budget.set_limit("2GB")
    memory_budget.check(2e9, "x.png")
    with pytest.raises(UserError) as caught:
        memory_budget.check(4e9, "x.png", "a picture of 9 x 9")
    line = str(caught.value)
    assert all(
        part in line
        for part in (
            "x.png: a picture of 9 x 9 would take 4 GB",
            "2 GB are allowed",
            "allow more with --max-memory",
        )
    )


def test_unless_told_half_of_what_is_free():
    assert 0 < memory_budget.limit_bytes() < psutil.virtual_memory().total / 2
    with pytest.raises(UserError, match="half of what is free"):
        memory_budget.check(2.0**80, "x")
