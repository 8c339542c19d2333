"""Weights laid out for a few rows of input: sampling reads every weight once per frame, so their
size and layout set its speed.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WeightPrecision = Literal[
    "float32", "bf16", "int8"
]  # as they are; halved; a quarter, with one scale per output


class Linear(nn.Module):
    """y = x W^T + b with weights that do not learn: x (..., M) -> (..., N), in the weights' type.

    silu and times are what a SwiGLU does to two such products, for kernels that do it on the way
    out.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias, self.dtype = weight.contiguous(), bias, weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """silu(y)."""
        return F.silu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Y * other, of the same shape."""
        return self(x) * other


class BlockedLinear(Linear):
    """In oneDNN's own layout, which its kernels stream through: on a CPU inductor's choice too.

    Filled up to whole blocks: an odd number of outputs, such as a vocabulary's, took 1.4 times as
    long.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, n_rows: int):
        self.n_outputs, self.n_spare = len(weight), -len(weight) % 64
        super().__init__(
            F.pad(weight, (0, 0, 0, self.n_spare)),
            bias if bias is None else F.pad(bias, (0, self.n_spare)),
        )
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, n_rows)
        self.product = (
            torch.ops.mkldnn._linear_pointwise.default
        )  # with what follows it: a function of y alone
        self.product_with = torch.ops.mkldnn._linear_pointwise.binary  # or of y and another

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return y.narrow(-1, 0, self.n_outputs) if self.n_spare else y

    def silu(self, x: Tensor) -> Tensor:
        return (
            super().silu(x)
            if self.n_spare
            else self.product(x.to(self.dtype), self.weight, self.bias, "swish", [], "")
        )

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return (
            super().times(x, other)
            if self.n_spare
            else self.product_with(x.to(self.dtype), other, self.weight, self.bias, "mul")
        )


class Int8Linear(Linear):
    """W_ij = scale_i * integer_ij with integers in -127..127: only the weights are rounded,
    products are bfloat16's.

    Inputs are filled up to a multiple of 64: torch's kernel reads whole vectors, past the end of
    the last row if need be.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.n_spare = -weight.shape[1] % 64
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        super().__init__(F.pad((weight / scale).round().to(torch.int8), (0, self.n_spare)), bias)
        self.scale, self.dtype = scale[:, 0].bfloat16(), torch.bfloat16

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        x = F.pad(x, (0, self.n_spare)) if self.n_spare else x
        y = torch._weight_int8pack_mm(x.flatten(0, -2).contiguous(), self.weight, self.scale).view(
            *x.shape[:-1], -1
        )
        return y if self.bias is None else y + self.bias


def prepare_linear(
    weight: Tensor, bias: Tensor | None, precision: WeightPrecision, n_rows: int = 1
) -> Linear:
    """A weight (N, M) for products with about `n_rows` rows.

    To be made anew once the weight has changed.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if precision == "float32":
        return Linear(weight, bias)
    bias = None if bias is None else bias.bfloat16()
    if precision == "int8":
        return Int8Linear(weight.float(), bias)
    weight = weight.bfloat16()
    on_cpu = (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return BlockedLinear(weight, bias, n_rows) if on_cpu else Linear(weight, bias)


def with_prepared_linears(module: nn.Module, precision: WeightPrecision, n_rows: int) -> nn.Module:
    """A copy of a module whose every nn.Linear is laid out so; the module itself where nothing
    would change.
    """
    if precision == "float32":
        return module
    if isinstance(module, nn.Linear):
        return prepare_linear(module.weight, module.bias, precision, n_rows)
    made = copy.copy(module)
    made._modules = {
        name: part and with_prepared_linears(part, precision, n_rows)
        for name, part in module._modules.items()
    }
    return made
