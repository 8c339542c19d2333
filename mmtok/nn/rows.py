"""How many rows go through a network at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS_AT_ONCE = 64  # of pictures: on a CPU more of them fall out of its caches


def by_rows(network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """network(*inputs), all (B, ...); where nothing is learned on a CPU, a few rows after another.

    Of 256 rows at once 8 x 8 pixels took a DiT of width 128 1.5 times as long, 28 x 28 a small U-Net too (two cores).
    """
    if torch.is_grad_enabled() or inputs[0].device.type != "cpu" or len(inputs[0]) <= ROWS_AT_ONCE:
        return network(*inputs)
    return torch.cat([network(*part) for part in zip(*(x.split(ROWS_AT_ONCE) for x in inputs))])
