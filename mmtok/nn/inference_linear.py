"""Linear layers for sampling, with weights of fewer bytes and in a layout that suits few rows.

Sampling reads every weight once per frame, so the size and the layout of the weights set its speed.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WeightPrecision = Literal["float32", "bf16", "int8"]
"""float32: as they are; bf16: half the bytes; int8: a quarter, with one scale per output."""
BLOCK = 64  # kernels go through weights in blocks of this many


class Linear(nn.Module):
    """y = x W^T + b with weights that do not learn: x (..., M) -> (..., N), in the weights' type.

    silu(x), gelu_tanh(x) and times(x, other) let a kernel fuse SwiGLU's activation and product.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = weight.contiguous()
        self.bias = bias
        self.dtype = weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        return F.linear(x.to(self.dtype), self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """The same, then SiLU."""
        return F.silu(self(x))

    def gelu_tanh(self, x: Tensor) -> Tensor:
        """The same, then GELU by tanh."""
        return F.gelu(self(x), approximate="tanh")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The same, times `other` of the same shape."""
        return self(x) * other


class BlockedLinear(Linear):
    """Weights in oneDNN's own layout, which its CPU kernels stream through; inductor uses it too.

    The outputs are padded to whole blocks: an odd number of them, such as a vocabulary's, took 1.4
    times as long.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, n_rows: int):
        self.n_outputs = len(weight)
        self.n_padding = -len(weight) % BLOCK
        if bias is not None:
            bias = F.pad(bias, (0, self.n_padding))
        super().__init__(F.pad(weight, (0, 0, 0, self.n_padding)), bias)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, n_rows)
        # the product fused with a function of y, and with a function of y and another tensor
        self.unary = torch.ops.mkldnn._linear_pointwise.default
        self.binary = torch.ops.mkldnn._linear_pointwise.binary

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        y = self.unary(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        if self.n_padding:
            return y.narrow(-1, 0, self.n_outputs)
        return y

    def silu(self, x: Tensor) -> Tensor:
        """The same, then SiLU."""
        if self.n_padding:
            return super().silu(x)
        return self.unary(x.to(self.dtype), self.weight, self.bias, "swish", [], "")

    def gelu_tanh(self, x: Tensor) -> Tensor:
        """The same, then GELU by tanh."""
        if self.n_padding:
            return super().gelu_tanh(x)
        return self.unary(x.to(self.dtype), self.weight, self.bias, "gelu", [], "tanh")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The same, times `other` of the same shape."""
        if self.n_padding:
            return super().times(x, other)
        return self.binary(x.to(self.dtype), other, self.weight, self.bias, "mul")


class Int8Linear(Linear):
    """W_ij = scale_i * integer_ij with integers in -127..127.

    Only the weights are rounded; products are in bfloat16. Inputs are padded to a multiple of 64,
    as torch's kernel reads whole vectors, past the end of the last row if need be.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.n_padding = -weight.shape[1] % BLOCK
        integers, scale = int8_rows(weight)
        super().__init__(F.pad(integers, (0, self.n_padding)), bias)
        self.scale = scale[:, 0].bfloat16()
        self.dtype = torch.bfloat16

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        x = x.to(self.dtype)
        if self.n_padding:
            x = F.pad(x, (0, self.n_padding))
        rows = x.flatten(0, -2).contiguous()
        y = torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        if self.bias is None:
            return y
        return y + self.bias


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The integers (N, M) and scales (N, 1) nearest to a weight, see `Int8Linear`."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


def prepare_linear(
    weight: Tensor, bias: Tensor | None, precision: WeightPrecision, n_rows: int = 1
) -> Linear:
    """A layer of a weight (N, M), for inputs of about `n_rows` rows.

    It holds a copy: make it anew once the weight has changed.
    """
    weight = weight.detach()
    if bias is not None:
        bias = bias.detach()
    if precision == "float32":
        return Linear(weight, bias)
    if bias is not None:
        bias = bias.bfloat16()
    if precision == "int8":
        return Int8Linear(weight.float(), bias)
    weight = weight.bfloat16()
    if (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return BlockedLinear(weight, bias, n_rows)
    return Linear(weight, bias)


def with_prepared_linears(module: nn.Module, precision: WeightPrecision, n_rows: int) -> nn.Module:
    """A copy of a module with every nn.Linear prepared for `n_rows` rows.

    In float32, where nothing would change, it is the module itself.
    """
    if precision == "float32":
        return module
    if isinstance(module, nn.Linear):
        return prepare_linear(module.weight, module.bias, precision, n_rows)
    prepared = copy.copy(module)
    prepared._modules = {
        name: part and with_prepared_linears(part, precision, n_rows)
        for name, part in module._modules.items()
    }
    return prepared


def tensors_of(module: nn.Module) -> list[Tensor]:
    """All tensors of a module: parameters, buffers, and those that prepared layers hold."""
    found: list[Tensor] = []
    for part in module.modules():
        held = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
        found += [x for x in held if isinstance(x, Tensor)]
    return found
