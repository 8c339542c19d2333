"""Low-rank adapters beside linear maps whose own weights are frozen (Hu et al. 2021).

The frozen weights may be integers of eight bits, a quarter of their size in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmtok.nn.inference_linear import int8_rows

BasePrecision = Literal["float32", "int8"]


@dataclass(frozen=True)
class LoRA:
    """Which adapters there are: of every linear map in a block.

    Attributes:
        rank: r, of the product B A.
        alpha: B A is multiplied by alpha / r.
        base: of the frozen weights.
    """

    rank: int
    alpha: float
    base: BasePrecision = "float32"


class LoRALinear(nn.Linear):
    """y = W x + b + alpha / r B A x (Hu et al. 2021, eq. 3), where only A and B learn.

    B is 0 at first, so nothing has changed. With an int8 base W_ij = scale_i * integer_ij, and W is
    0 until `set_weight`; `weight` then holds the integers. `effective_weight` is what the layer
    multiplies by in all.
    """

    decaying = ("lora_A", "lora_B")

    def __init__(self, linear: nn.Linear, lora: LoRA):
        """Take over a layer's weight and bias."""
        n_inputs = linear.in_features
        n_outputs = linear.out_features
        super().__init__(n_inputs, n_outputs, bias=False, device="meta")  # nothing is drawn
        self.factor = lora.alpha / lora.rank
        self.weight = linear.weight.requires_grad_(False)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        device = linear.weight.device
        self.scale: nn.Parameter | None = None
        if lora.base == "int8":
            integers = torch.zeros(n_outputs, n_inputs, dtype=torch.int8, device=device)
            self.weight = nn.Parameter(integers, requires_grad=False)
            self.scale = nn.Parameter(torch.ones(n_outputs, 1, device=device), requires_grad=False)
        bound = n_inputs**-0.5
        self.lora_A = nn.Parameter(
            torch.empty(lora.rank, n_inputs, device=device).uniform_(-bound, bound)
        )
        self.lora_B = nn.Parameter(torch.zeros(n_outputs, lora.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        if self.scale is None:
            y = F.linear(x, self.weight, self.bias)
        else:
            y = self._int8_product(x, self.scale)
        return y + self.factor * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def _int8_product(self, x: Tensor, scale: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler fuses this by itself
            y = F.linear(x, dequantised(self.weight, scale, x.dtype))
        else:
            y = _Int8Product.apply(x, self.weight, scale)
        if self.bias is None:
            return y
        return y + self.bias.to(y.dtype)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Replace W (N, M), rounded to 255 steps for each output where the base is int8."""
        if self.scale is None:
            self.weight.copy_(weight)
            return
        integers, scale = int8_rows(weight.float())
        self.weight.copy_(integers)
        self.scale.copy_(scale)

    def base_weight(self) -> Tensor:
        """W (N, M), without the adapter."""
        if self.scale is None:
            return self.weight
        return dequantised(self.weight, self.scale, self.scale.dtype)

    def merged_weight(self) -> Tensor:
        """W + alpha / r B A (N, M)."""
        return self.base_weight() + self.factor * self.lora_B @ self.lora_A


class _Int8Product(torch.autograd.Function):
    """x W^T, where W is made of integers twice rather than kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(integers, scale)
        return F.linear(x, dequantised(integers, scale, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        integers, scale = ctx.saved_tensors
        return grad @ dequantised(integers, scale, grad.dtype), None, None


def dequantised(integers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale_i * integer_ij (N, M)."""
    return integers.to(dtype) * scale.to(dtype)


def effective_weight(linear: nn.Linear) -> Tensor:
    """What a linear layer multiplies by, its adapter included."""
    if isinstance(linear, LoRALinear):
        return linear.merged_weight()
    return linear.weight


def add_adapters(module: nn.Module, lora: LoRA) -> None:
    """Give every linear layer inside a module an adapter, in place, and freeze all the rest."""
    module.requires_grad_(False)
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear):
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, LoRALinear(part, lora))


def adapters(module: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The layers with adapters inside a module, by name."""
    for name, part in module.named_modules():
        if isinstance(part, LoRALinear):
            yield name, part


def is_adapter(name: str) -> bool:
    """Whether a name in a state dict is that of an adapter, or of a scale."""
    return name.endswith((".lora_A", ".lora_B", "_proj.scale"))


def without_rows(grad: Tensor, n: int) -> Tensor:
    """A table's gradient without that of its first n rows, which are frozen."""
    grad = grad.clone()
    grad[:n] = 0
    return grad
