"""Linear layers for sampling, with weights of fewer bytes and in a layout that suits few rows.

Sampling reads every weight once per frame, so the size and the layout of the weights set its speed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WeightPrecision = Literal["float32", "bf16", "int8"]
"""float32: as they are; bf16: half the bytes; int8: a quarter, with one scale per output."""
BLOCK = 64  # kernels go through weights in blocks of this many
FEW_ROWS = 64  # of more, the usual product of float32 is as fast as any
MIN_WEIGHTS = 2**17  # fewer float32 weights stay in a core's own cache in any layout
PROBE_SHAPE = (8, 1024, 512)  # weights of 16 MiB, which no core's own cache holds
PROBE_SECONDS = 0.03  # per layout
PROBE_ROUNDS = 8  # at least, where they end in time
PROBE_LIMIT_SECONDS = 1.0  # under load a call of two threads takes a hundred times as long
# Another layout must be faster by this factor. Measured gains are about 1 or above 1.4, mostly, so
# that a machine takes the same layout each time: a seed draws the same samples again.
GAIN = 1.35


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


class ColumnsLinear(Linear):
    """(W x^T)^T, with W in blocks of outputs, which all threads share.

    Some float32 kernels multiply a matrix by few columns in half of the time that they take for few
    rows by a matrix, and do not share one row among threads at all. The blocks are a view: the
    weights keep their layout, and many rows are multiplied as ever.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.n_outputs = len(weight)
        if self.n_outputs % BLOCK:
            weight = F.pad(weight, (0, 0, 0, -self.n_outputs % BLOCK))
        super().__init__(weight, bias)
        self.blocks = self.weight.unflatten(0, (-1, BLOCK))

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        return self._product(x).contiguous()

    def silu(self, x: Tensor) -> Tensor:
        """The same, then SiLU."""
        return F.silu(self._product(x))

    def gelu_tanh(self, x: Tensor) -> Tensor:
        """The same, then GELU by tanh."""
        return F.gelu(self._product(x), approximate="tanh")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The same, times `other` of the same shape."""
        return self._product(x) * other

    def _product(self, x: Tensor) -> Tensor:
        """`forward`, whose numbers lie column by column where rows are few."""
        rows = x.to(self.dtype).flatten(0, -2)
        if len(rows) > FEW_ROWS:
            return F.linear(x.to(self.dtype), self.weight[: self.n_outputs], self.bias)
        columns = rows.T.expand(len(self.blocks), -1, -1)
        y = torch.bmm(self.blocks, columns).flatten(0, 1)[: self.n_outputs].T
        if self.bias is not None:
            y = y + self.bias
        return y.unflatten(0, x.shape[:-1])


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
        return _float32_linear(weight, bias, n_rows)
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


def _float32_linear(weight: Tensor, bias: Tensor | None, n_rows: int) -> Linear:
    """A layer of weights as they are, in the layout in which this machine reads them fastest."""
    if (
        weight.dtype != torch.float32
        or weight.device.type != "cpu"
        or weight.numel() < MIN_WEIGHTS
        or n_rows > FEW_ROWS
    ):
        return Linear(weight, bias)
    n_rows = 1 << (n_rows - 1).bit_length()  # few sizes are measured
    layout = fastest_layout(n_rows, torch.get_num_threads())
    return _layouts(n_rows)[layout](weight, bias)


def _layouts(n_rows: int) -> dict[str, Callable[[Tensor, Tensor | None], Linear]]:
    """What makes layers of float32 weights for a CPU; the usual layout comes first."""
    makers: dict[str, Callable] = {"rows": Linear, "columns": ColumnsLinear}
    if torch.backends.mkldnn.is_available():
        makers["blocked"] = partial(BlockedLinear, n_rows=n_rows)
    return makers


@lru_cache
def fastest_layout(n_rows: int, n_threads: int) -> str:
    """The layout of float32 weights in which this CPU multiplies `n_rows` rows fastest.

    It is measured once per process, in about 0.1 s, or 1 s on a loaded machine. Results of the
    layouts differ by rounding.

    n_threads: torch's number of threads, on which the answer depends.
    """
    with torch.inference_mode():
        weights = torch.full(PROBE_SHAPE, 0.01)
        x = torch.ones(n_rows, weights.shape[-1])
        sides = {
            name: [make(weight, None) for weight in weights]
            for name, make in _layouts(n_rows).items()
        }
        least_s = _least_seconds(x, list(sides.values()))
    return best_layout(dict(zip(sides, least_s, strict=True)))


def best_layout(seconds: dict[str, float]) -> str:
    """The fastest layout, where each must gain enough over the best of those before it.

    So noise decides nothing where two are about as fast. See GAIN.
    """
    best = next(iter(seconds))
    for name, s in seconds.items():
        if GAIN * s < seconds[best]:
            best = name
    return best


def _least_seconds(x: Tensor, sides: Sequence[Sequence[Linear]]) -> list[float]:
    """The sum of the least seconds that each of a side's layers takes; the sides alternate.

    Calls are timed one by one, as on a loaded machine longer stretches are interrupted.
    """
    least = [[float("inf")] * len(layers) for layers in sides]
    began = time.perf_counter()
    n_rounds = 0
    passed_s = 0.0
    while passed_s < PROBE_SECONDS * len(sides) or n_rounds < PROBE_ROUNDS:
        for layers, least_s in zip(sides, least, strict=True):
            for i, layer in enumerate(layers):
                start = time.perf_counter()
                layer(x)
                least_s[i] = min(least_s[i], time.perf_counter() - start)
        n_rounds += 1
        passed_s = time.perf_counter() - began
        if passed_s > PROBE_LIMIT_SECONDS:
            break
    return list(map(sum, least))


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
